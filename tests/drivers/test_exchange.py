"""One exchange: its results, its failures, and the state of the connection afterwards."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import pq

from asgi_datasource.drivers.psycopg import Pipeline, PsycopgConnection
from asgi_datasource.drivers.psycopg.result import Result
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.conftest import Connect
from tests.drivers.polling import until
from tests.patience import now

BEGIN = Statement("begin", prepare=False)
COMMIT = Statement("commit", prepare=False)
ROLLBACK = Statement("rollback", prepare=False)
READ_ONLY = Statement(
    "select set_config('app.tenant', %s, true), set_config('transaction_read_only', 'on', true)", ["7"]
)


def result(exchange: Pipeline, index: int = -1) -> Result:
    assert exchange.error is None, exchange.error
    found = exchange.results[index]
    assert found is not None
    return found


async def scalar(connection: PsycopgConnection, query: str) -> object:
    return result(await connection.exchange([Statement(query)])).scalar()


def in_s(connection: PsycopgConnection, seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_results_come_in_the_order_of_the_statements(connection: PsycopgConnection) -> None:
    exchange = await connection.exchange(
        [Statement("create table t (n int)"), Statement("insert into t values (1), (2)"), Statement("select * from t")]
    )
    assert [result(exchange, i).status_message for i in range(3)] == ["CREATE TABLE", "INSERT 0 2", "SELECT 2"]
    assert [result(exchange, i).rowcount for i in range(3)] == [-1, 2, 2]
    assert [result(exchange, i).returns_rows for i in range(3)] == [False, False, True]
    assert result(exchange).rows() == [{"n": 1}, {"n": 2}]
    assert result(exchange).first() == {"n": 1}
    assert result(exchange).scalar() == 1
    assert (exchange.failed_at, exchange.is_lost, exchange.timed_out) == (None, False, False)


async def test_an_empty_exchange_checks_that_the_server_responds(connection: PsycopgConnection) -> None:
    exchange = await connection.exchange([])
    assert (exchange.results, exchange.error) == ([], None)


async def test_reading_rows_of_a_command_without_any_is_an_error(connection: PsycopgConnection) -> None:
    got = result(await connection.exchange([Statement("set application_name = 'x'")]))
    for read in (got.rows, got.first, got.scalar):
        with pytest.raises(psycopg.ProgrammingError, match=r"didn't produce records \(command status: SET\)"):
            read()
    empty = result(await connection.exchange([Statement("")]))
    with pytest.raises(psycopg.ProgrammingError, match=r"didn't produce records \(result status: EMPTY_QUERY\)"):
        empty.rows()


@pytest.mark.parametrize("query", ["select 1", "select 1/0", "insert into missing values (1)"])
async def test_an_implicit_transaction_leaves_no_setting_behind(connection: PsycopgConnection, query: str) -> None:
    for _ in range(3):
        exchange = await connection.exchange([READ_ONLY, Statement(query)])
        assert (exchange.error is None) is (query == "select 1")
        assert connection.is_idle
        assert await scalar(connection, "select nullif(current_setting('app.tenant', true), '')") is None
        assert await scalar(connection, "show transaction_read_only") == "off"


async def test_an_implicit_transaction_is_read_only_from_its_first_command_on(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    exchange = await connection.exchange([READ_ONLY, Statement("insert into t values (1)")])
    assert isinstance(exchange.error, psycopg.errors.ReadOnlySqlTransaction)
    assert exchange.failed_at == 1
    assert result_is_there(exchange, 0)


def result_is_there(exchange: Pipeline, index: int) -> bool:
    return exchange.results[index] is not None


async def test_statements_after_an_error_do_not_run(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    exchange = await connection.exchange(
        [Statement("insert into t values (1)"), Statement("select 1/0"), Statement("insert into t values (2)")]
    )
    assert isinstance(exchange.error, psycopg.errors.DivisionByZero)
    assert exchange.failed_at == 1
    assert [result_is_there(exchange, i) for i in range(3)] == [True, False, False]
    assert await scalar(connection, "select count(*) from t") == 0


async def test_a_constraint_checked_at_the_sync_fails_the_exchange(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table p (id int primary key)")])
    await connection.exchange([Statement("create table c (p int references p deferrable initially deferred)")])
    for _ in range(3):
        exchange = await connection.exchange([Statement("select 1"), Statement("insert into c values (5)")])
        assert isinstance(exchange.error, psycopg.errors.ForeignKeyViolation)
        assert exchange.failed_at == 1
        assert connection.is_idle
        assert await scalar(connection, "select count(*) from c") == 0


async def test_transaction_status_follows_the_servers_answers(connection: PsycopgConnection) -> None:
    assert connection.transaction_status is pq.TransactionStatus.IDLE
    await connection.exchange([BEGIN, Statement("select 1")])
    assert connection.is_in_transaction
    await connection.exchange([Statement("select 1/0")])
    assert connection.has_failed_transaction
    assert result(await connection.exchange([COMMIT])).status_message == "ROLLBACK"
    assert connection.is_idle
    assert connection.is_usable
    assert connection.server_version >= 160000
    assert connection.in_recovery is False


async def test_a_primary_whose_transactions_are_read_only_takes_no_writes(connection: PsycopgConnection) -> None:
    for mode in ("on", "off"):
        await connection.exchange([Statement(f"set default_transaction_read_only = {mode}")])
        assert connection.takes_writes is (mode == "off")
    await connection.close()
    assert not connection.takes_writes


async def test_a_replica_reports_in_recovery(cluster: EmbeddedCluster, connect: Connect) -> None:
    replica = await connect(cluster.replicas["r1"].url("postgres"))
    assert replica.in_recovery is True
    await replica.close()
    assert replica.in_recovery is None


@pytest.mark.parametrize(
    ("query", "ends"),
    [
        ("begin", True),
        ("commit", True),
        ("rollback", True),
        ("start transaction", True),
        ("savepoint a", False),
        ("rollback to savepoint a", True),
        ("select 'COMMIT'", False),
        ("set transaction read only", False),
    ],
)
async def test_statements_that_begin_or_end_a_transaction_are_detected_by_their_tag(
    connection: PsycopgConnection, query: str, ends: bool
) -> None:
    await connection.exchange([BEGIN, Statement("savepoint a")])
    assert result(await connection.exchange([Statement(query)])).ends_transaction is ends


async def test_copy_with_the_client_is_refused_and_the_connection_stays_whole(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    for query in ("copy t from stdin", "copy t to stdout", "/* x */ COPY (select 1) TO STDOUT"):
        with pytest.raises(psycopg.ProgrammingError, match="use copy"):
            await connection.exchange([Statement("select 1"), Statement(query)])
        assert await scalar(connection, "select 1") == 1


async def test_parameters_and_rows_larger_than_socket_buffers_do_not_deadlock(connection: PsycopgConnection) -> None:
    # Both sides write more than the sockets can hold, so a client that only writes would wait forever.
    megabyte = "x" * (1 << 20)
    statements = [Statement("select %s::text as v, repeat('y', 4000000) as w", [megabyte * 4]) for _ in range(6)]
    exchange = await connection.exchange(statements, deadline=in_s(connection, 60))
    for index in range(6):
        row = result(exchange, index).rows()[0]
        assert (len(row["v"]), len(row["w"])) == (4 << 20, 4_000_000)
    assert await scalar(connection, "select 1") == 1


async def test_thousands_of_statements_take_one_round_trip(proxy: FaultProxy, proxy_url: str, connect: Connect) -> None:
    connection = await connect(proxy_url)
    await connection.exchange([Statement("create table t (n int, s text)")])
    proxy.reset_counters()
    exchange = await connection.exchange([Statement("insert into t values (%s, %s)", [n, "x"]) for n in range(3000)])
    assert exchange.error is None
    assert proxy.requests == 1
    assert await scalar(connection, "select count(*) from t") == 3000


async def test_an_exchange_is_one_round_trip_also_when_it_prepares_and_closes(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    connection = await connect(proxy_url)
    for _ in range(3):
        proxy.reset_counters()
        await connection.exchange([READ_ONLY, Statement("select %s::int", [1])])
        assert proxy.round_trips == 1
    connection.plans.retire()
    proxy.reset_counters()
    assert (await connection.exchange([READ_ONLY, Statement("select %s::int", [1])])).error is None
    assert proxy.round_trips == 1


async def test_results_before_a_flush_arrive_while_the_rest_runs(
    proxy: FaultProxy, proxy_url: str, connect: Connect
) -> None:
    connection = await connect(proxy_url)
    statements = [Statement("select 'early' as v"), Statement("select pg_sleep(30)")]
    running = asyncio.ensure_future(connection.exchange(statements, flush_after=0))
    # The backend is running the second statement, so it has flushed the result of the first.
    await until(lambda: is_sleeping(connect))
    proxy.cut()
    exchange = await running
    assert exchange.is_lost
    assert exchange.failed_at == 1
    first = exchange.results[0]
    assert first is not None
    assert first.scalar() == "early"


async def is_sleeping(connect: Connect) -> bool:
    other = await connect()
    asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
    count = await scalar(other, asleep)
    await other.close()
    return count == 1


async def test_a_deadline_stops_the_statement_and_keeps_the_connection(connection: PsycopgConnection) -> None:
    pid = await scalar(connection, "select pg_backend_pid()")
    await connection.exchange([BEGIN])
    started = now()
    exchange = await connection.exchange(
        [Statement("select 1"), Statement("select pg_sleep(30)")], deadline=in_s(connection, 0.2)
    )
    assert now() - started < 1.5
    assert isinstance(exchange.error, psycopg.errors.QueryCanceled)
    assert (exchange.timed_out, exchange.is_lost, exchange.failed_at) == (True, False, 1)
    assert result_is_there(exchange, 0)
    assert connection.has_failed_transaction
    await connection.exchange([ROLLBACK])
    assert await scalar(connection, "select pg_backend_pid()") == pid


async def test_a_deadline_that_is_not_reached_changes_nothing(connection: PsycopgConnection) -> None:
    near, far = in_s(connection, 0.3), in_s(connection, 30)
    assert (await connection.exchange([Statement("select 1")], deadline=near)).error is None
    # The timer of the first is still armed; the second has a later deadline, the third none.
    assert (await connection.exchange([Statement("select pg_sleep(0.5)")], deadline=far)).error is None
    assert (await connection.exchange([Statement("select pg_sleep(0.1)")])).error is None
    exchange = await connection.exchange([Statement("select pg_sleep(30)")], deadline=in_s(connection, 0.2))
    assert exchange.timed_out


async def test_after_the_deadline_nothing_is_sent(connection: PsycopgConnection) -> None:
    await connection.exchange([Statement("create table t (n int)")])
    exchange = await connection.exchange([Statement("insert into t values (1)")], deadline=in_s(connection, -1))
    assert (exchange.timed_out, exchange.is_lost, exchange.failed_at) == (True, False, None)
    assert isinstance(exchange.error, psycopg.OperationalError)
    assert await scalar(connection, "select count(*) from t") == 0


async def test_a_second_task_on_the_same_connection_is_refused(connection: PsycopgConnection) -> None:
    running = asyncio.ensure_future(connection.exchange([Statement("select pg_sleep(0.2)")]))
    await until(lambda: not connection.is_usable)
    with pytest.raises(psycopg.InterfaceError, match="another task is using this connection"):
        await connection.exchange([Statement("select 1")])
    assert (await running).error is None
    assert await scalar(connection, "select 1") == 1


async def test_notices_reach_their_handlers(connection: PsycopgConnection) -> None:
    heard: list[str | None] = []
    connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    await connection.exchange([Statement("do $$ begin raise notice 'first'; end $$"), Statement("rollback")])
    assert heard == ["first", "there is no transaction in progress"]


async def test_notifications_reach_their_handlers_in_an_exchange_and_while_idle(
    connection: PsycopgConnection, connect: Connect
) -> None:
    heard: list[str] = []
    connection.add_notify_handler(lambda notification: heard.append(notification.payload))
    await connection.exchange([Statement("listen news"), Statement("notify news, 'own'")])
    await until(lambda: heard == ["own"])
    other = await connect()
    await other.exchange([Statement("notify news, 'foreign'")])
    await until(lambda: heard == ["own", "foreign"])
    assert await scalar(connection, "select 1") == 1


async def test_a_changed_setting_applies_to_the_rows_of_its_exchange(connection: PsycopgConnection) -> None:
    query = Statement("select '2024-07-01 12:00+00'::timestamptz as t")
    assert str(result(await connection.exchange([query])).scalar()) == "2024-07-01 12:00:00+00:00"
    exchange = await connection.exchange([Statement("set timezone = 'Asia/Tokyo'"), query])
    assert str(result(exchange).scalar()) == "2024-07-01 21:00:00+09:00"
    assert str(result(await connection.exchange([query])).scalar()) == "2024-07-01 21:00:00+09:00"
