"""The fault proxy between a real driver and a real server, under asyncio and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
import uvloop

from asgi_datasource.testing import FaultProxy
from asgi_datasource.testing.plugin import Database
from tests.testing.test_protocol import CANCEL_REQUEST

Body = Callable[[FaultProxy, str], Awaitable[None]]


class Bench:
    """Runs the body of a test on both kinds of event loop, each with its own proxy."""

    def __init__(self, database: Database, loop: str) -> None:
        self.database = database
        self._factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop

    def run(self, body: Body) -> None:
        async def within() -> None:
            node = self.database.cluster.primary
            async with FaultProxy(node.host, node.port) as proxy:
                await body(proxy, proxy.through(self.database.url))

        with asyncio.Runner(loop_factory=self._factory) as runner:
            runner.run(within())

    def count(self, table: str) -> int:
        return int(
            self.database.cluster.primary.blocking.value(f"select count(*) from {table}", dbname=self.database.name)
        )


@pytest.fixture(params=["asyncio", "uvloop"])
def bench(request: Any, pg_database: Database) -> Bench:
    return Bench(pg_database, request.param)


@contextlib.asynccontextmanager
async def connected(url: str, timeout_s: int = 10) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    connection = await psycopg.AsyncConnection.connect(
        url, autocommit=True, prepare_threshold=None, connect_timeout=timeout_s
    )
    try:
        yield connection
    finally:
        await connection.close()


async def soon(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


def test_statements_pipelines_and_copies_are_counted(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            assert proxy.round_trips == 0
            assert proxy.startup_round_trips >= 3
            for _ in range(7):
                await connection.execute("select %s::int", (1,))
            assert proxy.round_trips == 7
            proxy.reset_counters()
            assert (proxy.accepted, proxy.connections, proxy.startup_round_trips) == (0, 1, 0)
            async with connection.pipeline():
                for _ in range(9):
                    await connection.execute("select 1")
            assert (proxy.round_trips, proxy.requests) == (1, 1)
            await connection.execute("create table t (a int)")
            proxy.reset_counters()
            async with connection.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
                for number in range(3):
                    await copy.write_row((number,))
            assert proxy.round_trips == 2
        # The counts of a closed connection are kept.
        await soon(lambda: proxy.connections == 0)
        assert proxy.round_trips == 2

    bench.run(body)


def test_large_requests_and_results_pass_completely_and_count_once(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        big = "x" * 20_000_000
        async with connected(url) as connection:
            row = await (await connection.execute("select %s::text, repeat('y', 30000000)", (big,))).fetchone()
            assert row == (big, "y" * 30_000_000)
            assert proxy.round_trips == 1

    bench.run(body)


def test_cancel_request_is_accepted_and_not_counted(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            proxy.reset_counters()
            running = asyncio.create_task(connection.execute("select pg_sleep(60)"))
            await soon(lambda: proxy.requests == 1)
            await connection.cancel_safe(timeout=5)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await running
            assert (proxy.round_trips, proxy.accepted) == (1, 1)

    bench.run(body)


@pytest.mark.parametrize("delay_s", [0.0005, 0.002, 0.02])
def test_delay_is_added_to_each_round_trip(bench: Bench, delay_s: float) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            proxy.delay_s = delay_s
            took = []
            for _ in range(60):
                before = time.perf_counter()
                await connection.execute("select 1")
                took.append(time.perf_counter() - before)
            # The fastest of several, on a busy machine: the delay applies once for each round trip.
            assert delay_s <= min(took) < delay_s + max(delay_s, 0.005)
            proxy.delay_s = 0
            assert (await (await connection.execute("select 1")).fetchone()) == (1,)

    bench.run(body)


def test_delayed_bytes_keep_their_order_when_the_delay_ends(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            proxy.delay_s = 0.4
            slow = asyncio.create_task(connection.execute("select 1"))
            await soon(lambda: proxy.requests == 1)
            proxy.delay_s = 0
            assert await (await slow).fetchone() == (1,)
            assert await (await connection.execute("select 2")).fetchone() == (2,)

    bench.run(body)


def test_commit_that_never_arrives_is_rolled_back(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as bystander, connected(url) as connection:
            await connection.execute("create table t (a int)")
            await connection.execute("begin; insert into t values (1)")
            proxy.hold(at=b"COMMIT")
            committing = asyncio.create_task(connection.execute("commit"))
            await proxy.until_held()
            proxy.cut(only_held=True)
            with pytest.raises(psycopg.OperationalError):
                await committing
            # Only that connection was held and closed.
            assert await (await bystander.execute("select count(*) from t")).fetchone() == (0,)

    bench.run(body)
    assert bench.count("t") == 0


def test_commit_whose_response_is_lost_takes_effect(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as bystander, connected(url) as connection:
            await connection.execute("create table t (a int)")
            await connection.execute("begin; insert into t values (1)")
            proxy.hold_back(at=b"COMMIT")
            committing = asyncio.create_task(connection.execute("commit"))
            await proxy.until_held()
            assert await (await bystander.execute("select count(*) from t")).fetchone() == (1,)
            proxy.cut(only_held=True)
            with pytest.raises(psycopg.OperationalError):
                await committing

    bench.run(body)
    assert bench.count("t") == 1


@pytest.mark.parametrize("fault", ["hold", "hold_back", "freeze"])
def test_release_ends_the_silence_without_loss(bench: Bench, fault: str) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as one, connected(url) as two:
            getattr(proxy, fault)()
            asked = [asyncio.create_task(connection.execute("select 'answer'")) for connection in (one, two)]
            await proxy.until_held()
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                async with connected(url, timeout_s=2):
                    pass
            assert not any(task.done() for task in asked)
            proxy.release()
            for task in asked:
                assert await (await task).fetchone() == ("answer",)
            async with connected(url) as late:
                assert await (await late.execute("select 1")).fetchone() == (1,)

    bench.run(body)


def test_cut_resets_every_connection_and_new_ones_pass(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as one, connected(url) as two:
            proxy.cut()
            for connection in (one, two):
                with pytest.raises(psycopg.OperationalError):
                    await connection.execute("select 1")
        await soon(lambda: proxy.connections == 0)
        async with connected(url) as again:
            assert await (await again.execute("select 1")).fetchone() == (1,)

    bench.run(body)


def test_until_held_times_out_without_held_data(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            proxy.hold(at=b"commit")
            await connection.execute("select 1")
            with pytest.raises(TimeoutError):
                await proxy.until_held(timeout_s=0.05)

    bench.run(body)


def test_client_is_refused_when_the_server_is(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with FaultProxy("127.0.0.1", 9) as nowhere:
            with pytest.raises(psycopg.OperationalError):
                async with connected(nowhere.through(url)):
                    pass
            await soon(lambda: nowhere.connections == 0)

    bench.run(body)


def test_closing_one_side_closes_the_other(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            row = await (await connection.execute("select pg_backend_pid()")).fetchone()
            assert row is not None
            bench.database.cluster.primary.blocking.terminate_backends(bench.database.name)
            with pytest.raises(psycopg.errors.AdminShutdown):
                await connection.execute("select 1")
            await soon(lambda: proxy.connections == 0)
        async with connected(url) as connection:
            pass
        await soon(lambda: proxy.connections == 0)

    bench.run(body)


def test_server_learns_that_its_client_left_a_frozen_proxy_when_that_stops(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        server = bench.database.cluster.primary.blocking
        sessions = "select count(*) from pg_stat_activity where datname = %s"
        async with connected(url):
            proxy.freeze()
        await soon(lambda: proxy.round_trips == 0 and server.value(sessions, [bench.database.name]) == 1)
        await proxy.stop()
        await soon(lambda: server.value(sessions, [bench.database.name]) == 0)

    bench.run(body)


def test_data_of_a_client_that_closes_at_once_is_delivered(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        heard = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.read())
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as through:
            _, writer = await asyncio.open_connection("127.0.0.1", through.port)
            # A CancelRequest: some clients do not wait until the server closes.
            writer.write(CANCEL_REQUEST)
            writer.close()
            assert await heard == CANCEL_REQUEST
            await soon(lambda: through.connections == 0)

    bench.run(body)


def test_url_through_the_proxy_differs_in_its_port_only() -> None:
    proxy = FaultProxy("127.0.0.1", 5432)
    proxy.port = 6000
    assert (
        proxy.through("postgresql://app:s%40cret@db:5432/a%20b?x=1")
        == "postgresql://app:s%40cret@127.0.0.1:6000/a%20b?x=1"
    )
    assert proxy.through("postgresql:///orders") == "postgresql://127.0.0.1:6000/orders"


def test_stop_closes_all_connections_even_when_frozen(bench: Bench) -> None:
    async def body(proxy: FaultProxy, url: str) -> None:
        async with connected(url) as connection:
            proxy.freeze()
            asked = asyncio.create_task(connection.execute("select 1"))
            await proxy.until_held()
            await proxy.stop()
            await proxy.stop()
            assert proxy.connections == 0
            with pytest.raises(psycopg.OperationalError):
                await asked
            with pytest.raises(psycopg.OperationalError, match="refused"):
                async with connected(url):
                    pass

    bench.run(body)


@pytest.mark.parametrize("end", ["stop", "cut and stop"])
def test_stop_completes_while_clients_are_connecting(bench: Bench, end: str) -> None:
    node = bench.database.cluster.primary

    async def body(_: FaultProxy, __: str) -> None:
        for steps in range(12):
            proxy = FaultProxy(node.host, node.port)
            await proxy.start()
            coming = [asyncio.create_task(asyncio.open_connection("127.0.0.1", proxy.port)) for _ in range(5)]
            # At each step of a connection through the proxy.
            for _ in range(steps):
                await asyncio.sleep(0)
            if end == "cut and stop":
                proxy.cut()
            async with asyncio.timeout(30):
                await proxy.stop()
            assert proxy.connections == 0
            for outcome in await asyncio.gather(*coming, return_exceptions=True):
                if not isinstance(outcome, BaseException):
                    outcome[1].close()
                    with contextlib.suppress(ConnectionError):
                        await outcome[1].wait_closed()

    bench.run(body)
