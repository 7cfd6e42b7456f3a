"""Opens the connections of the role that provisions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from ...drivers.psycopg import ConnectionTemplate, ControlConnection, ServerSettings, login_of, open_control
from ...errors import DataError, DataErrorKind

__all__ = ["ConnectionTemplate", "ControlConnection", "login_of", "open_admin"]
"""The driver's names come from here for the whole folder: one place knows which driver it is."""

if TYPE_CHECKING:
    from .plan import Site


@asynccontextmanager
async def open_admin(site: Site, *, dbname: str | None = None) -> AsyncGenerator[ControlConnection]:
    """Connect as the role that provisions, and close the connection at the end of the block.

    Args:
        site: The datasource.
        dbname: Another database on the same server.

    Raises:
        DataError: CONNECTION: the server cannot be reached.
    """
    where = f"datasource {site.name!r}"
    settings = ServerSettings(conninfo=site.admin_url, connect_timeout_s=10.0)
    async with AsyncExitStack() as stack:
        try:
            opened = open_control(settings, where=where, dbname=dbname, timeout_s=None, is_privileged=True)
            admin = await stack.enter_async_context(opened)
        except DataError as error:
            if error.kind is not DataErrorKind.CONNECTION:
                raise
            raise DataError(
                error.kind, f"{where}: cannot connect to {error.message}", sqlstate=error.sqlstate
            ) from None
        yield admin
