"""What the servers of every driver have in common: their names, whether they are used, and who is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ..errors import DataError, DataErrorKind
from ..observability.metrics import Attributes, Metrics
from ..observability.tracing import DATASOURCE, DB_SYSTEM, NODE, server_attributes
from ..routing import CircuitBreaker, Event, Role
from .protocol import PoolKeeper
from .settings import ServerSettings

logger = logging.getLogger("asgi_datasource.server")


class ServerBase:
    """A server without its pool: a driver adds how connections are made, lent and taken back.

    Args:
        name: Its name in the datasource.
        datasource: The name of the datasource.
        role: Whether it is the primary.
        settings: How it is reached.
        address: Host name or address, for messages, spans and metrics.
        port: Its port; 0 where there is none.
        dbname: The name of the database.
        system: What OpenTelemetry calls this kind of database (`db.system.name`).
        keeper: Decides when the pool is open; None for one that is always open.
    """

    identifies_writes = False

    def __init__(
        self,
        name: str,
        datasource: str,
        role: Role,
        settings: ServerSettings,
        *,
        address: str,
        port: int,
        dbname: str,
        system: str = "postgresql",
        keeper: PoolKeeper | None = None,
    ) -> None:
        self.name = name
        self.datasource = datasource
        self.full_name = f"{datasource}.{name}"
        self.role = role
        self.settings = settings
        self.dbname = dbname
        self.is_pooled = settings.is_pooled
        self.is_fair = settings.is_fair
        self.metrics: Metrics | None = None
        self.breaker = CircuitBreaker()
        self.last_error: str | None = None
        """Why it is, or last was, down; without secrets."""
        self.was_reached = False
        self.server_version = 0
        """As libpq tells it (180004), once a connection was made; 0 before that, and where there is no such number."""
        self.timeline = 0
        self._keeper = keeper
        self._system = system
        self._watchers: list[Callable[[], None]] = []
        self.move_to(address, port)
        # Where each tenant has a database, its name and perhaps its host are one tenant's: they would be a label each.
        self.dimensions: Attributes = {
            **(self.attributes if keeper is None else {DB_SYSTEM: system}),
            DATASOURCE: datasource,
            NODE: name,
        }

    def move_to(self, address: str, port: int) -> None:
        """The server is reached here: its first address, or another one of several."""
        self.address, self.port = address, port
        self.label = f"{self.full_name} ({address}:{port})" if port else f"{self.full_name} ({address})"
        self.attributes: Attributes = server_attributes(
            host=address, port=port, namespace=self.dbname, system=self._system
        )

    @property
    def is_up(self) -> bool:
        """Whether it is used."""
        return self.breaker.is_closed

    @property
    def is_in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be; of pools that have a keeper."""
        return False

    # Who is told

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call this whenever it goes down or comes up, and when its pool is opened or closed."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Call it no more."""
        self._watchers.remove(watcher)

    def tell_watchers(self) -> None:
        """Its pool was opened or closed."""
        for watcher in tuple(self._watchers):
            watcher()

    def note(self, event: Event) -> bool:
        """Something happened to its connections; True when it is in use no more, or again."""
        was_up = self.is_up
        self.breaker.tell(event, now=asyncio.get_running_loop().time())
        if self.is_up is was_up:
            return False
        self.tell_watchers()
        return True

    def note_down(self, reason: str) -> None:
        """It cannot be reached, or has stopped answering."""
        self.last_error = reason
        if self.note(Event.FAILED):
            logger.warning("%s is down: %s", self.label, reason)

    def note_up(self) -> None:
        """It was reached, and is what it should be."""
        if self.note(Event.CONNECTED):
            logger.info("%s is up again", self.label)

    def note_reached(self) -> None:
        """A connection was made."""
        if not self.was_reached:
            self.was_reached = True
            if self._keeper is not None:
                self._keeper.reached(self)

    @staticmethod
    def no_tenant() -> DataError:
        """A database for each tenant, and none for this one."""
        return DataError(DataErrorKind.TENANT, "there is no such tenant", http_status=404)

    # What only some servers do

    def retire(self) -> None:
        """Keep no idle connection from now on."""

    def suspect(self) -> None:
        """A connection turned out to be dead: look at the idle ones, in the background."""

    def refused_write(self, connection: Any, /) -> None:
        """A server that should be the primary has refused a write: find out which server is."""

    def hear_of(self, timeline: int) -> None:
        """A newer timeline was seen: look in the background for the primary that writes it."""

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """Look for the primary that writes this timeline, until `deadline`. Raises nothing."""
