"""Which failures open a breaker, which statements are retried and where, and how a server that is down is tested."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, compile
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of, proxy_of
from tests.patience import now
from tests.world import World


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(2) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


async def read(registry: DataSourceRegistry, statement: str = "select 1", timeout: float | None = None) -> str:
    """The server that answers one read."""
    async with registry.session(tenant="acme", timeout=timeout) as db:
        await db.read.fetch_value(statement)
        assert db.last_route is not None
        return db.last_route.node


async def reads(registry: DataSourceRegistry, count: int = 12) -> Counter[str]:
    return Counter([await read(registry) for _ in range(count)])


def is_up(registry: DataSourceRegistry) -> dict[str, bool]:
    return {name: endpoint.is_up for name, endpoint in registry.datasources["orders"].servers.items()}


# -- failures that open a breaker


async def test_errors_returned_by_a_server_do_not_open_its_breaker(world: World) -> None:
    statements = [
        "selec 1",
        "select 1/0",
        "select * from nowhere",
        "do $$ begin raise exception 'no' using errcode = '08006'; end $$",
        "do $$ begin raise exception 'no' using errcode = '57P03'; end $$",
        "do $$ begin raise exception 'no' using errcode = '53300'; end $$",
        "set local statement_timeout = '1ms'; ",
        "insert into orders (item) values ('with read intent')",
    ]
    async with compile(world.config()) as registry:
        await reads(registry)
        for statement in statements * 3:
            with pytest.raises(DataError):
                async with registry.session(tenant="acme") as db:
                    await db.read.fetch_value(statement)
            with pytest.raises(DataError):
                async with registry.session(tenant="acme") as db:
                    await db.write.execute(statement + " x")
        assert is_up(registry) == {"r1": True, "r2": True, "primary": True}
        assert set(await reads(registry)) == {"r1", "r2"}


async def _rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(8)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_a_server_with_another_protocol_is_down_and_no_read_fails(world: World) -> None:
    async with await asyncio.start_server(_rude, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = make_conninfo(world.url("r1"), port=port, sslmode="disable")
        async with compile(world.config(urls={"r1": url})) as registry:
            seen = await reads(registry)
            assert seen["r1"] == 0
            assert is_up(registry)["r1"] is False
            assert is_up(registry)["r2"] is True


# -- statements that are retried


async def test_a_read_on_a_server_that_stops_responding_moves_to_another_server(world: World) -> None:
    async with proxy_of(world.cluster.replicas["r1"]) as proxy:
        config = world.config(urls={"r1": proxy.through(world.url("r1"))}, routing={"check_interval": "100ms"})
        async with compile(config) as registry:
            while await read(registry) != "r2":
                pass
            proxy.hold_back(at=b"select 'held'")
            running = asyncio.create_task(read(registry, "select 'held'", timeout=30.0))
            await proxy.until_held()
            proxy.freeze()
            assert await asyncio.wait_for(running, 20.0) in ("r2", "primary")
            proxy.release()
            proxy.cut()


async def test_a_server_that_stops_responding_while_idle_is_detected(world: World) -> None:
    async with proxy_of(world.cluster.replicas["r1"]) as proxy:
        config = world.config(urls={"r1": proxy.through(world.url("r1"))}, routing={"check_interval": "100ms"})
        async with compile(config) as registry:
            while await read(registry) != "r2":
                pass
            proxy.hold_back(at=b"select 'held'")
            running = asyncio.create_task(read(registry, "select 'held'", timeout=30.0))
            await proxy.until_held()
            proxy.freeze()
            # No statement is running that could time out, only connection attempts.
            orders = registry.datasources["orders"]
            assert isinstance(orders, ReplicatedDataSource)
            orders._monitor._checks["r1"][1].close()
            assert await asyncio.wait_for(running, 20.0) in ("r2", "primary")
            proxy.release()
            proxy.cut()


async def test_a_read_that_crashes_its_backend_is_not_sent_to_all_servers(world: World) -> None:
    async with compile(world.config()) as registry:
        await reads(registry)
        kills = "select pg_terminate_backend(pg_backend_pid())"
        before = [await ended(world, name) for name in ("primary", "r1", "r2")]
        with pytest.raises(DataError) as raised:
            await read(registry, kills)
        assert raised.value.kind is DataErrorKind.CONNECTION
        after = [await ended(world, name) for name in ("primary", "r1", "r2")]
        runs = [now - then for now, then in zip(after, before, strict=True)]
        assert sum(runs) == 3, runs
        assert runs[0] == 0, "the primary has no part in it while there are replicas"
        assert await reads(registry)


async def ended(world: World, name: str) -> int:
    """The number of backends that an administrator has terminated on a server."""
    return world.cluster.nodes[name].log.count("terminating connection due to administrator command")


@asynccontextmanager
async def shop_behind(proxy: FaultProxy, world: World, **pool: Any) -> AsyncIterator[DataSourceRegistry]:
    config = world.config(replicas=(), urls={"primary": proxy.through(world.url())}, pool=pool)
    async with compile(config) as registry:
        yield registry


async def numbers_drawn(world: World) -> int:
    return int((await world.sql("select case when is_called then last_value else 0 end from acme.numbers"))[0][0])


async def test_a_write_whose_connection_is_lost_takes_effect_once(world: World) -> None:
    async with proxy_of(world.cluster.primary) as proxy, shop_behind(proxy, world) as registry:
        proxy.hold_back(at=b"insert into orders")

        async def place() -> None:
            async with registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values ('tea')")

        placing = asyncio.create_task(place())
        await proxy.until_held()
        proxy.cut()
        proxy.release()
        await placing
        assert await world.items() == ["tea"]


async def test_a_later_statement_of_a_transaction_is_not_retried(world: World) -> None:
    async with proxy_of(world.cluster.primary) as proxy, shop_behind(proxy, world) as registry:

        async def place() -> None:
            async with registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values ('first')")
                await db.fetch_value("select nextval('numbers') as second")

        proxy.hold_back(at=b"as second")
        placing = asyncio.create_task(place())
        await proxy.until_held()
        proxy.cut()
        proxy.release()
        with pytest.raises(DataError) as raised:
            await placing
        assert (raised.value.kind, raised.value.http_status) == (DataErrorKind.CONNECTION, 503)
        assert await world.items() == []
        assert await numbers_drawn(world) == 1, "what no rollback takes back was done once"


@pytest.fixture
def cut_behind(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Append to it to close the connection of the next exchange after its response and before the caller gets it."""
    orders: list[str] = []
    land = PsycopgConnection._land

    def land_and_cut(self: PsycopgConnection) -> None:
        land(self)
        if orders and self.is_lent:
            self.cut(orders.pop())

    monkeypatch.setattr(PsycopgConnection, "_land", land_and_cut)
    return orders


async def test_a_connection_lost_after_a_response_fails_its_transaction_but_no_read(
    world: World, cut_behind: list[str]
) -> None:
    async with compile(world.config(replicas=())) as registry:
        cut_behind.append("another server has taken its place")
        async with registry.session(tenant="acme") as db:
            assert await db.read.fetch_value("select 'whole'") == "whole"
        assert cut_behind == []
        for statements in (1, 2):
            with pytest.raises(DataError) as raised:
                async with registry.session(tenant="acme") as db:
                    if statements == 2:
                        await db.execute("insert into orders (item) values ('tea')")
                    cut_behind.append("another server has taken its place")
                    await db.execute("insert into orders (item) values ('milk')")
            assert (raised.value.kind, raised.value.is_retryable) == (DataErrorKind.CONNECTION, True)
        assert await world.items() == []
        assert cut_behind == []


# -- all servers down, and recovery


async def test_when_all_breakers_are_open_the_next_request_tries_a_server(world: World) -> None:
    nodes = world.cluster.nodes.values()
    async with compile(world.config(pool={"reconnect_pause": "1h"})) as registry:
        await reads(registry)
        for node in nodes:
            await node.kill()
        await until(lambda: not any(is_up(registry).values()))
        for _ in range(2):
            with pytest.raises(DataError) as raised:
                await read(registry)
            assert raised.value.http_status == 503
        for node in nodes:
            await node.start()
        # The pauses are long by now; a request does not wait for their end.
        started = now()
        await until(lambda: answers(registry), timeout_s=10.0)
        assert now() - started < 5.0


async def answers(registry: DataSourceRegistry) -> bool:
    try:
        await read(registry)
    except DataError:
        return False
    return True


async def test_a_server_that_is_down_gets_one_connection_attempt_at_a_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    primary = world.cluster.primary
    size = 8
    async with (
        proxy_of(primary) as proxy,
        shop_behind(proxy, world, max_size=size, max_waiting=0) as registry,
    ):
        outcomes: Counter[str] = Counter()

        async def write() -> None:
            while True:
                try:
                    async with registry.session(tenant="acme") as db:
                        await db.execute("insert into orders (item) values (gen_random_uuid())")
                    outcomes["done"] += 1
                except DataError as error:
                    outcomes[error.kind.value] += 1
                    await asyncio.sleep(0.001)

        clients = [asyncio.create_task(write()) for _ in range(40)]
        await until(lambda: outcomes["done"] > 50)
        await primary.kill()
        await until(lambda: not is_up(registry)["primary"])
        proxy.reset_counters()
        outcomes.clear()
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await asyncio.sleep(2.0)
        took_s = loop.time() - began_at
        # At most one attempt every 50 ms, plus those that the pool has started for its lost connections.
        assert proxy.accepted <= took_s / 0.05 + 2 * size, (proxy.accepted, took_s, outcomes)
        proxy.reset_counters()
        await primary.start()
        await until(lambda: outcomes["done"] > 50)
        # After the recovery, at most the connections of the pool and the earlier attempts.
        assert proxy.accepted <= (loop.time() - began_at) / 0.05 + 3 * size
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        assert set(outcomes) <= {"done", "connection", "commit_unknown"}, outcomes
