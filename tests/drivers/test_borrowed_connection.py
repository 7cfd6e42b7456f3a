"""The raw psycopg connection: all methods of psycopg work during the loan, and none afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import psycopg
import pytest

from asgi_datasource.drivers.psycopg import Pipeline, PsycopgConnection, PsycopgServer
from asgi_datasource.drivers.psycopg.borrowed_connection import lend
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.errors import DataError, SessionClosed
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.conftest import Connect, OpenServer
from tests.drivers.polling import until
from tests.patience import now

BEGIN = Statement("begin", prepare=False)
ROLLBACK = Statement("rollback", prepare=False)
PID = Statement("select pg_backend_pid()")


def scalar(exchange: Pipeline, index: int = -1) -> object:
    found = exchange.results[index]
    assert found is not None, exchange.error
    return found.scalar()


async def test_cursors_copy_and_server_side_cursors_work_in_the_open_transaction(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int, s text)")])
    await connection.exchange([BEGIN, Statement("insert into t values (1, 'exchange')")])
    view = lend(connection)
    async with view.cursor() as cursor:
        async with cursor.copy("copy t from stdin") as copy:
            await copy.write_row((2, "copied"))
        await cursor.execute("select s from t order by n")
        assert await cursor.fetchall() == [("exchange",), ("copied",)]
    async with view.cursor(name="big") as cursor:
        await cursor.execute("select generate_series(1, 1000)")
        assert len(await cursor.fetchmany(10)) == 10
    async with view.cursor() as cursor, cursor.copy("copy t to stdout") as copy:
        assert len([row async for row in copy.rows()]) == 2
    async with view.pipeline():
        first, second = await view.execute("select 1"), await view.execute("select 2")
    assert [await first.fetchone(), await second.fetchone()] == [(1,), (2,)]
    async with view.cursor() as cursor:
        await cursor.executemany("insert into t values (%s, 'many')", [(n,) for n in range(10, 20)])
        assert cursor.rowcount == 10
        assert [row async for row in cursor.stream("select generate_series(1, 3)")] == [(1,), (2,), (3,)]
    view.expire("over")
    assert connection.is_in_transaction
    assert scalar(await connection.exchange([Statement("select count(*) from t")])) == 12
    await connection.exchange([ROLLBACK])


async def test_a_transaction_block_on_the_raw_connection_is_a_savepoint(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    await connection.exchange([BEGIN, Statement("insert into t values (1)")])
    view = lend(connection)
    with pytest.raises(ZeroDivisionError):
        await insert_and_fail(view)
    async with view.transaction():
        await view.execute("insert into t values (3)")
    view.expire("over")
    rows = (await connection.exchange([Statement("select n from t order by n")])).results[0]
    assert rows is not None
    assert rows.rows() == [{"n": 1}, {"n": 3}]
    assert connection.is_in_transaction


async def insert_and_fail(view: psycopg.AsyncConnection[Any]) -> None:
    async with view.transaction():
        await view.execute("insert into t values (2)")
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "use",
    [
        lambda view: view.execute("select 1"),
        lambda view: view.cursor().execute("select 1"),
        lambda view: view.commit(),
        lambda view: view.rollback(),
        lambda view: view.close(),
        lambda view: view.cancel_safe(),
        lambda view: view.set_autocommit(False),
        lambda view: view.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
        lambda view: view.set_read_only(True),
        lambda view: view.tpc_begin("x"),
        lambda view: anext(view.notifies()),
        lambda view: enter(view.transaction()),
        lambda view: enter(view.pipeline()),
    ],
)
async def test_an_expired_raw_connection_refuses_every_method(
    connection: PsycopgConnection, use: Callable[[Any], Awaitable[Any]]
) -> None:
    view = lend(connection)
    await view.execute("select 1")
    view.expire("it is over; write it otherwise")
    with pytest.raises(SessionClosed, match="it is over; write it otherwise"):
        await use(view)
    with pytest.raises(SessionClosed):
        view.cancel()
    assert scalar(await connection.exchange([PID]))


async def enter(manager: Any) -> Any:
    return await manager.__aenter__()


@pytest.mark.filterwarnings("ignore:.*AsyncServerCursor.*was deleted while still open")
async def test_objects_made_by_an_expired_raw_connection_are_expired_too(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    await connection.exchange([BEGIN])
    view = lend(connection)
    cursor = await view.execute("select generate_series(1, 3)")
    named = view.cursor(name="named")
    await named.execute("select generate_series(1, 100)")
    transaction = view.transaction()
    await transaction.__aenter__()
    stream = view.cursor().stream("select generate_series(1, 1000000)")
    view.expire("over")
    for use in (
        lambda: cursor.execute("insert into t values (1)"),
        lambda: cursor.executemany("insert into t values (%s)", [(1,), (2,)]),
        lambda: named.fetchone(),
        lambda: named.close(),
        lambda: transaction.__aexit__(None, None, None),
        lambda: anext(stream),
        lambda: cursor.copy("copy t from stdin").__aenter__(),
    ):
        with pytest.raises(SessionClosed):
            await use()
    # Rows that had arrived before are still readable.
    assert await cursor.fetchall() == [(1,), (2,), (3,)]
    await connection.exchange([ROLLBACK])
    assert scalar(await connection.exchange([Statement("select count(*) from t")])) == 0


@pytest.mark.parametrize("name", ["commit", "rollback", "set_autocommit"])
async def test_methods_of_the_raw_connection_cannot_end_the_transaction(
    connection: PsycopgConnection, name: str
) -> None:
    await connection.exchange([BEGIN])
    view = lend(connection)
    with pytest.raises(DataError, match=r"use `a"):
        await (view.set_autocommit(False) if name == "set_autocommit" else getattr(view, name)())
    assert connection.is_in_transaction


async def test_adapters_registered_on_the_raw_connection_expire_with_it(connection: PsycopgConnection) -> None:
    class Upper(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode().upper()

    view = lend(connection)
    view.adapters.register_loader("text", Upper)
    assert await (await view.execute("select 'x'::text")).fetchone() == ("X",)
    view.expire("over")
    assert scalar(await connection.exchange([Statement("select 'x'::text")])) == "x"
    assert await (await lend(connection).execute("select 'x'::text")).fetchone() == ("x",)


async def test_notice_handlers_stay_on_the_pooled_connection(connection: PsycopgConnection) -> None:
    heard: list[str | None] = []
    connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    view = lend(connection)
    await view.execute("do $$ begin raise notice 'in the view'; end $$")
    view.expire("over")
    del view
    await connection.exchange([Statement("do $$ begin raise notice 'after it'; end $$")])
    assert heard == ["in the view", "after it"]


async def test_notices_and_notifications_reach_the_handlers_of_the_raw_connection(
    connection: PsycopgConnection,
) -> None:
    view = lend(connection)
    notices: list[str | None] = []
    notifications: list[str] = []
    view.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    view.add_notify_handler(lambda notification: notifications.append(notification.payload))
    await view.execute("listen news")
    await view.execute("do $$ begin raise notice 'during'; end $$")
    await view.execute("notify news, 'during'")
    view.expire("over")
    await connection.exchange([Statement("do $$ begin raise notice 'after'; end $$")])
    await connection.exchange([Statement("notify news, 'after'")])
    assert (notices, notifications) == (["during"], ["during"])


async def test_the_wait_for_notifications_ends_at_its_timeout(connection: PsycopgConnection) -> None:
    view = lend(connection)
    await view.execute("listen news")
    await view.execute("notify news, 'one'")
    async with asyncio.timeout(5.0):
        assert [notification.payload async for notification in view.notifies(timeout=0.1)] == ["one"]
    assert await (await view.execute("select 1")).fetchone() == (1,)


@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_stream_on_a_connection_that_ends_raises(connection: PsycopgConnection, is_closed: bool) -> None:
    view = lend(connection)
    rows = view.cursor().stream("select generate_series(1, 5)")
    assert await anext(rows) == (1,)
    if is_closed:
        await view.close()
    else:
        connection.cut("a failover")
    with pytest.raises(psycopg.OperationalError, match="the connection is closed" if is_closed else "a failover"):
        await anext(rows)
    with pytest.raises(psycopg.OperationalError):
        await view.execute("select 1")


async def test_closing_the_raw_connection_ends_what_runs_on_it(connection: PsycopgConnection) -> None:
    view = lend(connection)
    running = asyncio.ensure_future(view.execute("select pg_sleep(30)"))
    await until(lambda: connection.is_midway)
    await view.close()
    assert (view.closed, view.broken) == (True, False)
    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(running, 5.0)
    assert (view.closed, view.broken) == (True, False)


async def test_a_lost_connection_is_closed_and_broken(connection: PsycopgConnection) -> None:
    view = lend(connection)
    with pytest.raises(psycopg.OperationalError):
        await view.execute("select pg_terminate_backend(pg_backend_pid())")
    await view.close()
    assert (view.closed, view.broken) == (True, True)


async def test_a_connection_that_is_cut_inside_its_pipeline_leaves_a_reused_descriptor_alone(connect: Connect) -> None:
    connection, others = await connect(), []
    lost, read_end, write_end = connection._fd, None, None
    with pytest.raises(psycopg.OperationalError, match="a failover"):
        async with lend(connection).pipeline() as pipeline:
            await pipeline.sync()
            connection.cut("a failover")
            read_end, write_end = os.pipe()
            while lost not in (read_end, write_end, *[other._fd for other in others]):
                others.append(await connect())
    for other in others:
        # A loop that no longer watches its socket would wait for the deadline.
        answered = await other.exchange([PID], deadline=asyncio.get_running_loop().time() + 5.0)
        assert scalar(answered) == other.backend_pid
    os.close(read_end)
    os.close(write_end)


async def test_the_raw_connection_prepares_statements_until_it_expires(connection: PsycopgConnection) -> None:
    names = "select count(*) from pg_prepared_statements where statement = 'select 41'"
    for _ in range(2):
        await connection.exchange([BEGIN])
        view = lend(connection)
        await view.execute("select 41", prepare=True)
        assert await (await view.execute(names)).fetchone() == (1,)
        view.expire("over")
        assert scalar(await connection.exchange([Statement(names)])) == 0
        await connection.exchange([ROLLBACK])


@pytest.mark.parametrize(
    "run",
    [
        lambda view: view.execute("select 1; commit"),
        lambda view: view.execute(psycopg.sql.SQL("rollback")),
        lambda view: view.cursor().executemany(b"commit", [(), ()]),
        lambda view: anext(view.cursor().stream("commit")),
    ],
)
async def test_a_statement_that_would_end_the_transaction_is_refused(
    connection: PsycopgConnection, run: Callable[[Any], Awaitable[Any]]
) -> None:
    await connection.exchange([BEGIN])
    view = lend(connection)
    await view.execute("savepoint a")
    await view.execute("rollback to savepoint a")
    assert view.refusal is None
    with pytest.raises(DataError, match="would end the session's transaction") as raised:
        await run(view)
    assert view.refusal is raised.value
    assert connection.is_in_transaction


async def test_the_raw_connection_and_an_exchange_exclude_each_other(connection: PsycopgConnection) -> None:
    view = lend(connection)
    running = asyncio.ensure_future(view.execute("select pg_sleep(0.2)"))
    await until(lambda: connection.is_midway)
    with pytest.raises(psycopg.InterfaceError, match="another task"):
        await connection.exchange([PID])
    await running
    exchanging = asyncio.ensure_future(connection.exchange([Statement("select pg_sleep(0.2)")]))
    await until(lambda: not connection.is_usable)
    with pytest.raises(psycopg.InterfaceError, match="another task"):
        await view.execute("select 1")
    await exchanging
    assert await (await view.execute("select 1")).fetchone() == (1,)


async def sleep_in_cursor(view: Any) -> None:
    await view.execute("select pg_sleep(30)")


async def sleep_in_pipeline(view: Any) -> None:
    async with view.pipeline() as pipeline:
        await view.execute("select 1")
        await view.execute("select pg_sleep(30)")
        await pipeline.sync()


async def sleep_in_stream(view: Any) -> None:
    async for _ in view.cursor().stream("select n, pg_sleep(n) from (values (0), (0), (30)) v (n)"):
        pass


async def sleep_in_copy_out(view: Any) -> None:
    query = "copy (select repeat('x', 1000), case when n = 2000 then pg_sleep(30) end from generate_series(1, 3000) n)"
    async with view.cursor().copy(f"{query} to stdout") as copy:
        async for _ in copy:
            pass


async def sleep_in_copy_in(view: Any) -> None:
    async with view.cursor().copy("copy slow from stdin") as copy:
        await copy.write("1\n")
        await copy.write("30\n")


SLEEPERS = [sleep_in_cursor, sleep_in_pipeline, sleep_in_stream, sleep_in_copy_out, sleep_in_copy_in]


@pytest.mark.parametrize("way", ["cancel", "cancel twice", "anyio"])
@pytest.mark.parametrize("sleeper", SLEEPERS)
async def test_a_cancelled_psycopg_operation_keeps_its_backend(
    cluster: EmbeddedCluster,
    database: str,
    open_server: OpenServer,
    sleeper: Callable[[Any], Awaitable[None]],
    way: str,
) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    await connection.exchange([Statement("create table slow (n int check (pg_sleep(n) is not null))")])
    pid = scalar(await connection.exchange([PID]))
    await connection.exchange([BEGIN])
    view = lend(connection)

    async def sleeps() -> bool:
        query = "select count(*) from pg_stat_activity where datname = %s and wait_event = 'PgSleep'"
        return bool(await cluster.primary.value(query, [database]))

    scope = anyio.CancelScope()
    task = asyncio.ensure_future(within(scope, lambda: sleeper(view)))
    await until(sleeps)
    if way == "anyio":
        scope.cancel()
    else:
        task.cancel()
        if way == "cancel twice":
            await asyncio.sleep(0)
            task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert way == "anyio" or task.cancelled() or task.exception() is not None
    view.expire("cancelled")
    await server.reclaim(connection)
    assert not await sleeps()
    connection = await server.acquire(deadline=None)
    assert connection.is_idle
    assert scalar(await connection.exchange([PID])) == pid
    server.release(connection)


async def within(scope: anyio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await work()


async def test_the_raw_connection_is_usable_after_a_cancellation(connection: PsycopgConnection) -> None:
    await connection.exchange([BEGIN])
    view = lend(connection)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(view.execute("select pg_sleep(30)"), 0.2)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await view.execute("select 1")
    view.expire("over")
    await connection.exchange([ROLLBACK])
    assert scalar(await connection.exchange([PID]))


async def test_a_task_that_ignores_the_expiry_is_interrupted(server: PsycopgServer) -> None:
    connection = await server.acquire(deadline=None)
    await connection.exchange([BEGIN])
    view = lend(connection)
    stray = asyncio.ensure_future(view.execute("select pg_sleep(30)"))
    await until(lambda: connection.is_midway)
    view.expire("over")
    started = now()
    await server.reclaim(connection)
    assert now() - started < 4.0
    with pytest.raises(psycopg.errors.QueryCanceled):
        await stray
    assert server.borrowed == 0


async def test_a_task_that_waits_for_a_silent_server_is_interrupted(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    server = await open_server(proxy_url)
    connection = await server.acquire(deadline=None)
    view = lend(connection)
    stray = asyncio.ensure_future(view.execute("select pg_sleep(30)"))
    await until(lambda: connection.is_midway)
    proxy.freeze()
    started = now()
    await server.reclaim(connection)
    assert now() - started < 5.0
    assert connection.closed
    with pytest.raises(psycopg.OperationalError):
        await stray
    assert server.borrowed == 0


async def test_closing_the_raw_connection_closes_the_pooled_one_which_is_replaced(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    view = lend(connection)
    await view.close()
    assert connection.closed
    assert (await connection.exchange([PID])).is_lost
    await server.reclaim(connection)
    connection = await server.acquire(deadline=None)
    assert scalar(await connection.exchange([PID]))
    server.release(connection)
