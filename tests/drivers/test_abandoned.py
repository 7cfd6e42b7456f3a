"""Cancelled connection attempts close their sockets, because the server would wait for them."""

from __future__ import annotations

import asyncio
import gc

from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.drivers.polling import until


async def test_a_cancelled_connection_attempt_closes_its_socket_even_if_its_task_is_referenced(
    cluster: EmbeddedCluster,
) -> None:
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
