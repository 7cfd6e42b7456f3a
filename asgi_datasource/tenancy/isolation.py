"""Compiles a tenant's place in the configuration into the settings of its transactions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from .isolation_audit import Home
from .tenant import Strategy, Tenant


def quote_identifier(name: str) -> str:
    """Quote a name for use in a setting such as `search_path` (PostgreSQL manual, "Identifiers and Key Words")."""
    return '"' + name.replace('"', '""') + '"'


def tenant_settings(
    *,
    schema: str | None = None,
    shared_schemas: Iterable[str] = (),
    row_security: Mapping[str, str] | None = None,
    role: str | None = None,
) -> tuple[Strategy, tuple[tuple[str, str], ...]]:
    """Compile the isolation of a tenant into the settings of its transactions.

    Args:
        schema: The tenant's own schema; None when it has none.
        shared_schemas: Schemas searched after the tenant's own, for extensions and shared tables.
        row_security: Custom settings that the row security policies read.
        role: Role that the transaction runs as (SET LOCAL ROLE).

    Returns:
        The strategy and the pairs, in the order in which they are applied: the role last, since it may lack the
        right to change the others.
    """
    # There may be 100,000 tenants: the usual case is fast.
    path = "" if schema is None else '"' + schema.replace('"', '""') + '"'
    if shared_schemas:
        path = ", ".join([*([path] if path else []), *map(quote_identifier, shared_schemas)])
    settings: tuple[tuple[str, str], ...] = (("search_path", path),) if path else ()
    if row_security:
        settings += tuple(row_security.items())
    if role is not None:
        settings += (("role", role),)
    if row_security or role is not None:
        return _ROW_SECURITY, settings
    return (_NONE if schema is None else _SCHEMA), settings


_ROW_SECURITY: Final = Strategy.ROW_SECURITY
_SCHEMA: Final = Strategy.SCHEMA
_NONE: Final = Strategy.NONE


def home_of(tenant: Tenant, shared_schemas: Sequence[str] = ()) -> Home:
    """The home of a tenant on its datasource, derived from the settings of its transactions.

    Args:
        tenant: The tenant.
        shared_schemas: The schemas of its datasource that follow its own in the search_path.
    """
    schema = role = None
    custom: tuple[str, ...] = ()
    for setting, value in tenant.settings:
        if setting == "search_path":
            # There may be 100,000 tenants: the usual case is fast.
            names = _QUOTED.findall(value) if shared_schemas else [value[1:-1]]
            schema = names[0].replace('""', '"') if len(names) > len(shared_schemas) else None
        elif setting == "role":
            role = value
        else:
            custom += (setting,)
    return Home(tenant.name or "", schema, role, bool(custom), custom)


def by_database(tenants: Iterable[Tenant]) -> dict[str, list[Tenant]]:
    """Tenants by database, for a datasource with a database per tenant."""
    found: dict[str, list[Tenant]] = {}
    for tenant in tenants:
        found.setdefault(tenant.database or tenant.name or "", []).append(tenant)
    return found


_QUOTED: Final = re.compile(r'"((?:[^"]|"")+)"')
