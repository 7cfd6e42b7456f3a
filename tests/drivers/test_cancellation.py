"""Cancelled tasks: the server cancels the statement, the backend runs the next one, and the pool stays complete."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import anyio
import psycopg
import pytest

from asgi_datasource.concurrency.tasks import BackgroundTasks
from asgi_datasource.drivers.psycopg import Pipeline, PsycopgServer
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.errors import DataError
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.conftest import OpenServer
from tests.drivers.polling import until
from tests.patience import now

BEGIN = Statement("begin", prepare=False)
PID = Statement("select pg_backend_pid()")
SLEEP = Statement("select pg_sleep(30)")


async def use(server: PsycopgServer, background: BackgroundTasks, *statements: Statement) -> Pipeline:
    """Like a session: the connection is always returned, in a background task."""
    connection = await server.acquire(deadline=None)
    try:
        return await connection.exchange(statements)
    finally:
        await background.run(server.reclaim(connection))


def scalar(exchange: Pipeline, index: int = -1) -> object:
    found = exchange.results[index]
    assert found is not None, exchange.error
    return found.scalar()


UnitOfWork = Callable[[], Awaitable[object]]
Running = Callable[[], Awaitable[bool]]


async def by_timeout(work: UnitOfWork, is_running: Running) -> None:
    async def within(scope: asyncio.Timeout) -> None:
        async with scope:
            await work()

    scope = asyncio.timeout(None)
    task = asyncio.ensure_future(within(scope))
    await until(is_running)
    scope.reschedule(0)
    with pytest.raises(TimeoutError):
        await task


async def by_cancel(work: UnitOfWork, is_running: Running) -> None:
    task = asyncio.ensure_future(work())
    await until(is_running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_two_cancels(work: UnitOfWork, is_running: Running) -> None:
    task = asyncio.ensure_future(work())
    await until(is_running)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_anyio_scope(work: UnitOfWork, is_running: Running) -> None:
    async def within(scope: anyio.CancelScope) -> None:
        with scope:
            await work()

    scope = anyio.CancelScope()
    task = asyncio.ensure_future(within(scope))
    await until(is_running)
    scope.cancel()
    await task
    assert scope.cancelled_caught


async def by_anyio_task_group(work: UnitOfWork, is_running: Running) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(work)  # type: ignore[arg-type]
        await until(is_running)
        group.cancel_scope.cancel()


CANCELLERS = [by_timeout, by_cancel, by_two_cancels, by_anyio_scope, by_anyio_task_group]


@pytest.mark.parametrize("statements", [(SLEEP,), (BEGIN, SLEEP), (PID, SLEEP, PID)], ids=["alone", "begun", "middle"])
@pytest.mark.parametrize("cancel", CANCELLERS)
async def test_cancellation_stops_the_statement_and_keeps_the_backend(
    cluster: EmbeddedCluster,
    database: str,
    open_server: OpenServer,
    cancel: Callable[[UnitOfWork, Running], Awaitable[None]],
    statements: tuple[Statement, ...],
) -> None:
    server = await open_server(max_size=1)
    background = BackgroundTasks()
    pid = scalar(await use(server, background, PID))

    async def sleeps() -> bool:
        query = "select count(*) from pg_stat_activity where datname = %s and wait_event = 'PgSleep'"
        return bool(await cluster.primary.value(query, [database]))

    await cancel(lambda: use(server, background, *statements), sleeps)
    assert await background.drain(5.0) == 0
    assert not await sleeps()
    state = "select state from pg_stat_activity where pid = %s"
    assert await cluster.primary.value(state, [pid]) == "idle"
    assert server.borrowed == 0
    assert scalar(await use(server, background, PID)) == pid


async def test_a_cancelled_transaction_is_rolled_back(connection_url_table: str, open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    background = BackgroundTasks()
    task = asyncio.ensure_future(use(server, background, BEGIN, Statement("insert into t values (1)"), SLEEP))
    await until(lambda: server.borrowed == 1)
    other = await psycopg.AsyncConnection.connect(connection_url_table, autocommit=True)

    async def has_written() -> bool:
        cursor = await other.execute(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event = 'PgSleep' and backend_xid is not null"
        )
        return await cursor.fetchone() == (1,)

    await until(has_written)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await background.drain(5.0)
    assert await (await other.execute("select count(*) from t")).fetchone() == (0,)
    await other.close()


@pytest.fixture
async def connection_url_table(url: str) -> str:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("create table t (n int)")
    return url


async def test_waiting_for_a_connection_can_be_cancelled(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    held = await server.acquire(deadline=None)
    for _ in range(5):
        task = asyncio.ensure_future(server.acquire(deadline=None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert server.borrowed == 1
    server.release(held)
    again = await server.acquire(deadline=None)
    assert again is held
    server.release(again)


async def test_hundreds_of_cancellations_at_any_moment_leave_the_pool_whole(open_server: OpenServer) -> None:
    server = await open_server(max_size=3)
    background = BackgroundTasks()
    pids = {scalar(await use(server, background, PID)) for _ in range(6)}
    chance = random.Random(7)
    statements = (BEGIN, Statement("select pg_sleep(0.002)"), Statement("select generate_series(1, 200)"))

    async def one() -> None:
        task = asyncio.ensure_future(use(server, background, *statements[chance.randrange(2) :]))
        await asyncio.sleep(chance.uniform(0, 0.008))
        for _ in range(chance.randrange(3)):
            task.cancel()
            await asyncio.sleep(0)
        try:
            await task
        except asyncio.CancelledError:
            assert task.cancelled()

    for _ in range(12):
        await asyncio.gather(*(one() for _ in range(20)))
    assert await background.drain(10.0) == 0
    assert server.borrowed == 0
    connections = [await server.acquire(deadline=None) for _ in range(3)]
    for connection in connections:
        assert connection.is_idle
        pids.add(scalar(await connection.exchange([PID])))
        server.release(connection)
    # No connection had to be replaced.
    assert len(pids) == 3


async def test_returning_a_connection_to_a_silent_server_is_bounded_and_opens_its_breaker(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    server = await open_server(proxy_url, max_size=2)
    background = BackgroundTasks()
    await use(server, background, PID)
    task = asyncio.ensure_future(use(server, background, BEGIN, SLEEP))
    await until(lambda: server.borrowed == 1)
    proxy.freeze()
    task.cancel()
    started = now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await background.drain(4.0) == 0
    assert now() - started < 4.0
    assert server.borrowed == 0
    assert not server.is_up
    assert server.last_error is not None
    proxy.release()
    await until(lambda: server.is_up)
    assert scalar(await use(server, background, PID)) is not None


async def test_an_open_transaction_on_a_silent_server_does_not_delay_its_return(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    server = await open_server(proxy_url, max_size=1)
    connection = await server.acquire(deadline=None)
    await connection.exchange([BEGIN, PID])
    proxy.freeze()
    started = now()
    await server.reclaim(connection)
    assert now() - started < 4.0
    assert connection.closed
    assert server.borrowed == 0


async def test_a_late_cancel_request_never_hits_the_next_statement(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    background = BackgroundTasks()
    for turn in range(60):
        task = asyncio.ensure_future(use(server, background, Statement("select pg_sleep(0.003)")))
        await asyncio.sleep(turn % 7 / 1000)
        task.cancel()
        await asyncio.wait([task])
        # Sent as soon as the connection is free again.
        exchange = await use(server, background, Statement("select pg_sleep(0.002)"))
        assert exchange.error is None, f"turn {turn}: {exchange.error!r}"


async def test_a_task_whose_statement_another_one_stops_goes_on(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    running = asyncio.ensure_future(connection.exchange([SLEEP]))
    await asyncio.sleep(0)
    await server.reclaim(connection)
    async with asyncio.timeout(20):
        assert (await running).error is not None


async def test_behind_a_pooler_the_session_is_not_discarded_for_others(open_server: OpenServer) -> None:
    server = await open_server(prepares=False, is_pooled=True)
    connection = await server.acquire(deadline=None)
    # On the server connection that another client gets next.
    connection.pgconn.exec_(b"prepare of_another_client as select 1")
    server.lend(connection)
    await server.reclaim(connection)
    assert not connection.needs_reset
    names = await connection.exchange([Statement("select name from pg_prepared_statements", prepare=False)])
    assert scalar(names) == "of_another_client"


async def test_reset_discards_session_state(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    pid = scalar(await connection.exchange([PID]))
    await connection.exchange([Statement("set search_path = 'elsewhere'")])
    await connection.exchange([Statement("create temp table left_behind (n int)")])
    await connection.exchange([Statement("select pg_advisory_lock(7)")])
    await connection.exchange([BEGIN, Statement("select 1")])
    await server.reclaim(connection)
    connection = await server.acquire(deadline=None)
    assert scalar(await connection.exchange([PID])) == pid
    assert scalar(await connection.exchange([Statement("show search_path")])) == '"$user", public'
    assert scalar(await connection.exchange([Statement("select to_regclass('left_behind')")])) is None
    locks = Statement("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
    assert scalar(await connection.exchange([locks])) == 0
    server.release(connection)


async def test_closing_the_server_cancels_a_running_statement(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    background = BackgroundTasks()
    task = asyncio.ensure_future(use(server, background, SLEEP))
    await until(lambda: server.borrowed == 1)
    await server.close(timeout_s=1.0)
    exchange = await task
    assert exchange.is_lost
    with pytest.raises(DataError, match="not open"):
        await server.acquire(deadline=None)
