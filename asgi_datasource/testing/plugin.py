"""The pytest plugin: a PostgreSQL cluster for the test run, a fresh database for each test.

Its entry point loads it in every test run in an environment with this library: it imports only pytest until a test
uses one of its fixtures, and does not affect other tests.

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
    from .migrated import MigratedTemplate, MigrationOptions
    from .options import ClusterOptions


@dataclass(frozen=True, slots=True)
class Database:
    """The database of one test, dropped after it.

    Attributes:
        name: Its name.
        cluster: Its cluster.
    """

    name: str
    cluster: EmbeddedCluster

    @property
    def url(self) -> str:
        """Connection string of the database on the primary, as its owner, the role `app`."""
        return self.cluster.primary.url(self.name)

    @property
    def admin_url(self) -> str:
        """Connection string as the superuser `postgres`."""
        return self.cluster.primary.url(self.name, "postgres")

    @property
    def replica_urls(self) -> dict[str, str]:
        """Connection strings of the database on the replicas, by the replica's name."""
        return {name: node.url(self.name) for name, node in self.cluster.replicas.items()}


@pytest.fixture(scope="session")
def pg_cluster_options() -> ClusterOptions:
    """Options of `pg_cluster` for `EmbeddedCluster`: override it for replicas, settings or a version."""
    return {}


@pytest.fixture(scope="session")
def pg_cluster(pg_cluster_options: ClusterOptions) -> Generator[EmbeddedCluster, None, None]:
    """A running `EmbeddedCluster` for the whole test run (under pytest-xdist: one for each worker).

    A test that stops, kills or promotes a server restores it, or starts a cluster of its own.
    """
    from .cluster import EmbeddedCluster

    with EmbeddedCluster(**pg_cluster_options) as cluster:
        yield cluster


_numbers = itertools.count(1)


@pytest.fixture
def pg_database(pg_cluster: EmbeddedCluster) -> Generator[Database, None, None]:
    """A fresh, empty database for one test, owned by the role `app`, present on every replica."""
    database = Database(f"test_{next(_numbers)}", pg_cluster)
    pg_cluster.make_database(database.name)
    pg_cluster.wait_caught_up()
    yield database
    pg_cluster.remove_database(database.name)


@pytest.fixture(scope="session")
def pg_migrations() -> MigrationOptions:
    """What `pg_migrated` migrates; override it to return `{"folder": ..., "tenants": {"acme": "acme"}}`."""
    return {"folder": "migrations"}


@pytest.fixture(scope="session")
def pg_migrated_template(
    pg_cluster: EmbeddedCluster, pg_migrations: MigrationOptions
) -> Generator[MigratedTemplate, None, None]:
    """A database with all migrations, made once for the test run."""
    from .migrated import MigratedTemplate

    template = MigratedTemplate(pg_cluster, pg_migrations)
    template.make()
    yield template
    pg_cluster.remove_database(template.name)


@pytest.fixture
def pg_migrated(pg_migrated_template: MigratedTemplate) -> Generator[Database, None, None]:
    """A fresh database with all migrations for one test: a copy of one that was migrated once."""
    database = Database(pg_migrated_template.clone(), pg_migrated_template.cluster)
    database.cluster.wait_caught_up()
    yield database
    database.cluster.remove_database(database.name)
