"""The connections that pools have lent, and whether all were returned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from asgi_datasource import DataSourceRegistry
from asgi_datasource.drivers.psycopg import PsycopgServer
from tests.world import World

WAIT_S: Final = 10.0


def lent(registry: DataSourceRegistry) -> int:
    """The number of connections borrowed from all pools since they were opened."""
    return sum(server.lendings for server in _servers(registry))


def borrowed(registry: DataSourceRegistry) -> int:
    """The number of connections borrowed at this moment."""
    return sum(server.borrowed for server in _servers(registry))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: It does not hold in time.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < give_up_at, f"{what}: not within {WAIT_S} s"
        await asyncio.sleep(0.005)


async def until_at_rest(registry: DataSourceRegistry) -> None:
    """Wait until every pool of the datasource orders has a connection, and the positions of its replicas are known."""
    orders = registry.datasources["orders"]
    await until(lambda: all(server.idle for server in orders.servers.values()), "a pool has no connection")
    await until(
        lambda: all(node.position is not None for node in orders.topology.replicas), "a replica's position is unknown"
    )


async def assert_whole(registry: DataSourceRegistry, world: World) -> None:
    """Check that every connection is in its pool, can be borrowed, and is in no transaction.

    Raises:
        AssertionError: One is not.
    """
    await until(lambda: borrowed(registry) == 0, "a connection is still borrowed")
    for server in _servers(registry):
        await until(lambda one=server: one.idle == one.size, f"a connection of {server!r} is missing")  # type: ignore[misc]
    states = [state for _, state in await world.backends()]
    assert set(states) <= {"idle"}, states


def _servers(registry: DataSourceRegistry) -> list[PsycopgServer]:
    return [server for datasource in registry for server in datasource.servers.values()]
