"""What the tests of provisioning work on: a control database, two databases for schemas, a server for databases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from asgi_datasource import DataSourceRegistry, compile, load
from asgi_datasource.tenancy.provisioning import Provisioner, compile_provisioning
from asgi_datasource.testing import EmbeddedCluster
from tests.cli.run import Ran
from tests.tenancy.commands import Command

FILES = {
    "tables.sql": "create table items (id int generated always as identity, name text);"
    " insert into items (name) values ('of ' || current_schema || ' in ' || current_database());",
    "more.sql": "create index items_name on items (name);",
}


@dataclass
class Site:
    """The databases, and the configuration as a file."""

    cluster: EmbeddedCluster
    folder: Path
    prefix: str

    @property
    def config(self) -> Path:
        return self.folder / "datasource.json"

    def start(self, *arguments: str) -> Command:
        return Command(self.folder, "tenants", *arguments, "--config", str(self.config))

    def command(self, *arguments: str) -> Ran:
        return self.start(*arguments).wait()

    def set(self, **changes: Any) -> None:
        """Change sections of the configuration."""
        document = json.loads(self.config.read_text())
        self.config.write_text(json.dumps({**document, **changes}))

    def provisioner(self) -> Provisioner:
        """What the commands run, in this process."""
        return Provisioner(compile_provisioning(load(self.config)))

    def registry(self) -> DataSourceRegistry:
        return compile(self.config)

    async def sql(self, statement: str, database: str = "control") -> list[Any]:
        dbname = database if database.startswith(self.prefix) else f"{self.prefix}_{database}"
        url = self.cluster.nodes["primary"].url(dbname=dbname, user="postgres")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description is not None else []

    async def app_sql(self, statement: str, database: str = "one") -> list[Any]:
        """The same as the application's role."""
        url = self.cluster.nodes["primary"].url(dbname=f"{self.prefix}_{database}")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description is not None else []

    async def drop_role(self, name: str) -> None:
        for database in ("control", "one", "two"):
            await self.sql(f'drop owned by "{name}"', database)
        await self.sql(f'drop role "{name}"')

    async def is_superuser(self) -> bool:
        """Whether the application's role has become one."""
        [[is_super]] = await self.sql("select rolsuper from pg_roles where rolname = 'app'")
        return bool(is_super)

    async def items(self, registry: DataSourceRegistry, tenant: str) -> list[str]:
        async with registry.session(tenant) as db:
            return [row["name"] for row in await db.read.fetch_all("select name from items order by id")]


async def refreshed(registry: DataSourceRegistry) -> None:
    assert registry.catalog is not None
    await registry.catalog.refresh()


def ok(done: Ran) -> str:
    assert done.code == 0, done.err
    return done.out
