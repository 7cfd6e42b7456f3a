"""The tables of the outbox in a world, as an outsider sees them."""

from __future__ import annotations

from typing import Any

from asgi_datasource.outbox.install import InstallSite, install
from tests.world import World


async def install_tables(world: World) -> None:
    """Install them as the superuser, for the role of the application."""
    admin = world.cluster.primary.url(dbname=world.dbname, user="postgres")
    await install(InstallSite("orders", admin, world.url()))


async def events(world: World, columns: str = "topic") -> list[Any]:
    """What lies in the outbox, in order; one column gives values, several give tuples."""
    rows = await world.sql(f"select {columns} from asgi_datasource.outbox order by seq")
    return [row[0] if len(row) == 1 else row for row in rows]
