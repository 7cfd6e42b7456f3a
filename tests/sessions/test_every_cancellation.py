"""A request that is cancelled at each await in turn leaves nothing behind, and its writes are whole or absent.

`test_cancellation` does the same with sessions and every kind of cancellation. Here requests take the rarer turns as
well: queues, proofs of freshness, the search for a primary, lost connections, retries, and commits that have to wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import psycopg
from starlette.types import Receive, Scope, Send

from asgi_datasource import AccessIntent, DataError, DataSession, DataSourceMiddleware, compile, session, transactional
from asgi_datasource.concurrency.fair_queue import TenantQuota
from asgi_datasource.drivers.psycopg import PsycopgServer
from asgi_datasource.routing import Position
from asgi_datasource.routing.consistency.token import Mark, Token, TokenSigner, scope_of
from tests.asgi_call import Call
from tests.pools import until, until_at_rest
from tests.sessions.every_await import Canceller, cancel_at
from tests.world import World

SECRET: Final = "known to the service alone"
INSERT: Final = "insert into orders (item) values (%s)"
POOL_SIZE: Final = 2
RELEASE_S: Final = 0.003
"""Seconds for which a request waits for what another one holds."""
FAR_AHEAD: Final = 1 << 40
"""A distance in the log that no server gets through."""

OF_PROCESS: Final = frozenset(
    {
        "PsycopgConnection._on_timer",
        "HandOver._return_unused",
        "HandOver._end_late_waits",
        "DeferredCalls._call_due",
        "SaturationLog._report",
    }
)
"""Timers of a connection, a pool or the process: one each, however many requests there are."""


@dataclass
class Site:
    """An open application, and what it has at rest."""

    world: World
    middleware: DataSourceMiddleware
    blocker: psycopg.AsyncConnection
    tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    releasing: asyncio.Task[None] | None = None
    """Releases the lock that COMMIT waits for."""
    attempts: int = 0
    """Calls of the handler in the present request."""
    pids: list[int] = field(default_factory=list[int])
    """The replica's backends when the request began."""

    @property
    def servers(self) -> list[PsycopgServer]:
        found = self.middleware.registry.datasources["orders"].servers.values()
        return [cast("PsycopgServer", server) for server in found]

    @property
    def primary(self) -> PsycopgServer:
        return next(server for server in self.servers if server.name == "primary")

    def leftovers(self) -> list[str]:
        """What is there beyond what there is at rest."""
        registry = self.middleware.registry
        orders = registry.datasources["orders"]
        found: list[str] = []
        for server in self.servers:
            if server.borrowed or server.waiting or server.idle != server.size:
                found.append(f"{server!r}: {server.idle} of {server.size} idle, {server.waiting} waiting")
            queues = [queue for queue in (server.pool._turns, server.pool._limits) if queue is not None]
            found += [repr(queue) for queue in queues if queue._admitted or queue._in_use or queue.waiting]
        limits = [orders.concurrency_limit, registry.compiled.rules.match("GET", "/").concurrency_limit]
        found += [repr(limit) for limit in limits if limit is not None and limit.in_flight.count]
        found += [repr(registry.background)] if registry.background else []
        found += [f"deferred {call}" for call in registry.deferred_calls.due]
        found += [repr(task) for task in asyncio.all_tasks() - self.tasks]
        found += [f"timer {name}" for name in timers(self.tasks)]
        return found

    async def at_rest(self, where: str) -> None:
        """Wait until nothing is left behind."""
        try:
            await until(lambda: not self.leftovers(), where)
        except AssertionError as error:
            raise AssertionError(f"{where}: {self.leftovers()}") from error

    async def next_request(self) -> Counter[str]:
        """Another request, which works: it removes and returns the items that are there."""
        items: Counter[str] = Counter()

        async def clear(scope: Scope, receive: Receive, send: Send) -> None:
            rows = await session(scope).fetch_all("delete from orders returning item")
            items.update(row["item"] for row in rows)
            await answer(send)

        app, self.middleware.app = self.middleware.app, clear
        try:
            call = await Call("POST").run(self.middleware)
        finally:
            self.middleware.app = app
        assert call.status == 200, call.body
        return items


def timers(besides: set[asyncio.Task[Any]]) -> list[str]:
    """The functions that pending timers of the running loop call, without those that these tasks wait for."""
    awaited = [cast("Any", task)._fut_waiter for task in besides]
    found: list[str] = []
    for handle in cast("Any", asyncio.get_running_loop())._scheduled:
        if not handle.cancelled():
            callback, arguments = handle._callback, handle._args
            is_awaited = getattr(getattr(callback, "__self__", None), "_task", None) in besides or any(
                argument is future for argument in arguments for future in awaited
            )
            if callback.__qualname__ not in OF_PROCESS and not is_awaited:
                found.append(callback.__qualname__)
    return found


async def answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


# -- what handlers do

Handler = Callable[[DataSession, Site], Awaitable[None]]


async def read(db: DataSession, site: Site) -> None:
    await db.fetch_all("select item from orders")


async def read_one_snapshot(db: DataSession, site: Site) -> None:
    async with db.transaction(read_only=True):
        await db.fetch_all("select item from orders")
        await db.fetch_all("select item from orders")


async def read_where_the_connection_is_lost(db: DataSession, site: Site) -> None:
    await db.fetch_all("select pg_terminate_backend(pg_backend_pid()) where pg_backend_pid() = any(%s)", [site.pids])


async def write(db: DataSession, site: Site) -> None:
    await db.execute(INSERT, ["tea"])
    await db.execute(INSERT, ["milk"])


async def write_around_savepoints(db: DataSession, site: Site) -> None:
    await db.execute(INSERT, ["tea"])
    with suppress(DataError):
        async with db.transaction():
            await db.execute(INSERT, ["cocoa"])
            await db.execute(INSERT, ["tea"])
    async with db.transaction():
        await db.execute(INSERT, ["milk"])


@transactional(propagation="requires_new")
async def write_apart(db: DataSession) -> None:
    await db.execute(INSERT, ["bread"])
    await db.execute(INSERT, ["butter"])


async def write_two_transactions(db: DataSession, site: Site) -> None:
    await db.execute(INSERT, ["tea"])
    await write_apart(db)
    await db.execute(INSERT, ["milk"])


async def stream(db: DataSession, site: Site) -> None:
    async with aclosing(db.stream("select generate_series(1, 5)", size=2)) as rows:
        async for _ in rows:
            pass


async def leave_a_stream_while_a_task_reads(db: DataSession, site: Site) -> None:
    rows = db.stream("select generate_series(1, 5)", size=2)
    await anext(rows)
    reading = asyncio.ensure_future(db.fetch_value("select pg_sleep(0.002)"))
    try:
        await asyncio.sleep(0)
        await cast("Any", rows).aclose()
    finally:
        await asyncio.wait({reading})


async def copy(db: DataSession, site: Site) -> None:
    async with (
        db.connection(AccessIntent.WRITE) as connection,
        connection.cursor() as cursor,
        cursor.copy("copy orders (item) from stdin") as into,
    ):
        await into.write_row(["tea"])
        await into.write_row(["milk"])


async def write_on_a_borrowed_connection(db: DataSession, site: Site) -> None:
    async with db.connection(AccessIntent.WRITE) as connection:
        await connection.execute(INSERT, ["tea"])
        await connection.execute(INSERT, ["milk"])


async def lose_once(db: DataSession, site: Site) -> None:
    await db.execute(INSERT, ["tea"])
    if site.attempts == 1:
        await db.execute("do $$ begin raise exception using errcode = '40001'; end $$")
    await db.execute(INSERT, ["milk"])


async def commit_behind_a_lock(db: DataSession, site: Site) -> None:
    await db.execute(INSERT, ["tea"])
    await db.execute("insert into children (parent) values (1)")
    await db.execute(INSERT, ["milk"])


async def commit_behind_a_commit(db: DataSession, site: Site) -> None:
    await db.execute(INSERT, ["bread"])
    await db.execute("insert into children (parent) values (1)")
    await db.execute(INSERT, ["butter"])
    first = asyncio.ensure_future(db.commit())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    await db.execute(INSERT, ["tea"])
    await db.execute(INSERT, ["milk"])
    await db.commit()


# -- what is in their way

Prepare = Callable[[Site, int], Awaitable[dict[str, str]]]
"""Puts something in the way of a request, which is to be cancelled at this await; returns its headers."""


async def nothing(site: Site, number: int) -> dict[str, str]:
    return {}


async def every_connection(site: Site, number: int) -> dict[str, str]:
    """All connections are borrowed."""
    for server in site.servers:
        for _ in range(POOL_SIZE):
            connection = await server.acquire(deadline=None, quota=TenantQuota("initech"))
            asyncio.get_running_loop().call_later(RELEASE_S, server.release, connection)
    return {}


async def connections_of_the_tenant(site: Site, number: int) -> dict[str, str]:
    """The tenant's only connection of each pool is borrowed."""
    for server in site.servers:
        connection = await server.acquire(deadline=None, quota=TenantQuota("globex", 1))
        asyncio.get_running_loop().call_later(RELEASE_S, server.release, connection)
    return {"x-tenant": "globex"}


async def token_ahead(site: Site, number: int) -> dict[str, str]:
    """The client has seen a position that no replica reaches."""
    return token_of(Position(site.primary.timeline, FAR_AHEAD))


async def newer_timeline(site: Site, number: int) -> dict[str, str]:
    """The client has seen a timeline that no primary is on."""
    return token_of(Position(site.primary.timeline + number, 1))


def token_of(position: Position) -> dict[str, str]:
    token = Token((Mark(scope_of("acme", "orders"), position, int(time.time())),))
    return {"x-datasource-token": TokenSigner([SECRET], ttl_s=60).sign(token)}


async def connection_to_lose(site: Site, number: int) -> dict[str, str]:
    site.pids = [pid for pid, _ in await site.world.backends("r1")]
    return {}


async def lock(site: Site, number: int) -> dict[str, str]:
    """Another transaction has a row lock that COMMIT waits for."""
    await site.blocker.execute("select from acme.parents where id = 1 for update")

    async def release() -> None:
        await asyncio.sleep(RELEASE_S)
        await site.blocker.rollback()

    site.releasing = asyncio.ensure_future(release())
    return {}


# -- the requests


@dataclass(frozen=True)
class Walk:
    """A request, and what is in its way.

    Attributes:
        handle: What its handler does before it answers.
        method: Its method.
        items: The items that it writes, one group for each of its transactions.
        waits: The least number of its awaits.
        prepare: Puts something in its way.
    """

    handle: Handler
    method: str = "POST"
    items: tuple[tuple[str, ...], ...] = ()
    waits: int = 2
    prepare: Prepare = nothing


PAIR: Final = (("tea", "milk"),)
PAIRS: Final = (("tea", "milk"), ("bread", "butter"))

QUEUES: Final = (
    Walk(read, "GET", prepare=every_connection),
    Walk(read, "GET", prepare=connections_of_the_tenant),
    Walk(write, items=PAIR, prepare=every_connection, waits=4),
)
WALKS: Final = (
    # On a busy machine the replica's answers take up the wait, or it is not asked.
    Walk(read, "GET", prepare=token_ahead, waits=1),
    Walk(read_one_snapshot, "GET", prepare=token_ahead, waits=1),
    Walk(read, "GET", waits=1),
    Walk(write, items=PAIR, waits=3),
    Walk(write, items=PAIR, prepare=newer_timeline, waits=4),
    Walk(write_around_savepoints, items=PAIR, waits=5),
    Walk(write_two_transactions, items=PAIRS, waits=5),
    Walk(stream, "GET", waits=4),
    Walk(leave_a_stream_while_a_task_reads, "GET", waits=4),
    Walk(copy, items=PAIR, waits=5),
    Walk(write_on_a_borrowed_connection, items=PAIR, waits=5),
    Walk(lose_once, items=PAIR, waits=6),
    Walk(commit_behind_a_lock, items=PAIR, prepare=lock, waits=4),
    Walk(commit_behind_a_commit, items=PAIRS, prepare=lock, waits=8),
    *QUEUES,
    Walk(read_where_the_connection_is_lost, "GET", prepare=connection_to_lose, waits=3),
)


async def test_a_request_cancelled_at_each_await(world: World) -> None:
    await world.sql("insert into parents values (1)")
    await cancel_everywhere(world, WALKS, fair=False)


async def test_a_request_cancelled_at_each_await_in_fair_turns(world: World) -> None:
    await cancel_everywhere(world, QUEUES, fair=True)


async def cancel_everywhere(world: World, walks: Sequence[Walk], *, fair: bool) -> None:
    config = world.config(
        replicas=("r1",),
        pool={"min_size": 1, "max_size": POOL_SIZE, "fair": fair},
        routing={"check_interval": "1h"},
        consistency={"token": "header", "secret": SECRET, "wait": "12ms"},
        transactions={"retry": 2},
        routes=[{"match": "/", "max_in_flight": 9}],
    )
    config["datasources"]["orders"]["max_in_flight"] = 9
    config["tenants"]["acme"]["limits"] = {"max_connections": POOL_SIZE}
    config["tenants"]["globex"]["limits"] = {"max_connections": 1}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.attempts += 1
        await walk.handle(session(scope), site)
        await answer(send)

    # A replica that lags when it is first asked would not be waited for.
    await world.cluster.caught_up()
    url = world.cluster.primary.url(dbname=world.dbname, user="postgres")
    async with compile(config) as registry, await psycopg.AsyncConnection.connect(url) as blocker:
        site = Site(world, DataSourceMiddleware(app, registry=registry), blocker)
        await until_at_rest(registry)
        site.tasks = asyncio.all_tasks()
        for walk in walks:
            await cancel_at_each_await(site, walk)


async def cancel_at_each_await(site: Site, walk: Walk) -> None:
    name = f"{walk.handle.__name__}, {walk.prepare.__name__}"
    # Once without cancellation: connections are opened, and statements prepared.
    await (call := await prepared(site, walk, 1)).run(site.middleware)
    assert call.status == 200, call.body
    assert await site.next_request() == Counter([item for group in walk.items for item in group])
    await site.at_rest(name)
    number, was_reached = 0, True
    while was_reached:
        number += 1
        call = await prepared(site, walk, number + 1)
        was_reached = await cancel_at(number, Canceller.TASK, partial(call.run, site.middleware))
        where = f"{name}, cancelled at await {number}"
        await site.at_rest(where)
        items = await site.next_request()
        for group in walk.items:
            found = {items.pop(item, 0) for item in group}
            assert found in ({0}, {1}), f"{where}: half of {group} is there"
            # A response that was sent is true, whatever happened after it.
            assert found == {1} or not call.sent, where
        assert not items, where
    assert call.status == 200
    assert number > walk.waits, f"{name}: it took a shorter way than it should"


async def prepared(site: Site, walk: Walk, number: int) -> Call:
    site.attempts = 0
    headers = {"x-tenant": "acme", **await walk.prepare(site, number)}
    return Call(walk.method, headers=[(name.encode(), value.encode()) for name, value in headers.items()])
