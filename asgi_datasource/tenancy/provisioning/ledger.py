"""The table of tenants, and the table of steps, which records the progress of operations for after a crash."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, LiteralString
from uuid import UUID

from ...drivers.control import ControlConnection
from ...errors import DataError, DataErrorKind
from .trust import ensure_schema

_HOLDS: Final = ("tenants", "tenants_left_behind", "tenant_operations", "tenant_steps", "tell_tenants")

_TABLES: Final = """
create table if not exists asgi_datasource.tenants (
    name text primary key,
    id uuid not null unique default gen_random_uuid(),
    datasource text not null,
    schema text,
    row_security jsonb,
    role text,
    state text not null default 'active' check (state in ('active', 'read_only', 'suspended', 'moving')),
    aliases text[] not null default '{}',
    domains text[] not null default '{}',
    max_connections int check (max_connections > 0),
    database text,
    is_ready boolean not null default false,
    made text[] not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create table if not exists asgi_datasource.tenants_left_behind (
    tenant uuid not null,
    datasource text not null,
    schema text,
    database text,
    made text[] not null,
    left_at timestamptz not null default now()
);
create table if not exists asgi_datasource.tenant_operations (
    tenant text primary key,
    operation text not null check (operation in ('create', 'move', 'drop')),
    target text,
    is_cancelled boolean not null default false,
    began_at timestamptz not null default now()
);
create table if not exists asgi_datasource.tenant_steps (
    tenant text not null,
    operation text not null,
    step text not null,
    state text not null check (state in ('running', 'done', 'failed')),
    kept jsonb not null default '{}',
    reason text,
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
select t.name, t.id, t.datasource, t.schema, t.role, t.database, t.row_security, t.max_connections, t.aliases,
    t.domains, t.state, t.is_ready, t.made, o.operation, o.target, o.is_cancelled, (
        select s.reason from asgi_datasource.tenant_steps s
        where s.tenant = t.name and s.operation = o.operation and s.state = 'failed' order by s.began_at desc limit 1
    )
from asgi_datasource.tenants t left join asgi_datasource.tenant_operations o on o.tenant = t.name
"""


class Operation(StrEnum):
    """The operations on a tenant."""

    CREATE = "create"
    MOVE = "move"
    DROP = "drop"


class StepState(StrEnum):
    """The states of a step."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of a tenant in its row: names, not templates.

    Attributes:
        datasource: The datasource.
        schema, role, database: Its own; None without one.
        row_security: Custom settings that policies read.
        max_connections: Its limit.
        aliases: Its other names.
        domains: The hosts that are its own.
    """

    datasource: str
    schema: str | None = None
    role: str | None = None
    database: str | None = None
    row_security: dict[str, str] | None = None
    max_connections: int | None = None
    aliases: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An unfinished operation.

    Attributes:
        operation: The operation.
        target: The datasource that a tenant moves to.
        is_cancelled: It is being undone.
        failure: Why its last step failed; None if it has not.
    """

    operation: Operation
    target: str | None
    is_cancelled: bool
    failure: str | None

    def describe(self, tenant: str) -> str:
        """For messages: `move of 'acme' to 'two'`."""
        to = "" if self.target is None else f" to {self.target!r}"
        return f"{self.operation.value} of {tenant!r}{to}"

    def refusal(self, tenant: str) -> DataError:
        """The error of another operation that cannot begin meanwhile."""
        if self.is_cancelled:
            told = f"the {self.describe(tenant)} is being taken back: finish that with cancel"
        elif self.operation is Operation.CREATE:
            told = f"the {self.describe(tenant)} is under way: finish it, or drop the tenant"
        else:
            told = f"the {self.describe(tenant)} is under way: finish it, or take it back with cancel"
        how = "" if self.operation is Operation.CREATE else f" (tenants {self.operation.value} {tenant} --cancel)"
        return DataError(DataErrorKind.CONFLICT, told + how)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the table of tenants.

    Attributes:
        name: The tenant's.
        id: Stays the same when the tenant is renamed; another tenant of that name has another one.
        placement: Its place.
        state: As in the catalog.
        is_ready: Whether it has been set up and may be served.
        made: The parts, of `schema`, `role` and `database`, that were created for it.
        under_way: Its unfinished operation.
    """

    name: str
    id: UUID
    placement: Placement
    state: str
    is_ready: bool
    made: frozenset[str] = frozenset()
    under_way: UnderWay | None = None


@dataclass(frozen=True, slots=True)
class StepEntry:
    """One row of the table of steps.

    Attributes:
        state: The state of the step.
        kept: Its notes.
    """

    state: StepState
    kept: Mapping[str, Any]


class Ledger:
    """The tables, on one connection."""

    def __init__(self, admin: ControlConnection) -> None:
        self._admin = admin

    async def prepare(self, reader: str, *, where: str) -> None:
        """Create the tables where they are missing, and let the application's role read the table of tenants.

        Args:
            reader: The application's role.
            where: Names the server in errors.
        """
        await ensure_schema(self._admin, _TABLES, holds=_HOLDS, where=where)
        [[may_read]] = await self._admin.rows(
            "select has_schema_privilege(%s, 'asgi_datasource', 'usage')"
            " and has_table_privilege(%s, 'asgi_datasource.tenants', 'select')",
            reader,
            reader,
        )
        if not may_read:
            await self._admin.command("grant usage on schema asgi_datasource to {}", reader)
            await self._admin.command("grant select on asgi_datasource.tenants to {}", reader)

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncGenerator[None]:
        """Hold the lock on a tenant; the server releases it when this process dies.

        Raises:
            DataError: CONFLICT: another process holds it.
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
            tenant_id,
            datasource,
            schema,
            role,
            database,
            settings,
            limit,
            aliases,
            domains,
            state,
            is_ready,
            made,
            operation,
            target,
            is_cancelled,
            failure,
        ) in rows:
            own = (tuple(aliases), tuple(domains))
            placement = Placement(datasource, schema, role, database, settings, limit, *own)
            under_way = None if operation is None else UnderWay(Operation(operation), target, is_cancelled, failure)
            found.append(Record(name, tenant_id, placement, state, is_ready, frozenset(made), under_way))
        return found

    @asynccontextmanager
    async def registering(self) -> AsyncGenerator[None]:
        """Hold the lock under which tenants get their names and places."""
        async with self._admin.transaction():
            await self._admin.rows("select pg_advisory_xact_lock(7210460332)")
            yield

    async def claimed_by(self, name: str, wanted: Sequence[str], domains: Sequence[str] = ()) -> str | None:
        """Another tenant that has one of these names, as an alias or its own, or one of these domains."""
        rows = await self._admin.rows(
            "select name from asgi_datasource.tenants where name <> %s"
            " and (name = any(%s) or aliases && %s or domains && %s) limit 1",
            name,
            list(wanted),
            list(wanted),
            list(domains),
        )
        return str(rows[0][0]) if rows else None

    async def same_place(self, name: str, placement: Placement, datasources: Sequence[str]) -> str | None:
        """Another tenant that would see the same rows.

        Args:
            name: The tenant's name.
            placement: Its place.
            datasources: All datasources on the same database as its own.
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
        """The parts, of `schema`, `role` and `database`, that other tenants share; arguments as for `same_place`."""
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

    async def note_made(self, name: str, part: str, is_made: bool) -> None:
        """Record that a part of a tenant's place is about to be created for it; or that it belongs to another."""
        await self._admin.rows(
            "update asgi_datasource.tenants set made = array_remove(made, %s) || %s::text[] where name = %s",
            part,
            [part] if is_made else [],
            name,
        )

    async def register(self, name: str, placement: Placement) -> None:
        """Write the row of a tenant that is to be created; it is not served yet."""
        await self._admin.rows(
            "insert into asgi_datasource.tenants"
            " (name, datasource, schema, role, database, row_security, max_connections, aliases, domains)"
            " values (%s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s) on conflict (name) do nothing",
            name,
            placement.datasource,
            placement.schema,
            placement.role,
            placement.database,
            None if placement.row_security is None else json.dumps(placement.row_security),
            placement.max_connections,
            list(placement.aliases),
            list(placement.domains),
        )

    async def change(self, name: str, *, state: str | None = None, is_ready: bool | None = None) -> None:
        """Change the state of a tenant."""
        await self._admin.rows(
            "update asgi_datasource.tenants set state = coalesce(%s, state), is_ready = coalesce(%s, is_ready),"
            " updated_at = now() where name = %s",
            state,
            is_ready,
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

    # -- operations and steps

    async def open(self, name: str, operation: Operation, target: str | None = None) -> None:
        """Begin or resume an operation. A tenant whose creation has failed can be dropped instead."""
        await self._admin.rows(
            "insert into asgi_datasource.tenant_operations (tenant, operation, target) values (%s, %s, %s)"
            " on conflict (tenant) do update set operation = excluded.operation, began_at = now()"
            " where tenant_operations.operation = 'create'",
            name,
            operation.value,
            target,
        )

    async def cancel(self, name: str) -> None:
        """Record that an operation is being undone."""
        await self._admin.rows(
            "update asgi_datasource.tenant_operations set is_cancelled = true where tenant = %s", name
        )

    async def close(self, name: str) -> None:
        """Record that an operation has ended, or has been undone."""
        async with self._admin.transaction():
            await self._close(name)

    async def undone(self, name: str, operation: Operation, step: str) -> None:
        """Record that a step has been undone."""
        await self._admin.rows(
            "delete from asgi_datasource.tenant_steps where tenant = %s and operation = %s and step = %s",
            name,
            operation.value,
            step,
        )

    async def steps(self, name: str, operation: Operation) -> dict[str, StepEntry]:
        """The steps of an operation that have begun."""
        rows = await self._admin.rows(
            "select step, state, kept from asgi_datasource.tenant_steps where tenant = %s and operation = %s",
            name,
            operation.value,
        )
        return {str(step): StepEntry(StepState(state), kept) for step, state, kept in rows}

    async def begin(self, name: str, operation: Operation, step: str) -> None:
        """Record that a step begins; its earlier notes stay."""
        await self._admin.rows(
            "insert into asgi_datasource.tenant_steps (tenant, operation, step, state) values (%s, %s, %s, 'running')"
            " on conflict (tenant, operation, step)"
            " do update set state = 'running', reason = null, began_at = now(), ended_at = null",
            name,
            operation.value,
            step,
        )

    async def keep(self, name: str, operation: Operation, step: str, noted: Mapping[str, Any]) -> None:
        """Add notes to a step, before it acts."""
        await self._admin.rows(
            "update asgi_datasource.tenant_steps set kept = kept || %s::jsonb"
            " where tenant = %s and operation = %s and step = %s",
            json.dumps(noted),
            name,
            operation.value,
            step,
        )

    async def end(self, name: str, operation: Operation, step: str, *, failure: str | None = None) -> None:
        """Record that a step has ended."""
        await self._admin.rows(
            "update asgi_datasource.tenant_steps set state = %s, reason = %s, ended_at = now()"
            " where tenant = %s and operation = %s and step = %s",
            (StepState.DONE if failure is None else StepState.FAILED).value,
            failure,
            name,
            operation.value,
            step,
        )

    # -- last steps: each ends its operation in the transaction that makes the change

    async def activate(self, name: str) -> None:
        """Serve a tenant that has been created."""
        async with self._admin.transaction():
            await self.change(name, is_ready=True)
            await self._close(name)

    async def switch(self, record: Record, datasource: str, *, state: str, made: Sequence[str]) -> None:
        """Switch a tenant that has been moved to its new datasource, and record what it leaves behind.

        Args:
            record: The tenant before the move.
            datasource: Its new datasource.
            state: Its state there.
            made: The parts, of `schema`, `role` and `database`, that were created for it there.
        """
        place = record.placement
        async with self._admin.transaction():
            await self._admin.rows(
                "update asgi_datasource.tenants set datasource = %s, state = %s, made = %s, updated_at = now()"
                " where name = %s",
                datasource,
                state,
                list(made),
                record.name,
            )
            await self._admin.rows(
                "insert into asgi_datasource.tenants_left_behind (tenant, datasource, schema, database, made)"
                " values (%s, %s, %s, %s, %s)",
                record.id,
                place.datasource,
                place.schema,
                place.database,
                sorted(record.made),
            )
            await self._close(record.name)

    async def forget(self, record: Record) -> None:
        """Delete the row of a tenant that has been dropped."""
        async with self._admin.transaction():
            await self._admin.rows("delete from asgi_datasource.tenants where name = %s", record.name)
            await self._admin.rows("delete from asgi_datasource.tenants_left_behind where tenant = %s", record.id)
            await self._close(record.name)

    async def _close(self, name: str) -> None:
        await self._admin.rows("delete from asgi_datasource.tenant_steps where tenant = %s", name)
        await self._admin.rows("delete from asgi_datasource.tenant_operations where tenant = %s", name)

    # -- objects left behind by moves

    async def left_behind(self, record: Record, datasources: Sequence[str]) -> frozenset[str]:
        """The schema or database that a tenant has left behind at its previous place.

        Args:
            record: The tenant.
            datasources: All datasources on that database.
        """
        rows = await self._admin.rows(
            "select unnest(made) from asgi_datasource.tenants_left_behind where tenant = %s and datasource = any(%s)"
            " and schema is not distinct from %s::text and database is not distinct from %s::text",
            record.id,
            list(datasources),
            record.placement.schema,
            record.placement.database,
        )
        return frozenset(str(part) for [part] in rows)

    async def all_left_behind(self, record: Record) -> Sequence[str]:
        """The objects that moves of a tenant have left behind, for messages."""
        rows = await self._admin.rows(
            "select datasource, schema, database, made from asgi_datasource.tenants_left_behind where tenant = %s"
            " order by left_at",
            record.id,
        )
        return [
            f"the {part} {schema if part == 'schema' else database!r} on {datasource!r}"
            for datasource, schema, database, made in rows
            for part in made
            if part != "role"
        ]

    async def take_back(self, record: Record, datasources: Sequence[str]) -> None:
        """Record that a tenant has nothing left behind there any more; arguments as for `left_behind`."""
        await self._admin.rows(
            "delete from asgi_datasource.tenants_left_behind where tenant = %s and datasource = any(%s)"
            " and schema is not distinct from %s::text and database is not distinct from %s::text",
            record.id,
            list(datasources),
            record.placement.schema,
            record.placement.database,
        )
