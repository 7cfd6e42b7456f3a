"""Reads are balanced over real replicas, and replicas are drained and restored."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, compile
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from tests.drivers.polling import until
from tests.faults.servers import proxy_of
from tests.world import World


def config_of(world: World, *, replicas: dict[str, dict[str, Any]], **routing: Any) -> dict[str, Any]:
    """The world's configuration with options for its replicas and for routing."""
    config = world.config()
    orders = config["datasources"]["orders"]
    for name, more in replicas.items():
        orders["replicas"][name].update(more)
    orders["routing"] = routing
    return config


def orders_of(registry: DataSourceRegistry) -> ReplicatedDataSource:
    found = registry.datasources["orders"]
    assert isinstance(found, ReplicatedDataSource)
    return found


async def read(registry: DataSourceRegistry) -> str:
    """The server that answers one read."""
    async with registry.session(tenant="acme") as db:
        await db.read.fetch_value("select 1")
        assert db.last_route is not None
        return db.last_route.node


async def reads(registry: DataSourceRegistry, count: int = 12) -> Counter[str]:
    return Counter([await read(registry) for _ in range(count)])


async def test_reads_are_spread_by_weight(world: World) -> None:
    config = config_of(world, replicas={"r1": {"weight": 3}}, balance="weighted")
    async with compile(config) as registry:
        assert await reads(registry) == {"r1": 9, "r2": 3}


async def test_the_least_busy_replica_answers(world: World) -> None:
    async with compile(config_of(world, replicas={}, balance="least_busy")) as registry:
        async with registry.session(tenant="acme", read_only=True) as db:
            await db.fetch_value("select 1")
            assert db.last_route is not None
            other = {"r1": "r2", "r2": "r1"}[db.last_route.node]
            assert await reads(registry) == {other: 12}
        assert set(await reads(registry)) == {"r1", "r2"}


async def test_the_replicas_of_the_own_zone_go_first(world: World) -> None:
    config = config_of(world, replicas={"r1": {"zone": "b"}, "r2": {"zone": "a"}}, zone="a")
    async with compile(config) as registry:
        assert await reads(registry) == {"r2": 12}
        orders_of(registry).drain("r2")
        assert await reads(registry) == {"r1": 12}


async def test_a_replica_that_the_configuration_drains_gets_no_reads(world: World) -> None:
    async with compile(config_of(world, replicas={"r1": {"drain": True}})) as registry:
        assert await reads(registry) == {"r2": 12}
        orders_of(registry).undrain("r1")
        assert await reads(registry) == {"r1": 6, "r2": 6}


async def test_draining_lets_running_work_complete(world: World) -> None:
    async with compile(config_of(world, replicas={})) as registry:
        orders = orders_of(registry)
        async with registry.session(tenant="acme", read_only=True) as db:
            await db.fetch_value("select 1")
            assert db.last_route is not None
            node = db.last_route.node
            waiting = asyncio.create_task(db.fetch_value("select 1 from pg_sleep(0.2)"))
            await asyncio.sleep(0)
            orders.drain(node)
            assert await waiting == 1
            assert await db.fetch_value("select 2") == 2
            assert db.last_route.node == node
        assert node not in await reads(registry)
        assert orders.servers[node].borrowed == 0


async def test_a_request_that_stays_with_its_replica_leaves_it_when_it_is_drained(world: World) -> None:
    async with compile(config_of(world, replicas={})) as registry, registry.session(tenant="acme") as db:
        await db.read.fetch_value("select 1")
        assert db.last_route is not None
        first = db.last_route.node
        orders_of(registry).drain(first)
        await db.read.fetch_value("select 1")
        assert db.last_route.node not in (first, "primary")


async def test_only_replicas_can_be_drained(world: World) -> None:
    orders = orders_of(world.registry())
    for name in ("primary", "r9"):
        with pytest.raises(KeyError, match=f"no replica '{name}'"):
            orders.drain(name)


async def test_with_no_replica_fail_reads_get_503_and_writes_succeed(world: World) -> None:
    config = config_of(world, replicas={"r1": {"drain": True}, "r2": {"drain": True}}, no_replica="fail")
    async with compile(config) as registry:
        with pytest.raises(DataError, match=r"no server may answer this read \(r1 draining, r2 draining, primary up\)"):
            await read(registry)
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('tea')")
            assert await db.fetch_value("select item from orders") == "tea"
        with pytest.raises(DataError) as refused:
            await read(registry)
        assert (refused.value.kind, refused.value.http_status, refused.value.is_retryable) == (
            DataErrorKind.CONNECTION,
            503,
            True,
        )


async def test_the_nearest_replica_answers_while_it_is_the_nearest(world: World) -> None:
    r1, r2 = world.cluster.replicas.values()
    async with proxy_of(r1) as near, proxy_of(r2) as far:
        far.delay_s = 0.02
        config = world.config(
            urls={"r1": near.through(world.url("r1")), "r2": far.through(world.url("r2"))},
            routing={"balance": "nearest", "check_interval": "50ms"},
        )
        async with compile(config) as registry:
            await until(lambda: is_alone(registry, "r1"))
            far.delay_s, near.delay_s = 0.0, 0.05
            await until(lambda: is_alone(registry, "r2"))


async def is_alone(registry: DataSourceRegistry, name: str) -> bool:
    return set(await reads(registry, 4)) == {name}


@pytest.mark.parametrize(("warmup", "are_both_used"), [("1h", False), ("1ms", True)])
async def test_a_recovered_replica_regains_its_share_gradually(world: World, warmup: str, are_both_used: bool) -> None:
    async with proxy_of(world.cluster.replicas["r1"]) as proxy:
        config = world.config(urls={"r1": proxy.through(world.url("r1"))}, routing={"warmup": warmup})
        async with compile(config) as registry:
            r1 = orders_of(registry).servers["r1"]
            await until(lambda: r1.idle > 0)
            # Down: connection attempts are refused.
            proxy.freeze()
            proxy.cut()
            r1.went_silent()
            assert not r1.is_up
            assert await reads(registry) == {"r2": 12}
            proxy.release()
            await until(lambda: r1.is_up)
            seen = await reads(registry, 40)
            assert (seen["r1"] > 0) is are_both_used, seen


async def test_reloads_drain_and_restore_a_replica_under_load_without_errors(world: World) -> None:
    failures: list[DataError] = []
    seen: list[str] = []
    async with compile(config_of(world, replicas={})) as registry:

        async def use() -> None:
            while True:
                try:
                    seen.append(await read(registry))
                except DataError as error:
                    failures.append(error)
                await asyncio.sleep(0)

        async def reaches(*names: str) -> None:
            async with asyncio.timeout(20.0):
                while True:
                    seen.clear()
                    await asyncio.sleep(0.05)
                    if set(seen) == set(names):
                        return

        running = [asyncio.create_task(use()) for _ in range(4)]
        await reaches("r1", "r2")
        for _ in range(3):
            await registry.reload(config_of(world, replicas={"r1": {"drain": True}}))
            await reaches("r2")
            await registry.reload(config_of(world, replicas={}))
            await reaches("r1", "r2")
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    assert failures == []


async def test_the_topology_is_replaced_and_never_modified(world: World) -> None:
    async with compile(config_of(world, replicas={})) as registry:
        orders = orders_of(registry)
        before = orders.topology
        told = before.describe()
        orders.drain("r1")
        assert orders.topology is not before
        assert before.describe() == told
        with pytest.raises(AttributeError):
            before.replicas = ()  # type: ignore[misc]
