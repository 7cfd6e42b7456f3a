"""The relay survives the loss of the primary: it goes on at the promoted replica, loses nothing, keeps the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from asgi_datasource import DataError, compile
from tests.drivers.polling import until
from tests.faults.servers import cluster_of
from tests.faults.test_failover import config_of, hosts
from tests.outbox.delivery import OUTBOX, Destination, relaying
from tests.outbox.tables import install_tables
from tests.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A cluster of its own: undoing a failover takes longer than starting servers."""
    with cluster_of(1) as servers:
        made = await World.make(servers)
        await install_tables(made)
        await servers.caught_up()
        yield made


async def test_a_relay_goes_on_at_the_promoted_replica(world: World) -> None:
    cluster, destination = world.cluster, Destination()
    await cluster.primary.configure(synchronous_standby_names="r1")
    url = hosts(world, "primary", "r1", target_session_attrs="read-write")
    done: list[int] = []
    async with compile(config_of(world, url, **OUTBOX)) as registry, relaying(registry, destination) as relay:

        async def publish_for_ever() -> None:
            number = 0
            while True:
                number += 1
                try:
                    async with registry.session(tenant="acme", timeout=5.0) as db:
                        await db.outbox.publish("t", key="k", payload=number)
                    done.append(number)
                    relay.hint(("orders", None))
                except DataError:
                    await asyncio.sleep(0.01)

        running = asyncio.create_task(publish_for_ever())
        await until(lambda: len(destination.entries) >= 20)
        await cluster.primary.kill()
        await until(lambda: relay.health().status == "warning")
        await cluster.nodes["r1"].promote()
        at_failover = len(done)
        await until(lambda: len(done) >= at_failover + 20)
        running.cancel()
        await asyncio.wait({running})
        await until(lambda: {int(data) for data in destination.payloads} >= set(done))
        assert relay.health().status == "ok"
    first = list(dict.fromkeys(int(data) for data in destination.payloads))
    assert first == sorted(first)
