"""One server of a datasource: its pool, its health, and the way of a connection out and back."""

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
"""Seconds from the end of an attempt to reach a server that is down to the next one for the sake of requests."""
_DRAIN_PAUSE_S: Final = 1.0
"""Seconds between two times that the pool is emptied because a write was refused."""


class PsycopgServer(ServerBase):
    """One server: connections are borrowed here and come back here.

    It is down while nothing can be connected to it, or when it has stopped answering. A task of its own then tries
    until it is up again: the breaker's half-open state, in which nothing but this one attempt is sent.

    Each new connection is asked whether it leads to the right server (`primary_discovery.py`). Once a newer primary is
    known, the connections to the one before are cut.
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
        """Set when there is a reason to try again before the pause is over."""
        self.pool = Pool(self, settings, keeper)
        self.try_acquire = self.pool.try_borrow
        """Borrow a connection that lies at hand; None where the caller would have to wait, or to queue."""
        self.acquire = self.pool.borrow
        """Borrow a connection, outside any transaction; arguments and errors as of `drivers.protocol.Server`."""
        self.release = self.pool.give
        """Give back a connection that is idle. Never waits, so no cancellation can come in between."""
        self._connections: set[WatchedSocket] = set()
        self._proven: set[WatchedSocket] = set()
        """Those of the pool that were asked, and lead to where they should."""
        self._connect_error: Error | None = None
        self.attempts: set[asyncio.Timeout] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._probe: asyncio.Task[None] | None = None
        self._check: asyncio.Task[None] | None = None
        self._pauses = Pauses(last_s=settings.reconnect_pause_s)

    @property
    def borrowed(self) -> int:
        """Connections that are lent."""
        return self.pool.borrowed

    @property
    def lendings(self) -> int:
        """How often a connection was lent since the pool was opened."""
        return self.pool.lendings

    @property
    def size(self) -> int:
        """How many connections there are, also those that are being made."""
        return self.pool.size

    @property
    def idle(self) -> int:
        """How many of them could be borrowed at once."""
        return self.pool.idle

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
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
        """Whether a connection is borrowed, or about to be; of pools that have a keeper."""
        return self.pool.users > 0

    # Opening and closing

    async def open(self) -> None:
        """Open the pool. Returns at once, also when the server cannot be reached."""
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
            # The pool's own attempts pause for seconds in between, and each caller who waits for one waits with it,
            # also when the server has long come back: it gives up at once, and the next caller, or the probe, connects
            # anew.
            reconnect_timeout=0.0,
        )
        await self.pool.open(owned)
        self.tell_watchers()

    async def close(self, *, timeout_s: float) -> None:
        """Close the pool and every connection, also those that are still borrowed.

        Args:
            timeout_s: Seconds that the pool's own tasks may take; it is over within a second more.
        """
        owned = self.pool.close()
        if owned is None:
            return
        if self._keeper is not None and not self.is_up:
            # It opens again with its next use, which must not be kept from it.
            self.breaker = CircuitBreaker()
        self.tell_watchers()
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
        """Keep no idle connection from now on until `close`; what is still asked for is lent."""
        owned, hand_over = self.pool.owned, self.pool.hand_over
        if owned is not None and hand_over is not None:
            hand_over.retire()
            self.spawn(self._keep_none(owned))

    async def _keep_none(self, owned: OwnedPool) -> None:
        while self.pool.owned is owned:
            await owned.shed()
            # Again, for those that come back, and those that were just being made.
            await asyncio.sleep(_SHED_INTERVAL_S)

    # Borrowing and giving back

    def put_back(self, connection: PsycopgConnection) -> None:
        """Give back a connection of `try_acquire` over which nothing was sent: as if it had never been borrowed."""
        self.pool.lendings -= 1
        self.release(connection)

    async def reclaim(self, connection: PsycopgConnection) -> None:
        """Give back a connection in any state: what runs on it is cancelled, an open transaction rolled back.

        Bounded, whatever the server does: a connection that does not come to rest is cut. Raises nothing of its own.
        """
        try:
            await connection.settle()
        except Exception as error:
            # There is nothing that the caller could do about it; the connection is replaced.
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
        """Hand a connection itself to the user, inside the transaction that is open on it."""
        return lend_connection(connection)

    async def is_alive(self, connection: PsycopgConnection, deadline: float | None) -> bool:
        """Ask the server over a connection that was just borrowed."""
        limit = asyncio.get_running_loop().time() + self.settings.check_timeout_s
        try:
            exchange = await connection.exchange((), deadline=limit if deadline is None else min(limit, deadline))
        except BaseException:
            self.discard(connection)
            raise
        return exchange.error is None

    # Connections beside the pool

    def health_check(self) -> HealthCheck:
        """What asks the server how it is, over a connection of its own."""
        return HealthCheck(self)

    async def connect(self, *, observer: ConnectionObserver, purpose: str = "check") -> PsycopgConnection:
        """Connect outside the pool.

        Args:
            observer: Learns how the connection fares.
            purpose: What the server shows it as, behind `asgi-datasource`.

        Raises:
            psycopg.Error: It failed; the text names host, port and reason only.
        """
        return await PsycopgConnection.connect(
            await self._discovery.line_up(),
            observer=observer,
            fallback_application_name=f"{APPLICATION_NAME} {purpose}",
        )

    async def connect_apart(self, *, deadline: float, purpose: str = "check") -> PsycopgConnection:
        """Connect outside the pool, for a question that must not wait in its queue; the caller closes the connection.

        Args:
            deadline: Event-loop time at which it gives up.
            purpose: What the server shows the connection as, behind `asgi-datasource`.

        Raises:
            DataError: CONNECTION: the server could not be reached by the deadline. TENANT: there is no such database.
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
        """A pooled connection turned out to be dead: look at the others, once, in the background."""
        owned = self.pool.owned
        if owned is not None and (self._check is None or self._check.done()):
            self._check = self.spawn(owned.check())

    # Errors

    def error_of(self, exchange: Pipeline, *, is_write: bool) -> DataError:
        """Classify what an exchange failed with."""
        return error_mapping.of_exchange(
            exchange, where=self.label, in_recovery=self.role is Role.REPLICA, is_write=is_write
        )

    def classify(self, error: BaseException, *, is_write: bool) -> DataError:
        """Classify an error of psycopg's."""
        return error_mapping.to_data_error(
            error,
            where=self.label,
            is_broken=isinstance(error, OperationalError) and error.sqlstate is None,
            timed_out=False,
            in_recovery=self.role is Role.REPLICA,
            is_write=is_write,
        )

    # What connections report

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made. Whether the server is what it should be shows once it is asked."""
        self._connections.add(connection)
        self.server_version = connection.pgconn.server_version
        if self.metrics is not None:
            self.metrics.created(self, connection.connect_s)
        self.note_reached()

    def connect_failed(self, error: Error) -> Error:
        """A connection could not be made."""
        clean = type(error)(connect_failure(error, self._target))
        self._discovery.unsettle()
        self.note_failure(clean)
        return clean

    def note_failure(self, error: Error) -> None:
        """An attempt to connect, or to find its server, has failed."""
        self._connect_error = error
        if not self._proven:
            self._mark_down(str(error))
            # Nothing can be connected: whoever waits for a connection need not wait any longer.
            if self.pool.hand_over is not None:
                self.pool.hand_over.give_up()

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._proven.discard(connection)
        if was_lost:
            self._discovery.unsettle()
        if was_lost and not connection.is_lent:
            if self.pool.hand_over is not None and isinstance(connection, PsycopgConnection):
                self.pool.hand_over.forget(connection)
            self.suspect()

    def went_silent(self) -> None:
        """The server does not answer: what lies in the pool is of no use either."""
        self._discovery.unsettle()
        self._mark_down(f"{self.address}:{self.port}: no answer")
        # At a replica reads alone wait: each may still be answered by another server in time.
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
            # Jitter, so that the processes of a service do not all knock at once.
            pause_s = self._pauses.pause_s(self.breaker.failures, random.random())  # noqa: S311 - not for security
            self._is_wanted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._is_wanted.wait()
            if self.is_up or await self._discovery.seek():
                break
        # The pool has given up replacing connections, or waits for its next attempt: let it begin now.
        await owned.check()

    async def await_trial(self, timeout_s: float) -> None:
        """It is down: nothing is sent there but one attempt at a time, and whoever has come to ask waits for its end.

        Raises:
            DataError: CONNECTION: it is down still.
        """
        now = asyncio.get_running_loop().time()
        if not self._discovery.is_searching:
            # After the pause, also where it has just been tried: it may have come up since.
            await asyncio.sleep(min(timeout_s, self._discovery.searched_at + _TRIAL_PAUSE_S - now))
        if not self.pool.is_open:
            raise DataError(DataErrorKind.CONNECTION, f"{self.label}: the pool is closed")
        if self.is_up or await self._discovery.seek(deadline=now + timeout_s):
            return
        error = self._connect_error
        if error is not None and not self._proven:
            raise self._no_connection_error(timeout_s, 0) from error
        raise DataError(DataErrorKind.CONNECTION, f"{self.full_name}: cannot connect to {self.last_error}") from error

    # Which server it is

    def search_begins(self) -> None:
        """Its hosts are about to be asked."""
        if not self.is_up:
            self.note(Event.TRIAL)

    def search_ends(self) -> None:
        """They have been, or that was cut short."""
        if self.breaker.health is Health.HALF_OPEN:
            self.note(Event.FAILED)

    def arrived(self, address: tuple[str, int]) -> None:
        """A server was asked, and is what this one stands for."""
        self._connect_error = None
        if self._discovery.has_several_hosts and address != (self.address, self.port):
            self.move_to(*address)
        self.note_up()

    def cut_left_behind(self, *, is_other: bool) -> None:
        """Another server has taken the place of the one before: nothing may be written there any more."""
        for connection in list(self._connections):
            its = connection.timeline if isinstance(connection, PsycopgConnection) else 0
            if its and (is_other or its < self.timeline):
                connection.cut("a failover has put another server in the place of this one")

    def hear_of(self, timeline: int) -> None:
        """Somebody has seen this timeline: look in the background for the primary that writes it."""
        if self._discovery.hear_of(timeline):
            self._is_wanted.set()

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """Somebody has seen this timeline: look for the primary that writes it. Raises nothing.

        Args:
            timeline: What was seen.
            deadline: Event-loop time at which waiting for the answer ends.
        """
        await self._discovery.look_for(timeline, deadline=deadline)

    def refused_write(self, connection: PsycopgConnection) -> None:
        """A server that should be the primary has refused a write as one that is none: look anew which one is.

        Where the server does not say that it takes no writes, the refusal was the statement's own fault.
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
        """Learn what holds for a new connection before it is lent, and whether it leads to the right server."""
        exchange = await self._discovery.ask(connection)
        if exchange.error is not None:
            await connection.close()
            error = OperationalError(str(exchange.error))
            if exchange.is_lost or exchange.timed_out:
                raise self.connect_failed(error)
            # The server is there; who waits in vain learns why.
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
            # In transaction mode a statement that is prepared on one server connection is not there on the next.
            self.prepares = False
            logger.warning(
                "%s: there is a pooler in between, which the configuration does not say; statements are not prepared"
                " from now on. Set pool.pooler: transaction where it gives each transaction another connection",
                self.label,
            )
        # The question names pg_settings, which could be an UPDATE of them; it is none.
        connection.needs_reset = False

    def no_connection(self, error: BaseException, timeout_s: float, waiting: int) -> DataError | None:
        """The error of a caller who got no connection; None where another attempt may still reach the server."""
        told = self._no_connection_error(timeout_s, waiting)
        if isinstance(error, GaveUp) and self.role is Role.PRIMARY and told.kind is not DataErrorKind.TENANT:
            # No other server can stand in for it, and it may have been one attempt that was lost: there is a next one.
            return None
        told.__cause__ = self._connect_error
        return told

    def _no_connection_error(self, timeout_s: float, waiting: int) -> DataError:
        reason = self._connect_error
        if self._keeper is not None and not self.was_reached and is_unknown_database(reason, self.dbname):
            # A database for each tenant, and none for this one.
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
    """Say once in the life of the process when psycopg has no C parts to work with.

    Args:
        implementation: psycopg's name for how it talks to libpq.
    """
    if implementation == "python":
        logger.warning(
            "psycopg runs without its C parts, at a fraction of their speed: install psycopg[binary] or psycopg[c]"
        )


def _end_now(scopes: set[asyncio.Timeout]) -> None:
    now = asyncio.get_running_loop().time()
    while scopes:
        # Out of the set, for one that is ending cannot be ended again.
        scopes.pop().reschedule(now)
