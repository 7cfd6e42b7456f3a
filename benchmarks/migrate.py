"""Migrations of many schemas: asgi-datasource, an Alembic loop in one process, django-tenants' `migrate_schemas`.

The DDL is the same. Times begin after the imports. `over 1 ms` puts a proxy in between that adds a millisecond to each
round trip. The three sides work on schemas of their own databases, one after the other, in each round.

    python -m benchmarks.migrate                      1,000 schemas: a quarter of an hour, most of it django-tenants
    python -m benchmarks.migrate --schemas 100
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from benchmarks.children import child
from benchmarks.migrate_files import (
    FIRST,
    add_column,
    write_alembic,
    write_django,
    write_document,
    write_sql,
)
from benchmarks.report import Report, Target

NAME: Final = "migrate"
OURS: Final = "asgi-datasource"
LOOP: Final = "Alembic loop"
DJANGO: Final = "migrate_schemas"
DELAY_S: Final = 0.001
FEW: Final = 10


class Side:
    """One side, with a database and a project of its own."""

    def __init__(self, name: str, folder: Path, admin_url: str, count: int) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.dbname = f"bench_{name}"
        self.count = count
        self._admin_url = admin_url
        self.url = admin_url.rsplit("/", 1)[0] + f"/{self.dbname}"
        self.statements = [*FIRST]

    def through(self, port: int) -> str:
        """The URL through a proxy on this machine."""
        head, _, rest = self.url.rpartition("@")
        return f"{head}@127.0.0.1:{port}/{rest.split('/', 1)[1]}"

    async def create(self) -> None:
        """A database with the empty schemas, and the project."""
        async with await psycopg.AsyncConnection.connect(self._admin_url, autocommit=True) as admin:
            await admin.execute(sql.SQL("create database {}").format(sql.Identifier(self.dbname)))
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            for number in range(self.count):
                await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(f"t{number:05}")))
                if number % 200 == 199:
                    await connection.commit()
        self.write()
        if self.name == "django":
            await self.run("prepare")

    def write(self) -> None:
        {"ours": write_sql, "alembic": write_alembic, "django": write_django}[self.name](self.folder, self.statements)

    def add(self) -> None:
        """One more migration."""
        self.statements.append(add_column(len(self.statements)))
        self.write()

    async def run(
        self, action: str = "apply", *, url: str | None = None, concurrency: int = 8, count: int | None = None
    ) -> dict[str, float]:
        schemas = count or self.count
        if self.name == "ours":
            write_document(self.folder, url or self.url, [f"t{number:05}" for number in range(schemas)])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.migrate_child", self.name, action, str(self.folder)),
            *(url or self.url, str(schemas), str(concurrency)),
            cwd=Path(__file__).parent.parent,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{self.name} {action} ended with {process.returncode} (its error is above)")
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        return found


async def run(report: Report, admin_url: str, *, quick: bool, schemas: int = 1_000, with_django: bool = True) -> None:
    """Measure all cases.

    Args:
        report: Takes the figures.
        admin_url: A superuser's URL of the server.
        quick: Few schemas, to see that everything runs.
        schemas: How many there are.
        with_django: django-tenants as well, which takes most of the time.
    """
    count = 20 if quick else schemas
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, loop = Side("ours", folder, admin_url, count), Side("alembic", folder, admin_url, count)
        sides = [ours, loop]
        if with_django:
            sides.append(Side("django", folder, admin_url, count))
        for side in sides:
            await side.create()
        named = {"ours": OURS, "alembic": LOOP, "django": DJANGO}

        case = f"six migrations in {count:,} new schemas"
        for side in sides:
            taken = await side.run()
            report.measured(NAME, case, named[side.name], "time", "s", [taken["seconds"]])
        _compare(report, case, sides, None)

        case = f"ADD COLUMN in {count:,} schemas"
        for side in sides:
            times: list[float] = []
            for _ in range(rounds):
                side.add()
                times.append((await side.run())["seconds"])
            report.measured(NAME, case, named[side.name], "time", "s", times)
        report.compare(NAME, case, "time", OURS, LOOP, Target("<=", 0.25))
        if with_django:
            report.compare(NAME, case, "time", OURS, DJANGO)

        case = f"nothing to do in {count:,} schemas"
        for side in sides:
            times = []
            for _ in range(rounds):
                times.append((await side.run("plan" if side is ours else "apply"))["seconds"])
            report.measured(NAME, case, named[side.name], "time", "s", times)
        _compare(report, case, sides, Target("<=", 0.02))

        await _over_a_network(report, ours, loop, count, rounds)
        await _memory(report, ours, count)


def _compare(report: Report, case: str, sides: list[Side], target: Target | None) -> None:
    report.compare(NAME, case, "time", OURS, LOOP, target)
    if len(sides) > 2:
        report.compare(NAME, case, "time", OURS, DJANGO, target)


async def _over_a_network(report: Report, ours: Side, loop: Side, count: int, rounds: int) -> None:
    case = f"ADD COLUMN in {count:,} schemas over 1 ms"
    address = psycopg.conninfo.conninfo_to_dict(ours.url)
    async with child("benchmarks.proxy", str(address["host"]), str(address["port"]), str(DELAY_S)) as (_, proxy):
        for name, side, concurrency in (
            (f"{OURS}, 1 connection", ours, 1),
            (f"{OURS}, 8 connections", ours, 8),
            (LOOP, loop, 1),
        ):
            times: list[float] = []
            for _ in range(rounds):
                side.add()
                url = side.through(int(proxy["port"]))
                times.append((await side.run(url=url, concurrency=concurrency))["seconds"])
            report.measured(NAME, case, name, "time", "s", times)
    eight = f"{OURS}, 8 connections"
    report.compare(NAME, case, "time", eight, f"{OURS}, 1 connection", Target("<=", 0.2))
    report.compare(NAME, case, "time", eight, LOOP, Target("<=", 0.25))


async def _memory(report: Report, ours: Side, count: int) -> None:
    ours.add()
    few = await ours.run(count=FEW)
    many = await ours.run()
    case = f"peak memory, {count:,} tenants"
    report.measured(NAME, case, f"{FEW} tenants", "peak", "MB", [few["peak_mb"]])
    report.measured(NAME, case, OURS, "peak", "MB", [many["peak_mb"]])
    report.compare(NAME, case, "peak", OURS, f"{FEW} tenants", Target("<=", 1.2))


async def _main(options: argparse.Namespace) -> None:
    report = Report(quick=options.quick)
    try:
        await _measure(report, options)
    finally:
        # Also what was measured before it was stopped.
        print(report.table())
        for found in report.measurements:
            print(f"{found.case}: {found.side}: {found.metric} {found.median:g} {found.unit}")


async def _measure(report: Report, options: argparse.Namespace) -> None:
    from asgi_datasource.testing import EmbeddedCluster

    async with EmbeddedCluster(settings={"max_connections": 100, "max_locks_per_transaction": 256}) as cluster:
        url = cluster.primary.url(user="postgres")
        await run(report, url, quick=options.quick, schemas=options.schemas, with_django=not options.no_django)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migrate", description=__doc__)
    parser.add_argument("--schemas", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--no-django", action="store_true", help="without django-tenants")
    asyncio.run(_main(parser.parse_args()))
