"""A tenant's place on a server: created, granted, set up, fenced, dropped. Each step can be repeated."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, LiteralString
from uuid import UUID

from ...config import MAX_NAME_BYTES
from ...drivers.control import ControlConnection, control_driver
from ...drivers.protocol import ConnectionTemplate
from ...errors import DataError, DataErrorKind
from .. import Tenant, import_callable
from .dependants import dependants, owned
from .ledger import Placement
from .plan import ProvisioningPlan, Site, step_name
from .trust import SCHEMA, check_path, check_role, ensure_schema, listed, open_admin

LOCK_LIMIT: Final = "30s"
"""Longest wait for the transactions that use a tenant's tables."""

_GRANTS: Final[tuple[LiteralString, ...]] = (
    "grant select, insert, update, delete on all tables in schema {} to {}",
    "grant usage, select on all sequences in schema {} to {}",
    "alter default privileges in schema {} grant select, insert, update, delete on tables to {}",
    "alter default privileges in schema {} grant usage, select on sequences to {}",
)

_STORE: Final = """
create table if not exists asgi_datasource.set_up_steps (
    tenant uuid not null,
    step text not null,
    run_at timestamptz not null default now(),
    primary key (tenant, step)
);
create or replace function asgi_datasource.refuse_write() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise insufficient_privilege using message = 'the tenant is moving or has moved: nothing is written here any more';
end
$$;
"""
"""In each database with tenants: which set-up steps have run for which of them, a mark that commits with the step; and
the fence of a move."""

_STORE_HOLDS: Final = ("set_up_steps", "refuse_write")

_IS_THERE: Final = frozenset({"42P04", "42P06", "42710"})
"""SQLSTATEs of a database, schema or role that is there already."""

_ROLE_ELSEWHERE: Final[LiteralString] = """
select distinct d.datname::text from pg_shdepend s
join pg_database d on d.oid = s.dbid join pg_roles r on r.oid = s.refobjid
where s.refclassid = 'pg_authid'::regclass and r.rolname = %s order by 1
"""
"""Databases with objects or rights of a role; once it has none in the present one, the others."""


class Place:
    """The present or future place of a tenant on one site.

    Args:
        plan: The configuration.
        site: The datasource.
        placement: The names of the place.
        tenant: The tenant's name.
        tenant_id: The tenant's id.
        own: The parts, of `schema`, `role` and `database`, that only this tenant uses, and that are dropped with it.
        may_be_there: Those of them that may exist without having been created for this tenant.
    """

    def __init__(
        self,
        plan: ProvisioningPlan,
        site: Site,
        placement: Placement,
        *,
        tenant: str,
        tenant_id: UUID,
        own: frozenset[str],
        may_be_there: frozenset[str] = frozenset(),
    ) -> None:
        self._plan = plan
        self.site = site
        self.placement = placement
        self.tenant = tenant
        self.where = f"datasource {site.name!r}"
        self.owner = f"{SCHEMA}_owner_{tenant_id.hex}"
        """Owns what a move has restored: a role without login and without rights beyond this tenant's objects."""
        self.restorer = f"{SCHEMA}_restore_{tenant_id.hex}"
        """The login of a restore, dropped at its end."""
        self._id = tenant_id
        self.own = own
        self._may_be_there = may_be_there

    @property
    def database(self) -> str | None:
        """The tenant's own database; None where it has none."""
        if not self.site.has_databases:
            return None
        dbname = self._template.dbname(self._written)
        if dbname is None:
            raise DataError(
                DataErrorKind.CONFIG,
                f"{self.where}: the tenant does not stand in the name of the database: there is none to be made",
            )
        if len(dbname.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise DataError(DataErrorKind.TENANT, f"{dbname!r} is too long for a name in the database", http_status=400)
        return dbname

    @property
    def _written(self) -> str:
        """What replaces `{tenant}` in the URL."""
        return self.placement.database or self.tenant

    @property
    def _template(self) -> ConnectionTemplate:
        return control_driver().make_template(self.site.url, where=self.where)

    @property
    def owns_database(self) -> bool:
        """Whether the database is the tenant's alone."""
        return "database" in self.own

    @property
    def is_shared(self) -> bool:
        """Whether neither database nor schema is the tenant's alone: its tables may hold rows of others."""
        return not self.own & {"database", "schema"}

    @property
    def has_tables(self) -> bool:
        """Whether its tables have a place of their own: a schema, or a database."""
        return self.database is not None or self.placement.schema is not None

    @property
    def schema(self) -> str:
        """The schema of its tables."""
        return self.placement.schema or "public"

    @property
    def app_url(self) -> str:
        """The application's own connection string for this tenant."""
        return self._template.fill(self._written) if self.site.has_databases else self.site.url

    @property
    def app_role(self) -> str:
        """The role that the application logs in as."""
        return control_driver().login_of(self.app_url)

    @asynccontextmanager
    async def outside(self) -> AsyncGenerator[ControlConnection]:
        """A connection to the server, outside the tenant's own database."""
        async with open_admin(self.site) as admin:
            yield admin

    @asynccontextmanager
    async def inside(self) -> AsyncGenerator[ControlConnection]:
        """A connection to the database of the tenant's tables."""
        async with open_admin(self.site, dbname=self.database) as admin:
            yield admin

    @asynccontextmanager
    async def _further(self, admin: ControlConnection) -> AsyncGenerator[ControlConnection]:
        """From `outside` to `inside`: the same connection where the tenant has no database of its own."""
        if self.database is None:
            yield admin
        else:
            async with self.inside() as inner:
                yield inner

    def owning(self, own: Collection[str]) -> Place:
        """The same place with another set of parts that are the tenant's own."""
        return Place(
            self._plan,
            self.site,
            self.placement,
            tenant=self.tenant,
            tenant_id=self._id,
            own=frozenset(own),
            may_be_there=self._may_be_there,
        )

    # -- creating

    async def found(self) -> Sequence[tuple[str, str]]:
        """The role, database and schema that exist and were not created for this tenant."""
        found: list[tuple[str, str]] = []
        async with self.outside() as admin:
            role = self.placement.role
            if role is not None and await self._has("role", admin):
                found.append(("role", role))
            if self.database is not None:
                if not await self._has("database", admin):
                    return [(part, name) for part, name in found if part not in self.own]
                found.append(("database", self.database))
            schema = self.placement.schema
            # A schema in a database of the tenant's own came with the template.
            if schema is not None and not self.owns_database:
                async with self._further(admin) as inner:
                    if await self._has("schema", inner):
                        found.append(("schema", schema))
        return [(part, name) for part, name in found if part not in self.own]

    async def check_role(self) -> None:
        """Refuse a role of the tenant's whose rights the application's role must not get.

        Raises:
            DataError: CONFIG: it is such a role.
        """
        if self.placement.role is not None:
            async with self.outside() as admin:
                await check_role(admin, self.placement.role, self.app_role, where=self.where)

    async def make(self, note: Callable[[str, bool], Awaitable[None]]) -> None:
        """Create the role, the database and the schema that are missing.

        Args:
            note: Called with the part and True before it is created, and with False if it proves to belong to another.

        Raises:
            DataError: CONFLICT: one of them is there, and was not created for this tenant.
        """
        role, schema = self.placement.role, self.placement.schema
        async with self.outside() as admin:
            if role is not None:
                await self._make("role", role, admin, note)
                await check_role(admin, role, self.app_role, where=self.where)
                await admin.command("grant {} to {}", role, self.app_role)
            if self.database is not None:
                await self._make("database", self.database, admin, note)
                await self.let_in(admin)
            if schema is not None:
                async with self._further(admin) as inner:
                    await self._make("schema", schema, inner, note)

    async def _make(
        self, part: str, name: str, admin: ControlConnection, note: Callable[[str, bool], Awaitable[None]]
    ) -> None:
        async def noted(is_made: bool) -> None:
            await note(part, is_made)
            self.own = self.own | {part} if is_made else self.own - {part}

        is_known = part in self.own | self._may_be_there or (part == "schema" and self.owns_database)
        if await self._has(part, admin):
            if is_known and (part not in self.own or await self._is_ours(part, admin)):
                return
            await noted(False)
            raise self.refusal(part, name)
        await noted(True)
        try:
            match part:
                case "role":
                    await admin.command("create role {} nologin", name)
                case "database":
                    # No connection before `let_in`. After a crash of the server it is complete, or not there.
                    template = self._plan.template or "template1"
                    await admin.command("create database {} template {} allow_connections false", name, template)
                case _:
                    await admin.command("create schema {}", name)
        except DataError as error:
            if error.sqlstate in _IS_THERE:
                # Another process has created it since the check.
                await noted(False)
                raise self.refusal(part, name) from error
            raise

    def refusal(self, part: str, name: str) -> DataError:
        """The error that something was not created for this tenant."""
        return DataError(
            DataErrorKind.CONFLICT,
            f"{self.where}: the {part} {name!r} is there already, and was not created for {self.tenant!r}: choose"
            " another name, or take it over as it is (--adopt, adopt=True)",
        )

    async def _has(self, part: str, admin: ControlConnection) -> bool:
        match part:
            case "role":
                return bool(await admin.rows("select from pg_roles where rolname = %s", self.placement.role))
            case "database":
                return bool(await admin.rows("select from pg_database where datname = %s", self.database))
            case _:
                return bool(await admin.rows("select from pg_namespace where nspname = %s", self.placement.schema))

    async def _is_ours(self, part: str, admin: ControlConnection) -> bool:
        """Whether it belongs to the role that provisions, or a superuser: a process may have died after it noted it."""
        trusted = "(select oid from pg_roles where rolsuper or rolname = current_user)"
        match part:
            case "role":
                return True
            case "database":
                query = f"select from pg_database where datname = %s and datdba in {trusted}"
                return bool(await admin.rows(query, self.database))
            case _:
                query = f"select from pg_namespace where nspname = %s and nspowner in {trusted}"
                return bool(await admin.rows(query, self.placement.schema))

    async def is_there(self) -> bool:
        """Whether the tenant's own database or schema exists."""
        async with self.outside() as admin:
            if self.database is not None and not await self._has("database", admin):
                return False
            if self.owns_database or self.placement.schema is None:
                return self.database is not None
            async with self._further(admin) as inner:
                return await self._has("schema", inner)

    async def grant(self) -> None:
        """Grant the application's role, and the tenant's, the use of all tables and sequences, present and future."""
        if not self.has_tables:
            return
        async with self.inside() as admin:
            await self.let_in(admin)
            for role in self._roles():
                await admin.command("grant usage on schema {} to {}", self.schema, role)
                for template in _GRANTS:
                    await admin.command(template, self.schema, role)

    async def let_in(self, admin: ControlConnection) -> None:
        """Grant the right to connect to the tenant's own database to the application's role only.

        Args:
            admin: A connection to the server.
        """
        if self.database is None:
            return
        await admin.command("revoke connect on database {} from public", self.database)
        await admin.command("grant connect on database {} to {}", self.database, self.app_role)
        if await admin.rows("select from pg_database where datname = %s and not datallowconn", self.database):
            await admin.command("alter database {} allow_connections true", self.database)

    def _roles(self) -> Sequence[str]:
        role = self.placement.role
        return [self.app_role] if role is None else [self.app_role, role]

    async def set_up(self, step: str, tenant: Tenant) -> None:
        """Run a file of SQL or a function there, once: the mark that it has run commits with it.

        Raises:
            DataError: The server refused something; or the application's role could put functions in its way.
        """
        path = [name for name in (self.placement.schema, *self.site.shared_schemas) if name is not None] or ["public"]
        async with self.inside() as admin:
            await self.ensure_store(admin)
            await check_path(admin, self.app_role, path, where=self.where)
            async with admin.transaction():
                # Set-ups of tenants that share a schema run one after the other: CREATE IF NOT EXISTS can collide.
                await admin.rows(
                    "select pg_advisory_xact_lock(hashtextextended(%s, 0))", f"{SCHEMA} set-up {self.schema}"
                )
                if not await admin.rows(
                    "insert into asgi_datasource.set_up_steps (tenant, step) values (%s, %s)"
                    " on conflict do nothing returning 1",
                    self._id,
                    step_name(step),
                ):
                    return
                quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in path)
                await admin.rows("select set_config('search_path', %s, true)", quoted)
                for setting, value in (self.placement.row_security or {}).items():
                    await admin.rows("select set_config(%s, %s, true)", setting, value)
                await self._run(admin, step, tenant)

    async def ensure_store(self, admin: ControlConnection) -> None:
        """Create what this library keeps in a database with tenants, where it is missing.

        Args:
            admin: A connection to it.
        """
        await ensure_schema(admin, _STORE, holds=_STORE_HOLDS, where=self.where)

    async def _run(self, admin: ControlConnection, step: str, tenant: Tenant) -> None:
        if step.endswith(".sql"):
            await admin.script(_read(Path(step)), name=step_name(step))
            return
        function = import_callable(step, where="provisioning.set_up")
        try:
            outcome = function(tenant, admin.connection)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception as error:
            if isinstance(error, DataError) or admin.is_refusal(error):
                raise
            # Its text may quote rows.
            raise DataError(
                DataErrorKind.OTHER, f"provisioning.set_up: {step} raised {type(error).__name__}{_line_of(error)}"
            ) from error

    # -- dropping

    async def dependants(self) -> Sequence[str]:
        """Objects that would be dropped with the tenant and are not its own: dependants, or objects of its role."""
        found: list[str] = []
        async with self._remaining() as admin:
            if "schema" in self.own and not self.owns_database and self.placement.schema is not None:
                found += await dependants(admin, self.placement.schema)
            found += await self._owned(admin)
        return found

    @asynccontextmanager
    async def _remaining(self) -> AsyncGenerator[ControlConnection]:
        """A connection for queries on the tenant's objects; not to a database that is dropped or does not exist."""
        async with self.outside() as admin:
            if self.owns_database or (self.database is not None and not await self._has("database", admin)):
                yield admin
            else:
                async with self._further(admin) as inner:
                    yield inner

    async def _owned(self, admin: ControlConnection) -> Sequence[str]:
        role = self.placement.role
        if role is None or "role" not in self.own:
            return []
        return await owned(admin, role, self.placement.schema if "schema" in self.own else None)

    def refuse(self, found: Sequence[str]) -> None:
        """Refuse to drop what is not the tenant's own.

        Args:
            found: As `dependants` has it.

        Raises:
            DataError: CONFLICT: there is something.
        """
        if found:
            raise DataError(
                DataErrorKind.CONFLICT,
                f"{self.where}: with what is {self.tenant!r}'s own would go {listed(found)}. Change or drop that first;"
                " tenants drop --cascade (cascade=True) drops it as well",
            )

    async def drop(self, *, cascade: bool = False) -> Sequence[str]:
        """Drop the parts that only the tenant uses.

        Args:
            cascade: Drop dependent objects as well.

        Returns:
            The objects that could not be dropped, and why.

        Raises:
            DataError: CONFLICT: an object that is not the tenant's own depends on them.
        """
        await self.clear(cascade=cascade)
        role = self.placement.role
        stays: list[str] = []
        async with self._remaining() as admin:
            await self.drop_restorer(admin)
            for name in (self.owner, *([role] if role is not None and "role" in self.own else [])):
                if not await admin.rows("select 1 from pg_roles where rolname = %s", name):
                    continue
                if not cascade:
                    self.refuse(await owned(admin, name, None))
                await join(admin, name)
                await admin.command("drop owned by {} cascade" if cascade else "drop owned by {}", name)
                elsewhere = [str(dbname) for [dbname] in await admin.rows(_ROLE_ELSEWHERE, name)]
                if elsewhere:
                    stays.append(f"the role {name!r}: it has something in the database {', '.join(elsewhere)}")
                else:
                    await admin.command("drop role {}", name)
        return stays

    async def drop_restorer(self, admin: ControlConnection) -> None:
        """Drop the login of a restore, also after the process that created it has died.

        Args:
            admin: A connection to the database that is restored.
        """
        if await admin.rows("select 1 from pg_roles where rolname = %s", self.restorer):
            await join(admin, self.restorer)
            await admin.command("drop owned by {}", self.restorer)
            await admin.command("drop role {}", self.restorer)

    async def clear(self, *, cascade: bool = False) -> None:
        """Drop the database, or the schema, that is the tenant's alone.

        Args:
            cascade: Drop dependent objects as well.

        Raises:
            DataError: CONFLICT: an object that is not the tenant's own depends on it.
        """
        schema = self.placement.schema
        if self.owns_database and self.database is not None:
            async with self.outside() as admin:
                await admin.command("drop database if exists {} with (force)", self.database)
        elif "schema" in self.own and schema is not None:
            async with self.inside() as admin, admin.transaction():
                await admin.rows("select set_config('lock_timeout', %s, true)", LOCK_LIMIT)
                # These locks prevent new dependants of the tables.
                for table in await self.tables(admin):
                    await admin.command("lock table only {} in access exclusive mode", table)
                if not cascade:
                    self.refuse(await dependants(admin, schema))
                await admin.command("drop schema if exists {} cascade", schema)
                if await admin.rows(
                    "select from pg_tables where schemaname = %s and tablename = 'set_up_steps'", SCHEMA
                ):
                    await admin.rows("delete from asgi_datasource.set_up_steps where tenant = %s", self._id)

    async def make_empty(self, note: Callable[[str, bool], Awaitable[None]]) -> None:
        """Create what `clear` has dropped, for a dump to be restored into, and the role where it is missing.

        Args:
            note: As for `make`.
        """
        role, schema = self.placement.role, self.placement.schema
        async with self.outside() as admin:
            if role is not None:
                await self._make("role", role, admin, note)
                await check_role(admin, role, self.app_role, where=self.where)
                await admin.command("grant {} to {}", role, self.app_role)
            if self.owns_database and self.database is not None:
                await admin.command("create database {} template template0 allow_connections false", self.database)
                await admin.command("revoke connect on database {} from public", self.database)
                await admin.command("alter database {} allow_connections true", self.database)
            if schema is not None:
                async with self._further(admin) as inner:
                    await inner.command("create schema {}", schema)

    async def tables(self, admin: ControlConnection, *, kinds: str = "r") -> list[tuple[str, str]]:
        """The tenant's tables, of a database of its own in all schemas.

        Args:
            admin: A connection to their database.
            kinds: Values of `pg_class.relkind`; by default those that hold rows, partitions included.
        """
        rows = await admin.rows(
            "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relkind::text = any(%s) and c.relpersistence <> 't' and n.nspname !~ '^pg_'"
            " and n.nspname not in ('information_schema', 'asgi_datasource') and (%s or n.nspname = %s) order by 1, 2",
            list(kinds),
            self.owns_database,
            self.schema,
        )
        return [(str(schema), str(name)) for schema, name in rows]


async def join(admin: ControlConnection, role: str) -> None:
    """Become a member of a role, for the rights on its objects. A superuser needs no membership."""
    for [user] in await admin.rows("select rolname::text from pg_roles where rolname = current_user and not rolsuper"):
        await admin.command("grant {} to {}", role, user)


def _line_of(error: BaseException) -> str:
    """Where a set-up function raised: ` (seeds.py, line 12)`."""
    here = error.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename == __file__:
        here = here.tb_next
    return "" if here is None else f" ({Path(here.tb_frame.f_code.co_filename).name}, line {here.tb_lineno})"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(DataErrorKind.CONFIG, f"provisioning.set_up: {path} cannot be read: {reason}") from None
