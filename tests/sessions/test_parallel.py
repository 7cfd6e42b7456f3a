"""Concurrent tasks in one request: parallel reads outside of a transaction, everything else serialized."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, DataSession, SessionClosed, session, transactional
from tests.apps import client
from tests.pools import assert_whole, borrowed, until
from tests.sessions.requests import request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"
POOL = {"min_size": 0, "max_size": 8}


async def pids(db: DataSession, count: int) -> list[int]:
    """The pids of the backends that `count` concurrent reads run on."""
    return await asyncio.gather(
        *(db.read.fetch_value("select max(pg_backend_pid()) from orders") for _ in range(count))
    )


@asynccontextmanager
async def held_up(world: World) -> AsyncIterator[None]:
    """Readers of `orders` block until the end of the block."""
    url = world.cluster.nodes["primary"].url(dbname=world.dbname, user="postgres")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("lock table acme.orders in access exclusive mode")
        yield
        await connection.rollback()


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (3, 3), (100, 6)])
async def test_parallel_reads_use_at_most_max_parallel_connections(world: World, limit: int, most: int) -> None:
    async def body(db: DataSession) -> None:
        async with held_up(world):
            reading = asyncio.create_task(pids(db, 6))
            await until(lambda: borrowed(db.registry) == most, "fewer connections are in use than may be")
            for _ in range(20):
                # Further reads would have started by now.
                await asyncio.sleep(0)
            assert borrowed(db.registry) == most
        assert len(set(await reading)) <= most

    async with world.registry(replicas=(), pool=POOL, transactions={"max_parallel": limit}) as registry:
        assert (await request(registry, body, method="GET")).status == 201
        await assert_whole(registry, world)


async def test_parallel_reads_share_one_replica(world: World) -> None:
    async def body(db: DataSession) -> None:
        await db.fetch_value("select 1")
        assert len(set(await asyncio.gather(*(port_of(db) for _ in range(6))))) == 1

    async def port_of(db: DataSession) -> int:
        return int(await db.fetch_value("select current_setting('port')"))

    async with world.registry(pool=POOL, transactions={"max_parallel": 6}) as registry:
        assert (await request(registry, body, method="GET")).status == 201


async def test_a_transaction_uses_one_connection_and_one_statement_at_a_time(world: World) -> None:
    async def body(db: DataSession) -> None:
        await db.execute(INSERT, ["tea"])
        assert len(set(await pids(db, 4))) == 1
        # Reads that are queued when a transaction begins run in it.
        first = asyncio.create_task(db.read.fetch_value("select pg_sleep(0.1)"))
        await asyncio.sleep(0)
        results = await asyncio.gather(
            first, db.execute(INSERT, ["milk"]), *(db.read.fetch_value("select count(*) from orders") for _ in "abc")
        )
        assert results[2:] == [2, 2, 2]

    @transactional(read_only=True)
    async def snapshot(db: DataSession) -> None:
        assert len(set(await pids(db, 4))) == 1

    async with world.registry(pool=POOL, transactions={"max_parallel": 4}) as registry:
        assert (await request(registry, body)).status == 201
        assert (await request(registry, snapshot, method="GET")).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["tea", "milk"]


async def test_a_write_waits_for_reads_and_later_reads_see_it(world: World) -> None:
    async def body(db: DataSession) -> list[int]:
        async def count() -> int:
            return int(await db.read.fetch_value("select count(*) from orders, pg_sleep(0.05)"))

        return await asyncio.gather(count(), count(), db.write.execute(INSERT, ["tea"]), count(), count())

    async with world.registry(pool=POOL, transactions={"max_parallel": 4}) as registry:
        assert (await request(registry, body, method="GET")).body == b"[0,0,1,1,1]"
        await assert_whole(registry, world)
    assert await world.items() == ["tea"]


@pytest.mark.parametrize("status", [200, 404])
async def test_the_end_of_the_request_awaits_or_cancels_parallel_reads(world: World, status: int) -> None:
    results: list[object] = []

    async def endpoint(request: Request) -> Response:
        db = session(request)
        slow = 0.3 if status == 200 else 60

        async def read() -> None:
            try:
                results.append(await db.fetch_value("select count(*) from pg_sleep(%s)", [slow]))
            except DataError as error:
                results.append(error)

        tasks = [asyncio.create_task(read()) for _ in range(5)]
        await until(lambda: borrowed(registry) == 3, "the reads have not begun")
        request.app.state.tasks = tasks
        return JSONResponse({}, status_code=status)

    registry = world.registry(pool=POOL, transactions={"max_parallel": 3})
    async with client(world, [Route("/", endpoint)], registry=registry) as http:
        async with asyncio.timeout(20):
            assert (await http.get("/")).status_code == status
        await until(lambda: len(results) == 5, "a read has not ended")
        await assert_whole(registry, world)
    # Three were running; the other two were still queued.
    assert results.count(1) == (3 if status == 200 else 0)
    assert sum(isinstance(result, SessionClosed) for result in results) == (2 if status == 200 else 5)


async def test_the_deadline_cancels_parallel_reads(world: World) -> None:
    kinds: list[DataErrorKind] = []

    async def body(db: DataSession) -> None:
        async def read() -> None:
            try:
                await db.fetch_value("select pg_sleep(60)")
            except DataError as error:
                kinds.append(error.kind)
                raise

        await asyncio.gather(*(read() for _ in range(3)))

    config = {"max_parallel": 3, "deadline": "300ms"}
    async with world.registry(pool=POOL, transactions=config) as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body, method="GET")).status == 504
        await until(lambda: len(kinds) == 3, "a read has not ended")
        await assert_whole(registry, world)
    # If the server's timeout cancelled the first one, the end of the request may have cancelled the others.
    assert kinds[0] is DataErrorKind.TIMEOUT
    assert set(kinds) <= {DataErrorKind.TIMEOUT, DataErrorKind.CLOSED}


# -- tasks that outlive their block


@pytest.mark.parametrize("inner", ["requires_new", "nested"])
@pytest.mark.parametrize(
    ("outer", "kept"),
    [("requires_new", ["main", "after"]), ("not_supported", ["main", "parent", "after"]), ("nested", [])],
)
async def test_a_task_of_a_cancelled_block_is_rolled_back_with_it(
    world: World, outer: str, kept: list[str], inner: str
) -> None:
    ran: list[str] = []

    async def body(db: DataSession) -> None:
        inside, may_go = asyncio.Event(), asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        @transactional(propagation=inner)
        async def child() -> None:
            await db.write.execute(INSERT, ["child"])
            db.after_commit(lambda: ran.append("committed"))
            db.after_rollback(lambda: ran.append("rolled back"))
            inside.set()
            await may_go.wait()
            await db.write.execute(INSERT, ["child again"])

        @transactional(propagation=outer)
        async def parent() -> None:
            await db.write.execute(INSERT, ["parent"])
            tasks.append(asyncio.create_task(child()))
            await inside.wait()
            # The end of the function waits for its task, which does not end.

        await db.execute(INSERT, ["main"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await parent()
        if kept:
            await db.execute(INSERT, ["after"])
        may_go.set()
        with pytest.raises(DataError, match="the block around this one was cancelled") as caught:
            await tasks[0]
        assert caught.value.kind is DataErrorKind.QUERY

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            # A cancelled nested block leaves the surrounding transaction rollback-only.
            assert (await request(registry, body)).status == (201 if kept else 500)
        await assert_whole(registry, world)
    assert await world.items() == kept
    assert ran == ["rolled back"]


async def test_a_statement_queued_behind_the_end_of_its_block_also_waits_for_the_next_block(world: World) -> None:
    async def body(db: DataSession) -> None:
        ends = asyncio.Event()
        tasks: list[asyncio.Task[int]] = []

        async def child() -> int:
            await ends.wait()
            return await db.write.execute(INSERT, ["child"])

        @transactional(propagation="requires_new")
        async def parent() -> None:
            # Its COMMIT is slow.
            await db.execute("insert into slow values (1)")
            db.before_commit(ends.set)
            tasks.append(asyncio.create_task(child()))

        await parent()
        with pytest.raises(ZeroDivisionError):
            async with db.transaction():
                await db.execute(INSERT, ["undone"])
                assert not tasks[0].done()
                raise ZeroDivisionError
        await tasks[0]

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["child"]


# -- each task has its own nesting, independent of other tasks' blocks


class HeldOpen:
    """A block that one task keeps open while the code under test runs."""

    def __init__(self, db: DataSession, propagation: str) -> None:
        self._db = db
        self._propagation = propagation
        self._is_open = asyncio.Event()
        self._may_go = asyncio.Event()

    async def __aenter__(self) -> HeldOpen:
        @transactional(propagation=self._propagation)
        async def hold() -> None:
            await self._db.write.execute(INSERT, ["held"])
            self._is_open.set()
            await self._may_go.wait()
            if self._propagation == "nested":
                raise ZeroDivisionError

        self._holding = asyncio.create_task(hold())
        await self._is_open.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._may_go.set()
        if self._propagation == "nested":
            with pytest.raises(ZeroDivisionError):
                await self._holding
        else:
            await self._holding


@pytest.mark.parametrize("held", ["required", "requires_new"])
async def test_a_function_concurrent_with_another_tasks_transaction_has_its_own(world: World, held: str) -> None:
    @transactional
    async def half(db: DataSession) -> None:
        await db.execute(INSERT, ["half"])
        raise LookupError

    @transactional
    async def whole(db: DataSession) -> None:
        await db.execute(INSERT, ["whole"])

    async def body(db: DataSession) -> None:
        async with HeldOpen(db, held):
            tasks = [asyncio.create_task(half(db)), asyncio.create_task(whole(db))]
            await asyncio.sleep(0)
            assert not db.in_transaction()
        with pytest.raises(LookupError):
            await tasks[0]
        await tasks[1]

    async with world.registry(transactions={"default": "annotated"}) as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["held", "whole"]


async def test_a_stream_outside_of_a_transaction_reads_where_a_read_would(world: World) -> None:
    seen: list[bool] = []

    async def body(db: DataSession) -> None:
        seen.extend([row["replica"] async for row in db.stream("select pg_is_in_recovery() as replica")])

    for default in ("annotated", "request"):
        async with world.registry(transactions={"default": default}) as registry:
            assert (await request(registry, body)).status == 201
    # A POST writes: its statements share a transaction, unless only annotated functions have one.
    assert seen == [True, False]


async def test_a_stream_concurrent_with_another_tasks_transaction_has_its_own_snapshot(world: World) -> None:
    async def numbers(db: DataSession) -> list[int]:
        return [row["n"] async for row in db.stream("select n from generate_series(1, 5) n", size=2)]

    async def body(db: DataSession) -> None:
        async with HeldOpen(db, "requires_new"):
            reading = asyncio.create_task(numbers(db))
            await asyncio.sleep(0)
        assert await reading == [1, 2, 3, 4, 5]

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body, method="GET")).status == 201
        await assert_whole(registry, world)


async def test_concurrent_streams_share_a_snapshot_until_both_have_ended(world: World) -> None:
    async def numbers(db: DataSession, most: int) -> list[int]:
        rows = db.stream("select n from generate_series(1, %s) n", [most], size=2)
        return [row["n"] async for row in rows]

    async def body(db: DataSession) -> None:
        short, long = await asyncio.gather(numbers(db, 3), numbers(db, 20))
        assert (short, long) == (list(range(1, 4)), list(range(1, 21)))
        assert borrowed(db.registry) == 0

    async with world.registry() as registry:
        assert (await request(registry, body, method="GET")).status == 201
        await assert_whole(registry, world)


@pytest.mark.parametrize("held", ["requires_new", "nested", "not_supported"])
async def test_a_failing_function_dooms_the_transaction_it_joined_not_another_tasks_block(
    world: World, held: str
) -> None:
    @transactional
    async def half(db: DataSession) -> None:
        await db.execute(INSERT, ["half"])
        await fails.wait()
        raise LookupError

    fails = asyncio.Event()

    async def body(db: DataSession) -> None:
        failing = asyncio.create_task(half(db))
        await db.execute(INSERT, ["main"])
        async with HeldOpen(db, held):
            fails.set()
            with pytest.raises(LookupError):
                await failing

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 500
        await assert_whole(registry, world)
    assert await world.items() == ([] if held == "nested" else ["held"])


@pytest.mark.parametrize("held", ["requires_new", "nested", "not_supported"])
@pytest.mark.parametrize("gives_up", [False, True])
async def test_hooks_and_set_rollback_only_apply_to_the_transaction_of_their_task(
    world: World, held: str, gives_up: bool
) -> None:
    ran: list[str] = []

    async def body(db: DataSession) -> None:
        await db.execute(INSERT, ["main"])
        async with HeldOpen(db, held):
            db.after_commit(lambda: ran.append("committed"))
            db.after_rollback(lambda: ran.append("rolled back"))
            if gives_up:
                db.set_rollback_only("on second thoughts")
        assert ran == []

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert ran == ["rolled back" if gives_up else "committed"]
    assert await world.items() == [
        *([] if gives_up else ["main"]),
        *([] if held == "nested" else ["held"]),
    ]


@pytest.mark.parametrize("held", ["requires_new", "not_supported"])
@pytest.mark.parametrize("end", ["response", "db.commit()", "db.rollback()"])
async def test_an_end_that_waits_for_another_tasks_block_ends_its_own_transaction(
    world: World, held: str, end: str
) -> None:
    entered = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def body(db: DataSession) -> None:
        @transactional(propagation=held)
        async def hold() -> None:
            await db.write.execute(INSERT, ["held"])
            entered.set()
            # Until the other task queues for the session.
            await asyncio.sleep(0.2)

        await db.execute(INSERT, ["main"])
        tasks.append(asyncio.create_task(hold()))
        await entered.wait()
        if end == "db.commit()":
            await db.commit()
            assert await world.items() == ["main", "held"]
        elif end == "db.rollback()":
            await db.rollback()

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 201
            await tasks[0]
        await assert_whole(registry, world)
    assert await world.items() == (["held"] if end == "db.rollback()" else ["main", "held"])
