"""What these tests share: a world whose database has the tables of the outbox."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asgi_datasource.testing import EmbeddedCluster
from tests.outbox.tables import install_tables
from tests.world import World


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    """A fresh database with tenants, and with the tables of the outbox."""
    async with World.create(cluster) as made:
        await install_tables(made)
        yield made
