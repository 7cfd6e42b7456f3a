"""Copies a tenant's tables to another place: dumped, and restored by a role without rights."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory
from typing import Final, LiteralString

from ...drivers.control import ControlConnection, control_driver
from ...errors import DataError, DataErrorKind
from .fence import FENCE
from .programs import Programs, create_private, dump_file
from .tenant_site import Place, join
from .trust import SCHEMA, check_role


def check_dumpable(place: Place) -> None:
    """Refuse to dump a place without objects of the tenant's own.

    Raises:
        DataError: QUERY: the place has none.
    """
    if place.is_shared:
        raise DataError(
            DataErrorKind.QUERY,
            f"the rows of {place.tenant!r} stand in tables that it shares with others: there is nothing to dump",
        )


async def dump(place: Place, file: Path, programs: Programs) -> None:
    """Write the tenant's own objects into a file, atomically.

    Raises:
        DataError: The place has no objects of the tenant's own; or `pg_dump` failed.
    """
    check_dumpable(place)
    part = ["--exclude-schema", SCHEMA] if place.owns_database else ["--schema", _pattern(place.schema)]
    async with place.inside() as admin:
        server = admin.parameters
    with dump_file(file) as stream:
        arguments = [*part, "--no-publications", "--no-subscriptions", "--format", "custom"]
        await programs.run("pg_dump", arguments, server=server, out=stream)


async def copy(source: Place, target: Place, programs: Programs, note: Callable[[str, bool], Awaitable[None]]) -> None:
    """Recreate the target with the content of the source.

    Functions, defaults and constraints of a dump run while it is restored, and must run as a role without rights.
    So `pg_restore` does not log in as the role that provisions: `SET ROLE` would not hold, since any function may
    `RESET ROLE`. It logs in as a role made for this, whose only right is to create objects in this place. They belong
    to a role that no one logs in as: functions and views that run with their owner's rights gain none by the move.

    Args:
        source: The present place of the tenant.
        target: Its future place.
        programs: `pg_dump` and `pg_restore`.
        note: As for `Place.make`, about the tenant's role.

    Raises:
        DataError: `pg_dump` or `pg_restore` failed; or the server does not let the role log in.
    """
    with TemporaryDirectory(prefix="asgi-datasource-") as folder:
        file, listing, contents = (Path(folder) / name for name in ("tenant.dump", "listing", "contents"))
        await dump(source, file, programs)
        async with source.inside() as admin:
            extensions = await _extensions(admin, source)
            needs = await _needs(admin, source)
        await target.clear()
        await target.make_empty(note)
        async with target.inside() as admin:
            # Before the application may connect, because the scripts of extensions run as the role that provisions.
            for name, schema in extensions:
                await admin.command("create schema if not exists {}", schema)
                await admin.command("create extension if not exists {} schema {}", name, schema)
            await target.let_in(admin)
            for schema in sorted({schema for _, schema in extensions}):
                await admin.command("grant usage on schema {} to {}", schema, target.app_role)
            with create_private(listing) as stream:
                await programs.run("pg_restore", ["--list", str(file)], out=stream)
            there = {str(name) for [name] in await admin.rows("select nspname::text from pg_namespace")}
            with create_private(contents) as stream:
                stream.writelines(_restored(listing.read_bytes().splitlines(keepends=True), there))
            arguments = ["--exit-on-error", "--no-owner", "--no-privileges", "--use-list", str(contents), str(file)]
            async with _restorer(admin, target, needs) as (server, role):
                await programs.run("pg_restore", [*role, *arguments], server=server)


@asynccontextmanager
async def _restorer(
    admin: ControlConnection, target: Place, needs: _Needs
) -> AsyncGenerator[tuple[Mapping[str, str], Sequence[str]]]:
    """The login of `pg_restore`, and the arguments that choose the owner of what it restores."""
    app, owner, restorer = target.app_role, target.owner, target.restorer
    [[user, dbname, until]] = await admin.rows(
        "select current_user::text, current_database()::text, to_char((now() + %s::interval) at time zone 'UTC',"
        ' \'YYYY-MM-DD"T"HH24:MI:SS"Z"\')',
        RESTORED_WITHIN,
    )
    if user == app:
        # The application and the provisioner have the same login: there are no rights to gain.
        yield admin.parameters, ()
        return
    if not await admin.rows("select from pg_roles where rolname = %s", owner):
        await admin.command("create role {} nologin", owner)
    await check_role(admin, owner, app, where=target.where)
    await join(admin, owner)
    await _allow(admin, app, owner, needs)
    inner = [("schema", target.schema), *([("database", dbname)] if target.owns_database else [])]
    password = token_urlsafe(24)
    await target.drop_restorer(admin)
    try:
        await admin.command(
            "create role {} login noinherit connection limit 2 password {verifier} valid until {until} in role {}",
            restorer,
            owner,
            verifier=admin.verifier(restorer, password),
            until=until,
        )
        await admin.command("grant connect on database {} to {}", dbname, restorer)
        for kind, name in inner:
            await admin.command(_CREATE[kind][0], name, owner)
        login = await control_driver().login_parameters(
            admin, target.app_url, user=restorer, password=password, where=target.where
        )
        yield login, ("--role", owner)
    finally:
        if not admin.connection.closed:
            await target.drop_restorer(admin)
            for kind, name in inner:
                await admin.command(_CREATE[kind][1], name, owner)


RESTORED_WITHIN: Final = "1 day"
"""How long the login of a restore is valid: it ends by itself when the process dies that would drop it."""

_CREATE: Final[Mapping[str, tuple[LiteralString, LiteralString]]] = {
    "schema": ("grant usage, create on schema {} to {}", "revoke create on schema {} from {}"),
    "database": ("grant create on database {} to {}", "revoke create on database {} from {}"),
}


# -- objects outside the schema that its objects need ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Needs:
    """Objects outside a tenant's schema that objects in it use.

    Attributes:
        schemas: Names.
        relations: Schemas and names.
    """

    schemas: Sequence[str]
    relations: Sequence[tuple[str, str]]


_NEEDED: Final[LiteralString] = """
with place as (
    select oid from pg_namespace where nspname = %s
), members (classid, objid) as (
    select 'pg_class'::regclass, c.oid from pg_class c join place on place.oid = c.relnamespace
    union all select 'pg_proc'::regclass, p.oid from pg_proc p join place on place.oid = p.pronamespace
    union all select 'pg_type'::regclass, t.oid from pg_type t join place on place.oid = t.typnamespace
    union all select 'pg_operator'::regclass, o.oid from pg_operator o join place on place.oid = o.oprnamespace
    union all select 'pg_constraint'::regclass, o.oid from pg_constraint o join place on place.oid = o.connamespace
    union all
    select 'pg_rewrite'::regclass, r.oid
    from pg_rewrite r join pg_class c on c.oid = r.ev_class join place on place.oid = c.relnamespace
    union all
    select 'pg_attrdef'::regclass, a.oid
    from pg_attrdef a join pg_class c on c.oid = a.adrelid join place on place.oid = c.relnamespace
    union all
    select 'pg_trigger'::regclass, t.oid
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join place on place.oid = c.relnamespace
    union all
    select 'pg_policy'::regclass, p.oid
    from pg_policy p join pg_class c on c.oid = p.polrelid join place on place.oid = c.relnamespace
)
select distinct around.nspname::text, case when d.refclassid = 'pg_class'::regclass then c.relname::text end
from members m join pg_depend d on d.classid = m.classid and d.objid = m.objid
left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
cross join lateral pg_identify_object(d.refclassid, d.refobjid, 0) found
join pg_namespace around on quote_ident(around.nspname) = found.schema
where d.refobjid >= 16384 and around.oid not in (select oid from place)
order by 1, 2
"""


async def _needs(admin: ControlConnection, place: Place) -> _Needs:
    if place.owns_database:
        return _Needs(sorted({schema for _, schema in await _extensions(admin, place)}), ())
    rows = await admin.rows(_NEEDED, place.schema)
    relations = [(str(outside), str(name)) for outside, name in rows if name is not None]
    return _Needs(sorted({str(outside) for outside, _ in rows}), relations)


async def _allow(admin: ControlConnection, app: str, owner: str, needs: _Needs) -> None:
    """Grant the owner of the restored objects what they need outside the schema, as far as the application has it."""
    for schema in needs.schemas:
        if await admin.rows(
            "select from pg_namespace where nspname = %s and has_schema_privilege(%s, oid, 'usage')", schema, app
        ):
            await admin.command("grant usage on schema {} to {}", schema, owner)
    for schema, name in needs.relations:
        found = await admin.rows(
            "select c.relkind = 'S' from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = %s and c.relname = %s and (case when c.relkind = 'S'"
            " then has_sequence_privilege(%s, c.oid, 'usage') else has_table_privilege(%s, c.oid, 'select') end)",
            *(schema, name, app, app),
        )
        for [is_sequence] in found:
            what: LiteralString = (
                "grant usage on sequence {} to {}" if is_sequence else "grant select, references on {} to {}"
            )
            await admin.command(what, (schema, name), owner)


async def _extensions(admin: ControlConnection, place: Place) -> Sequence[tuple[str, str]]:
    """The extensions in a place, and their schemas. A dump of a schema leaves them out, and an owner may create few."""
    rows = await admin.rows(
        "select e.extname::text, n.nspname::text from pg_extension e join pg_namespace n on n.oid = e.extnamespace"
        " where n.nspname <> 'pg_catalog' and (%s or n.nspname = %s) order by e.oid",
        place.owns_database,
        place.schema,
    )
    return [(str(name), str(schema)) for name, schema in rows]


_ENTRY: Final = re.compile(rb"\d+; \d+ \d+ (?:COMMENT - )?(EXTENSION|SCHEMA) (?:- )?(.*)")


def _restored(lines: Sequence[bytes], schemas: set[str]) -> Sequence[bytes]:
    """The table of contents of a dump without what is there already, extensions and schemas, and without the fence."""
    kept: list[bytes] = []
    for line in lines:
        if b" TRIGGER " in line and f" {FENCE} ".encode() in line:
            continue
        found = _ENTRY.match(line)
        if found is not None:
            what = found[2].decode(errors="replace")
            if found[1] == b"EXTENSION" or any(what.startswith(f"{name} ") for name in schemas):
                continue
        kept.append(line)
    return kept


def _pattern(name: str) -> str:
    """A schema's name as a pattern of pg_dump's that matches nothing else."""
    return '"' + name.replace('"', '""') + '"'
