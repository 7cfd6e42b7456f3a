"""Connections that die in the pool, and servers that allow fewer connections than the pool: requests do not fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgi_datasource import DataSourceRegistry
from asgi_datasource.testing import FaultProxy
from tests.drivers.polling import until
from tests.faults.servers import through
from tests.world import World

SIZE = 5


@asynccontextmanager
async def full_pool(world: World, **config: Any) -> AsyncIterator[DataSourceRegistry]:
    """A registry whose pool is full of idle connections."""
    options = {"replicas": (), "pool": {"min_size": SIZE, "max_size": SIZE}, **config}
    async with world.registry(**options) as registry:

        async def is_full() -> bool:
            return len(await world.backends()) == SIZE

        await until(is_full)
        yield registry


async def use(registry: DataSourceRegistry, number: int) -> None:
    """A request that reads, or one that writes."""
    async with registry.session(tenant="acme") as db:
        if number % 2:
            await db.read.fetch_all("select item from orders")
        else:
            await db.execute("insert into orders (item) values (%s)", [f"item {number}"])


async def use_all(registry: DataSourceRegistry, count: int = 2 * SIZE) -> None:
    await asyncio.gather(*(use(registry, number) for number in range(count)))


def terminate(world: World) -> None:
    world.cluster.primary.blocking.terminate_backends(world.dbname)


def restart(world: World) -> None:
    world.cluster.primary.blocking.restart("fast")


def crash(world: World) -> None:
    world.cluster.primary.blocking.kill()
    world.cluster.primary.blocking.start()


ends = pytest.mark.parametrize("end", [terminate, restart, crash], ids=lambda end: end.__name__)


@ends
async def test_dead_connections_fail_no_request_before_the_loop_has_noticed(
    world: World, end: Callable[[World], None]
) -> None:
    async with full_pool(world) as registry:
        # Blocking on purpose: the event loop has seen no event when the requests take the connections.
        end(world)
        await use_all(registry)
        assert len(await world.items()) == SIZE
        await use_all_again(registry)


async def use_all_again(registry: DataSourceRegistry) -> None:
    """Assert that the pool is complete: `SIZE` requests hold a connection at the same time."""
    barrier = asyncio.Barrier(SIZE)

    async def hold() -> None:
        async with registry.session(tenant="acme") as db:
            await db.execute("select 1")
            await barrier.wait()

    async with asyncio.timeout(10):
        await asyncio.gather(*(hold() for _ in range(SIZE)))


@ends
async def test_dead_connections_fail_no_sequential_request(world: World, end: Callable[[World], None]) -> None:
    async with full_pool(world) as registry:
        await asyncio.to_thread(end, world)
        for number in range(2 * SIZE):
            await use(registry, number)
        await use_all_again(registry)


async def test_connections_dropped_by_the_network_fail_no_request(world: World, proxy: FaultProxy) -> None:
    async with full_pool(world, urls={"primary": through(proxy, world.url())}) as registry:
        proxy.cut()
        await use_all(registry)
        await use_all_again(registry)


async def test_connections_terminated_by_idle_session_timeout_fail_no_request(world: World) -> None:
    async with full_pool(world) as registry:
        await world.sql(f"alter role app in database {world.dbname} set idle_session_timeout = '200ms'")
        terminate(world)
        await use_all(registry)

        async def are_gone() -> bool:
            return len(await world.backends()) < SIZE

        for _ in range(3):
            await until(are_gone)
            await use(registry, 1)
        await world.sql(f"alter role app in database {world.dbname} reset idle_session_timeout")


async def test_a_server_that_allows_fewer_connections_than_the_pool_serves_all_requests(world: World) -> None:
    await world.cluster.create_role("few", options="connection limit 2")
    try:
        await world.sql("grant app to few; alter role few set role app")
        url = world.cluster.primary.url(world.dbname, "few")
        pool = {"min_size": 1, "max_size": SIZE, "acquire_timeout": "10s"}
        async with world.registry(replicas=(), urls={"primary": url}, pool=pool) as registry:

            async def work() -> None:
                async with registry.session(tenant="acme") as db:
                    await db.execute("select pg_sleep(0.02)")

            await asyncio.gather(*(work() for _ in range(4 * SIZE)))
            # The pool grows once the server allows more.
            await world.sql(f"alter role few connection limit {SIZE}")
            await use_all_again(registry)
    finally:
        await world.sql("drop owned by few; drop role few")


async def test_sessions_finish_during_a_smart_shutdown_and_closing_waits_for_nothing(world: World) -> None:
    primary = world.cluster.primary
    async with world.registry(replicas=(), pool={"max_size": 2}) as registry:
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('inside')")
            await primary.stop("smart", wait=False)
            await db.execute("insert into orders (item) values ('still inside')")
        assert not registry.background
        await registry.close()
        await primary.stop("fast")
        await primary.start()
        assert await world.items() == ["inside", "still inside"]
