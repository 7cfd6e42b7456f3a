"""A server that ends a connection with data unread resets it: libuv tells of that once, and then never again."""

from __future__ import annotations

import asyncio

from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.conftest import Connect
from tests.patience import now

UNREAD = "x" * 2_000_000
"""More than a backend takes from its socket ahead of what it runs."""


async def terminate(cluster: EmbeddedCluster, connection: PsycopgConnection) -> None:
    pid = connection.pgconn.backend_pid
    running = "select count(*) from pg_stat_activity where pid = %s and query like '%%pg_sleep%%' and state = 'active'"
    while not (await cluster.primary.sql(running, [pid]))[0][0]:
        await asyncio.sleep(0.01)
    await cluster.primary.sql("select pg_terminate_backend(%s, 5000)", [pid])


async def test_a_reset_is_noticed_behind_the_servers_last_words(cluster: EmbeddedCluster, connect: Connect) -> None:
    # The last words arrive together with the reset, so they are read first: what follows has to be looked for.
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
