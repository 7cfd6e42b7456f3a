"""Dedicated clusters for each module of faults: shared servers must stay intact."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.faults.servers import breakable_world, cluster_of, proxy_of
from tests.world import World


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(1) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the primary."""
    async with proxy_of(world.cluster.primary) as running:
        yield running
