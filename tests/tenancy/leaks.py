"""Many tenants on few connections, with everything that can go wrong between them: no tenant sees another one's row.

Every row carries its owner. Requests run through the middleware: they read, write, commit in between, fail, are
cancelled in the middle, lend connections, stream. Whatever a request reads has to belong to its tenant.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import (
    AccessIntent,
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    DataSourceRegistry,
    session,
)
from tests.asgi_call import Call
from tests.pools import until

READ = "select owner from rows"
EXPECTED = frozenset({DataErrorKind.RESOURCE, DataErrorKind.TIMEOUT, DataErrorKind.CLOSED})


@dataclass
class Watch:
    """What has been seen.

    Attributes:
        rows: How many rows were read.
        strangers: Tenant and owner of each row that was not the reader's.
        outcomes: How requests ended, by what they did.
    """

    rows: int = 0
    strangers: list[tuple[str, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def look(self, db: DataSession, owners: Iterable[str]) -> None:
        """Rows that a tenant has read."""
        tenant = str(db.tenant.name)
        for owner in owners:
            self.rows += 1
            if owner != tenant:
                self.strangers.append((tenant, owner))

    async def read(self, db: DataSession, *, on_primary: bool = False) -> None:
        """Read all that the tenant can see."""
        view = db.write if on_primary else db
        self.look(db, [row["owner"] for row in await view.fetch_all(READ)])


class Trouble(Exception):
    """What a handler of these raises."""


Act = Callable[[Watch, DataSession, random.Random], Awaitable[None]]


async def write(db: DataSession) -> None:
    await db.write.execute("insert into rows (owner) values (%s)", (db.tenant.name,))


async def reads(watch: Watch, db: DataSession, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 3)):
        await watch.read(db)


async def writes(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await write(db)
    await watch.read(db)


async def commits_in_between(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await write(db)
    await (db.commit() if chance.random() < 0.5 else db.rollback())
    await watch.read(db)
    await watch.read(db, on_primary=True)


async def fails(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await write(db)
    await watch.read(db)
    raise Trouble


async def breaks_the_transaction(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await write(db)
    with suppress(DataError):
        await db.execute("select 1 / 0")
    with suppress(DataError):
        await watch.read(db)


async def fails_in_a_savepoint(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await write(db)
    with suppress(DataError, Trouble):
        async with db.transaction():
            await write(db)
            if chance.random() < 0.5:
                raise Trouble
            await db.execute("select 1 / 0")
    await watch.read(db)


async def fails_at_commit(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await write(db)
    await db.execute("insert into children (parent) values (0)")


async def is_cancelled(watch: Watch, db: DataSession, chance: random.Random) -> None:
    if chance.random() < 0.5:
        await write(db)
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.choice((0.0, 0.002, 0.01))):
            await (db.write if chance.random() < 0.5 else db.read).execute("select pg_sleep(5)")
    with suppress(DataError):
        await watch.read(db)


async def lends(watch: Watch, db: DataSession, chance: random.Random) -> None:
    intent = chance.choice(list(AccessIntent))
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.choice((0.02, 5))), db.connection(intent) as connection:
            rows = await (await connection.execute(READ)).fetchall()
            watch.look(db, [row[0] for row in rows])
            if chance.random() < 0.3:
                await connection.execute("select pg_sleep(0.02)")
    with suppress(DataError):
        await watch.read(db)


async def streams(watch: Watch, db: DataSession, chance: random.Random) -> None:
    async for row in db.stream(READ, size=2):
        watch.look(db, [row["owner"]])
        if chance.random() < 0.2:
            break
    await watch.read(db)


async def spoils_its_session(watch: Watch, db: DataSession, chance: random.Random) -> None:
    statement = chance.choice(
        (
            "set search_path = pg_catalog",
            "select set_config('app.tenant', 'somebody', false)",
            "set local search_path = pg_catalog",
            "set time zone 'Asia/Tokyo'",
        )
    )
    with suppress(DataError, psycopg.Error):
        await (db.write if chance.random() < 0.5 else db.read).execute(statement)


async def leaves_things(watch: Watch, db: DataSession, chance: random.Random) -> None:
    """Functions leave what no text shows; what is found in the session has to be the tenant's own."""
    view = db.write if chance.random() < 0.7 else db.read
    with suppress(DataError):
        watch.look(db, [row["owner"] for row in await view.fetch_all("select owner from helpers.found() owner")])
        await view.execute("select helpers.leave(%s, %s)", (db.tenant.name, chance.randrange(64)))
        await watch.read(db, on_primary=True)


async def asks_at_once(watch: Watch, db: DataSession, chance: random.Random) -> None:
    await asyncio.gather(*(watch.read(db) for _ in range(3)))


ACTS: Sequence[Act] = (
    reads,
    reads,
    writes,
    writes,
    commits_in_between,
    fails,
    breaks_the_transaction,
    fails_in_a_savepoint,
    fails_at_commit,
    is_cancelled,
    lends,
    streams,
    spoils_its_session,
    leaves_things,
    leaves_things,
    leaves_things,
    asks_at_once,
)


def make_app(registry: DataSourceRegistry, watch: Watch, seed: int) -> Starlette:
    """An application whose every request does one of the acts."""

    async def handle(request: Request) -> Response:
        number = int(request.path_params["number"])
        chance = random.Random(f"{seed}-{number}")
        act = chance.choice(ACTS)
        await act(watch, session(request), chance)
        return JSONResponse({}, status_code=chance.choice((200, 200, 201, 303, 409, 500)))

    return Starlette(
        routes=[Route("/{number:int}", handle, methods=["GET", "POST"])],
        middleware=[Middleware(DataSourceMiddleware, registry=registry)],
    )


async def run_requests(
    registry: DataSourceRegistry,
    tenants: Sequence[str],
    *,
    seed: int,
    go_on: Callable[[int], bool],
    at_once: int = 24,
) -> Watch:
    """Run requests of random tenants until told to stop.

    Args:
        registry: An open one.
        tenants: Their names.
        seed: Makes the requests the same again.
        go_on: Whether the request of this number is still to be sent.
        at_once: Requests under way at a time.
    """
    watch = Watch()
    app = make_app(registry, watch, seed)
    number = 0

    async def worker() -> None:
        nonlocal number
        while go_on(number):
            mine, number = number, number + 1
            await request(mine)

    async def request(mine: int) -> None:
        chance = random.Random(f"{seed}-client-{mine}")
        call = Call(
            chance.choice(("GET", "POST")), f"/{mine}", headers=[(b"x-tenant", chance.choice(tenants).encode())]
        )
        task = asyncio.ensure_future(call.run(app))
        leaving = chance.random()
        if leaving < 0.15:
            # The client goes, or the server cancels the request, somewhere in the middle.
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.005, 0.02)))
            if leaving < 0.08:
                call.leave()
            else:
                task.cancel()
        try:
            await task
            watch.outcomes["answered"] += 1
        except Trouble:
            watch.outcomes["failed"] += 1
        except asyncio.CancelledError:
            watch.outcomes["cancelled"] += 1
        except (DataError, psycopg.Error) as error:
            watch.outcomes[type(error).__name__] += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    await registry.background.drain(10.0)
    return watch


async def assert_no_leak(watch: Watch, registry: DataSourceRegistry) -> None:
    """No tenant saw another one's row, and every connection is back.

    Raises:
        AssertionError: One did, or a connection is missing.
    """
    assert watch.strangers == []
    assert watch.rows > 0
    assert watch.outcomes["answered"] > 0
    assert watch.outcomes["failed"] > 0

    def borrowed() -> int:
        endpoints = [*registry.compiled.servers]
        for fleet in registry.compiled.fleets.values():
            endpoints += list(fleet._open)
        return sum(endpoint.borrowed for endpoint in endpoints)

    await until(lambda: borrowed() == 0, "a connection is still borrowed")


TABLES: Any = """
create table {schema}.rows (id bigint generated always as identity, owner text not null);
create table {schema}.parents (id int primary key);
create table {schema}.children (parent int references {schema}.parents deferrable initially deferred);
grant usage on schema {schema} to app;
grant select, insert, update, delete on all tables in schema {schema} to app;
"""

POLICY: Any = """
alter table {schema}.rows enable row level security;
alter table {schema}.rows force row level security;
create policy own on {schema}.rows using (owner = nullif(current_setting('app.tenant', true), ''));
"""

HELPERS: Any = """
create schema helpers;
grant usage on schema helpers to app;
create function helpers.leave(tenant text, what int) returns void language plpgsql as $$ begin
    if what & 1 > 0 then perform set_config('app.mark', tenant, false); end if;
    if what & 2 > 0 then perform pg_try_advisory_lock(hashtext(tenant)); end if;
    if what & 4 > 0 then execute format('listen %I', tenant); end if;
    if what & 8 > 0 then perform set_config('search_path', current_setting('search_path'), false); end if;
    if what & 16 > 0 and not exists (select from pg_cursors where name = tenant) then
        execute format('declare %I cursor with hold for select owner from rows', tenant);
    end if;
    if what & 32 > 0 and current_setting('transaction_read_only') = 'off' then
        execute 'create temp table if not exists tmp_report as select owner from rows';
        if to_regclass('pg_temp.children') is null then
            execute format('create temp view children as select %L::text as owner, 0 as parent', tenant);
        end if;
    end if;
end $$;
create function helpers.found() returns setof text language plpgsql as $$ begin
    return query select current_setting('app.mark', true) where current_setting('app.mark', true) <> '';
    return query select name from pg_cursors where is_holdable and name !~ '^ads';
    if to_regclass('pg_temp.tmp_report') is not null then
        return query execute 'select owner from pg_temp.tmp_report';
    end if;
    if to_regclass('pg_temp.children') is not null then
        return query execute 'select owner from pg_temp.children';
    end if;
    return query select 'a lock of another one' from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
        and objid <> (hashtext((select owner from rows limit 1))::bigint & 4294967295)::oid;
end $$;
"""
"""What leaves things in a session, and tells whose are there."""
