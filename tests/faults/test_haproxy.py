"""Failover behind HAProxy: one host in the URL, and HAProxy routes to the current primary."""

from __future__ import annotations

import asyncio

from asgi_datasource import compile
from tests.drivers.polling import until
from tests.faults.test_failover import RECONNECT_PAUSE_S, Writes, config_of, orders_of, through_port, world
from tests.haproxy import CHECK_S, agents, haproxy
from tests.patience import now
from tests.world import World

__all__ = ["world"]


async def test_writes_resume_behind_haproxy_and_never_reach_the_former_primary(world: World) -> None:
    cluster = world.cluster
    primary, r1 = cluster.primary, cluster.nodes["r1"]
    await primary.configure(synchronous_standby_names="r1")
    async with agents(primary, r1) as servers, haproxy(servers) as port:
        url = through_port(world, port)
        async with compile(config_of(world, url, replicas=("r1", "r2"))) as registry:
            orders = orders_of(registry)
            writes = Writes(registry)
            running = asyncio.create_task(writes.run())
            await writes.go_on()
            await primary.kill()
            await until(lambda: not orders.primary.is_up)
            await r1.promote()
            promoted_at = now()
            await writes.go_on()
            assert now() - promoted_at < RECONNECT_PAUSE_S + 5 * CHECK_S + 1.0
            assert orders.primary.timeline == 2
            # The former primary returns writable: HAProxy may route to it for a moment, as with two servers that report
            # to be primary.
            await primary.start()
            for _ in range(5):
                await r1.terminate_backends(world.dbname)
                await writes.go_on()
            running.cancel()
            await asyncio.wait((running,))
        written = set(writes.done)
        kept = {row[0] for row in await world.sql("select item from acme.orders", node="r1")}
        left = {row[0] for row in await world.sql("select item from acme.orders")}
    assert written <= kept
    last = writes.done[-1]
    assert last not in left
    assert not {item for item in written if item not in kept} & left
    refused = {item for item, error in writes.refused.items() if error.http_status == 503}
    assert not refused & kept
