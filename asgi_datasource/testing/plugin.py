"""The pytest plugin: a PostgreSQL cluster for the test run, a fresh database for each test.

It is registered by its entry point, so it is loaded in every test run of everybody who has the library installed: it
imports nothing but pytest until a test asks for one of its fixtures, and changes nothing for those that do not.

Override a fixture in a `conftest.py` to change what it makes:

    @pytest.fixture(scope="session")
    def pg_cluster_options():
        return {"replicas": 2, "settings": {"max_connections": 300}}
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .cluster import EmbeddedCluster
    from .options import ClusterOptions


@dataclass(frozen=True, slots=True)
class Database:
    """A database of its own for one test, dropped after it.

    Attributes:
        name: Its name.
        cluster: Where it is.
    """

    name: str
    cluster: EmbeddedCluster

    @property
    def url(self) -> str:
        """A connection string for it on the primary, as the role `app`, which owns it."""
        return self.cluster.primary.url(self.name)

    @property
    def admin_url(self) -> str:
        """The same as the superuser `postgres`."""
        return self.cluster.primary.url(self.name, "postgres")

    @property
    def replica_urls(self) -> dict[str, str]:
        """A connection string for it on every replica, by the replica's name."""
        return {name: node.url(self.name) for name, node in self.cluster.replicas.items()}


@pytest.fixture(scope="session")
def pg_cluster_options() -> ClusterOptions:
    """What `pg_cluster` passes to `EmbeddedCluster`: override it to ask for replicas, settings or a version."""
    return {}


@pytest.fixture(scope="session")
def pg_cluster(pg_cluster_options: ClusterOptions) -> Generator[EmbeddedCluster, None, None]:
    """A running `EmbeddedCluster` for the whole test run (under pytest-xdist: one for each worker).

    A test that stops, kills or promotes a server puts it back as it was, or starts a cluster of its own.
    """
    from .cluster import EmbeddedCluster

    with EmbeddedCluster(**pg_cluster_options) as cluster:
        yield cluster


_numbers = itertools.count(1)


@pytest.fixture
def pg_database(pg_cluster: EmbeddedCluster) -> Generator[Database, None, None]:
    """A fresh, empty database for one test, owned by the role `app`, there on every replica."""
    database = Database(f"test_{next(_numbers)}", pg_cluster)
    pg_cluster.make_database(database.name)
    pg_cluster.wait_caught_up()
    yield database
    pg_cluster.remove_database(database.name)
