"""One server of a datasource: its pool, and the connections outside it."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from inspect import isawaitable
from typing import Final

from psycopg import Error, OperationalError, pq

from ...errors import DataError, DataErrorKind
from ...routing import CircuitBreaker, Role
from ..protocol import PoolKeeper
from ..settings import ServerSettings
from . import error_mapping
from .borrowed_connection import BorrowedConnection
from .borrowed_connection import lend as lend_connection
from .connection import PsycopgConnection
from .health_check import HealthCheck
from .owned_pool import OwnedPool
from .pipeline import Pipeline
from .pool import Pool
from .read_sharing import ReadShare
from .server_health import ServerHealth
from .settings import APPLICATION_NAME, connect_failure, is_unknown_database, resolve, without_location
from .socket import ConnectGivenUp, ConnectionObserver
from .tenant_types import check_types
from .transaction_settings import is_behind_pooler, read_role, read_timeouts

logger = logging.getLogger("asgi_datasource.server")

_STALE_TYPES: Final = ("42704", "42804", "XX000")
"""SQLSTATEs of a type that was dropped or changed: undefined object, wrong type, no such OID."""

_CLOSE_GRACE_S: Final = 1.0
_SHED_INTERVAL_S: Final = 0.5


class PsycopgServer(ServerHealth):
    """One server: lends connections, and takes them back.

    Each new connection is checked: its timeouts, and whether it leads to the right server (`primary_discovery.py`).
    """

    identifies_writes = True

    def __init__(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> None:
        target = resolve(settings, where=f"datasource {datasource!r}, server {name!r}")
        super().__init__(name, datasource, role, settings, target=target, keeper=keeper)
        check_types(settings.types)
        self.pool = Pool(self, settings, keeper)
        self.try_acquire = self.pool.try_borrow
        """Borrow an idle connection; None where the caller would have to wait or to queue."""
        self.acquire = self.pool.borrow
        """Borrow a connection, outside any transaction; arguments and errors as in `drivers.protocol.Server`."""
        self.release = self.pool.give
        """Return an idle connection. Never waits, so that a cancellation cannot interrupt it."""

    @property
    def lendings(self) -> int:
        """Number of times a connection was borrowed since the pool was opened."""
        return self.pool.lendings

    @property
    def size(self) -> int:
        """Number of connections, including those that are being made."""
        return self.pool.size

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        use = f"{self.borrowed} of {self.settings.max_size} borrowed"
        return f"<Server {self.label} {self.role.value} {state}, {use}>"

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
        try:
            await owned.close(timeout=timeout_s)
        finally:
            # At the end of an event loop, the tasks of psycopg_pool are cancelled, and this wait with them.
            for connection in list(self._connections):
                connection.cut("the pool was closed")
        tasks = [task for task in self._tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_GRACE_S)
            for task in tasks:
                task.cancel()

    def abandon(self) -> None:
        """The event loop in which the pool was opened is closed: close the connections, and the pool, without it."""
        self.pool.abandon()
        self.forget_loop()

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

    def put_back(self, connection: PsycopgConnection | ReadShare) -> None:
        """Return a connection of `try_acquire` on which nothing was sent, without counting it as borrowed."""
        self.pool.lendings -= 1
        self.release(connection)

    async def reclaim(self, connection: PsycopgConnection | ReadShare) -> None:
        """Return a connection in any state: cancel what runs on it, and roll back an open transaction.

        Takes bounded time: a connection that does not become idle is cut. Raises nothing itself. While other reads
        share it, nothing is cancelled: the answer to the caller's read is dropped.
        """
        if isinstance(connection, ReadShare) or not connection.stop_sharing():
            self.release(connection)
            return
        try:
            await connection.settle()
        except Exception as error:
            # The caller cannot do anything about it; the connection is replaced.
            logger.warning("%s: a connection did not become idle", self.label, exc_info=error)
            connection.cut("it did not become idle")
        except BaseException:
            connection.cut("giving it back was interrupted")
            raise
        finally:
            self.release(connection)

    def discard(self, connection: PsycopgConnection | ReadShare) -> None:
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
        connection = await PsycopgConnection.connect(
            await self._discovery.line_up(),
            observer=observer,
            fallback_application_name=f"{APPLICATION_NAME} {purpose}",
        )
        self._apart.add(connection)
        return connection

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
            raise self.error(DataErrorKind.CONNECTION, f"cannot connect: {without_location(reason)}") from error

    # Errors

    def error_of(self, exchange: Pipeline, *, is_write: bool) -> DataError:
        """Classify the error of an exchange."""
        if self.pool.types is not None and getattr(exchange.error, "sqlstate", None) in _STALE_TYPES:
            self.pool.types.forget()
        return error_mapping.of_exchange(
            exchange,
            where=self.full_name,
            server=self.location,
            in_recovery=self.role is Role.REPLICA,
            is_write=is_write,
        )

    def mistake_of(self, error: Exception) -> DataError:
        """What an exchange has raised, nothing having been sent."""
        return error_mapping.of_mistake(error, where=self.full_name, server=self.location)

    def classify(self, error: BaseException, *, is_write: bool) -> DataError:
        """Classify an error of psycopg."""
        return error_mapping.to_data_error(
            error,
            where=self.full_name,
            server=self.location,
            is_broken=isinstance(error, OperationalError) and error.sqlstate is None,
            timed_out=False,
            in_recovery=self.role is Role.REPLICA,
            is_write=is_write,
        )

    # The pool

    async def _configure(self, connection: PsycopgConnection) -> None:
        """Check a new connection before it is lent: its timeouts, and whether it leads to the right server."""
        exchange = await self._discovery.ask(connection)
        if exchange.error is not None:
            await connection.close()
            if not self.pool.is_open:
                raise ConnectGivenUp
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
        if self.configurers:
            await self._run_configurers(connection)
        if not connection.closed:
            self._proven.add(connection)
        connection.settings.timeouts = read_timeouts(exchange)
        connection.reset.role = read_role(exchange).encode(connection.transformer.encoding)
        if is_behind_pooler(exchange, connection.backend_pid):
            connection.incarnation = connection.leads_to = None
        self._note_servers()
        if not self.is_pooled and self.prepares and is_behind_pooler(exchange, connection.backend_pid):
            # In transaction mode, a statement prepared on one server connection does not exist on the next.
            self.prepares = False
            self.shares_sessions = True
            self.pool.share_sessions()
            logger.warning(
                "%s: there is a pooler in between, which the configuration does not say; statements are not prepared"
                " from now on. Set pool.pooler: transaction where it gives each transaction another connection",
                self.label,
            )

    async def _run_configurers(self, connection: PsycopgConnection) -> None:
        """Run what `registry.configure` has registered."""
        for configure in self.configurers:
            name = getattr(configure, "__qualname__", type(configure).__name__)
            try:
                outcome = configure(connection)
                if isawaitable(outcome):
                    await outcome
            except Exception as error:
                await connection.close()
                logger.exception("%s: %s of registry.configure() has failed", self.label, name)
                self._connect_error = OperationalError(
                    f"{name} of registry.configure() has failed: {type(error).__name__}"
                )
                raise self._connect_error from None
            if not connection.is_idle:
                await connection.close()
                self._connect_error = OperationalError(f"{name} of registry.configure() left a transaction open")
                raise self._connect_error


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
