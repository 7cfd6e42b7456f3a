"""The proof that a server has not reassigned a transaction id, on every available version."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psycopg
import pytest

from asgi_datasource.testing import EmbeddedCluster, Node
from asgi_datasource.transaction.control_statements import INCARNATION
from tests.drivers.polling import until
from tests.faults.servers import cluster_of


@pytest.fixture(params=[16, 18])
def servers(request: pytest.FixtureRequest) -> Iterator[EmbeddedCluster]:
    with cluster_of(1, version=request.param) as running:
        yield running


async def incarnation(node: Node) -> str:
    value = await node.value(f"select {INCARNATION}")
    assert isinstance(value, str), "a primary always has an incarnation"
    return value


async def crash_one_backend(node: Node) -> None:
    """SIGKILL one backend: the postmaster terminates the others, and the server recovers."""
    connection = await psycopg.AsyncConnection.connect(node.url(user="postgres"), autocommit=True)
    witness = await psycopg.AsyncConnection.connect(node.url(user="postgres"), autocommit=True)
    os.kill(connection.info.backend_pid, signal.SIGKILL)
    # The other backends end once the postmaster has noticed; until then it accepts connections and terminates them,
    # too.
    for ended in (connection, witness):
        with pytest.raises(psycopg.OperationalError):
            await ended.execute("select pg_sleep(60)")
        await ended.close()

    async def is_back() -> bool:
        try:
            return bool(await node.value("select true"))
        except psycopg.OperationalError:
            return False

    await until(is_back)


async def test_the_incarnation_changes_with_each_crash_and_failover_but_not_with_a_clean_restart(
    servers: EmbeddedCluster,
) -> None:
    primary, replica = servers.primary, servers.replicas["r1"]
    seen = [await incarnation(primary)]

    await primary.restart("fast")
    assert await incarnation(primary) == seen[-1]
    await primary.sql("set timezone = 'Asia/Tokyo'; checkpoint; select pg_switch_wal()")
    assert await incarnation(primary) == seen[-1]

    await crash_one_backend(primary)
    seen.append(await incarnation(primary))
    await primary.restart("immediate")
    seen.append(await incarnation(primary))
    await primary.kill()
    await primary.start()
    seen.append(await incarnation(primary))

    assert await replica.value(f"select {INCARNATION}") is None
    await primary.kill()
    await replica.promote()
    seen.append(await incarnation(replica))
    assert len(set(seen)) == len(seen)


async def test_the_timeline_reveals_a_failover_to_a_standby_with_the_same_statistics(
    servers: EmbeddedCluster,
) -> None:
    primary, replica = servers.primary, servers.replicas["r1"]
    before = await incarnation(primary)
    await primary.stop("immediate")
    await replica.promote()
    after = await incarnation(replica)
    # Both came from one cold copy: their statistics were last reset at exactly the same time.
    assert before.split(" ")[1] == after.split(" ")[1]
    assert before != after
