"""A tenant's place on a server: made, granted, set up, dumped, fenced, filled, taken away. Each can be done again."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, LiteralString

from ...errors import DataError, DataErrorKind
from .. import Tenant, import_callable
from .ledger import Placement
from .plan import ProvisioningPlan, Site, step_name
from .programs import Programs, dump_file
from .trust import ConnectionTemplate, ControlConnection, login_of, open_admin

FENCE_LIMIT: Final = "30s"
"""How long a fence waits for transactions that have written and not ended."""

_GRANTS: Final[tuple[LiteralString, ...]] = (
    "grant select, insert, update, delete on all tables in schema {} to {}",
    "grant usage, select on all sequences in schema {} to {}",
    "alter default privileges in schema {} grant select, insert, update, delete on tables to {}",
    "alter default privileges in schema {} grant usage, select on sequences to {}",
)

_LEDGER: Final = "asgi_datasource_set_up"
"""The table in a tenant's place that says which set-up steps have been run there; and that the place is a tenant's."""

_MAKE_LEDGER: Final[LiteralString] = (
    "create table if not exists {} (step text primary key, run_at timestamptz not null default now())"
)


class Place:
    """Where a tenant lives, or is to live, on one site.

    Args:
        plan: What the configuration says.
        site: The datasource.
        placement: The place.
        name: The tenant's.
        own: What of `schema`, `role` and `database` is this tenant's alone, and goes with it.
    """

    def __init__(
        self, plan: ProvisioningPlan, site: Site, placement: Placement, name: str, *, own: frozenset[str]
    ) -> None:
        self._own = own
        self._plan = plan
        self.site = site
        self.placement = placement
        self._name = name
        self._where = f"datasource {site.name!r}"
        self._programs = Programs(plan.programs)

    @property
    def database(self) -> str | None:
        """The tenant's own database; None where it has none."""
        if not self.site.has_databases:
            return None
        dbname = self._template.dbname(self._written)
        if dbname is None:
            raise DataError(
                DataErrorKind.CONFIG,
                f"{self._where}: the tenant does not stand in the name of the database: there is none to be made",
            )
        return dbname

    @property
    def _written(self) -> str:
        """What stands for the tenant in the URL."""
        return self.placement.database or self._name

    @property
    def _template(self) -> ConnectionTemplate:
        return ConnectionTemplate(self.site.url, where=self._where)

    @property
    def owns_database(self) -> bool:
        """Whether the database is the tenant's alone."""
        return "database" in self._own

    @property
    def is_shared(self) -> bool:
        """Whether neither database nor schema is the tenant's alone: its rows may stand among those of others."""
        return not self._own & {"database", "schema"}

    @property
    def _has_tables(self) -> bool:
        """Whether it is known where its tables are: in a schema, or in a database."""
        return self.database is not None or self.placement.schema is not None

    @property
    def app_role(self) -> str:
        """As whom the application logs in."""
        url = self.site.url
        if self.site.has_databases:
            url = self._template.fill(self._written)
        return login_of(url)

    @asynccontextmanager
    async def outside(self) -> AsyncGenerator[ControlConnection]:
        """A connection to the server, outside the tenant's own database."""
        async with open_admin(self.site) as admin:
            yield admin

    @asynccontextmanager
    async def inside(self) -> AsyncGenerator[ControlConnection]:
        """A connection to where the tenant's tables are."""
        async with open_admin(self.site, dbname=self.database) as admin:
            path = [name for name in (self.placement.schema, *self.site.shared_schemas) if name is not None]
            quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in path or ["public"])
            await admin.rows("select set_config('search_path', %s, false)", quoted)
            for setting, value in (self.placement.row_security or {}).items():
                await admin.rows("select set_config(%s, %s, false)", setting, value)
            yield admin

    # -- making it

    async def make(self, note: Callable[[str], Awaitable[None]]) -> None:
        """Make the role, the database and the schema that are not there yet.

        Args:
            note: Is told of each of them before it is made.
        """
        role = self.placement.role
        async with self.outside() as admin:
            if role is not None and not await admin.rows("select 1 from pg_roles where rolname = %s", role):
                await note("role")
                await admin.command("create role {} nologin", role)
            if role is not None:
                await admin.command("grant {} to {}", role, self.app_role)
            if self.database is not None and not await self.exists(admin):
                await note("database")
                # It is complete, or it is not there: a server that dies in the middle takes it away again.
                await admin.command("create database {} template {}", self.database, self._plan.template or "template1")
        schema = self.placement.schema
        if schema is not None:
            async with self.inside() as admin:
                if not await self._has_schema(admin, schema):
                    await note("schema")
                    await admin.command("create schema if not exists {}", schema)
        if self._has_tables:
            async with self.inside() as admin:
                await admin.command(_MAKE_LEDGER, self._ledger)

    @property
    def _ledger(self) -> tuple[str, str]:
        return (self.placement.schema or "public", _LEDGER)

    @staticmethod
    async def _has_schema(admin: ControlConnection, schema: str) -> bool:
        return bool(await admin.rows("select 1 from pg_namespace where nspname = %s", schema))

    async def is_strange(self) -> bool:
        """Whether something is there that no tenant has left behind: tables or the like, and no ledger."""
        async with self.outside() as admin:
            if self.database is not None and not await self.exists(admin):
                return False
        async with self.inside() as admin:
            [[is_empty, has_ledger]] = await admin.rows(
                "select count(*) = 0, coalesce(bool_or(c.relname = %s), false)"
                " from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = %s",
                *reversed(self._ledger),
            )
            return not is_empty and not has_ledger

    async def exists(self, admin: ControlConnection) -> bool:
        """Whether the tenant's own database is there."""
        return bool(await admin.rows("select 1 from pg_database where datname = %s", self.database))

    async def grant(self) -> None:
        """Let the application's role, and the tenant's, use what is there and what will be."""
        if not self._has_tables:
            return
        schema = self.placement.schema or "public"
        async with self.inside() as admin:
            for role in self._roles():
                await admin.command("grant usage on schema {} to {}", schema, role)
                for template in _GRANTS:
                    await admin.command(template, schema, role)
            if self.database is not None:
                await admin.command("revoke connect on database {} from public", self.database)
                await admin.command("grant connect on database {} to {}", self.database, self.app_role)

    def _roles(self) -> Sequence[str]:
        role = self.placement.role
        return [self.app_role] if role is None else [self.app_role, role]

    async def set_up(self, step: str, tenant: Tenant) -> None:
        """Run a file of SQL or a function there, once: that it was run is written in the same transaction."""
        async with self.inside() as admin, admin.transaction():
            if self._has_tables:
                await admin.command("lock table {} in exclusive mode", self._ledger)
                # Where several tenants share the tables, each has been set up or has not.
                done = f"{self._name}: {step_name(step)}" if self.is_shared else step_name(step)
                marked = "insert into {} (step) values ({step}) on conflict do nothing returning 1"
                if not await admin.command(marked, self._ledger, step=done):
                    return
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

    # -- taking it away

    async def drop(self) -> None:
        """Take away what is the tenant's alone."""
        await self._clear()
        role = self.placement.role
        if role is not None and "role" in self._own:
            async with self.outside() if self.owns_database else self.inside() as admin:
                if await admin.rows("select 1 from pg_roles where rolname = %s", role):
                    await admin.command("drop owned by {} cascade", role)
                    await admin.command("drop role {}", role)

    async def _clear(self) -> None:
        """Take away the database, or the schema, that is the tenant's alone."""
        if self.owns_database and self.database is not None:
            async with self.outside() as admin:
                await admin.command("drop database if exists {} with (force)", self.database)
        elif "schema" in self._own and self.placement.schema is not None:
            async with self.inside() as admin:
                await admin.command("drop schema if exists {} cascade", self.placement.schema)

    async def dump(self, file: Path) -> None:
        """Keep all that is the tenant's alone in a file, whole or not at all."""
        if self.is_shared:
            raise DataError(
                DataErrorKind.QUERY,
                f"the rows of {self._name!r} stand in tables that it shares with others: there is nothing to dump",
            )
        whole = [] if self.owns_database else ["--schema", _pattern(self.placement.schema or "")]
        async with self.inside() as admin:
            server = admin.parameters
        with dump_file(file) as stream:
            await self._programs.run("pg_dump", [*whole, "--format", "custom"], server=server, out=stream)

    async def fill(self, file: Path) -> None:
        """Make this place anew out of a dump."""
        await self._clear()
        if self.owns_database and self.database is not None:
            async with self.outside() as admin:
                await admin.command("create database {} template template0", self.database)
        role = self.placement.role
        if role is not None:
            async with self.outside() as admin:
                if not await admin.rows("select 1 from pg_roles where rolname = %s", role):
                    await admin.command("create role {} nologin", role)
                await admin.command("grant {} to {}", role, self.app_role)
        async with self.inside() as admin:
            server = admin.parameters
        arguments = ["--exit-on-error", "--no-owner", "--no-privileges", str(file)]
        await self._programs.run("pg_restore", arguments, server=server)

    async def fence(self) -> None:
        """From now on nobody writes here, and whoever has begun to has ended; reads go on."""
        schema = self.placement.schema or "public"
        async with self.inside() as admin:
            for role in self._roles():
                await admin.command(
                    "revoke insert, update, delete, truncate on all tables in schema {} from {}", schema, role
                )
                await admin.command("revoke usage, update on all sequences in schema {} from {}", schema, role)
            async with admin.transaction():
                await admin.rows("select set_config('lock_timeout', %s, true)", FENCE_LIMIT)
                for table in await self._tables(admin, schema):
                    await admin.command("lock table {} in share mode", (schema, table))

    async def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        schema = self.placement.schema or "public"
        async with self.inside() as admin:
            counts: dict[str, int] = {}
            for table in await self._tables(admin, schema):
                [[count]] = await admin.command("select count(*) from {}", (schema, table))
                counts[table] = int(count)
            return counts

    @staticmethod
    async def _tables(admin: ControlConnection, schema: str) -> list[str]:
        rows = await admin.rows(
            "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = %s and c.relkind in ('r', 'p') order by 1",
            schema,
        )
        return [str(name) for [name] in rows]


def _line_of(error: BaseException) -> str:
    """Where a set-up function raised: ` (seeds.py, line 12)`."""
    here = error.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename == __file__:
        here = here.tb_next
    return "" if here is None else f" ({Path(here.tb_frame.f_code.co_filename).name}, line {here.tb_lineno})"


def _pattern(name: str) -> str:
    """A schema's name as a pattern of pg_dump's that matches nothing else."""
    return '"' + name.replace('"', '""') + '"'


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(DataErrorKind.CONFIG, f"provisioning.set_up: {path} cannot be read: {reason}") from None
