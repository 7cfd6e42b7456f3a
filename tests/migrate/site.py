"""What the tests of migrations work on: a fresh database with schemas of tenants, a folder of files, a document."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from asgi_datasource import load
from asgi_datasource.migrate import Events, MigrationReport, Migrator
from asgi_datasource.testing import EmbeddedCluster
from tests.cli.run import Ran, call
from tests.kept_databases import empty_database
from tests.tenancy.commands import Command


@dataclass
class Site:
    """One database, its tenants, and their migrations.

    Attributes:
        url: The application's connection string: a superuser's, which may do everything.
        schemas: A schema for each tenant of this name.
    """

    cluster: EmbeddedCluster
    folder: Path
    dbname: str
    schemas: list[str] = field(default_factory=list)
    migrate: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    @property
    def config(self) -> Path:
        return self.folder / "datasource.json"

    def write(self, **files: str) -> None:
        """Write migrations: `tenant__0001_a.sql` is `migrations/tenant/0001_a.sql`."""
        for name, text in files.items():
            file = self.folder / "migrations" / name.replace("__", "/", 1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())

    def remove(self, name: str) -> None:
        (self.folder / "migrations" / name.replace("__", "/", 1)).unlink()

    def set(self, **migrate: Any) -> None:
        """Change the section `migrate` and write the document."""
        self.migrate.update(migrate)
        self.configure()

    def configure(self, **changes: Any) -> None:
        document = {
            "version": 1,
            "datasources": {"orders": {"primary": {"url": self.url}}},
            "tenancy": {"resolve": [{"header": "X-Tenant"}]},
            "tenants": {name: {"datasource": "orders", "schema": name} for name in self.schemas},
            "migrate": {"folder": "migrations", "lock_timeout": "200ms", **self.migrate},
            **changes,
        }
        self.config.write_text(json.dumps(document))

    async def add_schemas(self, names: Iterable[str]) -> None:
        """Create schemas, each of a tenant of the same name."""
        names = list(names)
        await self.sql(";".join(f'create schema "{name}"' for name in names))
        self.schemas += names
        self.configure()

    def migrator(self, **events: Callable[..., None]) -> Migrator:
        return Migrator(load(self.config), events=Events(**events))

    async def apply(self, **options: Any) -> MigrationReport:
        return await self.migrator().apply(**options)

    async def plan(self, **options: Any) -> MigrationReport:
        return await self.migrator().plan(**options)

    def start(self, *arguments: str) -> Command:
        """`asgi-datasource migrate ARGUMENTS` as a process of its own."""
        return Command(self.folder, "migrate", *arguments, "--config", str(self.config))

    def start_in(self, folder: Path, *arguments: str) -> Command:
        """The same with a folder of its own for what it prints: several at once."""
        return Command(folder, "migrate", *arguments, "--config", str(self.config))

    def command(self, *arguments: str) -> Ran:
        """The same inside this process."""
        return call("migrate", *arguments, "--config", self.config, cwd=self.folder)

    def command_of(self, command: str, *arguments: str) -> Ran:
        """Another command with the same document."""
        return call(command, *arguments, "--config", self.config, cwd=self.folder)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        url = self.cluster.nodes["primary"].url(dbname=self.dbname, user="postgres")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            yield connection

    async def sql(self, statement: str) -> list[Any]:
        async with self.connect() as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description is not None else []

    async def tables(self, schema: str) -> list[str]:
        return [
            name
            for [name] in await self.sql(
                f"select tablename::text from pg_tables where schemaname = '{schema}' order by 1"
            )
        ]

    async def ledger(self, columns: str = "scope, version, state") -> list[Any]:
        return await self.sql(f"select {columns} from asgi_datasource.migration order by scope, version, repeatable")

    async def advisory_locks(self) -> int:
        [[count]] = await self.sql("select count(*) from pg_locks where locktype = 'advisory'")
        return int(count)


@asynccontextmanager
async def open_site(cluster: EmbeddedCluster, folder: Path) -> AsyncIterator[Site]:
    """A site with an empty database and no tenants."""
    async with empty_database(cluster) as dbname:
        site = Site(cluster, folder, dbname)
        site.url = cluster.nodes["primary"].url(dbname=dbname, user="postgres")
        site.configure()
        yield site
