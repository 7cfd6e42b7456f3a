"""What the pools have lent, and whether they are whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from asgi_datasource import DataSourceRegistry

from .world import World

WAIT_S: Final = 10.0


def lent(registry: DataSourceRegistry) -> int:
    """How many connections have been borrowed of all its pools since they were opened."""
    return sum(_stats(registry, "requests_num"))


def borrowed(registry: DataSourceRegistry) -> int:
    """How many connections are borrowed at this moment."""
    return sum(endpoint.borrowed for datasource in registry for endpoint in datasource.endpoints.values())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so.

    Raises:
        AssertionError: It has not become so in time.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < give_up_at, f"{what}: not within {WAIT_S} s"
        await asyncio.sleep(0.005)


async def assert_whole(registry: DataSourceRegistry, world: World) -> None:
    """Every connection is back in its pool, can be had, and is in no transaction.

    Raises:
        AssertionError: One is not.
    """
    await until(lambda: borrowed(registry) == 0, "a connection is still borrowed")
    await until(
        lambda: _stats(registry, "pool_available") == _stats(registry, "pool_size"), "a connection is not in its pool"
    )
    states = [state for _, state in await world.backends()]
    assert set(states) <= {"idle"}, states


def _stats(registry: DataSourceRegistry, name: str) -> list[int]:
    pools = [endpoint._pool for datasource in registry for endpoint in datasource.endpoints.values()]
    return [pool.get_stats().get(name, 0) for pool in pools if pool is not None]
