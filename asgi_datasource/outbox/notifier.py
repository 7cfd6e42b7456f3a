"""Tells relays of other processes that something was committed: coalesced, and over a connection of its own.

NOTIFY in the request's transaction would serialise all commits of the database (it holds a lock until the commit is
flushed); here one statement speaks for all commits of an interval.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ..drivers.protocol import Connection
from ..drivers.statements import Statement
from ..errors import DataError
from . import statements as sql
from .database_relay import CHANNEL
from .lanes import Site

logger = logging.getLogger("asgi_datasource.outbox")

INTERVAL_S: Final = 0.05
"""At least this long lies between two notifications of a process to a database."""
IDLE_S: Final = 10.0
"""Seconds without a commit after which the connection is closed."""
LIMIT_S: Final = 5.0


class Notifier:
    """Notifies the relays of one database.

    Args:
        site: The database.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._has_news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.sent = 0
        """How many notifications were sent."""

    def hint(self) -> None:
        """Something was committed."""
        self._has_news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End; relays find what is left when they poll."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        connection: Connection | None = None
        try:
            while await self._wait():
                self._has_news.clear()
                try:
                    if connection is None or connection.closed or not connection.is_usable:
                        connection = await self._site.connect(asyncio.get_running_loop().time() + LIMIT_S)
                    await self._send(connection)
                except (DataError, OSError) as error:
                    # Relays poll: it only takes them longer.
                    logger.debug("outbox of %s: no notification could be sent: %s", self._site.name, error)
                await asyncio.sleep(INTERVAL_S)
        finally:
            if connection is not None:
                connection.when_gone = None
                connection.cut("there are no more notifications")

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(IDLE_S):
                return await self._has_news.wait()
        except TimeoutError:
            return False

    async def _send(self, connection: Connection) -> None:
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        exchange = await connection.exchange((Statement(sql.NOTIFY, (CHANNEL,)),), deadline=deadline)
        if exchange.error is not None:
            raise self._site.error_of(exchange) from exchange.error
        self.sent += 1
