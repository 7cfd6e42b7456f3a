"""The tables of the outbox in a world, as an outsider sees them."""

from __future__ import annotations

from typing import Any

from asgi_datasource import load
from asgi_datasource.migrate import MigrationReport, Migrator, Verdict
from tests.world import World


async def install_tables(world: World) -> None:
    """Create them as the superuser, for the role of the application."""
    await migrate(world.url(), world.cluster.primary.url(dbname=world.dbname, user="postgres"))


async def migrate(url: str, admin_url: str) -> MigrationReport:
    """Apply the library's own migrations of an outbox to a database, as `asgi-datasource migrate apply` does."""
    document = {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": url}, "admin": {"url": admin_url}}},
        "outbox": {"relay": "off"},
    }
    report = await Migrator(load(document, needs_resolver=False)).apply()
    assert report.verdict is Verdict.AT_HEAD, report.document()
    return report


async def events(world: World, columns: str = "topic") -> list[Any]:
    """What lies in the outbox, in order; one column gives values, several give tuples."""
    rows = await world.sql(f"select {columns} from asgi_datasource.outbox order by seq")
    return [row[0] if len(row) == 1 else row for row in rows]
