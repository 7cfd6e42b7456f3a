"""Health of one server: the fate of its connections, its circuit breaker, and the discovery of the primary."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from math import inf
from typing import Any, Final
from weakref import WeakSet

from psycopg import Error

from ...errors import DataError, DataErrorKind
from ...observability.decision_log import log_decision
from ...routing import CircuitBreaker, Event, Health, Pauses, Role
from ..protocol import PoolKeeper
from ..server_base import ServerBase
from ..settings import ServerSettings
from .connection import PsycopgConnection
from .owned_pool import OwnedPool
from .pool import GaveUp, Pool
from .primary_discovery import PrimaryDiscovery
from .saturation import BLOCKED_S, RAISE_LIMITS, SLOW_CONNECT, UNBLOCK
from .settings import Address, connect_failure, is_unknown_database, without_location
from .socket import WatchedSocket

logger = logging.getLogger("asgi_datasource.server")

_TRIAL_PAUSE_S: Final = 0.05
"""Seconds between two attempts to reach a server that is down on behalf of requests."""
_DRAIN_PAUSE_S: Final = 1.0
"""Seconds between two replacements of all connections after a refused write."""


class ServerHealth(ServerBase):
    """Whether a server is used, and which host it is; the base class of `PsycopgServer`, which lends connections.

    The server is down while no connection can be made, or when it has stopped answering. A background task then tries
    to connect until it is up again: the half-open state of the circuit breaker, with one trial connection at a time.

    Once a newer primary is known, the connections to the former one are cut.
    """

    pool: Pool
    """The pool; created by the subclass, whose methods it calls."""

    def __init__(
        self,
        name: str,
        datasource: str,
        role: Role,
        settings: ServerSettings,
        *,
        target: Address,
        keeper: PoolKeeper | None,
    ) -> None:
        super().__init__(
            name,
            datasource,
            role,
            settings,
            address=target.host,
            port=target.port,
            dbname=target.dbname,
            keeper=keeper,
        )
        self.check_limit_s = settings.check_timeout_s
        self.prepares = settings.prepares
        self.shares_sessions = settings.is_pooled
        self.attempts: set[asyncio.Timeout] = set()
        self._target = target
        self._discovery = PrimaryDiscovery(self, target)
        self._connections: set[WatchedSocket] = set()
        self._apart: WeakSet[WatchedSocket] = WeakSet()
        """Connections outside the pool."""
        self._proven: set[WatchedSocket] = set()
        """The pool's connections that were checked, and lead to the right server."""
        self._checked: str | None = None
        """The server that answered the last health check; None before the first one."""
        self._connect_error: Error | None = None
        self._pauses = Pauses(last_s=settings.reconnect_pause_s)
        self._probe: asyncio.Task[None] | None = None
        self._is_wanted = asyncio.Event()
        """Set when there is a reason to try again before the pause has ended."""
        self._check: asyncio.Task[None] | None = None
        self._drained_at = -inf
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether its pool is open."""
        return self.pool.is_open

    @property
    def borrowed(self) -> int:
        """Number of borrowed connections."""
        return self.pool.borrowed

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        return self.pool.idle

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a connection."""
        return self.pool.waiting

    def forget_loop(self) -> None:
        """The event loop is closed: close all connections, and forget what was bound to it."""
        for connection in (*self._connections, *self._apart):
            connection.abandon()
        self._connections.clear()
        self._apart.clear()
        self._proven.clear()
        self.attempts.clear()
        self._tasks = set()
        self._probe = self._check = None
        self._is_wanted = asyncio.Event()
        self._discovery = PrimaryDiscovery(self, self._target)
        self.breaker = CircuitBreaker()

    # Observer of connections

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made. Its check shows whether it leads to the right server."""
        self._connections.add(connection)
        self.server_version = connection.pgconn.server_version
        if self.metrics is not None:
            self.metrics.created(self, connection.connect_s)
        self.note_reached()

    def connect_failed(self, error: Error) -> Error:
        """A connect has failed."""
        clean = type(error)(connect_failure(error, self._target))
        self._discovery.unsettle()
        self.note_failure(clean)
        return clean

    def note_failure(self, error: Error) -> None:
        """A connect, or primary discovery, has failed."""
        self._connect_error = error
        if not self._proven:
            self._mark_down(str(error))
            self._end_waits()

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        self._proven.discard(connection)
        self._note_servers()
        if was_lost:
            self._discovery.unsettle()
        if was_lost and not connection.is_lent:
            if self.pool.hand_over is not None and isinstance(connection, PsycopgConnection):
                self.pool.hand_over.forget(connection)
            self.suspect()

    def went_silent(self) -> None:
        """The server does not answer: its idle connections are useless as well."""
        self._discovery.unsettle()
        self._mark_down(f"{self.address}:{self.port}: no answer")
        # A replica has readers only: another server may still answer them in time.
        is_replica = self.role is Role.REPLICA
        self._cut("the server does not answer", with_lent=is_replica)
        if is_replica:
            self._end_waits()

    def _end_waits(self) -> None:
        """No connection can be made: end all waits for one, so that the callers try another server."""
        if self.pool.hand_over is not None:
            self.pool.hand_over.give_up()

    def _cut(self, reason: str, *, with_lent: bool = False) -> None:
        for connection in list(self._connections):
            if with_lent or not connection.is_lent:
                connection.cut(reason)

    def suspect(self) -> None:
        """A pooled connection was found dead: check the others, once, in the background."""
        owned = self.pool.owned
        if owned is not None and (self._check is None or self._check.done()):
            self._check = self.spawn(owned.check())

    # Circuit breaker

    def _mark_down(self, reason: str) -> None:
        self.note_down(reason)
        if self.pool.owned is not None and (self._probe is None or self._probe.done()):
            self._probe = self.spawn(self._probe_until_up(self.pool.owned))

    async def _probe_until_up(self, owned: OwnedPool) -> None:
        while self.pool.owned is owned:
            # Jitter avoids a thundering herd of processes.
            pause_s = self._pauses.pause_s(self.breaker.failures, random.random())  # noqa: S311 - not for security
            self._is_wanted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._is_wanted.wait()
            if self.is_up or await self._discovery.seek():
                break
        # The pool has given up replacing connections, or waits for its next attempt: make it start now.
        await owned.check()

    async def await_trial(self, timeout_s: float) -> None:
        """The server is down: await the trial connection, one at a time for all callers.

        Raises:
            DataError: CONNECTION: the server is still down.
        """
        now = asyncio.get_running_loop().time()
        if not self._discovery.is_searching:
            # Pause even after a recent attempt: the server may have come up since.
            await asyncio.sleep(min(timeout_s, self._discovery.searched_at + _TRIAL_PAUSE_S - now))
        if not self.pool.is_open:
            raise self.error(DataErrorKind.CONNECTION, "the pool is closed")
        if self.is_up or await self._discovery.seek(deadline=now + timeout_s):
            return
        error = self._connect_error
        if error is not None and not self._proven:
            raise self._no_connection_error(timeout_s, 0) from error
        raise self._unreachable(self.last_error) from error

    # Primary discovery

    def search_begins(self) -> None:
        """Primary discovery starts."""
        if not self.is_up:
            self.note(Event.TRIAL)

    def search_ends(self) -> None:
        """Primary discovery has ended, or was cancelled."""
        if self.breaker.health is Health.HALF_OPEN:
            self.note(Event.FAILED)

    def arrived(self, address: tuple[str, int]) -> None:
        """A server with the right role was found at this address."""
        self._connect_error = None
        if self._discovery.has_several_hosts and address != (self.address, self.port):
            self.move_to(*address)
        self.note_up()

    def cut_left_behind(self, *, is_other: bool) -> None:
        """Another server has become the primary: cut the connections to the former one."""
        for connection in list(self._connections):
            its = connection.timeline if isinstance(connection, PsycopgConnection) else 0
            if its and (is_other or its < self.timeline):
                connection.cut("a failover has put another server in the place of this one")

    def note_checked(self, server: str | None) -> None:
        """The health check was answered by this server."""
        if server != self._checked:
            self._checked = server
            self._note_servers()

    def _note_servers(self) -> None:
        """Compare the servers that a replica's connections and its health check lead to."""
        if self.role is Role.REPLICA:
            found = {its.leads_to for its in self._proven if isinstance(its, PsycopgConnection)}
            if self._checked is not None:
                found.add(self._checked)
            self.leads_to_several = self.is_pooled or None in found or len(found) > 1

    def hear_of(self, timeline: int) -> None:
        """A newer timeline was reported: look for its primary in the background."""
        if self._discovery.hear_of(timeline):
            self._is_wanted.set()

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """A newer timeline was reported: look for its primary. Raises nothing.

        Args:
            timeline: The reported timeline.
            deadline: Event-loop time at which the wait ends.
        """
        await self._discovery.look_for(timeline, deadline=deadline)

    def refused_write(self, connection: PsycopgConnection) -> None:
        """A server that should be the primary has refused a write as a standby does: find the primary.

        If the server reports that it takes writes, the statement itself was the reason.
        """
        now = asyncio.get_running_loop().time()
        is_known = self.prepares and not self.is_pooled
        if (is_known and connection.takes_writes) or now - self._drained_at < _DRAIN_PAUSE_S:
            return
        self._drained_at = now
        self._discovery.unsettle()
        log_decision(
            logger,
            logging.WARNING,
            "write_refused",
            "%s has refused a write: its connections are replaced",
            self.label,
            fields=self.named,
        )
        self._cut("the server has refused a write")
        connection.cut("the server has refused a write")
        for other in list(self._connections):
            if isinstance(other, PsycopgConnection):
                other.retire()

    # Errors of callers without a connection

    def no_connection(
        self, error: BaseException, timeout_s: float, waiting: int, *, is_stuck: bool = False, late_s: float = 0.0
    ) -> DataError | None:
        """The error of a caller that got no connection; None if another attempt may still reach the server.

        Args:
            error: What has ended the wait.
            timeout_s: Longest wait, in seconds.
            waiting: Number of callers that waited.
            is_stuck: No connection was returned during the wait.
            late_s: Seconds by which the event loop noticed the end of the wait late.
        """
        told = self._no_connection_error(
            timeout_s, waiting, is_stuck=is_stuck and self.role is Role.REPLICA, late_s=late_s
        )
        if isinstance(error, GaveUp) and self.role is Role.PRIMARY and told.kind is not DataErrorKind.TENANT:
            # No other server can take its place, and only one attempt has failed: try again.
            return None
        told.__cause__ = self._connect_error
        return told

    def _no_connection_error(
        self, timeout_s: float, waiting: int, *, is_stuck: bool = False, late_s: float = 0.0
    ) -> DataError:
        reason = self._connect_error
        if self._keeper is not None and not self.was_reached and is_unknown_database(reason, self.dbname):
            # The tenant's database does not exist.
            return self.no_tenant()
        if reason is not None and not self._proven:
            return self._unreachable(reason)
        if not self.is_up:
            return self._unreachable(self.last_error)
        if is_stuck:
            # The server may have fallen silent a moment ago: another one can answer.
            return self.error(
                DataErrorKind.CONNECTION,
                f"no connection was returned within {timeout_s:.1f} s ({self.borrowed} of"
                f" {self.settings.max_size} in use, {waiting} waiting)",
            )
        because = "" if reason is None else f"; the last attempt to connect failed: {without_location(str(reason))}"
        advice = "Raise pool.max_size or shorten transactions"
        if late_s > BLOCKED_S:
            because = f"; the event loop was blocked meanwhile, and noticed the end of the wait {late_s:.1f} s late"
            advice = UNBLOCK
        elif self.borrowed < self.settings.max_size:
            advice = SLOW_CONNECT if reason is None else RAISE_LIMITS
        return self.error(
            DataErrorKind.RESOURCE,
            f"no free connection after {timeout_s:.1f} s ({self.borrowed} of {self.settings.max_size} in"
            f" use, {waiting} waiting){because}. {advice}",
        )

    def _unreachable(self, reason: object) -> DataError:
        return self.error(DataErrorKind.CONNECTION, f"cannot connect: {without_location(str(reason))}")

    # Background tasks

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that ends with the pool."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: a task of the pool failed", self.label, exc_info=task.exception())
