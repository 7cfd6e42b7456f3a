"""Where the tenants of the leak test live: shared tables, schemas or databases, with PgBouncer in between or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.testing import EmbeddedCluster
from tests.pgbouncer import pgbouncer
from tests.tenancy.leaks import HELPERS, POLICY, TABLES

POOL = {"min_size": 1, "max_size": 4, "max_waiting": 0, "acquire_timeout": "30s"}


def names(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


async def run(cluster: EmbeddedCluster, dbname: str, *statements: str) -> None:
    """Run statements as the superuser."""
    url = cluster.nodes["primary"].url(dbname=dbname, user="postgres")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


def document(
    url: str, tenants: dict[str, Any], *, replicas: dict[str, str] | None = None, **pool: Any
) -> dict[str, Any]:
    return {
        "version": 1,
        "datasources": {
            "place": {
                "primary": {"url": url},
                "replicas": {name: {"url": replica} for name, replica in (replicas or {}).items()},
                "pool": {**POOL, **pool},
            }
        },
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": tenants,
        "transactions": {"deadline": "20s"},
    }


@asynccontextmanager
async def database(cluster: EmbeddedCluster, dbname: str) -> AsyncIterator[str]:
    await cluster.create_database(dbname)
    try:
        yield dbname
    finally:
        await cluster.drop_database(dbname)


@asynccontextmanager
async def on_shared_tables(
    cluster: EmbeddedCluster, count: int, *, bouncer_size: int | None = None, **pool: Any
) -> AsyncIterator[DataSourceRegistry]:
    """One table for all of them, under row security; through PgBouncer with that many server connections."""
    async with database(cluster, "leaks_rows") as dbname:
        await run(cluster, dbname, HELPERS, "create schema s", TABLES.format(schema="s"), POLICY.format(schema="s"))
        seed = f"insert into s.rows (owner) select 't' || n from generate_series(0, {count - 1}) n"
        await run(cluster, dbname, seed)
        tenants = {
            name: {"datasource": "place", "schema": "s", "row_security": {"app.tenant": name}} for name in names(count)
        }
        url = cluster.nodes["primary"].url(dbname=dbname)
        if bouncer_size is not None:
            async with (
                pgbouncer(url, size=bouncer_size) as bouncer,
                compile(document(bouncer.url(dbname), tenants, pooler="transaction", max_size=16)) as registry,
            ):
                yield registry
            return
        replicas = {name: cluster.nodes[name].url(dbname=dbname) for name in cluster.nodes if name != "primary"}
        await cluster.caught_up()
        async with compile(document(url, tenants, replicas=replicas, **pool)) as registry:
            yield registry


@asynccontextmanager
async def in_schemas(cluster: EmbeddedCluster, count: int) -> AsyncIterator[DataSourceRegistry]:
    """A schema for each."""
    async with database(cluster, "leaks_schemas") as dbname:
        made = "".join(
            f"create schema {name};{TABLES.format(schema=name)}insert into {name}.rows (owner) values ('{name}');"
            for name in names(count)
        )
        await run(cluster, dbname, HELPERS, made)
        await cluster.caught_up()
        tenants = {name: {"datasource": "place", "schema": name} for name in names(count)}
        url = cluster.nodes["primary"].url(dbname=dbname)
        replicas = {name: cluster.nodes[name].url(dbname=dbname) for name in cluster.nodes if name != "primary"}
        async with compile(document(url, tenants, replicas=replicas)) as registry:
            yield registry


@asynccontextmanager
async def in_databases(cluster: EmbeddedCluster, count: int, *, cap: int) -> AsyncIterator[DataSourceRegistry]:
    """A database for each, and no more than `cap` of them open at a time. They stay, and go with the cluster."""
    template = "leaks_template"
    await cluster.create_database(template)
    await run(cluster, template, HELPERS, TABLES.format(schema="public"))
    # Files are copied many times as fast as pages are written to the WAL.
    made = [f"create database leaks_{name} template {template} strategy file_copy" for name in names(count)]
    await run(cluster, "postgres", *made)
    for name in names(count):
        await run(cluster, f"leaks_{name}", f"insert into rows (owner) values ('{name}')")
    url = cluster.nodes["primary"].url(dbname="PLACE").replace("PLACE", "leaks_{tenant}")
    place = document(url, {"*": {"datasource": "place"}}, max_open_pools=cap, max_size=2)
    async with compile(place) as registry:
        yield registry
