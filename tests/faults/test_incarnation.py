"""What proves that a server has not given out a transaction's id again: tried on every version that we have."""

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
    assert isinstance(value, str), "a primary always knows"
    return value


async def crash_one_backend(node: Node) -> None:
    """SIGKILL to a backend: the postmaster ends all the others, and the server recovers by itself."""
    connection = await psycopg.AsyncConnection.connect(node.url(user="postgres"), autocommit=True)
    witness = await psycopg.AsyncConnection.connect(node.url(user="postgres"), autocommit=True)
    os.kill(connection.info.backend_pid, signal.SIGKILL)
    # The others end when the postmaster has noticed; until then it lets new connections in, and ends them as well.
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


async def test_the_incarnation_changes_with_each_crash_and_failover_and_not_with_a_restart_in_good_order(
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


async def test_a_standby_shares_its_primarys_statistics_so_a_failover_is_told_by_the_timeline(
    servers: EmbeddedCluster,
) -> None:
    primary, replica = servers.primary, servers.replicas["r1"]
    before = await incarnation(primary)
    await primary.stop("immediate")
    await replica.promote()
    after = await incarnation(replica)
    # Both came from one cold copy: the time at which the statistics were last reset is the same to the microsecond.
    assert before.split(" ")[1] == after.split(" ")[1]
    assert before != after
