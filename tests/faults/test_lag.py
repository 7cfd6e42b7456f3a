"""Replica lag of every kind: a read with `max_lag` never gets older data."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import uniform
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataSourceRegistry, Reason, compile, session
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.apps import client
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of, proxy_of
from tests.world import World

MAX_LAG_S = 0.6


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(2) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


@asynccontextmanager
async def opened(world: World, *, urls: dict[str, str] | None = None, **routing: Any) -> AsyncIterator[Shop]:
    config = world.config(urls=urls or {})
    config["datasources"]["orders"]["routing"] = {
        "max_lag": f"{MAX_LAG_S * 1000:.0f}ms",
        "check_interval": "50ms",
        "warmup": "1ms",
        **routing,
    }
    async with compile(config) as registry:
        shop = Shop(world, registry)
        await shop.reaches("r1", "r2")
        yield shop


class Shop:
    """A registry, and the servers and reasons of its reads."""

    def __init__(self, world: World, registry: DataSourceRegistry) -> None:
        self.world = world
        self.registry = registry
        found = registry.datasources["orders"]
        assert isinstance(found, ReplicatedDataSource)
        self.orders = found

    async def read(self) -> tuple[str, Reason]:
        async with self.registry.session(tenant="acme") as db:
            await db.read.fetch_value("select count(*) from orders")
            assert db.last_route is not None
            return db.last_route.node, db.last_route.reason

    async def reads(self, count: int = 8) -> Counter[tuple[str, Reason]]:
        return Counter([await self.read() for _ in range(count)])

    async def reaches(self, *nodes: str) -> set[Reason]:
        """Wait until reads go to exactly these servers; return the reasons."""
        seen: set[tuple[str, Reason]] = set()

        async def is_so() -> bool:
            nonlocal seen
            seen = set(await self.reads())
            return {node for node, _ in seen} == set(nodes)

        await until(is_so, timeout_s=15.0)
        return {reason for _, reason in seen}

    async def write(self) -> None:
        async with self.registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values (gen_random_uuid())")

    @asynccontextmanager
    async def writes(self) -> AsyncIterator[None]:
        """Write continuously during the block."""
        is_over = asyncio.Event()

        async def work() -> None:
            while not is_over.is_set():
                await self.write()
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            try:
                yield
            finally:
                is_over.set()


async def test_replicas_that_keep_up_under_load_are_used(world: World) -> None:
    async with opened(world) as shop, shop.writes():
        for _ in range(5):
            seen = await shop.reads(20)
            assert {node for node, _ in seen} == {"r1", "r2"}, seen
            await asyncio.sleep(0.1)


async def test_replicas_of_an_idle_primary_do_not_lag(world: World) -> None:
    async with opened(world) as shop:
        await asyncio.sleep(3 * MAX_LAG_S)
        seen = await shop.reads(20)
        assert {node for node, _ in seen} == {"r1", "r2"}, seen
        for node in shop.orders.topology.replicas:
            assert (node.lag_s, node.lag_bytes) == (0.0, 0), str(node)


async def test_a_replica_with_paused_replay_is_excluded_and_later_used_again(world: World) -> None:
    r1 = world.cluster.replicas["r1"]
    async with opened(world) as shop:
        await r1.pause_replay()
        try:
            async with shop.writes():
                await shop.reaches("r2")
                lagging = next(node for node in shop.orders.topology.replicas if node.name == "r1")
                assert lagging.lag_bytes
                assert lagging.position is not None
                assert (lagging.received_lsn or 0) > lagging.position.lsn, (
                    "the replica receives WAL without replaying it"
                )
                assert "r1 lag " in ", ".join(shop.orders.topology.describe())
        finally:
            await r1.resume_replay()
        await shop.reaches("r1", "r2")


async def test_the_primary_answers_with_reason_lagging_when_all_replicas_lag(world: World) -> None:
    replicas = world.cluster.replicas.values()
    async with opened(world) as shop:
        for replica in replicas:
            await replica.pause_replay()
        try:
            async with shop.writes():
                assert await shop.reaches("primary") == {Reason.LAGGING}
        finally:
            for replica in replicas:
                await replica.resume_replay()
        await shop.reaches("r1", "r2")


async def test_the_max_lag_of_a_route_applies_to_its_requests(world: World) -> None:
    config = world.config(
        routing={"max_lag": f"{MAX_LAG_S * 1000:.0f}ms", "check_interval": "50ms", "warmup": "1ms"},
        routes=[{"match": "GET /reports", "max_lag": "1h"}],
    )
    registry = compile(config)
    routes = [Route("/reports", where), Route("/basket", where)]
    replicas = world.cluster.replicas.values()
    async with client(world, routes, registry=registry) as http:
        shop = Shop(world, registry)
        await shop.reaches("r1", "r2")
        for replica in replicas:
            await replica.pause_replay()
        try:
            async with shop.writes():
                await shop.reaches("primary")
                for _ in range(4):
                    assert (await http.get("/basket")).json() == ["primary", "lagging"]
                    node, reason = (await http.get("/reports")).json()
                    assert (node in ("r1", "r2"), reason) == (True, "balanced")
        finally:
            for replica in replicas:
                await replica.resume_replay()


async def where(request: Request) -> Response:
    db = session(request)
    await db.fetch_value("select count(*) from orders")
    assert db.last_route is not None
    return JSONResponse([db.last_route.node, db.last_route.reason])


async def test_a_route_may_have_a_longer_or_shorter_max_lag(world: World) -> None:
    config = world.config(
        routes=[{"match": "GET /reports", "max_lag": "1h"}, {"match": "GET /basket", "max_lag": "1s"}]
    )
    config["datasources"]["orders"]["routing"] = {"max_lag": "2s", "check_interval": "50ms"}
    registry = compile(config)
    assert registry.compiled.rules.match("GET", "/reports").freshness.max_lag_s == 3600
    assert registry.compiled.rules.match("GET", "/basket").freshness.max_lag_s == 1
    assert registry.datasources["orders"].topology.policy.reach_s == 7200


async def test_delayed_replay_beyond_max_lag_excludes_the_replica(world: World) -> None:
    r1 = world.cluster.replicas["r1"]
    async with opened(world) as shop:
        await r1.delay_replay(1500)
        try:
            async with shop.writes():
                await shop.reaches("r2")
                await asyncio.sleep(0.5)
                lagging = next(node for node in shop.orders.topology.replicas if node.name == "r1")
                assert lagging.lag_s is not None
                assert lagging.lag_s > MAX_LAG_S
        finally:
            await r1.delay_replay(0)
        await shop.reaches("r1", "r2")


async def test_a_replica_disconnected_from_the_primary_is_excluded(world: World) -> None:
    r1 = world.cluster.replicas["r1"]
    async with opened(world) as shop:
        conninfo = await r1.value("show primary_conninfo")
        await r1.configure(primary_conninfo="")
        try:
            async with shop.writes():
                await shop.reaches("r2")
        finally:
            await r1.configure(primary_conninfo=conninfo)
        await shop.reaches("r1", "r2")


async def test_no_replica_is_fresh_while_the_primary_is_down(world: World) -> None:
    async with opened(world) as shop:
        await world.cluster.primary.kill()

        async def is_refused() -> bool:
            try:
                return (await shop.read())[0] == "primary"
            except DataError as error:
                return error.http_status == 503

        await until(is_refused)
        await world.cluster.primary.start()
        await shop.reaches("r1", "r2")


async def test_no_replica_stale_serves_lagging_replicas_while_the_primary_is_down(world: World) -> None:
    async with opened(world, no_replica="stale") as shop:
        await world.cluster.primary.kill()

        async def is_stale() -> bool:
            return {reason for _, reason in await shop.reads()} == {Reason.STALE_OK}

        await until(is_stale)
        assert {node for node, _ in await shop.reads()} == {"r1", "r2"}
        await world.cluster.primary.start()
        await shop.reaches("r1", "r2")
        await until(lambda: shop.orders.topology.primary.is_up)


async def test_no_replica_is_fresh_without_polling(world: World) -> None:
    async with opened(world) as shop:
        shop.orders._monitor.stop()
        assert await shop.reaches("primary") == {Reason.LAGGING}
        shop.orders._monitor.start()
        await shop.reaches("r1", "r2")


async def test_the_monitor_detects_an_unresponsive_server_before_a_request_waits(world: World) -> None:
    async with proxy_of(world.cluster.replicas["r1"]) as proxy:
        urls = {"r1": proxy.through(world.url("r1"))}
        async with opened(world, urls=urls) as shop:
            proxy.freeze()
            await until(lambda: not shop.orders.servers["r1"].is_up, timeout_s=15.0)
            assert {node for node, _ in await shop.reads()} == {"r2"}
            proxy.release()
            proxy.cut()
            await shop.reaches("r1", "r2")


async def test_the_monitor_uses_one_connection_per_server_and_none_without_replicas(world: World) -> None:
    async with proxy_of(world.cluster.primary) as alone:
        config = world.config(replicas=(), urls={"primary": alone.through(world.url())}, pool={"min_size": 0})
        config["datasources"]["orders"]["audit"] = {"on_start": "off"}
        async with compile(config):
            await asyncio.sleep(0.2)
            assert alone.accepted == 0
    async with proxy_of(world.cluster.primary) as primary, proxy_of(world.cluster.replicas["r1"]) as replica:
        config = world.config(
            replicas=("r1",),
            urls={"primary": primary.through(world.url()), "r1": replica.through(world.url("r1"))},
            pool={"min_size": 0},
        )
        config["datasources"]["orders"].update(routing={"check_interval": "20ms"}, audit={"on_start": "off"})
        async with compile(config):
            proxies: list[FaultProxy] = [primary, replica]
            await until(lambda: all(proxy.round_trips > 10 for proxy in proxies))
            assert [proxy.accepted for proxy in proxies] == [1, 1]
        assert [proxy.connections for proxy in proxies] == [0, 0]


async def test_the_monitor_never_has_more_than_one_connection_per_server(world: World) -> None:
    async with proxy_of(world.cluster.primary) as primary, proxy_of(world.cluster.replicas["r1"]) as replica:
        config = world.config(
            replicas=("r1",),
            urls={"primary": primary.through(world.url()), "r1": replica.through(world.url("r1"))},
            pool={"min_size": 0},
            routing={"check_interval": "20ms"},
        )
        config["datasources"]["orders"]["audit"] = {"on_start": "off"}
        most = 0
        async with compile(config) as registry:
            for proxy in (primary, replica) * 5:
                before = proxy.round_trips
                await until(lambda proxy=proxy, before=before: proxy.round_trips > before + 2)
                most = max(most, primary.connections, replica.connections)
                proxy.cut()
            found = registry.datasources["orders"]
            assert isinstance(found, ReplicatedDataSource)
            assert [endpoint.size for endpoint in found.servers.values()] == [0, 0]
        assert most == 1


async def test_polling_has_jitter(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return uniform(low, high)

    monkeypatch.setattr("asgi_datasource.datasource.replica_monitor.uniform", draw)
    async with opened(world):
        await until(lambda: len(drawn) > 3)
    assert set(drawn) == {(0.8, 1.2)}
