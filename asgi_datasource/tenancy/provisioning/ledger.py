"""The table of tenants, and that of the steps of each operation: what is done is known after any crash."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString

from ...errors import DataError, DataErrorKind
from .trust import ControlConnection

SCHEMA: Final = "asgi_datasource"
CHANNEL: Final = "asgi_datasource_tenants"

_TABLES: Final = """
create schema if not exists asgi_datasource;
create table if not exists asgi_datasource.tenants (
    name text primary key,
    datasource text not null,
    schema text,
    row_security jsonb,
    role text,
    state text not null default 'active' check (state in ('active', 'read_only', 'suspended', 'moving')),
    aliases text[] not null default '{}',
    max_connections int check (max_connections > 0),
    database text,
    is_ready boolean not null default false,
    made text[] not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create table if not exists asgi_datasource.tenant_steps (
    tenant text not null,
    operation text not null,
    step text not null,
    state text not null check (state in ('running', 'done', 'failed')),
    detail text,
    began_at timestamptz not null default now(),
    ended_at timestamptz,
    primary key (tenant, operation, step)
);
create or replace function asgi_datasource.tell_tenants() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
    as 'begin notify asgi_datasource_tenants; return null; end';
create or replace trigger tell_tenants
    after insert or update or delete or truncate on asgi_datasource.tenants
    for each statement execute function asgi_datasource.tell_tenants();
"""


_SELECT: Final[LiteralString] = """
select t.name, t.datasource, t.schema, t.role, t.database, t.row_security, t.max_connections, t.aliases, t.state,
    t.is_ready, t.made, (select min(s.operation) from asgi_datasource.tenant_steps s where s.tenant = t.name)
from asgi_datasource.tenants t
"""


class Operation(StrEnum):
    """What is done with a tenant."""

    CREATE = "create"
    MOVE = "move"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tenant lives, as its row says: names, not templates.

    Attributes:
        datasource: The datasource.
        schema, role, database: Its own, where it has them.
        row_security: Custom settings that policies read.
        max_connections: Its limit.
        aliases: Its other names.
    """

    datasource: str
    schema: str | None = None
    role: str | None = None
    database: str | None = None
    row_security: dict[str, str] | None = None
    max_connections: int | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the table of tenants.

    Attributes:
        name: The tenant's.
        placement: Where it lives.
        state: As in the catalog.
        is_ready: Whether it has been set up and may be served.
        made: What of `schema`, `role` and `database` was not there before it was made.
        under_way: The operation that was begun and has not ended.
    """

    name: str
    placement: Placement
    state: str
    is_ready: bool
    made: frozenset[str] = frozenset()
    under_way: str | None = field(default=None)


class Ledger:
    """The two tables, on one connection."""

    def __init__(self, admin: ControlConnection) -> None:
        self._admin = admin

    async def prepare(self, reader: str) -> None:
        """Make the tables where they are not there, and let the application's role read the one of tenants."""
        if not await self._admin.rows("select 1 from pg_catalog.pg_tables where schemaname = 'asgi_datasource'"):
            async with self._admin.transaction():
                await self._admin.rows("select pg_advisory_xact_lock(7210460331)")
                await self._admin.script(_TABLES, name="the table of tenants")
        await self._admin.command("grant usage on schema asgi_datasource to {}", reader)
        await self._admin.command("grant select on asgi_datasource.tenants to {}", reader)

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncGenerator[None]:
        """Be the only one that works on a tenant; the server takes the lock back when this process dies.

        Raises:
            DataError: CONFLICT: somebody else does.
        """
        key = f"asgi_datasource:{name}"
        [[is_held]] = await self._admin.rows("select pg_try_advisory_lock(hashtextextended(%s, 0))", key)
        if not is_held:
            raise DataError(DataErrorKind.CONFLICT, f"another process is at work on the tenant {name!r}")
        try:
            yield
        finally:
            if not self._admin.connection.closed:
                await self._admin.rows("select pg_advisory_unlock(hashtextextended(%s, 0))", key)

    async def find(self, name: str) -> Record | None:
        """The row of a tenant."""
        found = await self._select("where t.name = %s", name)
        return found[0] if found else None

    async def all(self) -> list[Record]:
        """Every row, by name."""
        return await self._select("order by t.name")

    async def _select(self, rest: LiteralString, *parameters: object) -> list[Record]:
        rows = await self._admin.rows(_SELECT + rest, *parameters)
        found: list[Record] = []
        for (
            name,
            datasource,
            schema,
            role,
            database,
            settings,
            limit,
            aliases,
            state,
            is_ready,
            made,
            under_way,
        ) in rows:
            placement = Placement(datasource, schema, role, database, settings, limit, tuple(aliases))
            found.append(Record(name, placement, state, is_ready, frozenset(made), under_way))
        return found

    @asynccontextmanager
    async def registering(self) -> AsyncGenerator[None]:
        """Be the only one that gives a new tenant its name and its place."""
        async with self._admin.transaction():
            await self._admin.rows("select pg_advisory_xact_lock(7210460332)")
            yield

    async def claimed_by(self, name: str, wanted: Sequence[str]) -> str | None:
        """Another tenant that has one of these names, or has it as an alias."""
        rows = await self._admin.rows(
            "select name from asgi_datasource.tenants where name <> %s and (name = any(%s) or aliases && %s) limit 1",
            name,
            list(wanted),
            list(wanted),
        )
        return str(rows[0][0]) if rows else None

    async def same_place(self, name: str, placement: Placement, datasources: Sequence[str]) -> str | None:
        """Another tenant that would see what this one sees.

        Args:
            name: The tenant's.
            placement: Where it lives.
            datasources: All that lead where its own leads.
        """
        rows = await self._admin.rows(
            "select name from asgi_datasource.tenants where name <> %s and datasource = any(%s)"
            " and database is not distinct from %s::text and schema is not distinct from %s::text"
            " and role is not distinct from %s::text and row_security is not distinct from %s::jsonb limit 1",
            name,
            list(datasources),
            placement.database,
            placement.schema,
            placement.role,
            None if placement.row_security is None else json.dumps(placement.row_security),
        )
        return str(rows[0][0]) if rows else None

    async def shared(self, name: str, placement: Placement, datasources: Sequence[str]) -> frozenset[str]:
        """What of `schema`, `role` and `database` other tenants have as well; arguments as for `same_place`."""
        [[schema, role, database]] = await self._admin.rows(
            "select coalesce(bool_or(datasource = any(%s) and schema = %s::text"
            " and database is not distinct from %s::text), false),"
            " coalesce(bool_or(role = %s::text), false),"
            " coalesce(bool_or(datasource = any(%s) and database = %s::text), false)"
            " from asgi_datasource.tenants where name <> %s",
            list(datasources),
            placement.schema,
            placement.database,
            placement.role,
            list(datasources),
            placement.database,
            name,
        )
        found = {"schema": schema, "role": role, "database": database}
        return frozenset(part for part, is_shared in found.items() if is_shared)

    async def note_made(self, name: str, part: str) -> None:
        """A part of its place is not there, and will be made: then it is the tenant's own."""
        await self._admin.rows(
            "update asgi_datasource.tenants set made = array_append(array_remove(made, %s), %s) where name = %s",
            part,
            part,
            name,
        )

    async def register(self, name: str, placement: Placement) -> None:
        """Write the row of a tenant that is to be made; it is not served yet."""
        await self._admin.rows(
            "insert into asgi_datasource.tenants"
            " (name, datasource, schema, role, database, row_security, max_connections, aliases)"
            " values (%s, %s, %s, %s, %s, %s::jsonb, %s, %s) on conflict (name) do nothing",
            name,
            placement.datasource,
            placement.schema,
            placement.role,
            placement.database,
            None if placement.row_security is None else json.dumps(placement.row_security),
            placement.max_connections,
            list(placement.aliases),
        )

    async def change(self, name: str, *, state: str | None = None, is_ready: bool | None = None) -> None:
        """Change what a tenant may do."""
        await self._admin.rows(
            "update asgi_datasource.tenants set state = coalesce(%s, state), is_ready = coalesce(%s, is_ready),"
            " updated_at = now() where name = %s",
            state,
            is_ready,
            name,
        )

    async def place(self, name: str, datasource: str, *, state: str) -> None:
        """The tenant lives somewhere else from now on."""
        await self._admin.rows(
            "update asgi_datasource.tenants set datasource = %s, state = %s, updated_at = now() where name = %s",
            datasource,
            state,
            name,
        )

    async def rename(self, name: str, new: str) -> None:
        """Give a tenant another name; the old one stays an alias."""
        await self._admin.rows(
            "update asgi_datasource.tenants set name = %s, updated_at = now(),"
            " aliases = array_append(array_remove(aliases, %s), name) where name = %s",
            new,
            new,
            name,
        )

    async def forget(self, name: str) -> None:
        """Take the row of a tenant away, and its steps with it."""
        async with self._admin.transaction():
            await self._admin.rows("delete from asgi_datasource.tenants where name = %s", name)
            await self._admin.rows("delete from asgi_datasource.tenant_steps where tenant = %s", name)

    # -- steps

    async def done(self, name: str, operation: Operation) -> dict[str, str | None]:
        """The steps of an operation that are done, each with what it has kept."""
        rows = await self._admin.rows(
            "select step, detail from asgi_datasource.tenant_steps"
            " where tenant = %s and operation = %s and state = 'done'",
            name,
            operation.value,
        )
        return {str(step): detail for step, detail in rows}

    async def begin(self, name: str, operation: Operation, step: str) -> None:
        """A step begins."""
        await self._admin.rows(
            "insert into asgi_datasource.tenant_steps (tenant, operation, step, state) values (%s, %s, %s, 'running')"
            " on conflict (tenant, operation, step) do update set state = 'running', began_at = now(), ended_at = null",
            name,
            operation.value,
            step,
        )

    async def end(self, name: str, operation: Operation, step: str, *, failed: bool, detail: str | None) -> None:
        """A step has ended."""
        await self._admin.rows(
            "update asgi_datasource.tenant_steps set state = %s, detail = %s, ended_at = now()"
            " where tenant = %s and operation = %s and step = %s",
            "failed" if failed else "done",
            detail,
            name,
            operation.value,
            step,
        )

    async def close(self, name: str, operation: Operation) -> None:
        """The operation has ended: its steps are of no more use."""
        await self._admin.rows(
            "delete from asgi_datasource.tenant_steps where tenant = %s and operation = %s", name, operation.value
        )

    async def other_operation(self, name: str, operation: Operation) -> str | None:
        """Another operation on this tenant that has not ended."""
        rows: Sequence[Any] = await self._admin.rows(
            "select operation from asgi_datasource.tenant_steps where tenant = %s and operation <> %s limit 1",
            name,
            operation.value,
        )
        return str(rows[0][0]) if rows else None
