"""Holes in what keeps tenants apart on a server: who passes row security by, and what reaches a stranger's rows.

Asks the catalogs through whatever connection the caller has; it must be the application's own login.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, LiteralString, Protocol, TypeVar


class Ask(Protocol):
    """Runs a query on a server."""

    async def __call__(self, sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of its answer."""
        ...


class Hole(StrEnum):
    """The kinds of holes."""

    ROLE_BYPASSES = "role_bypasses"
    """The login role passes every policy by: it is a superuser, or has BYPASSRLS."""
    TABLE_WITHOUT_POLICY = "table_without_policy"
    """A table that tenants reach has no row security, so that each sees all rows of it."""
    POLICY_NOT_FORCED = "policy_not_forced"
    """The role owns the table, and the policies do not hold for the owner."""
    VIEW_OF_OWNER = "view_of_owner"
    """A view reads its tables with the rights of its owner, for whom the policies do not hold."""
    SEARCH_PATH = "search_path"
    """A name that is missing in the tenant's schema is found in a shared one."""
    MISSING_SCHEMA = "missing_schema"
    """The tenant's schema is not there, so that every name is looked up in the shared ones."""
    MISSING_ROLE = "missing_role"
    """The tenant's role is not there, or the login may not become it."""
    DEFINER_FUNCTION = "definer_function"
    """A SECURITY DEFINER function without a search_path of its own: its caller's decides which tables it uses."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One hole.

    Attributes:
        hole: Its kind.
        name: What it is in: a role, or a table, view, function or schema with its schema's name.
        message: What is wrong, without full stop.
        fix: What to do, a sentence; the statement where there is one.
        tenant: The tenant that it is about; None when it is about all of them.
    """

    hole: Hole
    name: str
    message: str
    fix: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """Where a tenant lives on the server that is asked.

    Attributes:
        name: The tenant's name; that of nobody where it stands for tenants that are yet to come.
        schema: Its own schema; `""` is one that is not known yet.
        role: The role its transactions run as; `""` as well.
        has_row_security: Whether policies keep it apart.
    """

    name: str
    schema: str | None = None
    role: str | None = None
    has_row_security: bool = False


_T = TypeVar("_T")


def sample(whole: Sequence[_T], most: int) -> list[_T]:
    """As many as can be looked at, spread over the whole, and the same ones each time."""
    if len(whole) <= most:
        return list(whole)
    return [whole[number * len(whole) // most] for number in range(most)]


async def find_holes(
    ask: Ask,
    homes: Sequence[Home],
    *,
    shared_schemas: Sequence[str] = (),
    allowed_roles: Sequence[str] = (),
    shared_tables: Sequence[str] = (),
) -> list[Finding]:
    """Look for holes on one server.

    Args:
        ask: Runs a query there.
        homes: The tenants that live there.
        shared_schemas: Schemas that are searched after a tenant's own.
        allowed_roles: Roles that may pass row security by.
        shared_tables: Tables and views that every tenant may see all of, as `table` or `schema.table`.

    Returns:
        Every hole, tables and functions by name.

    Source: PostgreSQL manual, "Row Security Policies", "The Schema Search Path", "Writing SECURITY DEFINER Functions
    Safely".
    """
    found = await _missing(ask, homes)
    schemas = {home.schema for home in homes if home.schema}
    guarded = [home for home in homes if home.has_row_security]
    if guarded:
        roles = {home.role for home in guarded if home.role}
        if any(home.role is None for home in guarded):
            # Whoever has no role of its own runs as the login.
            roles |= {str(name) for [name] in await ask("select current_user::text")}
        reached = {home.schema for home in guarded if home.schema} | set(shared_schemas)
        if any(home.schema is None for home in guarded) and not shared_schemas:
            reached |= {str(name) for [name] in await ask(_DEFAULT_PATH)}
        found += [hole for hole in await _bypassing(ask, sorted(roles)) if hole.name not in allowed_roles]
        found += [
            hole
            for hole in await _unguarded(ask, sorted(reached), sorted(roles))
            if hole.name not in shared_tables and hole.name.partition(".")[2] not in shared_tables
        ]
    unregistered = sorted({home.schema for home in homes if home.schema and not home.has_row_security})
    if unregistered and shared_schemas:
        found += await _falling_through(ask, unregistered, list(shared_schemas))
    found += await _definers(ask, sorted(schemas | set(shared_schemas) | {"public"}))
    return found


_DEFAULT_PATH: Final = "select unnest(current_schemas(false))::text"

_MISSING_SCHEMAS: Final = """
select name from unnest(%s::text[]) name where not exists (select from pg_namespace where nspname = name)"""

_ROLES: Final = """
select name, r.oid is not null, coalesce(pg_has_role(current_user, r.oid, 'member'), false)
from unnest(%s::text[]) name left join pg_roles r on r.rolname = name
where r.oid is null or not pg_has_role(current_user, r.oid, 'member')"""


async def _missing(ask: Ask, homes: Sequence[Home]) -> list[Finding]:
    by_schema = {home.schema: home.name for home in homes if home.schema}
    by_role = {home.role: home.name for home in homes if home.role}
    found: list[Finding] = []
    if by_schema:
        for [name] in await ask(_MISSING_SCHEMAS, list(by_schema)):
            message = f"the schema {name} is not there, so that names are looked up elsewhere"
            mend = f"Create it: create schema {_quoted(name)}."
            found.append(Finding(Hole.MISSING_SCHEMA, name, message, mend, by_schema[name]))
    if by_role:
        for name, exists, _ in await ask(_ROLES, list(by_role)):
            message = f"the login may not become the role {name}" if exists else f"the role {name} is not there"
            mend = (
                f"Grant it: grant {_quoted(name)} to the login." if exists else "Create it, and grant it to the login."
            )
            found.append(Finding(Hole.MISSING_ROLE, name, message, mend, by_role[name]))
    return found


_BYPASSING: Final = """
select rolname::text, rolsuper from pg_roles
where rolname = any(%s::text[]) and (rolsuper or rolbypassrls) order by 1"""


async def _bypassing(ask: Ask, roles: list[str]) -> list[Finding]:
    found: list[Finding] = []
    for name, is_super in await ask(_BYPASSING, roles):
        why = "is a superuser" if is_super else "has BYPASSRLS"
        mend = "Log in as an ordinary role." if is_super else f"Take it away: alter role {_quoted(name)} nobypassrls."
        message = f"the role {name} {why}: no policy holds for it, and each tenant sees all rows"
        found.append(Finding(Hole.ROLE_BYPASSES, name, message, mend))
    return found


_TABLES: Final = """
select n.nspname::text, c.relname::text, c.relrowsecurity, c.relforcerowsecurity,
       exists (select from pg_policy where polrelid = c.oid),
       pg_has_role(coalesce(r.rolname, current_user), c.relowner, 'usage')
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join pg_roles r on r.rolname = any(%s::text[])
where n.nspname = any(%s::text[]) and c.relkind in ('r', 'p') and not c.relispartition
  and has_table_privilege(coalesce(r.rolname, current_user), c.oid, 'select, insert, update, delete')
order by 1, 2"""

_VIEWS: Final = """
select n.nspname::text, c.relname::text, c.relkind = 'm'
from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_roles o on o.oid = c.relowner
where n.nspname = any(%s::text[]) and c.relkind in ('v', 'm')
  and has_table_privilege(current_user, c.oid, 'select')
  and (c.relkind = 'm' or not coalesce(c.reloptions::text ~ 'security_invoker=(true|on|1)', false))
  and exists (
    select from pg_rewrite w join pg_depend d on d.objid = w.oid and d.classid = 'pg_rewrite'::regclass
    join pg_class t on t.oid = d.refobjid and d.refclassid = 'pg_class'::regclass
    where w.ev_class = c.oid and t.oid <> c.oid and t.relrowsecurity
      and (c.relkind = 'm' or o.rolsuper or o.rolbypassrls or (t.relowner = o.oid and not t.relforcerowsecurity)))
order by 1, 2"""


async def _unguarded(ask: Ask, schemas: list[str], roles: list[str]) -> list[Finding]:
    found: dict[tuple[Hole, str], Finding] = {}
    for schema, table, is_on, is_forced, has_policy, is_owner in await ask(_TABLES, roles, schemas):
        name = f"{schema}.{table}"
        quoted = f"{_quoted(schema)}.{_quoted(table)}"
        if not is_on:
            message = f"the table {name} has no row security: each tenant sees all rows of it"
            mend = f"Write a policy, and alter table {quoted} enable row level security, force row level security."
            found[Hole.TABLE_WITHOUT_POLICY, name] = Finding(Hole.TABLE_WITHOUT_POLICY, name, message, mend)
        elif is_owner and not is_forced:
            message = f"the login owns the table {name}, and its policies do not hold for the owner"
            mend = f"Force them: alter table {quoted} force row level security."
            found[Hole.POLICY_NOT_FORCED, name] = Finding(Hole.POLICY_NOT_FORCED, name, message, mend)
        elif not has_policy:
            message = f"the table {name} has row security and no policy: nobody sees a row of it"
            mend = f"Write one: create policy ... on {quoted} using (...)."
            found[Hole.TABLE_WITHOUT_POLICY, name] = Finding(Hole.TABLE_WITHOUT_POLICY, name, message, mend)
    for schema, view, is_stored in await ask(_VIEWS, schemas):
        name = f"{schema}.{view}"
        if is_stored:
            message = f"the materialized view {name} holds rows of every tenant, and policies do not hold for it"
            mend = "Keep it where tenants cannot read it."
        else:
            message = f"the view {name} reads with the rights of its owner, for whom the policies do not hold"
            mend = (
                f"On PostgreSQL 15 or newer: alter view {_quoted(schema)}.{_quoted(view)} set (security_invoker = on)."
            )
        found[Hole.VIEW_OF_OWNER, name] = Finding(Hole.VIEW_OF_OWNER, name, message, mend)
    return list(found.values())


_SHADOWED: Final = """
select s.nspname::text, c.relname::text, min(t.nspname)::text, count(*)
from pg_class c
join pg_namespace s on s.oid = c.relnamespace and s.nspname = any(%s::text[])
join pg_class d on d.relname = c.relname and d.relkind = any(array['r', 'p', 'v', 'm']::"char"[])
join pg_namespace t on t.oid = d.relnamespace and t.nspname = any(%s::text[])
where c.relkind = any(array['r', 'p', 'v', 'm']::"char"[])
  and has_table_privilege(current_user, c.oid, 'select, insert, update, delete')
group by 1, 2 order by 1, 2"""


async def _falling_through(ask: Ask, schemas: list[str], shared: list[str]) -> list[Finding]:
    found: list[Finding] = []
    for schema, table, tenant_schema, count in await ask(_SHADOWED, shared, schemas):
        name = f"{schema}.{table}"
        message = (
            f"the table {name} has the name of one in {count} tenants' schemas ({tenant_schema}): where a tenant's is"
            " missing, this one is used"
        )
        mend = f"Drop it, rename it, or take {schema} out of search_path."
        found.append(Finding(Hole.SEARCH_PATH, name, message, mend))
    return found


_DEFINERS: Final = """
select n.nspname::text, p.proname::text, pg_get_function_identity_arguments(p.oid)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where p.prosecdef and n.nspname = any(%s::text[])
  and not coalesce(p.proconfig::text ~ '(^|[{,"])search_path=', false)
  and has_function_privilege(current_user, p.oid, 'execute')
  and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')
order by 1, 2, 3"""


async def _definers(ask: Ask, schemas: list[str]) -> list[Finding]:
    found: list[Finding] = []
    for schema, function, arguments in await ask(_DEFINERS, schemas):
        name = f"{schema}.{function}({arguments})"
        message = f"the function {name} is SECURITY DEFINER and uses its caller's search_path with its owner's rights"
        signature = f"{_quoted(schema)}.{_quoted(function)}({arguments})"
        mend = f"Fix it: alter function {signature} set search_path = {_quoted(schema)}, pg_temp."
        found.append(Finding(Hole.DEFINER_FUNCTION, name, message, mend))
    return found


def _quoted(name: str) -> str:
    """A name as SQL writes it."""
    if name.isascii() and name.islower() and name.replace("_", "a").isalnum() and not name[0].isdigit():
        return name
    return '"' + name.replace('"', '""') + '"'
