"""One server: borrowing and returning, reasons for a missing connection, outage and recovery, bounded closing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asgi_datasource.drivers.psycopg import Pipeline, PsycopgConnection, PsycopgServer
from asgi_datasource.drivers.psycopg.server import warn_if_slow
from asgi_datasource.drivers.settings import ServerSettings
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.errors import ConfigError, DataError, DataErrorKind
from asgi_datasource.routing import Role
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.conftest import OpenServer, at_port
from tests.drivers.polling import until
from tests.patience import now

BEGIN = Statement("begin", prepare=False)
PID = Statement("select pg_backend_pid()")


def scalar(exchange: Pipeline, index: int = -1) -> object:
    found = exchange.results[index]
    assert found is not None, exchange.error
    return found.scalar()


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(server: PsycopgServer) -> object:
    connection = await server.acquire(deadline=None)
    try:
        return scalar(await connection.exchange([PID]))
    finally:
        await server.reclaim(connection)


async def fails(server: PsycopgServer, **options: float) -> DataError:
    with pytest.raises(DataError) as raised:
        await server.acquire(deadline=in_s(options["within"]) if options else None)
    return raised.value


# Borrowing and returning


async def test_a_connection_is_borrowed_and_returned(server: PsycopgServer) -> None:
    connection = await server.acquire(deadline=None)
    assert isinstance(connection, PsycopgConnection)
    assert connection.is_idle
    assert server.borrowed == 1
    server.release(connection)
    assert server.borrowed == 0
    assert "primary up, 0 of 10 borrowed" in repr(server)


async def test_returning_a_connection_twice_counts_once(server: PsycopgServer) -> None:
    connection = await server.acquire(deadline=None)
    server.release(connection)
    server.release(connection)
    await server.reclaim(connection)
    assert server.borrowed == 0
    assert await ask(server)


async def test_reclaim_ends_an_open_or_failed_transaction(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    pid = await ask(server)
    for query in ("select 1", "select 1/0"):
        connection = await server.acquire(deadline=None)
        await connection.exchange([BEGIN, Statement(query)])
        assert not connection.is_idle
        await server.reclaim(connection)
        connection = await server.acquire(deadline=None)
        assert connection.is_idle
        server.release(connection)
    assert await ask(server) == pid


async def test_a_discarded_connection_is_replaced(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    pid = await ask(server)
    connection = await server.acquire(deadline=None)
    server.discard(connection)
    assert connection.closed
    assert server.borrowed == 0
    assert await ask(server) != pid


async def test_waiters_are_served_when_a_connection_is_returned(open_server: OpenServer) -> None:
    server = await open_server(max_size=2)
    pids = await asyncio.gather(*(ask(server) for _ in range(40)))
    assert len(set(pids)) <= 2
    assert server.borrowed == 0


async def test_an_exhausted_pool_reports_its_numbers_and_the_fix(open_server: OpenServer) -> None:
    server = await open_server(min_size=1, max_size=1, acquire_timeout_s=0.2)
    await until(lambda: server.idle == 1)
    held = await server.acquire(deadline=None)
    started = now()
    error = await fails(server)
    assert now() - started < 1.5
    assert (error.kind, error.http_status, error.is_retryable) == (DataErrorKind.RESOURCE, 503, True)
    assert "no free connection after 0.2 s (1 of 1 in use, 1 waiting)" in error.message
    assert "Raise pool.max_size or shorten transactions" in error.message
    assert "orders.primary" in error.message
    server.release(held)


async def test_a_blocked_loop_is_named_instead_of_the_pools_size(open_server: OpenServer) -> None:
    server = await open_server(min_size=1, max_size=1, acquire_timeout_s=0.2)
    await until(lambda: server.idle == 1)
    held = await server.acquire(deadline=None)
    waits = asyncio.ensure_future(fails(server))
    await until(lambda: server.waiting > 0)
    time.sleep(0.6)
    error = await waits
    assert "event loop was blocked" in error.message
    assert "asyncio.to_thread" in error.message
    assert "max_size" not in error.message
    server.release(held)


async def test_a_limit_of_the_role_is_named_instead_of_the_pools_size(
    cluster: EmbeddedCluster, database: str, open_server: OpenServer
) -> None:
    role = f"limited_{database}"
    await cluster.primary.sql(f"create role {role} login password 'x' connection limit 1")
    url = make_conninfo(cluster.primary.url(database), user=role, password="x")
    server = await open_server(url, min_size=1, max_size=2, acquire_timeout_s=0.3)
    await until(lambda: server.idle == 1)
    held = await server.acquire(deadline=None)
    error = await fails(server)
    assert "no free connection after 0.3 s (1 of 2 in use, 1 waiting)" in error.message
    assert "raise its max_connections or the CONNECTION LIMIT of the role" in error.message
    assert "Raise pool.max_size" not in error.message
    server.release(held)
    await server.close(timeout_s=1.0)
    await cluster.primary.sql(f"drop role {role}")


async def test_a_slow_connect_is_named_instead_of_the_pools_size(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    server = await open_server(proxy_url, min_size=1, max_size=2, acquire_timeout_s=0.3)
    # A caller that waited for the first connection would make the pool open another one.
    await until(lambda: server.idle == 1)
    held = await server.acquire(deadline=None)
    proxy.freeze()
    error = await fails(server)
    assert "(1 of 2 in use, 1 waiting). Connecting takes longer than that" in error.message
    proxy.release()
    server.release(held)


async def test_closing_a_pool_that_is_connecting_reports_no_failure(
    open_server: OpenServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await open_server(min_size=5, max_size=5)
    await until(lambda: bool(server.attempts))
    await server.close(timeout_s=2.0)
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_the_deadline_ends_waiting_before_the_pools_own_timeout(open_server: OpenServer) -> None:
    server = await open_server(max_size=1, acquire_timeout_s=30.0)
    held = await server.acquire(deadline=None)
    started = now()
    error = await fails(server, within=0.2)
    assert error.kind is DataErrorKind.RESOURCE
    assert now() - started < 2.0
    error = await fails(server, within=-1.0)
    assert (error.kind, error.is_retryable) == (DataErrorKind.TIMEOUT, False)
    server.release(held)


async def test_a_full_queue_refuses_the_next_at_once(open_server: OpenServer) -> None:
    server = await open_server(max_size=1, max_waiting=2)
    held = await server.acquire(deadline=None)
    waiting = [asyncio.ensure_future(ask(server)) for _ in range(2)]
    await asyncio.sleep(0)
    started = now()
    error = await fails(server)
    assert error.kind is DataErrorKind.RESOURCE
    assert "2 are waiting for a connection already" in error.message
    assert now() - started < 0.5
    server.release(held)
    assert len(set(await asyncio.gather(*waiting))) == 1


# Reasons for a missing connection


async def test_a_port_without_a_listener_is_reported_at_once(open_server: OpenServer, url: str) -> None:
    started = now()
    server = await open_server(at_port(url, 1))
    assert now() - started < 0.5
    error = await fails(server)
    assert now() - started < 2.0
    assert (error.kind, error.http_status, error.is_retryable) == (DataErrorKind.CONNECTION, 503, True)
    assert (str(error), error.server) == ("orders.primary: cannot connect: Connection refused", "127.0.0.1:1")
    assert error.located_message == "orders.primary: cannot connect: Connection refused [127.0.0.1:1]"
    assert isinstance(error.__cause__, psycopg.OperationalError)
    assert not server.is_up
    assert server.last_error == "127.0.0.1:1: Connection refused"
    assert server.borrowed == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dbname": "nope"}, 'database "nope" does not exist'),
        ({"user": "stranger", "password": "x1y2z3"}, 'password authentication failed for user "stranger"'),
        ({"password": "wrong-Secret-4711"}, 'password authentication failed for user "app"'),
        ({"host": "does-not-exist.invalid"}, "failed to resolve host"),
    ],
)
async def test_the_cause_of_a_failed_connect_is_reported_at_once(
    open_server: OpenServer, url: str, change: dict[str, str], reason: str
) -> None:
    server = await open_server(make_conninfo(url, **change), acquire_timeout_s=20.0)
    started = now()
    error = await fails(server)
    assert error.kind is DataErrorKind.CONNECTION
    assert reason in error.message
    assert now() - started < 10.0


async def test_a_server_without_free_connections_is_not_reported_as_down(
    cluster: EmbeddedCluster, open_server: OpenServer, database: str
) -> None:
    role = f"{database}_few"
    await cluster.create_role(role, options="connection limit 1")
    server = await open_server(cluster.primary.url(database, role), min_size=1, max_size=3, acquire_timeout_s=1.0)
    held: list[PsycopgConnection] = []

    async def holds_one() -> bool:
        # PostgreSQL may refuse both of two sessions that start at the same time with one free slot.
        try:
            held.append(await server.acquire(deadline=None))
        except DataError:
            return False
        return True

    await until(holds_one)
    error = await fails(server)
    assert error.kind is DataErrorKind.RESOURCE
    assert "too many connections for role" in error.message
    assert server.is_up
    server.release(held[0])
    await server.close(timeout_s=2.0)
    await cluster.primary.sql(f"drop role {role}")


async def test_an_unresponsive_address_is_given_up_after_the_connect_timeout(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    proxy.freeze()
    server = await open_server(proxy_url, connect_timeout_s=2.0, acquire_timeout_s=30.0)
    started = now()
    error = await fails(server)
    assert (error.kind, "timeout expired" in error.message) == (DataErrorKind.CONNECTION, True)
    assert now() - started < 8.0


async def test_one_lost_attempt_to_connect_does_not_end_the_wait_for_a_primary(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    proxy.hold()
    server = await open_server(proxy_url, min_size=1, acquire_timeout_s=30.0)
    waiting = asyncio.ensure_future(ask(server))
    await proxy.until_held()
    proxy.cut()
    proxy.release()
    async with asyncio.timeout(10.0):
        assert await waiting
    assert server.is_up


async def test_a_server_lost_before_its_identification_is_down(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    proxy.hold(at=b"pg_settings")
    server = await open_server(proxy_url, min_size=1, acquire_timeout_s=30.0, connect_timeout_s=60.0)
    await proxy.until_held()
    proxy.freeze()
    proxy.cut()
    await until(lambda: not server.is_up)
    assert f"127.0.0.1:{proxy.port}: " in str(server.last_error)
    proxy.release()
    assert await ask(server)


async def test_waiters_get_the_reason_why_connections_cannot_be_set_up(
    cluster: EmbeddedCluster, database: str, open_server: OpenServer
) -> None:
    await cluster.primary.sql("revoke select on pg_settings from public", dbname=database)
    server = await open_server(acquire_timeout_s=1.0)
    error = await fails(server)
    assert error.kind is DataErrorKind.CONNECTION
    assert "permission denied for view pg_settings" in error.message


async def test_an_invalid_url_is_refused_without_being_shown() -> None:
    for conninfo in ("postgresql://app:planted-Secret@host:notaport/db", "host=x password='planted-Secret", "secret x"):
        with pytest.raises(ConfigError) as raised:
            PsycopgServer("primary", "orders", Role.PRIMARY, ServerSettings(conninfo=conninfo))
        assert "planted" not in str(raised.value)
        assert "secret" not in str(raised.value).lower()
        assert "orders" in str(raised.value)
        assert raised.value.__cause__ is None


async def test_a_planted_password_is_never_shown(
    cluster: EmbeddedCluster, open_server: OpenServer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    planted = "planted-Secret-4711"
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    for conninfo in (
        make_conninfo(url, password=planted),
        make_conninfo(url, password=planted, dbname="nope"),
        make_conninfo(url, password=planted, port=1),
        make_conninfo(url, password=planted, host="does-not-exist.invalid"),
        f"postgresql://app:{planted}@127.0.0.1:1/db?application_name={planted}",
    ):
        server = await open_server(conninfo, acquire_timeout_s=5.0)
        error = await fails(server)
        cause = error.__cause__
        seen += [str(error), repr(error), str(cause), repr(cause), repr(server), repr(server.settings)]
        seen += [str(server.last_error), str(server.attributes), server.label, repr(vars(server))]
        while cause is not None:
            seen.append(repr(cause) + str(cause) + repr(cause.__dict__))
            cause = cause.__cause__ or cause.__context__
        await server.close(timeout_s=2.0)
    await cluster.create_role("planted", password=planted)
    server = await open_server(cluster.primary.url("postgres", "planted"))
    connection = await server.acquire(deadline=None)
    exchange = await connection.exchange([Statement("selec")])
    seen += [repr(connection), repr(exchange), str(server.error_of(exchange, is_write=False)), repr(server)]
    await server.reclaim(connection)
    await server.close(timeout_s=2.0)
    await cluster.primary.sql("drop role planted")
    seen += [record.getMessage() + str(record.exc_info) for record in caplog.records if record.name != "asyncio"]
    assert caplog.records
    assert [text for text in seen if planted in text] == []


# Outage and recovery


@pytest.fixture(scope="module")
def mortal_cluster() -> object:
    """A separate server for this module, to stop and freeze."""
    with EmbeddedCluster() as running:
        yield running


@pytest.fixture
async def mortal(mortal_cluster: EmbeddedCluster) -> AsyncIterator[EmbeddedCluster]:
    yield mortal_cluster
    node = mortal_cluster.primary
    await node.thaw()
    if node.pid is None:
        await node.start()


async def test_a_server_that_is_down_at_the_start_is_used_once_it_is_up(
    mortal: EmbeddedCluster, open_server: OpenServer
) -> None:
    await mortal.primary.stop()
    server = await open_server(mortal.primary.url("postgres"))
    assert (await fails(server)).kind is DataErrorKind.CONNECTION
    assert not server.is_up
    await mortal.primary.start()
    # No connection is borrowed meanwhile: the server is checked in the background.
    await until(lambda: server.is_up)
    assert await ask(server)


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_server_that_dies_is_detected_without_requests_and_used_again(
    mortal: EmbeddedCluster, open_server: OpenServer, way: str
) -> None:
    server = await open_server(mortal.primary.url("postgres"), min_size=3, max_size=3)
    await asyncio.gather(*(ask(server) for _ in range(3)))
    assert server.is_up
    await (mortal.primary.stop() if way == "stop" else mortal.primary.kill())
    await until(lambda: not server.is_up)
    started = now()
    assert (await fails(server)).kind is DataErrorKind.CONNECTION
    assert now() - started < 3.0
    await mortal.primary.start()
    await until(lambda: server.is_up)
    started = now()
    assert len(set(await asyncio.gather(*(ask(server) for _ in range(6))))) >= 1
    assert now() - started < 2.0
    assert server.borrowed == 0


async def test_connections_that_died_in_the_pool_are_replaced_before_they_are_lent(
    cluster: EmbeddedCluster, database: str, open_server: OpenServer
) -> None:
    server = await open_server(min_size=5, max_size=5)
    held = [await server.acquire(deadline=None) for _ in range(5)]
    before = {scalar(await connection.exchange([PID])) for connection in held}
    for connection in held:
        server.release(connection)
    await cluster.primary.terminate_backends(database)
    # The event loop may resume this task before it has read the sockets.
    await until(lambda: all(connection.closed for connection in held))
    for _ in range(10):
        assert await ask(server) not in before
    assert server.is_up


async def test_a_connection_that_cannot_be_reset_is_not_lent_again(open_server: OpenServer) -> None:
    """What a borrower has left in the session would reach the next one."""
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    many = "do $$ begin for n in 1..400 loop execute format('create temp table t%s (id int)', n); end loop; end $$"
    await connection.exchange([Statement(many)])
    exchange = await connection.exchange([Statement("set statement_timeout = '1ms'"), PID])
    before = scalar(exchange)
    await server.reclaim(connection)
    assert connection.closed
    assert await ask(server) != before


async def test_a_connection_is_closed_at_the_last_message_of_its_server(
    cluster: EmbeddedCluster, database: str, open_server: OpenServer
) -> None:
    target, pumps = cluster.primary, list[asyncio.Task[None]]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what arrives, but not the end of the stream."""
        try:
            while data := await reader.read(65_536):
                writer.write(data)
            await asyncio.Event().wait()
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection(target.host, target.port)
        pumps.extend((asyncio.create_task(pump(reader, behind[1])), asyncio.create_task(pump(behind[0], writer))))

    async with await asyncio.start_server(forward, "127.0.0.1") as front:
        server = await open_server(at_port(target.url(database), front.sockets[0].getsockname()[1]), max_size=1)
        connection = await server.acquire(deadline=None)
        server.release(connection)
        await target.terminate_backends(database)
        await until(lambda: connection.closed)
        assert await ask(server) is not None
        await server.close(timeout_s=1.0)
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_after_one_dead_connection_the_other_dead_ones_are_not_lent(
    cluster: EmbeddedCluster, database: str, open_server: OpenServer
) -> None:
    server = await open_server(min_size=4, max_size=4)
    held = [await server.acquire(deadline=None) for _ in range(4)]
    for connection in held:
        await connection.exchange([PID])
        server.release(connection)
    # Blocking, so that the event loop cannot detect it before the next statement.
    cluster.primary.blocking.terminate_backends(database)
    first = await server.acquire(deadline=None)
    exchange = await first.exchange([PID])
    assert exchange.is_lost
    await server.reclaim(first)
    server.suspect()
    for _ in range(4):
        connection = await server.acquire(deadline=None, must_be_alive=True)
        assert (await connection.exchange([PID])).error is None
        await server.reclaim(connection)


async def test_waits_for_a_frozen_server_end_at_their_deadlines(
    mortal: EmbeddedCluster, open_server: OpenServer
) -> None:
    server = await open_server(
        mortal.primary.url("postgres"), min_size=2, max_size=2, connect_timeout_s=2.0, acquire_timeout_s=4.0
    )
    await ask(server)
    await mortal.primary.freeze()
    connection = await server.acquire(deadline=None)
    started = now()
    exchange = await connection.exchange([Statement("select 1")], deadline=in_s(0.5))
    assert now() - started < 3.0
    assert (exchange.timed_out, exchange.is_lost) == (True, True)
    assert server.error_of(exchange, is_write=False).kind is DataErrorKind.TIMEOUT
    await server.reclaim(connection)
    assert not server.is_up
    started = now()
    error = await fails(server)
    assert error.kind in (DataErrorKind.CONNECTION, DataErrorKind.RESOURCE)
    assert now() - started < 7.0
    assert (await fails(server)).kind is DataErrorKind.CONNECTION
    await mortal.primary.thaw()
    await until(lambda: server.is_up, timeout_s=8.0)
    assert await ask(server)
    assert server.borrowed == 0


async def test_closing_is_bounded_though_the_server_is_frozen(
    mortal: EmbeddedCluster, open_server: OpenServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await open_server(mortal.primary.url("postgres"), min_size=2, max_size=5)
    await ask(server)
    held = await server.acquire(deadline=None)
    await held.exchange([BEGIN])
    await mortal.primary.freeze()
    running = asyncio.ensure_future(held.exchange([Statement("select 1")]))
    waiting = [asyncio.ensure_future(server.acquire(deadline=None)) for _ in range(4)]
    server.suspect()
    await asyncio.sleep(0)
    started = now()
    await server.close(timeout_s=1.0)
    assert now() - started < 2.5
    assert (await running).is_lost
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(outcome, PsycopgConnection):
            server.release(outcome)
        else:
            assert isinstance(outcome, DataError)
    await server.reclaim(held)
    assert server.borrowed == 0
    assert "couldn't stop task" not in caplog.text


async def test_closing_does_not_wait_for_running_connection_attempts(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.freeze()
    server = await open_server(proxy_url, min_size=3, connect_timeout_s=30.0)
    waiting = asyncio.ensure_future(server.acquire(deadline=None))
    await until(lambda: bool(server.attempts))
    started = now()
    await server.close(timeout_s=5.0)
    assert now() - started < 1.5
    with pytest.raises(DataError):
        await waiting
    assert "couldn't stop task" not in caplog.text


async def test_borrowing_while_the_pool_closes_fails_at_once(
    proxy: FaultProxy, proxy_url: str, open_server: OpenServer
) -> None:
    server = await open_server(proxy_url, min_size=1, acquire_timeout_s=60.0, check_timeout_s=30.0)
    await ask(server)
    proxy.freeze()
    waiting = asyncio.ensure_future(server.acquire(deadline=None, must_be_alive=True))
    await until(lambda: server.borrowed == 1)
    await server.close(timeout_s=1.0)
    async with asyncio.timeout(10.0):
        with pytest.raises(DataError, match="the pool is closed") as caught:
            await waiting
    assert caught.value.kind is DataErrorKind.CONNECTION


async def test_a_closed_server_can_be_opened_again_by_another_loop(url: str) -> None:
    server = PsycopgServer("primary", "orders", Role.PRIMARY, ServerSettings(conninfo=url))

    async def once() -> object:
        await server.open()
        await server.open()
        pid = await ask(server)
        await server.close(timeout_s=2.0)
        await server.close(timeout_s=2.0)
        return pid

    first = await once()
    second = await once()
    third = await asyncio.to_thread(asyncio.run, once())
    assert len({first, second, third}) == 3


async def test_closing_leaves_no_backend_on_the_server(
    cluster: EmbeddedCluster, database: str, open_server: OpenServer
) -> None:
    server = await open_server(min_size=3)
    held = [await server.acquire(deadline=None) for _ in range(5)]
    await held[0].exchange([BEGIN])
    server.release(held[1])
    await server.close(timeout_s=2.0)
    count = "select count(*) from pg_stat_activity where datname = %s and usename = 'app'"
    await until(lambda: is_zero(cluster, count, database))
    for connection in held:
        await server.reclaim(connection)


async def is_zero(cluster: EmbeddedCluster, query: str, database: str) -> bool:
    return await cluster.primary.value(query, [database]) == 0


async def test_connections_carry_the_timeouts_of_their_settings(open_server: OpenServer, url: str) -> None:
    server = await open_server(
        make_conninfo(url, keepalives_idle=77), tcp_user_timeout_s=7.5, keepalives_idle_s=30, connect_timeout_s=1
    )
    connection = await server.acquire(deadline=None)
    options = connection.info.get_parameters()
    # The URL takes precedence; libpq's shortest connect timeout is two seconds.
    assert options["keepalives_idle"] == "77"
    assert options["tcp_user_timeout"] == "7500"
    assert options["connect_timeout"] == "2"
    assert scalar(await connection.exchange([Statement("show application_name")])) == "asgi-datasource"
    server.release(connection)


async def test_an_expired_connection_is_closed_and_its_rows_can_still_be_read(open_server: OpenServer) -> None:
    server = await open_server(max_size=1, max_lifetime_s=0.001)
    connection = await server.acquire(deadline=None)
    exchange = await connection.exchange(
        [Statement("select '{2024-07-01 12:00+02}'::timestamptz[] as t from pg_sleep(0.05)")]
    )
    server.release(connection)
    assert connection.closed
    assert str(scalar(exchange)[0]) == "2024-07-01 10:00:00+00:00"  # type: ignore[index]
    assert server.is_up


def test_psycopg_without_its_c_extension_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for implementation in ("binary", "python", "python"):
        warn_if_slow(implementation)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["psycopg runs without its C parts"]


async def test_attributes_name_the_server_without_user_and_password(server: PsycopgServer, database: str) -> None:
    assert server.attributes == {
        "db.system.name": "postgresql",
        "db.namespace": database,
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    assert server.label == f"orders.primary (127.0.0.1:{server.port})"
