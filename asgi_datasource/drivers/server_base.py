"""Base class of all drivers' servers: names, circuit breaker, and watchers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DataError, DataErrorKind
from ..observability.decision_log import log_decision
from ..observability.metrics import Attributes, Metrics
from ..observability.names import DATASOURCE, DB_SYSTEM, NODE
from ..observability.tracing import server_attributes
from ..routing import CircuitBreaker, Event, Role
from .protocol import PoolKeeper
from .settings import ServerSettings

logger = logging.getLogger("asgi_datasource.server")


class ServerBase:
    """A server without its pool: a driver adds how connections are made, lent and returned.

    Args:
        name: Name in the datasource.
        datasource: Name of the datasource.
        role: Primary or replica.
        settings: The server's settings.
        address: Host name or address, for messages, spans and metrics.
        port: Port; 0 if there is none.
        dbname: Name of the database.
        system: OpenTelemetry's name of the database system (`db.system.name`).
        keeper: Decides when the pool is open; None for one that is always open.
    """

    identifies_writes = False
    leads_to_several = False

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
        self.configurers: Sequence[Callable[[Any], Any]] = ()
        """Run for each new connection of the pool, before it is lent."""
        self.breaker = CircuitBreaker()
        self.last_error: str | None = None
        """Reason of the last failure, without secrets."""
        self.was_reached = False
        self.server_version = 0
        """As libpq tells it (180004), once a connection was made; 0 before that, and where there is no such number."""
        self.timeline = 0
        self._keeper = keeper
        self._system = system
        self._watchers: list[Callable[[], None]] = []
        self.move_to(address, port)
        # With a database for each tenant, database and host may identify a tenant: they are no metric labels.
        self.dimensions: Attributes = {
            **(self.attributes if keeper is None else {DB_SYSTEM: system}),
            DATASOURCE: datasource,
            NODE: name,
        }

    def move_to(self, address: str, port: int) -> None:
        """Set the address: the server's first one, or another one of several."""
        self.address, self.port = address, port
        self.location = f"{address}:{port}" if port else address
        self.label = f"{self.full_name} ({self.location})"
        self.attributes: Attributes = server_attributes(
            host=address, port=port, namespace=self.dbname, system=self._system
        )

    @property
    def named(self) -> Mapping[str, str]:
        """What names it on log records."""
        return {DATASOURCE: self.datasource, NODE: self.name}

    @property
    def is_up(self) -> bool:
        """Whether the circuit breaker is closed."""
        return self.breaker.is_closed

    @property
    def is_in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be borrowed; for pools with a keeper."""
        return False

    # Watchers

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` when the server goes down or comes up, and when its pool is opened or closed."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Remove a watcher."""
        self._watchers.remove(watcher)

    def notify_watchers(self) -> None:
        """Call the watchers: the pool was opened or closed."""
        for watcher in tuple(self._watchers):
            watcher()

    def note(self, event: Event) -> bool:
        """Apply an event to the circuit breaker; True if the server went out of use, or came back."""
        was_up = self.is_up
        self.breaker.apply(event, now=asyncio.get_running_loop().time())
        if self.is_up is was_up:
            return False
        self.notify_watchers()
        return True

    def note_down(self, reason: str) -> None:
        """The server cannot be reached, or has stopped answering."""
        self.last_error = reason
        if self.note(Event.FAILED):
            log_decision(
                logger, logging.WARNING, "server_down", "%s is down: %s", self.label, reason, fields=self.named
            )

    def note_up(self) -> None:
        """The server was reached, and has the expected role."""
        if self.note(Event.CONNECTED):
            log_decision(logger, logging.INFO, "server_up", "%s is up again", self.label, fields=self.named)

    def note_reached(self) -> None:
        """A connection was made."""
        if not self.was_reached:
            self.was_reached = True
            if self._keeper is not None:
                self._keeper.reached(self)

    @staticmethod
    def no_tenant() -> DataError:
        """The error for a session without a tenant on a datasource with a database for each tenant."""
        return DataError(DataErrorKind.TENANT, "there is no such tenant", http_status=404)

    def mistake_of(self, error: Exception) -> DataError:
        """Classify what `Connection.exchange` has raised before it sent anything."""
        return DataError(
            DataErrorKind.QUERY,
            f"{self.full_name}: the statement or a parameter of it could not be sent ({type(error).__name__})",
            server=self.location,
        )

    def error(self, kind: DataErrorKind, text: str, *, is_retryable: bool | None = None) -> DataError:
        """An error of this server."""
        return DataError(kind, f"{self.full_name}: {text}", is_retryable=is_retryable, server=self.location)

    # Overridden by some servers

    def abandon(self) -> None:
        """The event loop in which the pool was opened is closed."""

    def retire(self) -> None:
        """Keep no idle connections from now on."""

    def suspect(self) -> None:
        """A connection was found dead: check the idle ones in the background."""

    def refused_write(self, connection: Any, /) -> None:
        """A server that should be the primary has refused a write: find the primary."""

    def hear_of(self, timeline: int) -> None:
        """A newer timeline was seen: look for its primary in the background."""

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """Look for the primary of this timeline until `deadline`. Raises nothing."""
