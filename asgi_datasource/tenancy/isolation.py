"""From a tenant's place in the configuration to the settings of its transactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .tenant import Strategy


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
    """Compile how a tenant is kept apart into the settings of its transactions.

    Args:
        schema: The tenant's own schema; None when it has none.
        shared_schemas: Schemas searched after the tenant's own, for extensions and shared tables.
        row_security: Custom settings that the row security policies read.
        role: Role that the transaction runs as (SET LOCAL ROLE).

    Returns:
        The strategy and the pairs, in the order in which they are applied: the role last, since it may lack the
        right to change the others.
    """
    settings: list[tuple[str, str]] = []
    shared = [quote_identifier(name) for name in shared_schemas]
    if schema is not None:
        settings.append(("search_path", ", ".join([quote_identifier(schema), *shared])))
    elif shared:
        settings.append(("search_path", ", ".join(shared)))
    if row_security:
        settings.extend(row_security.items())
    if role is not None:
        settings.append(("role", role))
    if row_security or role is not None:
        strategy = Strategy.ROW_SECURITY
    else:
        strategy = Strategy.SCHEMA if schema is not None else Strategy.NONE
    return strategy, tuple(settings)
