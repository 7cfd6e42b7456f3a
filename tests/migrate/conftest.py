"""A site for each test of migrations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asgi_datasource.testing import EmbeddedCluster
from tests.migrate.site import Site, open_site


@pytest.fixture
async def site(cluster: EmbeddedCluster, tmp_path: Path) -> AsyncIterator[Site]:
    """A fresh database and a folder of migrations."""
    async with open_site(cluster, tmp_path) as made:
        yield made
