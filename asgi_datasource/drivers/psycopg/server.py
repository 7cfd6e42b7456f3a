"""One server of a datasource: its pool, and the connections outside it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from contextlib import suppress
from functools import lru_cache
from math import inf
from typing import Any, Final

from psycopg import Error, OperationalError, pq

from ...errors import DataError, DataErrorKind
from ...routing import CircuitBreaker, Event, Health, Pauses, Role
from ..protocol import PoolKeeper
from ..server_base import ServerBase
from ..settings import ServerSettings
from . import error_mapping
from .borrowed_connection import BorrowedConnection
from .borrowed_connection import lend as lend_connection
from .connection import PsycopgConnection
from .health_check import HealthCheck
from .owned_pool import OwnedPool
from .pipeline import Pipeline
from .pool import GaveUp, Pool
from .primary_discovery import PrimaryDiscovery
from .settings import APPLICATION_NAME, connect_failure, is_unknown_database, resolve
from .socket import ConnectionObserver, WatchedSocket
from .transaction_settings import is_behind_pooler, read_timeouts

logger = logging.getLogger("asgi_datasource.server")

_CLOSE_GRACE_S: Final = 1.0
_SHED_INTERVAL_S: Final = 0.5
_TRIAL_PAUSE_S: Final = 0.05
"""Seconds between two attempts to reach a server that is down on behalf of requests."""
_DRAIN_PAUSE_S: Final = 1.0
"""Seconds between two replacements of all connections after a refused write."""


class PsycopgServer(ServerBase):
    """One server: lends connections, and takes them back.

    The server is down while no connection can be made, or when it has stopped answering. A background task then tries
    to connect until it is up again: the half-open state of the circuit breaker, with one trial connection at a time.

    Each new connection is checked for the right server (`primary_discovery.py`). Once a newer primary is known, the
    connections to the former one are cut.
    """

    identifies_writes = True

    def __init__(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> None:
        self._target = target = resolve(settings, where=f"datasource {datasource!r}, server {name!r}")
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
        self._discovery = PrimaryDiscovery(self, target)
        self._drained_at = -inf
        self._is_wanted = asyncio.Event()
        """Set when there is a reason to try again before the pause has ended."""
        self.pool = Pool(self, settings, keeper)
        self.try_acquire = self.pool.try_borrow
        """Borrow an idle connection; None where the caller would have to wait or to queue."""
        self.acquire = self.pool.borrow
        """Borrow a connection, outside any transaction; arguments and errors as in `drivers.protocol.Server`."""
        self.release = self.pool.give
        """Return an idle connection. Never waits, so that a cancellation cannot interrupt it."""
        self._connections: set[WatchedSocket] = set()
        self._proven: set[WatchedSocket] = set()
        """The pool's connections that were checked, and lead to the right server."""
        self._connect_error: Error | None = None
        self.attempts: set[asyncio.Timeout] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._probe: asyncio.Task[None] | None = None
        self._check: asyncio.Task[None] | None = None
        self._pauses = Pauses(last_s=settings.reconnect_pause_s)

    @property
    def borrowed(self) -> int:
        """Number of borrowed connections."""
        return self.pool.borrowed

    @property
    def lendings(self) -> int:
        """Number of times a connection was borrowed since the pool was opened."""
        return self.pool.lendings

    @property
    def size(self) -> int:
        """Number of connections, including those that are being made."""
        return self.pool.size

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        return self.pool.idle

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a connection."""
        return self.pool.waiting

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        use = f"{self.borrowed} of {self.settings.max_size} borrowed"
        return f"<Server {self.label} {self.role.value} {state}, {use}>"

    @property
    def is_open(self) -> bool:
        """Whether its pool is open."""
        return self.pool.is_open

    @property
    def is_in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be borrowed; for pools with a keeper."""
        return self.pool.users > 0

    # Opening and closing

    async def open(self) -> None:
        """Open the pool. Returns at once, even if the server cannot be reached."""
        if self.pool.is_open:
            return
        warn_if_slow(pq.__impl__)
        settings = self.settings
        self.breaker = CircuitBreaker()
        self._connect_error = None
        owned = OwnedPool(
            self._target.conninfo,
            connection_class=PsycopgConnection,
            kwargs={"observer": self, "line_up": self._discovery.line_up},
            configure=self._configure,
            min_size=settings.min_size,
            max_size=settings.max_size,
            open=False,
            name=f"{self.datasource}.{self.name}",
            timeout=settings.acquire_timeout_s,
            max_lifetime=settings.max_lifetime_s,
            max_idle=settings.max_idle_s,
            # The pool's own retries pause for seconds, and a caller that waits for one waits with it even if the server
            # is back. So an attempt fails at once, and the next caller, or the probe, connects anew.
            reconnect_timeout=0.0,
        )
        await self.pool.open(owned)
        self.notify_watchers()

    async def close(self, *, timeout_s: float) -> None:
        """Close the pool and all connections, borrowed ones included.

        Args:
            timeout_s: Seconds that the pool's own tasks may take; closing takes at most one second more.
        """
        owned = self.pool.close()
        if owned is None:
            return
        if self._keeper is not None and not self.is_up:
            # The pool may be opened again by its next use, which must find the breaker closed.
            self.breaker = CircuitBreaker()
        self.notify_watchers()
        if self._probe is not None:
            self._probe.cancel()
        _end_now(self.attempts)
        for connection in list(self._connections):
            if not connection.is_lent and not connection.is_usable:
                # The pool configures or checks it, and would wait for the server.
                connection.cut("the pool was closed")
        await owned.close(timeout=timeout_s)
        for connection in list(self._connections):
            connection.cut("the pool was closed")
        tasks = [task for task in self._tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_GRACE_S)
            for task in tasks:
                task.cancel()

    def retire(self) -> None:
        """Keep no idle connections until `close`; requests are still served."""
        owned, hand_over = self.pool.owned, self.pool.hand_over
        if owned is not None and hand_over is not None:
            hand_over.retire()
            self.spawn(self._keep_none(owned))

    async def _keep_none(self, owned: OwnedPool) -> None:
        while self.pool.owned is owned:
            await owned.shed()
            # Repeat for connections that return, and those that were being made.
            await asyncio.sleep(_SHED_INTERVAL_S)

    # Borrowing and returning connections

    def put_back(self, connection: PsycopgConnection) -> None:
        """Return a connection of `try_acquire` on which nothing was sent, without counting it as borrowed."""
        self.pool.lendings -= 1
        self.release(connection)

    async def reclaim(self, connection: PsycopgConnection) -> None:
        """Return a connection in any state: cancel what runs on it, and roll back an open transaction.

        Takes bounded time: a connection that does not become idle is cut. Raises nothing itself.
        """
        try:
            await connection.settle()
        except Exception as error:
            # The caller cannot do anything about it; the connection is replaced.
            logger.warning("%s: a connection could not be brought to rest", self.label, exc_info=error)
            connection.cut("it could not be brought to rest")
        except BaseException:
            connection.cut("giving it back was interrupted")
            raise
        finally:
            self.release(connection)

    def discard(self, connection: PsycopgConnection) -> None:
        """Close a borrowed connection at once; the pool replaces it."""
        connection.cut("it was given up")
        self.release(connection)

    def lend(self, connection: PsycopgConnection) -> BorrowedConnection:
        """Give a connection itself to the user, inside its open transaction."""
        return lend_connection(connection)

    async def is_alive(self, connection: PsycopgConnection, deadline: float | None) -> bool:
        """Check a borrowed connection."""
        limit = asyncio.get_running_loop().time() + self.settings.check_timeout_s
        try:
            exchange = await connection.exchange((), deadline=limit if deadline is None else min(limit, deadline))
        except BaseException:
            self.discard(connection)
            raise
        return exchange.error is None

    # Connections outside the pool

    def health_check(self) -> HealthCheck:
        """A health check of the server, over a connection of its own."""
        return HealthCheck(self)

    async def connect(self, *, observer: ConnectionObserver, purpose: str = "check") -> PsycopgConnection:
        """Connect outside the pool.

        Args:
            observer: Observes the connection.
            purpose: Appended to the application name `asgi-datasource`.

        Raises:
            psycopg.Error: It failed; the text names host, port and reason only.
        """
        return await PsycopgConnection.connect(
            await self._discovery.line_up(),
            observer=observer,
            fallback_application_name=f"{APPLICATION_NAME} {purpose}",
        )

    async def connect_apart(self, *, deadline: float, purpose: str = "check") -> PsycopgConnection:
        """Connect outside the pool, for queries that must not wait in its queue; the caller closes the connection.

        Args:
            deadline: Event-loop time at which the connect times out.
            purpose: Appended to the application name `asgi-datasource`.

        Raises:
            DataError: CONNECTION: the server could not be reached by the deadline. TENANT: the database does not exist.
        """
        try:
            async with asyncio.timeout_at(deadline):
                return await self.connect(observer=self, purpose=purpose)
        except (Error, TimeoutError) as error:
            if self._keeper is not None and is_unknown_database(error, self.dbname):
                raise self.no_tenant() from error
            reason = str(error) or "the server does not answer"
            raise DataError(DataErrorKind.CONNECTION, f"{self.label}: cannot connect: {reason}") from error

    def suspect(self) -> None:
        """A pooled connection was found dead: check the others, once, in the background."""
        owned = self.pool.owned
        if owned is not None and (self._check is None or self._check.done()):
            self._check = self.spawn(owned.check())

    # Errors

    def error_of(self, exchange: Pipeline, *, is_write: bool) -> DataError:
        """Classify the error of an exchange."""
        return error_mapping.of_exchange(
            exchange, where=self.label, in_recovery=self.role is Role.REPLICA, is_write=is_write
        )

    def classify(self, error: BaseException, *, is_write: bool) -> DataError:
        """Classify an error of psycopg."""
        return error_mapping.to_data_error(
            error,
            where=self.label,
            is_broken=isinstance(error, OperationalError) and error.sqlstate is None,
            timed_out=False,
            in_recovery=self.role is Role.REPLICA,
            is_write=is_write,
        )

    # Observer of connections

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made. Its check shows whether it leads to the right server."""
        self._connections.add(connection)
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
            # No connection can be made: end all waits.
            if self.pool.hand_over is not None:
                self.pool.hand_over.give_up()

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        self._proven.discard(connection)
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
        self._cut("the server does not answer", with_lent=self.role is Role.REPLICA)

    def _cut(self, reason: str, *, with_lent: bool = False) -> None:
        for connection in list(self._connections):
            if with_lent or not connection.is_lent:
                connection.cut(reason)

    # Health

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
            raise DataError(DataErrorKind.CONNECTION, f"{self.label}: the pool is closed")
        if self.is_up or await self._discovery.seek(deadline=now + timeout_s):
            return
        error = self._connect_error
        if error is not None and not self._proven:
            raise self._no_connection_error(timeout_s, 0) from error
        raise DataError(DataErrorKind.CONNECTION, f"{self.full_name}: cannot connect to {self.last_error}") from error

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
        logger.warning("%s has refused a write: its connections are replaced", self.label)
        self._cut("the server has refused a write")
        connection.cut("the server has refused a write")
        for other in list(self._connections):
            if isinstance(other, PsycopgConnection):
                other.retire()

    # The pool

    async def _configure(self, connection: PsycopgConnection) -> None:
        """Check a new connection before it is lent: its timeouts, and whether it leads to the right server."""
        exchange = await self._discovery.ask(connection)
        if exchange.error is not None:
            await connection.close()
            error = OperationalError(str(exchange.error))
            if exchange.is_lost or exchange.timed_out:
                raise self.connect_failed(error)
            # The server is there; waiting callers get its reason.
            self._connect_error = OperationalError(connect_failure(error, self._target))
            raise self._connect_error
        reason = self._discovery.judge(connection, exchange)
        if reason is not None:
            await connection.close()
            self.note_failure(OperationalError(reason))
            raise OperationalError(reason)
        if not connection.closed:
            self._proven.add(connection)
        connection.settings.timeouts = read_timeouts(exchange)
        if is_behind_pooler(exchange, connection.backend_pid):
            connection.incarnation = None
        if not self.is_pooled and self.prepares and is_behind_pooler(exchange, connection.backend_pid):
            # In transaction mode, a statement prepared on one server connection does not exist on the next.
            self.prepares = False
            logger.warning(
                "%s: there is a pooler in between, which the configuration does not say; statements are not prepared"
                " from now on. Set pool.pooler: transaction where it gives each transaction another connection",
                self.label,
            )
        # The query mentions pg_settings, which counts as a possible change of settings; it changes none.
        connection.needs_reset = False

    def no_connection(self, error: BaseException, timeout_s: float, waiting: int) -> DataError | None:
        """The error of a caller that got no connection; None if another attempt may still reach the server."""
        told = self._no_connection_error(timeout_s, waiting)
        if isinstance(error, GaveUp) and self.role is Role.PRIMARY and told.kind is not DataErrorKind.TENANT:
            # No other server can take its place, and only one attempt has failed: try again.
            return None
        told.__cause__ = self._connect_error
        return told

    def _no_connection_error(self, timeout_s: float, waiting: int) -> DataError:
        reason = self._connect_error
        if self._keeper is not None and not self.was_reached and is_unknown_database(reason, self.dbname):
            # The tenant's database does not exist.
            return self.no_tenant()
        if reason is not None and not self._proven:
            return DataError(DataErrorKind.CONNECTION, f"{self.datasource}.{self.name}: cannot connect to {reason}")
        because = "" if reason is None else f"; the last attempt to connect failed: {reason}"
        return DataError(
            DataErrorKind.RESOURCE,
            f"{self.label}: no free connection after {timeout_s:.1f} s ({self.borrowed} of {self.settings.max_size} in"
            f" use, {waiting} waiting){because}. Raise pool.max_size or shorten transactions",
        )

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that ends with the pool."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: a task of the pool failed", self.label, exc_info=task.exception())


@lru_cache(maxsize=1)
def warn_if_slow(implementation: str) -> None:
    """Warn once in the life of the process if psycopg has no C implementation.

    Args:
        implementation: psycopg's name of its libpq wrapper.
    """
    if implementation == "python":
        logger.warning(
            "psycopg runs without its C parts, at a fraction of their speed: install psycopg[binary] or psycopg[c]"
        )


def _end_now(scopes: set[asyncio.Timeout]) -> None:
    now = asyncio.get_running_loop().time()
    while scopes:
        # Removed from the set: a timeout that is ending cannot be rescheduled again.
        scopes.pop().reschedule(now)
