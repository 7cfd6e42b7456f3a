"""Finds holes in the isolation of tenants on a server: roles that bypass row security, paths to other tenants' rows.

Follows the tables that the tenants' roles can read, through views, partitions and functions. The connection must use
the application's own login, since a tenant's statement can RESET ROLE to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .audit_findings import Ask, Finding, Hole, Home, quoted, sample
from .audit_roles import (
    AuditLogin,
    find_bypassing,
    find_missing,
    find_shadowed,
    find_shared_roles,
    places_of,
    query_login,
)
from .audit_tables import find_unguarded

__all__ = ["Ask", "Finding", "Hole", "Home", "find_holes", "sample"]


async def find_holes(
    ask: Ask,
    homes: Sequence[Home],
    *,
    shared_schemas: Sequence[str] = (),
    allowed_roles: Sequence[str] = (),
    shared_tables: Sequence[str] = (),
) -> list[Finding]:
    """Find the holes of one server.

    Args:
        ask: Runs a query on the server.
        homes: The tenants on the server.
        shared_schemas: Schemas in the search_path after a tenant's own.
        allowed_roles: Roles that may bypass row security, or use the schemas of several tenants.
        shared_tables: Tables, views and functions that are shared by all tenants, as `table` or `schema.table`.

    Returns:
        The holes; those of tables and functions in the order of their names.

    Source: PostgreSQL manual, "Row Security Policies", "The Schema Search Path", "Writing SECURITY DEFINER Functions
    Safely".
    """
    guarded = [home for home in homes if home.has_row_security]
    # A role isolates tenants, too, by its privileges.
    vetted = sorted({home.role for home in homes if home.role})
    audit_login = await query_login(ask, vetted)
    found = await find_missing(ask, homes, audit_login)
    if guarded or vetted:
        found += [hole for hole in find_bypassing(audit_login, guarded) if hole.name not in allowed_roles]
    if guarded:
        reached = await find_unguarded(ask, guarded, audit_login, shared_schemas)
        found += [hole for hole in reached if not _is_shared(hole.name, shared_tables)]
    apart = [home for home in homes if home.schema and not home.has_row_security]
    if apart:
        found += [hole for hole in await find_shared_roles(ask, apart, audit_login) if hole.name not in allowed_roles]
    if apart and shared_schemas:
        found += await find_shadowed(ask, apart, audit_login, list(shared_schemas))
    definers = await find_definers(ask, homes, audit_login, shared_schemas, allowed_roles)
    return found + [hole for hole in definers if not _is_shared(hole.name.partition("(")[0], shared_tables)]


def _is_shared(name: str, shared: Sequence[str]) -> bool:
    return name in shared or name.partition(".")[2] in shared


_DEFINERS: Final = """
select distinct n.nspname::pg_catalog.text, p.proname::pg_catalog.text,
    pg_catalog.pg_get_function_identity_arguments(p.oid),
    coalesce(p.proconfig::pg_catalog.text operator(pg_catalog.~) '(^|[{,"])search_path=', false),
    o.rolname::pg_catalog.text, o.rolsuper or o.rolbypassrls
from rows from (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])) h(role, schema)
join pg_catalog.pg_roles r on r.rolname operator(pg_catalog.=) h.role
join pg_catalog.pg_namespace n on n.nspname operator(pg_catalog.=) h.schema
join pg_catalog.pg_proc p on p.pronamespace operator(pg_catalog.=) n.oid and p.prosecdef
join pg_catalog.pg_roles o on o.oid operator(pg_catalog.=) p.proowner
where pg_catalog.has_schema_privilege(r.oid, n.oid, 'usage')
    and pg_catalog.has_function_privilege(r.oid, p.oid, 'execute')
    and n.nspname operator(pg_catalog.<>) 'asgi_datasource'
    and not exists (select from pg_catalog.pg_depend d
        where d.classid operator(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            and d.objid operator(pg_catalog.=) p.oid and d.deptype operator(pg_catalog.=) 'e')
order by 1, 2, 3"""


async def find_definers(
    ask: Ask,
    homes: Sequence[Home],
    audit_login: AuditLogin,
    shared_schemas: Sequence[str],
    allowed_roles: Sequence[str],
) -> list[Finding]:
    places = places_of(homes, audit_login, [*shared_schemas, "public"])
    if not places:
        return []
    has_policies = any(home.has_row_security for home in homes)
    found: list[Finding] = []
    rows = await ask(_DEFINERS, [role for role, _ in places], [schema for _, schema in places])
    for schema, function, arguments, has_path, owner, passes in rows:
        name = f"{schema}.{function}({arguments})"
        signature = f"{quoted(schema)}.{quoted(function)}({arguments})"
        if not has_path:
            message = (
                f"the function {name} is SECURITY DEFINER and uses its caller's search_path with its owner's rights"
            )
            fix = f"Fix it: alter function {signature} set search_path = {quoted(schema)}, pg_temp."
            found.append(Finding(Hole.DEFINER_FUNCTION, name, message, fix))
        elif has_policies and passes and owner not in allowed_roles:
            message = f"the function {name} is SECURITY DEFINER and runs as {owner}, for whom no policy holds"
            fix = f"Let an ordinary role own it: alter function {signature} owner to ..."
            found.append(Finding(Hole.DEFINER_FUNCTION, name, message, fix))
    return found
