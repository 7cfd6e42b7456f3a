"""Servers that a test may break; they are repaired for the next test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from psycopg.conninfo import make_conninfo

from asgi_datasource.testing import EmbeddedCluster, FaultProxy, Node, ServerState
from tests.world import World


@contextmanager
def cluster_of(replicas: int, *, version: int | None = None) -> Iterator[EmbeddedCluster]:
    """A cluster whose servers may be broken, for a fixture of module scope."""
    with EmbeddedCluster(replicas=replicas, version=version, settings={"max_connections": 60}) as running:
        yield running


@asynccontextmanager
async def breakable_world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    """A fresh database on a cluster that is repaired before the database is dropped."""
    async with World.create(cluster) as world:
        try:
            yield world
        finally:
            await repair(cluster)


async def repair(cluster: EmbeddedCluster) -> None:
    """Thaw and start servers that a test has frozen or stopped, and wait until the replicas have caught up."""
    for node in cluster.nodes.values():
        await node.thaw()
        if node.state is ServerState.STOPPING:
            await node.stop("immediate")
        if node.state is ServerState.STOPPED:
            await node.start()
    await cluster.caught_up()


def through(proxy: FaultProxy, url: str) -> str:
    """The URL of the same database through a proxy."""
    return make_conninfo(url, host="127.0.0.1", port=proxy.port)


def proxy_of(node: Node) -> FaultProxy:
    """A proxy in front of a server, as a context manager."""
    return FaultProxy(node.host, node.port)
