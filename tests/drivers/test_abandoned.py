"""Attempts to connect that are given up leave nothing behind: a server would go on waiting for them."""

from __future__ import annotations

import asyncio
import gc

from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.polling import until


async def test_an_attempt_that_is_cancelled_closes_its_socket_whoever_keeps_the_task(cluster: EmbeddedCluster) -> None:
    primary = cluster.primary
    async with FaultProxy(primary.host, primary.port) as proxy:
        proxy.hold_back()
        connecting = asyncio.create_task(PsycopgConnection.connect(proxy.through(primary.url())))
        await proxy.until_held()
        gc.disable()
        try:
            connecting.cancel()
            await asyncio.wait({connecting}, timeout=5.0)
            assert connecting.cancelled()
            await until(lambda: proxy.connections == 0)
        finally:
            gc.enable()
