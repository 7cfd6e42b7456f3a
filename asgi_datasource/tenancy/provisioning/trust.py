"""The role that provisions runs only its own code, and that of superusers.

Triggers, rules and functions run with the rights of the role that uses them. The role that provisions is often a
superuser, so an object that another role can change is a way to those rights. `SET ROLE` is no protection: the code
that it is meant to contain can `RESET ROLE`.

Source: PostgreSQL manual, "The Rule System and Privileges", "Schemas: Usage Patterns"; CVE-2018-1058.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, LiteralString, Protocol

from ...drivers.control import ControlConnection, open_control
from ...drivers.settings import ServerSettings
from ...errors import DataError, DataErrorKind


class AdminSite(Protocol):
    """A datasource that has a role for provisioning."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def admin_url(self) -> str:
        """The connection string of the role that provisions."""
        ...


SCHEMA: Final = "asgi_datasource"
"""The schema of this library's objects: the table of tenants, and the marks of set-up steps."""

_CONNECT_TIMEOUT_S: Final = 10.0
_MOST_NAMED: Final = 5


@asynccontextmanager
async def open_admin(site: AdminSite, *, dbname: str | None = None) -> AsyncGenerator[ControlConnection]:
    """Connect as the role that provisions, and close the connection at the end of the block.

    Args:
        site: The datasource.
        dbname: Another database on the same server.

    Raises:
        DataError: CONNECTION: the server cannot be reached. CONFIG: code of another role would run (`check_own`).
    """
    where = f"datasource {site.name!r}"
    settings = ServerSettings(conninfo=site.admin_url, connect_timeout_s=_CONNECT_TIMEOUT_S)
    async with AsyncExitStack() as stack:
        try:
            opened = open_control(settings, where=where, dbname=dbname, timeout_s=None, is_privileged=True)
            admin = await stack.enter_async_context(opened)
        except DataError as error:
            if error.kind is not DataErrorKind.CONNECTION:
                raise
            text = f"{where}: cannot connect: {error.message}"
            raise DataError(error.kind, text, sqlstate=error.sqlstate, server=error.server) from None
        await check_own(admin, where=where)
        yield admin


_FOREIGN: Final[LiteralString] = """
with trusted as (
    select oid from pg_roles where rolsuper or rolname in (current_user, session_user)
), own as (
    select oid from pg_namespace where nspname = 'asgi_datasource'
), found (classid, objid, owner) as (
    select 'pg_namespace'::regclass, n.oid, n.nspowner from pg_namespace n join own on own.oid = n.oid
    union all
    select 'pg_class'::regclass, c.oid, c.relowner from pg_class c join own on own.oid = c.relnamespace
    where c.relkind not in ('i', 'I', 't', 'c')
    union all
    select 'pg_proc'::regclass, p.oid, p.proowner from pg_proc p join own on own.oid = p.pronamespace
    union all
    select 'pg_trigger'::regclass, t.oid, p.proowner
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join own on own.oid = c.relnamespace
    join pg_proc p on p.oid = t.tgfoid where not t.tgisinternal and t.tgenabled <> 'D'
    union all
    select 'pg_event_trigger'::regclass, e.oid, unnest(array[e.evtowner, p.proowner])
    from pg_event_trigger e join pg_proc p on p.oid = e.evtfoid where e.evtenabled <> 'D'
)
select pg_describe_object(classid, objid, 0), pg_get_userbyid(owner)::text from found
where owner not in (select oid from trusted)
union
select pg_describe_object('pg_rewrite'::regclass, r.oid, 0), pg_get_userbyid(c.relowner)::text
from pg_rewrite r join pg_class c on c.oid = r.ev_class join own on own.oid = c.relnamespace where c.relkind <> 'v'
union
select 'the setting ' || split_part(setting, '=', 1) || ' of the database', pg_get_userbyid(d.datdba)::text
from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) setting
where d.datname = current_database() and s.setrole = 0 and setting ~ '^(role|session_authorization)='
order by 1
"""
"""Objects that would run code of a role other than superusers and this one. Reads only catalogs, which runs no code."""


async def check_own(admin: ControlConnection, *, where: str) -> None:
    """Refuse a database in which this connection would run another role's code.

    Checks the schema `asgi_datasource`, its tables, functions, triggers and rules, the event triggers of the database,
    and settings of the database that choose another role.

    Args:
        admin: The connection.
        where: Names the server in the error.

    Raises:
        DataError: CONFIG: there is such an object; the message names it and its owner.
    """
    found = await admin.rows(_FOREIGN)
    if not found:
        return
    [[user]] = await admin.rows("select current_user::text")
    told = listed([f"{what} (of {owner!r})" for what, owner in found])
    raise DataError(
        DataErrorKind.CONFIG,
        f"{where}: provisioning runs as {user!r} and does not use what another role can change, for that role's code"
        f" would run with the rights of {user!r}: {told}. Drop it; or look through it and hand it over, with ALTER ..."
        f' OWNER TO "{user}"',
    )


async def ensure_schema(admin: ControlConnection, script: str, *, holds: Sequence[str], where: str) -> None:
    """Create the schema `asgi_datasource`, and objects in it, where they are missing.

    Args:
        admin: The connection.
        script: Creates them.
        holds: The tables and functions that the script creates.
        where: Names the server in errors.

    Raises:
        DataError: CONFIG: another role has created something there meanwhile.
    """
    found = await admin.rows(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'asgi_datasource' union all"
        " select p.proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname = 'asgi_datasource'"
    )
    if {name for [name] in found} >= set(holds):
        return
    async with admin.transaction():
        await admin.rows("select pg_advisory_xact_lock(7210460331)")
        # No IF NOT EXISTS: what another role has put there since the check is refused.
        if not await admin.rows("select from pg_namespace where nspname = 'asgi_datasource'"):
            await admin.command("create schema {}", SCHEMA)
        await admin.script(script, name=SCHEMA)
        await check_own(admin, where=where)


_REACHED: Final[LiteralString] = """
with app as (
    select oid from pg_roles where rolname = %s
), reached as (
    select r.oid from pg_roles r join app on pg_has_role(app.oid, r.oid, 'member')
    union all select 0::oid
), path as (
    select * from pg_namespace where nspname = any(%s::text[])
), found (classid, objid, owner) as (
    select 'pg_namespace'::regclass, p.oid, p.nspowner from path p
    union all
    select 'pg_namespace'::regclass, p.oid, granted.grantee
    from path p, aclexplode(coalesce(p.nspacl, acldefault('n', p.nspowner))) granted
    where granted.privilege_type = 'CREATE'
    union all
    select 'pg_class'::regclass, c.oid, c.relowner from pg_class c join path p on p.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f')
    union all
    select 'pg_proc'::regclass, f.oid, f.proowner from pg_proc f join path p on p.oid = f.pronamespace
    union all
    select 'pg_operator'::regclass, o.oid, o.oprowner from pg_operator o join path p on p.oid = o.oprnamespace
    union all
    select 'pg_type'::regclass, t.oid, t.typowner from pg_type t join path p on p.oid = t.typnamespace
    where t.typrelid = 0 and t.typelem = 0
    union all
    select 'pg_trigger'::regclass, t.oid, f.proowner
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join path p on p.oid = c.relnamespace
    join pg_proc f on f.oid = t.tgfoid where not t.tgisinternal and t.tgenabled <> 'D'
)
select distinct pg_describe_object(classid, objid, 0) from found
where owner in (select oid from reached)
and not exists (select from app where pg_has_role(app.oid, current_user, 'member')) order by 1 limit 6
"""
"""Objects in these schemas that the application's role, or PUBLIC, can change. Empty if that role may SET ROLE to this
one."""


async def check_path(admin: ControlConnection, app: str, schemas: Sequence[str], *, where: str) -> None:
    """Refuse to run a set-up with schemas on its search path in which the application's role may put functions.

    Args:
        admin: The connection.
        app: The application's role.
        schemas: The search path of the set-up.
        where: Names the server in the error.

    Raises:
        DataError: CONFIG: a function or operator there, or a trigger on a table there, may be the application's.
    """
    found = await admin.rows(_REACHED, app, list(schemas))
    if found:
        [[user]] = await admin.rows("select current_user::text")
        raise DataError(
            DataErrorKind.CONFIG,
            f"{where}: the set-up would run as {user!r}, and {app!r} can put functions in its way:"
            f" {listed([str(name) for [name] in found])}. Let another role own what is on the search path of the"
            f" set-up, and let {app!r} create nothing there; a step that grants it CREATE has to be the last one",
        )


_RESERVED: Final = frozenset(
    {"information_schema", "public", SCHEMA, "template0", "template1", "postgres", "none", "current_user"}
)


def check_reserved(part: str, name: str, taken: Collection[str] = ()) -> None:
    """Refuse a name that is reserved by PostgreSQL or this library, or not used for a tenant.

    Args:
        part: The kind of object: schema, role or database.
        name: The name.
        taken: More names that are in use.

    Raises:
        DataError: TENANT (400): it is reserved.
    """
    if name in _RESERVED or name.startswith(("pg_", f"{SCHEMA}_")) or name in taken:
        raise DataError(
            DataErrorKind.TENANT, f"the {part} {name!r} is reserved and cannot be a tenant's", http_status=400
        )


_RIGHTS: Final[LiteralString] = """
select r.rolname::text from pg_roles r
join pg_roles wanted on wanted.rolname = %s and pg_has_role(wanted.oid, r.oid, 'member')
where (r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication or r.rolbypassrls or r.rolname ~ '^pg_'
       or r.rolname in (current_user, session_user))
and r.rolname <> 'pg_database_owner'
and not exists (select from pg_roles app where app.rolname = %s and pg_has_role(app.oid, r.oid, 'member'))
order by 1
"""


async def check_role(admin: ControlConnection, role: str, app: str, *, where: str) -> None:
    """Refuse to make the application's role a member of one with rights beyond tables.

    Args:
        admin: A connection to the server.
        role: The role to be granted.
        app: The application's role.
        where: Names the server in the error.

    Raises:
        DataError: CONFIG: it is a superuser, or may create roles or databases, replicate or bypass row security; or
            it is a member of such a role, of a predefined one, or of the role that provisions.
    """
    found = [str(name) for [name] in await admin.rows(_RIGHTS, role, app)]
    if found:
        through = "" if found == [role] else f" through {listed([repr(name) for name in found])}"
        raise DataError(
            DataErrorKind.CONFIG,
            f"{where}: the role {role!r} has rights of its own{through}, which {app!r} would gain as its member: give"
            " the tenant a role without",
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of further ones."""
    more = len(names) - _MOST_NAMED
    return "; ".join(names[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
