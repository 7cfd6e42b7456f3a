"""A server that closes a connection with unread data resets it: libuv reports this once only."""

from __future__ import annotations

import asyncio

from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.conftest import Connect
from tests.patience import now

UNREAD = "x" * 2_000_000
"""More than a backend reads from its socket in advance."""


async def terminate(cluster: EmbeddedCluster, connection: PsycopgConnection) -> None:
    pid = connection.pgconn.backend_pid
    running = "select count(*) from pg_stat_activity where pid = %s and query like '%%pg_sleep%%' and state = 'active'"
    while not (await cluster.primary.sql(running, [pid]))[0][0]:
        await asyncio.sleep(0.01)
    await cluster.primary.sql("select pg_terminate_backend(%s, 5000)", [pid])


async def test_a_reset_after_the_servers_final_message_is_detected(cluster: EmbeddedCluster, connect: Connect) -> None:
    # The final message arrives together with the reset and is read first, so the reset must be checked for afterwards.
    for _ in range(5):
        connection = await connect()
        statements = [Statement("select pg_sleep(60)"), Statement("select length(%s::text)", [UNREAD])]
        started = now()
        loop = asyncio.get_running_loop()
        exchange, _ = await asyncio.gather(
            connection.exchange(statements, deadline=loop.time() + 30), terminate(cluster, connection)
        )
        assert exchange.is_lost
        assert not exchange.timed_out
        assert now() - started < 10
