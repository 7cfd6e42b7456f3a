"""The pytest plugin: a PostgreSQL cluster for the test run, a fresh database for each test, and the user's application.

Its entry point loads it in every test run in an environment with this library: it imports only pytest until a test
uses one of its fixtures, and does not affect other tests.

Override a fixture in a `conftest.py` to change what it makes:

    @pytest.fixture(scope="session")
    def pg_cluster_options():
        return {"replicas": 2, "settings": {"max_connections": 300}}

Fixtures named `pg_...` are about servers; those named `ads_...` follow the configuration of the user's application.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ..registry.registry import DataSourceRegistry
    from .app_client import AppClient
    from .cluster import EmbeddedCluster
    from .kit import SessionOfTest, TestKit
    from .migrated import MigratedTemplate, MigrationOptions
    from .network import Network
    from .options import ClusterOptions
    from .user_config import UserConfig
    from .user_databases import SchemaSource, UserDatabases, UserTemplate


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the names of the user's configuration and application."""
    parser.addini("ads_config", "the configuration of asgi-datasource; default: datasource.yaml beside pytest's own")
    parser.addini("ads_app", "the ASGI application, or a function that makes it: shop.app:create_app")


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


# -- the user's application


@pytest.fixture(scope="session")
def ads_config(pytestconfig: pytest.Config) -> Path:
    """The configuration file: `ads_config` of pytest's configuration, or `datasource.yaml` beside it."""
    from .user_config import find_config

    named: str = pytestconfig.getini("ads_config")
    return pytestconfig.rootpath / named if named else find_config(pytestconfig.rootpath)


@pytest.fixture(scope="session")
def ads_environ() -> Mapping[str, str]:
    """Values of `${NAME}` in the configuration; override it. Names that are not set get a random value."""
    return {}


@pytest.fixture(scope="session")
def ads_overlay() -> Mapping[str, Any]:
    """What tests change in the configuration, as an overlay does; override it: `{"outbox": {"relay": "external"}}`."""
    return {}


@pytest.fixture(scope="session")
def ads_schema() -> SchemaSource:
    """What makes tables besides migrations; override it: SQL, the `Path` of a file, or a function of the databases."""
    return None


@pytest.fixture(scope="session")
def ads_user_config(
    ads_config: Path,
    ads_environ: Mapping[str, str],
    ads_overlay: Mapping[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> UserConfig:
    """The configuration, whose servers and secrets are replaced."""
    from .user_config import UserConfig

    return UserConfig(ads_config, ads_environ, ads_overlay, tmp_path_factory.mktemp("ads"))


@pytest.fixture(scope="session")
def ads_cluster(
    request: pytest.FixtureRequest, ads_user_config: UserConfig, pg_cluster_options: ClusterOptions
) -> Generator[EmbeddedCluster, None, None]:
    """A running cluster with as many replicas as the configuration: `pg_cluster` where that has as many."""
    from .cluster import EmbeddedCluster

    replicas = ads_user_config.replica_count
    if pg_cluster_options.get("replicas", 0) >= replicas:
        yield request.getfixturevalue("pg_cluster")
        return
    options = pg_cluster_options.copy()
    options["replicas"] = replicas
    with EmbeddedCluster(**options) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ads_template(
    ads_cluster: EmbeddedCluster, ads_user_config: UserConfig, ads_schema: SchemaSource
) -> Generator[UserTemplate, None, None]:
    """The databases of the configuration with all migrations, made once for the test run."""
    from .user_databases import UserTemplate

    template = UserTemplate(ads_cluster, ads_user_config, ads_schema)
    template.make()
    yield template
    template.remove(template.databases)


@pytest.fixture
def ads_database(ads_template: UserTemplate) -> Generator[UserDatabases, None, None]:
    """The databases of one test: copies of those that were migrated once."""
    databases = ads_template.clone()
    yield databases
    ads_template.remove(databases)


@pytest.fixture
def ads_tenant() -> str | None:
    """The tenant of `ads_session`, and of requests of `ads_client` that name none; override it."""
    return None


@pytest.fixture(scope="session")
def ads_network(ads_cluster: EmbeddedCluster) -> Generator[Network, None, None]:
    """Proxies in front of the servers, which count round trips and inject faults; for tests that use `ads`."""
    from .network import Network

    network = Network(ads_cluster)
    network.start()
    yield network
    network.stop()


@pytest.fixture
def ads_test(
    request: pytest.FixtureRequest, ads_database: UserDatabases, ads_user_config: UserConfig, ads_tenant: str | None
) -> Generator[TestKit, None, None]:
    """What the fixtures of one test share; tests use `ads`."""
    from .kit import TestKit

    network = request.getfixturevalue("ads_network") if "ads" in request.fixturenames else None
    kit = TestKit(ads_database, ads_user_config, network, tenant=ads_tenant)
    kit.attach(request.node)
    yield kit
    kit.resume_replay()


@pytest.fixture
def ads(ads_test: TestKit) -> TestKit:
    """Statements about the routes and round trips of a test, and faults: `ads.assert_route(node="r1")`."""
    return ads_test


@pytest.fixture
def ads_registry(ads_test: TestKit) -> DataSourceRegistry:
    """The compiled configuration, which leads to the databases of the test."""
    return ads_test.registry


@pytest.fixture
def ads_session(ads_test: TestKit) -> SessionOfTest:
    """A session of the tenant `ads_tenant`, open while an async test runs, whose transaction is rolled back."""
    return ads_test.session


@pytest.fixture
def ads_app(pytestconfig: pytest.Config, ads_registry: DataSourceRegistry) -> Generator[ASGIApp, None, None]:
    """The application with `ads_registry`: `ads_app` of pytest's configuration; override it for another way."""
    from ..drivers import import_object
    from .kit import adapt_app

    path: str = pytestconfig.getini("ads_app")
    if not path:
        raise pytest.UsageError("set ads_app = shop.app:create_app in pytest's configuration, or override the fixture")
    if str(pytestconfig.rootpath) not in sys.path:
        sys.path.insert(0, str(pytestconfig.rootpath))
    app, restore = adapt_app(import_object(path), ads_registry)
    yield app
    restore()


@pytest.fixture
def ads_client(ads_test: TestKit, ads_app: ASGIApp) -> AppClient:
    """A client of the application, whose lifespan runs while an async test runs: `.get("/", tenant="acme")`."""
    return ads_test.client(ads_app)
