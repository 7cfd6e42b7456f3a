"""A session cancelled at any suspension point: hooks run truthfully, the connection is kept, and the pool is
complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Literal

import pytest
import uvloop
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from asgi_datasource import (
    AccessIntent,
    DataError,
    DataSession,
    DataSourceMiddleware,
    DataSourceRegistry,
    UnexpectedRollback,
    session,
    transactional,
)
from asgi_datasource.testing import EmbeddedCluster
from tests.asgi_call import Call
from tests.pools import assert_whole
from tests.sessions.every_await import Canceller, cancel_at
from tests.world import World

Loop = Literal["asyncio", "uvloop"]
Work = Callable[[DataSession, "Ledger"], Awaitable[None]]


class Ledger:
    """Inserts items, and records which hooks ran for each."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[str]] = {}

    def expect(self, db: DataSession, item: str) -> None:
        """Register the hooks of an item before it is inserted."""
        ran = self.outcomes[item] = []
        db.after_commit(lambda: ran.append("committed"))
        db.after_rollback(lambda: ran.append("rolled back"))

    async def put(self, db: DataSession, item: str) -> None:
        """Insert an item."""
        self.expect(db, item)
        await db.write.execute("insert into orders (item) values (%s)", [item])


async def write(db: DataSession, ledger: Ledger) -> None:
    await ledger.put(db, "tea")
    await db.fetch_all("select * from orders")
    ledger.expect(db, "milk")
    await db.executemany("insert into orders (item) values (%s)", [["milk"], ["cocoa"]])
    await db.execute("delete from orders where item = 'cocoa'")


async def read(db: DataSession, ledger: Ledger) -> None:
    await db.read.fetch_all("select * from orders")
    await db.read.fetch_value("select pg_sleep(0.01)")


async def leave_traces(db: DataSession, ledger: Ledger) -> None:
    await db.read.execute("set search_path = globex")
    await ledger.put(db, "tea")
    await db.execute("set time zone 'Asia/Tokyo'")


async def use_savepoints(db: DataSession, ledger: Ledger) -> None:
    await ledger.put(db, "tea")
    with suppress(DataError):
        async with db.transaction():
            await ledger.put(db, "milk")
            await db.execute("insert into orders (item) values ('tea')")
    async with db.transaction(), db.transaction():
        await ledger.put(db, "cocoa")
        await db.read.fetch_all("select * from orders")
    async with db.transaction(read_only=True):
        await db.fetch_all("select * from orders")


async def use_a_snapshot(db: DataSession, ledger: Ledger) -> None:
    async with db.transaction(read_only=True):
        await db.fetch_all("select * from orders")
        await db.fetch_all("select * from orders")
    await ledger.put(db, "tea")


async def stream(db: DataSession, ledger: Ledger) -> None:
    for _ in range(2):
        async with aclosing(db.stream("select n from generate_series(1, 5) n", size=2)) as rows:
            async for _ in rows:
                pass
        await ledger.put(db, f"tea {len(ledger.outcomes)}")


async def borrow(db: DataSession, ledger: Ledger) -> None:
    async with db.connection(AccessIntent.READ) as connection:
        await connection.execute("select * from orders")
    async with db.connection(AccessIntent.WRITE) as connection:
        ledger.expect(db, "tea")
        await connection.execute("insert into orders (item) values ('tea')")
        async with connection.cursor() as cursor, cursor.copy("copy orders (item) to stdout") as copy:
            async for _ in copy:
                pass
    async with db.connection(AccessIntent.READ) as connection:
        await connection.execute("select * from orders")
    await ledger.put(db, "milk")


async def use_children(db: DataSession, ledger: Ledger) -> None:
    await asyncio.gather(ledger.put(db, "tea"), ledger.put(db, "milk"), db.read.fetch_all("select * from orders"))
    async with db.transaction():
        await asyncio.gather(ledger.put(db, "cocoa"), db.read.fetch_all("select * from orders"))


async def end_inside_the_session(db: DataSession, ledger: Ledger) -> None:
    await ledger.put(db, "tea")
    await db.commit()
    await ledger.put(db, "milk")
    await db.rollback()
    await ledger.put(db, "cocoa")


async def call_services(db: DataSession, ledger: Ledger) -> None:
    @transactional
    async def place(item: str) -> None:
        await ledger.put(db, item)
        await db.fetch_all("select * from orders")

    @transactional(read_only=True)
    async def look() -> None:
        await db.fetch_all("select * from orders")

    await look()
    await place("tea")
    async with db.transaction():
        await place("milk")
    await look()


async def use_hooks(db: DataSession, ledger: Ledger) -> None:
    @transactional(propagation="requires_new")
    async def place(item: str) -> None:
        await ledger.put(db, item)
        db.before_commit(check)

    async def check() -> None:
        await db.fetch_all("select * from orders")

    await place("milk")
    await ledger.put(db, "tea")
    db.before_commit(check)
    db.after_commit(lambda: asyncio.sleep(0))
    await db.commit()
    await ledger.put(db, "cocoa")
    db.before_commit(check)


REQUEST = [
    write,
    read,
    leave_traces,
    use_savepoints,
    use_a_snapshot,
    stream,
    borrow,
    use_children,
    end_inside_the_session,
    call_services,
    use_hooks,
]


def run(loop: Loop, work: Callable[[], Awaitable[None]]) -> None:
    async def running() -> None:
        await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(running())


async def backends(world: World) -> dict[str, list[int]]:
    """The pid of each server's pooled connection."""
    found: dict[str, list[int]] = {}
    for node in ("primary", "r1"):
        rows = await world.backends(node)
        assert {state for _, state in rows} == {"idle"}, rows
        found[node] = sorted(pid for pid, _ in rows)
    return found


def sample_of(canceller: Canceller, *, whole: bool, shift: int = 0) -> tuple[int, int]:
    """The first suspension point at which to cancel, and the step to the next: all, or this canceller's quarter."""
    kinds = list(Canceller)
    return (1, 1) if whole else (1 + (kinds.index(canceller) + shift) % len(kinds), len(kinds))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("canceller", list(Canceller))
@pytest.mark.parametrize("work", REQUEST)
def test_a_session_cancelled_at_any_suspension_point(
    cluster: EmbeddedCluster, work: Work, canceller: Canceller, loop: Loop, whole: bool
) -> None:
    # The suspension points do not depend on the loop: each is cancelled in one way on asyncio, in another on uvloop.
    first, step = sample_of(canceller, whole=whole, shift=2 if loop == "uvloop" else 0)

    async def scenario() -> None:
        async with World.create(cluster) as world:
            config: dict[str, Any] = {"replicas": ("r1",), "pool": {"min_size": 1, "max_size": 1}}
            async with world.registry(**config) as registry:
                await check_every_wait(world, registry, work, canceller, first=first, step=step)

    run(loop, scenario)


async def check_every_wait(
    world: World, registry: DataSourceRegistry, work: Work, canceller: Canceller, *, first: int, step: int
) -> None:
    ledger = Ledger()

    async def use() -> None:
        with suppress(UnexpectedRollback):
            async with registry.session("acme") as db:
                await work(db, ledger)

    # Runs without cancellation first: connections are opened, statements prepared.
    for _ in range(3):
        await use()
        await world.sql("truncate orders")
    await registry.background.drain(5.0)
    await assert_whole(registry, world)
    await world.cluster.caught_up()
    before = await backends(world)
    number = first - step
    was_reached = True
    while was_reached:
        number += step
        ledger.outcomes.clear()
        was_reached = await cancel_at(number, canceller, use)
        where = f"{canceller} at wait {number}"
        assert await registry.background.drain(5.0) == 0, where
        await assert_whole(registry, world)
        assert await backends(world) == before, where
        # Hooks of each item ran once, and report its true outcome.
        committed = {item for item, ran in ledger.outcomes.items() if ran == ["committed"]}
        undone = {item for item, ran in ledger.outcomes.items() if ran == ["rolled back"]}
        assert committed | undone == set(ledger.outcomes), where
        assert set(await world.items()) == committed, where
        await world.sql("truncate orders")
        async with registry.session("globex") as db:
            assert await db.fetch_value("select current_schemas(false)") == ["globex"], where
            assert await db.fetch_value("show timezone") != "Asia/Tokyo"
    assert number > 2


async def use_own_transactions(db: DataSession, ledger: Ledger) -> None:
    async with db.transaction():
        await ledger.put(db, "tea")
        with suppress(DataError):
            async with db.transaction():
                await ledger.put(db, "milk")
                await db.execute("select 1 / 0")
    async with db.connection(AccessIntent.WRITE) as connection:
        await connection.execute("select * from orders")
    await db.write.execute("delete from orders where item = 'nothing of the kind'")
    await db.fetch_all("select * from orders")


@pytest.mark.parametrize("canceller", list(Canceller))
@pytest.mark.parametrize(
    ("default", "work"),
    [
        ("request", write),
        ("request", use_savepoints),
        ("request", call_services),
        ("request", use_hooks),
        ("annotated", use_own_transactions),
        ("annotated", call_services),
    ],
)
async def test_a_request_cancelled_at_any_suspension_point(
    world: World, work: Work, canceller: Canceller, default: str, whole: bool
) -> None:
    ledger = Ledger()

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await work(session(scope), ledger)
        await JSONResponse({}, status_code=201)(scope, receive, send)

    async def request() -> None:
        nonlocal call
        call = Call()
        await call.run(DataSourceMiddleware(endpoint, registry=registry))

    call = Call()
    config: dict[str, Any] = {"replicas": ("r1",), "pool": {"min_size": 1, "max_size": 1}}
    async with world.registry(**config, transactions={"default": default}) as registry:
        for _ in range(3):
            await request()
            assert call.status == 201
            await world.sql("truncate orders")
        before = await backends(world)
        first, step = sample_of(canceller, whole=whole)
        number = first - step
        was_reached = True
        while was_reached:
            number += step
            ledger.outcomes.clear()
            was_reached = await cancel_at(number, canceller, request)
            where = f"{canceller} at wait {number}"
            assert await registry.background.drain(5.0) == 0, where
            await assert_whole(registry, world)
            assert await backends(world) == before, where
            committed = {item for item, ran in ledger.outcomes.items() if ran == ["committed"]}
            undone = {item for item, ran in ledger.outcomes.items() if ran == ["rolled back"]}
            assert committed | undone == set(ledger.outcomes), where
            assert set(await world.items()) == committed, where
            # A success status in the response is true, whatever happened after it.
            assert "tea" in committed or not call.sent or call.status != 201, where
            await world.sql("truncate orders")
    assert call.status == 201
