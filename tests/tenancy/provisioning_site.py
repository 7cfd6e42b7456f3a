"""What the tests of provisioning work on: a control database, two databases for schemas, a server for databases."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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


# -- killed


STOP = """
create function asgi_datasource.stop_there() returns trigger language plpgsql as
$$begin
    if tg_op = 'DELETE' then
        if old.step = '{step}' and '{state}' = 'deleted' then perform pg_sleep(60); end if;
        return old;
    end if;
    if new.step = '{step}' and new.state = '{state}' then perform pg_sleep(60); end if;
    return new;
end$$;
create trigger stop_there before insert or update or delete on asgi_datasource.tenant_steps
    for each row execute function asgi_datasource.stop_there()
"""
GO_ON = "drop trigger stop_there on asgi_datasource.tenant_steps; drop function asgi_datasource.stop_there()"
STOPPED = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and state = 'active'"
RELEASE = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where wait_event = 'PgSleep'"


@asynccontextmanager
async def stopped_at(site: Site, step: str, state: str, *arguments: str) -> AsyncIterator[None]:
    """Start a command, stop it where it is about to write that a step begins or has ended, and kill it in the end."""
    await site.sql(STOP.format(step=step, state=state))
    command = site.start(*arguments)
    try:
        async with asyncio.timeout(60):
            while not await site.sql(STOPPED):
                assert command.is_running, f"it ended before {step} was {state}: {command.wait().err}"
                await asyncio.sleep(0.01)
        yield
    finally:
        command.kill()
        await site.sql(RELEASE)
        await site.sql(GO_ON)


Point = tuple[str, str]
"""A step, and what is about to be written of it: `running`, `done`, or `deleted` with the last one."""


def kill_points(steps: Sequence[str], *, whole: bool, count: int = 3) -> list[Point]:
    """Where to kill a command: before each step, and after it before that is written down.

    Args:
        steps: All of an operation.
        whole: All of them, instead of a fixed sample.
        count: How many the sample has.
    """
    points = [(step, state) for step in steps for state in ("running", "deleted" if step == steps[-1] else "done")]
    if whole:
        return points
    chosen = random.Random(",".join(steps)).sample(points, min(count, len(points)))
    return sorted(chosen, key=points.index)
