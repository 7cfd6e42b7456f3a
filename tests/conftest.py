"""What the tests share: one cluster a worker, a fresh database a test, and a small world to work in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from asgi_datasource.testing import EmbeddedCluster

from .world import World


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedCluster]:
    """A primary and two replicas for tests that leave the servers as they are; faults bring clusters of their own."""
    with EmbeddedCluster(replicas=2, settings={"max_connections": 300}) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    """A fresh database with the tenants of `tests/world.py`, on the shared cluster."""
    async with World.create(cluster) as made:
        yield made
