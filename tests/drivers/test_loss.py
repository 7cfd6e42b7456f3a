"""Lost connections: when they are detected, and that results received before still count."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from asgi_datasource.drivers.psycopg import Pipeline, PsycopgConnection
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.conftest import Connect
from tests.drivers.polling import until
from tests.patience import now

BEGIN = Statement("begin", prepare=False)
COMMIT = Statement("commit", prepare=False)
XID = Statement("select pg_current_xact_id_if_assigned()::text")
WAL = Statement("select pg_current_wal_insert_lsn()::text")


def scalars(exchange: Pipeline) -> list[object]:
    return [None if r is None else r.scalar() if r.returns_rows else r.status_message for r in exchange.results]


async def pid_of(connection: PsycopgConnection) -> int:
    exchange = await connection.exchange([Statement("select pg_backend_pid()")])
    assert exchange.results[0] is not None
    pid = exchange.results[0].scalar()
    assert isinstance(pid, int)
    return pid


async def kill(cluster: EmbeddedCluster, pid: int) -> None:
    await cluster.primary.sql("select pg_terminate_backend(%s, 5000)", [pid])


async def test_a_backend_killed_while_idle_is_detected_without_use(
    cluster: EmbeddedCluster, connection: PsycopgConnection
) -> None:
    await kill(cluster, await pid_of(connection))
    await until(lambda: connection.closed)
    assert connection.broken
    assert not connection.is_usable
    exchange = await connection.exchange([Statement("select 1")])
    # The server's final message is kept.
    assert isinstance(exchange.error, psycopg.errors.AdminShutdown)
    assert (exchange.is_lost, exchange.failed_at, exchange.timed_out) == (True, None, False)


async def test_using_a_killed_backend_before_its_detection_reports_the_reason(
    cluster: EmbeddedCluster, connection: PsycopgConnection
) -> None:
    pid = await pid_of(connection)
    # Blocking, so that the event loop cannot detect it before the exchange starts.
    cluster.primary.blocking.sql("select pg_terminate_backend(%s, 5000)", [pid])
    exchange = await connection.exchange([Statement("select 1"), Statement("select 2")])
    assert isinstance(exchange.error, psycopg.errors.AdminShutdown)
    assert (exchange.is_lost, exchange.failed_at) == (True, 0)
    assert connection.closed


async def test_a_backend_killed_during_a_statement_is_a_lost_connection(
    cluster: EmbeddedCluster, connection: PsycopgConnection
) -> None:
    pid = await pid_of(connection)
    running = asyncio.ensure_future(connection.exchange([Statement("select 'a'"), Statement("select pg_sleep(30)")]))
    await until(lambda: sleeps(cluster, pid))
    await kill(cluster, pid)
    exchange = await running
    assert isinstance(exchange.error, psycopg.errors.AdminShutdown)
    assert (exchange.is_lost, exchange.failed_at) == (True, 1)
    assert scalars(exchange) == ["a", None]


async def sleeps(cluster: EmbeddedCluster, pid: int) -> bool:
    return bool(
        await cluster.primary.value("select wait_event = 'PgSleep' from pg_stat_activity where pid = %s", [pid])
    )


async def test_a_statement_that_terminates_its_own_backend_is_a_lost_connection(connection: PsycopgConnection) -> None:
    exchange = await connection.exchange(
        [Statement("select 1"), Statement("select pg_terminate_backend(pg_backend_pid())")]
    )
    assert isinstance(exchange.error, psycopg.errors.AdminShutdown)
    assert exchange.is_lost


async def test_a_network_failure_while_idle_is_detected(proxy: FaultProxy, proxy_url: str, connect: Connect) -> None:
    connection = await connect(proxy_url)
    proxy.cut()
    await until(lambda: connection.closed)
    exchange = await connection.exchange([Statement("select 1")])
    assert exchange.is_lost


async def test_a_network_failure_during_a_statement_is_a_lost_connection(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    connection = await connect(proxy_url)
    proxy.hold()
    running = asyncio.ensure_future(connection.exchange([Statement("select 1"), Statement("select 2")]))
    await proxy.until_held()
    proxy.cut()
    exchange = await running
    assert type(exchange.error) is psycopg.OperationalError
    assert (exchange.is_lost, exchange.failed_at) == (True, 0)
    assert scalars(exchange) == [None, None]


async def test_the_xid_arrives_before_a_commit_whose_response_is_lost(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    connection = await connect(proxy_url)
    await connection.exchange([Statement("create table t (n int)")])
    await connection.exchange(
        [Statement("create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(30); end'")]
    )
    await connection.exchange(
        [
            Statement(
                "create constraint trigger slow after insert on t deferrable initially deferred"
                " for each row execute function slow()"
            )
        ]
    )
    await connection.exchange([BEGIN, Statement("insert into t values (1)")])
    pid = await pid_of(connection)
    running = asyncio.ensure_future(connection.exchange([XID, COMMIT, WAL], flush_after=0))
    other = await connect()
    await until(lambda: is_asleep(other, pid))
    proxy.cut()
    exchange = await running
    xid, commit, position = scalars(exchange)
    assert (exchange.is_lost, exchange.failed_at) == (True, 1)
    assert isinstance(xid, str)
    assert (commit, position) == (None, None)
    await other.exchange([Statement("select pg_terminate_backend(%s)", [pid])])


async def is_asleep(other: PsycopgConnection, pid: int) -> bool:
    statement = Statement("select wait_event = 'PgSleep' from pg_stat_activity where pid = %s", [pid])
    return scalars(await other.exchange([statement])) == [True]


async def test_a_commit_response_that_arrives_with_the_end_of_the_stream_counts(
    cluster: EmbeddedCluster, connection: PsycopgConnection
) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    await connection.exchange([BEGIN, Statement("insert into t values (1)")])
    # The server answers COMMIT and ends the session before the loop reads; both are in the socket then.
    exchange = await connection.exchange([COMMIT, Statement("select pg_terminate_backend(pg_backend_pid())")])
    assert exchange.is_lost
    assert scalars(exchange) == ["COMMIT", None]


async def test_a_server_timeout_in_the_transaction_is_named(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("set idle_in_transaction_session_timeout = '50ms'")])
    await connection.exchange([BEGIN])
    await until(lambda: connection.closed)
    exchange = await connection.exchange([Statement("select 1")])
    assert exchange.is_lost
    assert isinstance(exchange.error, psycopg.errors.IdleInTransactionSessionTimeout)


async def test_a_final_error_message_read_before_the_end_of_the_stream_is_reported(
    cluster: EmbeddedCluster, connection: PsycopgConnection
) -> None:
    pid = await pid_of(connection)
    await connection.exchange([Statement("set idle_in_transaction_session_timeout = '50ms'")])
    await connection.exchange([BEGIN])
    # Blocking, so that the loop cannot read: only the final message is read then, as by a late loop.
    while cluster.primary.blocking.sql("select 1 from pg_stat_activity where pid = %s", [pid]):
        pass
    connection.pgconn.consume_input()
    connection.pgconn.notifies()
    exchange = await connection.exchange([Statement("select 1")])
    assert exchange.is_lost
    assert isinstance(exchange.error, psycopg.errors.IdleInTransactionSessionTimeout)


async def test_the_socket_of_a_silent_server_is_closed_a_second_after_the_deadline(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    connection = await connect(proxy_url)
    proxy.freeze()
    loop = asyncio.get_running_loop()
    started = now()
    exchange = await connection.exchange([Statement("select 1")], deadline=loop.time() + 0.3)
    assert now() - started < 3.0
    assert (exchange.is_lost, exchange.timed_out, exchange.failed_at) == (True, True, 0)
    assert isinstance(exchange.error, psycopg.OperationalError)
    assert connection.closed


async def test_an_unanswered_cancel_request_closes_the_connection_even_if_the_statement_ended(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    """It could still arrive, and cancel a statement of the next borrower."""
    connection = await connect(proxy_url)
    proxy.hold(at=b"\x04\xd2\x16\x2e")  # the start of every cancel request
    loop = asyncio.get_running_loop()
    exchange = await connection.exchange([Statement("select 'done' from pg_sleep(0.5)")], deadline=loop.time() + 0.1)
    await proxy.until_held()
    assert scalars(exchange) == ["done"]
    assert (exchange.is_lost, exchange.timed_out) == (True, True)
    assert connection.closed


async def test_responses_received_before_the_socket_closes_count(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    connection = await connect(proxy_url)
    running = asyncio.ensure_future(
        connection.exchange([Statement("select 'there'"), Statement("select pg_sleep(30)")], flush_after=0)
    )
    other = await connect()
    asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"

    async def is_on_its_way() -> bool:
        return scalars(await other.exchange([Statement(asleep)])) == [1]

    await until(is_on_its_way)
    connection.cut("the test wants it so")
    exchange = await running
    assert exchange.is_lost
    assert scalars(exchange)[1] is None
    assert "the test wants it so" in str(exchange.error)


async def test_closing_the_socket_twice_and_then_the_connection_is_allowed(connection: PsycopgConnection) -> None:
    connection.cut("first")
    connection.cut("second")
    await connection.close()
    await connection.close()
    assert connection.closed
    assert "first" in str((await connection.exchange([])).error)


async def test_a_connection_that_reuses_the_descriptor_of_a_dead_one_works(
    cluster: EmbeddedCluster, connect: Connect
) -> None:
    """Descriptors are reused at once, so a remaining watcher would watch another socket."""
    survivor = await connect()
    for turn in range(30):
        connection = await connect()
        if turn % 3 == 0:
            cluster.primary.blocking.sql("select pg_terminate_backend(%s, 5000)", [connection.pgconn.backend_pid])
            assert (await connection.exchange([Statement("select 1")])).is_lost
        elif turn % 3 == 1:
            connection.cut("turn")
        else:
            await connection.close()
        again = await connect()
        assert scalars(await again.exchange([Statement("select 1")])) == [1]
        assert scalars(await survivor.exchange([Statement("select 2")])) == [2]
        await again.close()


async def test_a_large_write_to_a_dying_server_is_a_lost_connection(
    cluster: EmbeddedCluster, connection: PsycopgConnection
) -> None:
    pid = await pid_of(connection)
    large = Statement("select length(%s)", ["x" * 30_000_000])
    running = asyncio.ensure_future(
        connection.exchange([Statement("select pg_sleep(0.3)"), large, large, Statement("select pg_sleep(30)")])
    )
    await until(lambda: sleeps(cluster, pid))
    await kill(cluster, pid)
    exchange = await running
    assert exchange.is_lost
    assert exchange.error is not None


@pytest.mark.parametrize("reason", ["exchange", "idle"])
async def test_no_warning_or_descriptor_is_left_behind(
    cluster: EmbeddedCluster, url: str, reason: str, recwarn: pytest.WarningsRecorder
) -> None:
    import gc
    from pathlib import Path

    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        connection = await PsycopgConnection.connect(url)
        cluster.primary.blocking.sql("select pg_terminate_backend(%s, 5000)", [connection.pgconn.backend_pid])
        if reason == "exchange":
            await connection.exchange([Statement("select 1")])
        else:
            await until(lambda one=connection: one.closed)
        del connection
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert [str(w.message) for w in recwarn.list] == []


async def test_a_connection_reset_during_a_write_is_lost_and_ends_all_waits(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, failure: failures.append(failure))
    for _ in range(5):
        connection = await connect(proxy_url)
        proxy.freeze()
        running = asyncio.ensure_future(connection.exchange([Statement("select length(%s)", ["x" * 8_000_000])]))
        # It waits for the socket to be writable and readable; libpq closes it when either finds the reset.
        await asyncio.sleep(0)
        proxy.cut()
        assert (await running).is_lost
        proxy.release()
        # The next socket gets the same descriptor.
        another = await connect(proxy_url)
        assert scalars(await another.exchange([Statement("select 1")])) == [1]
        await another.close()
    assert failures == []
