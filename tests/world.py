"""The common setting of the tests: one datasource `orders`, four tenants, a new database.

`acme` and `globex` have a schema each; `initech` and `umbrella` share tables under row security.

Tables of each tenant's schema, and of the schema `shared`:

- `orders (id, item unique, tenant)`; in `shared` under FORCEd row security by `app.tenant`
- `parents (id)` and `children (id, parent)`, whose foreign key is checked at COMMIT
- `slow (id)`: a row in it makes COMMIT take `SLOW_COMMIT_S`
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.testing import EmbeddedCluster
from tests.kept_databases import kept

SLOW_COMMIT_S: Final = 0.6

SCHEMA_TENANTS: Final = ("acme", "globex")
ROW_TENANTS: Final = {"initech": "41", "umbrella": "42"}

_TABLES: Final = """
create schema {schema};
set search_path = {schema};
create table orders (
    id bigint generated always as identity primary key,
    item text not null unique check (item <> 'forbidden'),
    tenant text default nullif(current_setting('app.tenant', true), '')
);
create sequence numbers;
create table parents (id int primary key);
create table children (
    id bigint generated always as identity primary key,
    parent int not null references parents deferrable initially deferred
);
create table slow (id int);
create function wait_at_commit() returns trigger language plpgsql as 'begin perform pg_sleep({slow}); return null; end';
create constraint trigger slow_commit after insert on slow deferrable initially deferred
    for each row execute function wait_at_commit();
create function place(item text) returns bigint language sql as 'insert into orders (item) values (item) returning id';
reset search_path;
"""

_ROW_SECURITY: Final = """
alter table shared.orders enable row level security;
alter table shared.orders force row level security;
create policy own_rows on shared.orders
    using (tenant = nullif(current_setting('app.tenant', true), ''))
    with check (tenant = nullif(current_setting('app.tenant', true), ''));
"""

_numbers = itertools.count()
_KIND: Final = "world"


@dataclass(slots=True)
class World:
    """A database on a cluster, with the tenants in it."""

    cluster: EmbeddedCluster
    dbname: str

    @classmethod
    @asynccontextmanager
    async def create(cls, cluster: EmbeddedCluster) -> AsyncIterator[World]:
        """A database with empty tables, new or as good as new, that the replicas have as well."""
        databases = kept(cluster)
        if (dbname := await databases.take(_KIND)) is not None:
            world = cls(cluster, dbname)
        else:
            world = await cls.make(cluster)
            databases.made(world.dbname)
        try:
            yield world
        finally:
            await databases.give_back(_KIND, world.dbname)

    @classmethod
    async def make(cls, cluster: EmbeddedCluster) -> World:
        """A new database that stays until the cluster stops."""
        world = cls(cluster, f"world_{os.getpid()}_{next(_numbers)}")
        await cluster.create_database(world.dbname)
        async with await psycopg.AsyncConnection.connect(world.url(), autocommit=True) as connection:
            for schema in (*SCHEMA_TENANTS, "shared"):
                await connection.execute(_TABLES.format(schema=schema, slow=SLOW_COMMIT_S))
            await connection.execute(_ROW_SECURITY)
        await cluster.caught_up()
        return world

    def url(self, node: str = "primary") -> str:
        """A connection string with password of the ordinary role `app` for this database on a node."""
        return self.cluster.nodes[node].url(dbname=self.dbname)

    def config(
        self,
        *,
        replicas: tuple[str, ...] = ("r1", "r2"),
        pool: Mapping[str, Any] | None = None,
        urls: Mapping[str, str] | None = None,
        routing: Mapping[str, Any] | None = None,
        audit: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> dict[str, Any]:
        """A configuration for this world.

        Args:
            replicas: Names of the replicas to use.
            pool: The datasource's `pool` section.
            routing: The datasource's `routing` section.
            audit: The datasource's `audit` section; off by default, because it takes longer than most tests.
            urls: Connection strings by node that replace the node's own, for proxies.
            sections: Further sections of the document: `transactions={"deadline": "1s"}`.
        """
        urls = {**{node: self.url(node) for node in ("primary", *replicas)}, **(urls or {})}
        return {
            "version": 1,
            "datasources": {
                "orders": {
                    "primary": {"url": urls["primary"]},
                    "replicas": {name: {"url": urls[name]} for name in replicas},
                    "pool": {"min_size": 1, "max_size": 5, "acquire_timeout": "3s", **(pool or {})},
                    "routing": dict(routing or {}),
                    "audit": {"on_start": "off"} if audit is None else dict(audit),
                }
            },
            "tenancy": {"resolve": [{"header": "X-Tenant"}]},
            "tenants": {
                **{name: {"datasource": "orders", "schema": name} for name in SCHEMA_TENANTS},
                **{
                    name: {"datasource": "orders", "schema": "shared", "row_security": {"app.tenant": number}}
                    for name, number in ROW_TENANTS.items()
                },
            },
            **sections,
        }

    def registry(self, **config: Any) -> DataSourceRegistry:
        """An unopened registry for this world; arguments as for `config`."""
        return compile(self.config(**config))

    async def sql(self, statement: str, *, schema: str = "acme", node: str = "primary") -> list[tuple[Any, ...]]:
        """Run a statement on a separate connection as the superuser, and return its rows: the committed state."""
        url = self.cluster.nodes[node].url(dbname=self.dbname, user="postgres")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            if not (await (await connection.execute("select pg_is_in_recovery()")).fetchone() or (True,))[0]:
                await connection.execute(f"set search_path = {schema}")
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []

    async def items(self, schema: str = "acme") -> list[str]:
        """The committed items in a schema's `orders`, in order of creation."""
        return [row[0] for row in await self.sql("select item from orders order by id", schema=schema)]

    async def backends(self, node: str = "primary") -> list[tuple[int, str]]:
        """Process id and state of every backend of a pool, in this database, on a server."""
        rows = await self.sql(
            "select pid, state from pg_stat_activity where usename = 'app' and datname = current_database()"
            " and application_name not like 'asgi-datasource %' order by pid",
            node=node,
        )
        return [(row[0], row[1]) for row in rows]
