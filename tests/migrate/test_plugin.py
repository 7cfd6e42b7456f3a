"""The user's tests: a database that is migrated once, and cloned for each test."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import psycopg
import pytest

from asgi_datasource import load
from asgi_datasource.migrate import Migrator, Verdict
from asgi_datasource.testing import ClusterError, EmbeddedCluster
from asgi_datasource.testing.migrated import MigratedTemplate, MigrationOptions
from asgi_datasource.testing.plugin import Database
from tests.migrate.test_files import written

FILES = {
    "shared__0001_plans.sql": "create table plans (id int primary key)",
    "tenant__0001_orders.sql": "create table orders (id int, item text)",
}


@pytest.fixture(scope="session")
def pg_cluster(cluster: EmbeddedCluster) -> EmbeddedCluster:
    return cluster


@pytest.fixture(scope="session")
def pg_migrations(tmp_path_factory: pytest.TempPathFactory) -> MigrationOptions:
    folder = written(tmp_path_factory.mktemp("migrations"), **FILES)
    return {"folder": folder, "tenants": {"acme": "acme", "globex": "globex"}}


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_has_a_migrated_database_of_its_own(pg_migrated: Database, number: int) -> None:
    with psycopg.connect(pg_migrated.url) as connection:
        connection.execute("insert into acme.orders values (%s, 'x')", [number])
        assert connection.execute("select id from acme.orders").fetchall() == [(number,)]
        assert connection.execute("select count(*) from plans").fetchone() == (0,)


async def test_a_copy_is_at_the_head_and_takes_milliseconds(
    pg_migrated_template: MigratedTemplate, pg_migrated: Database
) -> None:
    config = load(pg_migrated_template.document(pg_migrated.name), needs_resolver=False)
    assert (await Migrator(config).plan()).verdict is Verdict.AT_HEAD
    times: list[float] = []
    for _ in range(3):
        began = perf_counter()
        name = pg_migrated_template.clone()
        times.append(perf_counter() - began)
        pg_migrated_template.cluster.remove_database(name)
    assert min(times) < 1.0


def test_a_migration_that_fails_says_which_one(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    folder = written(tmp_path, **{"shared__0001_bad.sql": "select 1 / 0"})
    template = MigratedTemplate(cluster, {"folder": folder}, name="bad")
    try:
        with pytest.raises(ClusterError, match="0001_bad"):
            template.make()
    finally:
        cluster.remove_database("bad")
