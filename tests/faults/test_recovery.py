"""Reads cancelled by recovery on a replica move to the primary, except inside a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from asgi_datasource import DataError, DataErrorKind
from asgi_datasource.testing import Node
from tests.drivers.polling import until
from tests.world import World


@pytest.fixture
async def replica(world: World) -> AsyncIterator[Node]:
    """A replica that cancels queries in conflict with replay after a moment."""
    node = world.cluster.replicas["r1"]
    await node.configure(max_standby_streaming_delay="50ms")
    yield node
    await node.configure(max_standby_streaming_delay=None)


async def is_reading(world: World) -> bool:
    rows = await world.cluster.replicas["r1"].sql(
        "select 1 from pg_stat_activity where usename = 'app' and wait_event = 'PgSleep'"
    )
    return bool(rows)


async def change_the_table(world: World) -> None:
    """Replay of this DDL needs a lock that conflicts with every reader of the table."""
    await world.sql("alter table orders add column note text")


async def test_a_read_cancelled_by_recovery_is_answered_by_the_primary(world: World, replica: Node) -> None:
    await world.sql("insert into orders (item) values ('tea')")
    await world.cluster.caught_up()
    async with world.registry(replicas=("r1",)) as registry, registry.session(tenant="acme") as db:
        reading = asyncio.create_task(db.read.fetch_all("select item, pg_sleep(1) from orders"))
        await until(lambda: is_reading(world))
        await change_the_table(world)
        rows = await reading
        assert [row["item"] for row in rows] == ["tea"]
        assert db.last_route is not None
        assert (db.last_route.node, db.last_route.reason) == ("primary", "failover")
        # The conflict concerned one query: the replica stays in use.
        await world.cluster.caught_up()
        await db.read.fetch_all("select item from orders")
        assert db.last_route.node == "r1"


async def test_a_snapshot_cancelled_by_recovery_is_a_retryable_conflict(world: World, replica: Node) -> None:
    await world.sql("insert into orders (item) values ('tea')")
    await world.cluster.caught_up()
    async with world.registry(replicas=("r1",)) as registry:
        with pytest.raises(DataError) as caught:
            async with registry.session(tenant="acme", read_only=True) as db:
                await db.fetch_all("select item from orders")
                pid = await db.fetch_value("select pg_backend_pid()")
                await change_the_table(world)
                await world.cluster.caught_up()

                async def is_ended() -> bool:
                    return not await replica.sql(
                        "select 1 from pg_stat_activity where pid = %s and state = 'idle in transaction'", [pid]
                    )

                await until(is_ended)
                # Earlier reads came from a snapshot that is gone: reads from another one must not be mixed with them.
                await db.fetch_all("select item from orders")
        assert caught.value.kind is DataErrorKind.CONFLICT
        assert (caught.value.is_retryable, caught.value.http_status) == (True, 409)
        async with registry.session(tenant="acme", read_only=True) as db:
            assert [row["item"] for row in await db.fetch_all("select item from orders")] == ["tea"]
