"""A psycopg connection whose hot path drives libpq's pipeline itself: one `exchange`, one round trip.

The event loop watches the socket for as long as the connection is idle or ours: that saves two system calls an
exchange, and a connection that dies in the pool is noticed at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from psycopg import AsyncConnection, InterfaceError, OperationalError, ProgrammingError, waiting
from psycopg import errors as e
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import ConnStatus, TransactionStatus

from .pipeline import COPY_REFUSED, Command, Flight
from .query import MAX_CACHED_LENGTH, MAX_PARAMS, Statement, convert
from .result import Exchange
from .statements import StatementCache

if TYPE_CHECKING:
    from typing import Self

    from psycopg import abc
    from psycopg.abc import RV, PQGen

    from .view import ConnectionView

_BAD: Final = int(ConnStatus.BAD)
_IDLE: Final = int(TransactionStatus.IDLE)
_INTRANS: Final = int(TransactionStatus.INTRANS)
_INERROR: Final = int(TransactionStatus.INERROR)

_FORMATTING_SETTINGS: Final = (b"TimeZone", b"DateStyle", b"IntervalStyle", b"client_encoding")
"""Settings that psycopg's adapters read when they are made."""

CANCEL_LIMIT_S: Final = 1.0
"""Seconds that cancelling a statement may take, up to the pipeline's Sync; then the socket is cut."""

ROLLBACK: Final = Statement("rollback", prepare=False)
DISCARD: Final = Statement("discard all", prepare=False)

_WAIT_INTERVAL_S: Final = 0.1


class ConnectionObserver(Protocol):
    """Who wants to know how the connections of a server fare: its endpoint."""

    check_limit_s: float
    """Seconds that a command of the pool's own may take."""
    prepares: bool
    """Whether statements are prepared on the server."""

    def opened(self, connection: Connection) -> None:
        """It is connected."""

    def failed(self, error: BaseException) -> BaseException:
        """It could not be connected; returns the error to raise, without secrets."""
        ...

    def closed(self, connection: Connection) -> None:
        """It is gone, closed or lost."""

    def went_silent(self) -> None:
        """The server did not even answer a cancel request."""


class _WatchedAdapters(AdaptersMap):
    """An adapters map that counts what is registered, so that its connection notices."""

    changes: int = 0

    def register_dumper(self, cls: Any, dumper: Any) -> None:
        super().register_dumper(cls, dumper)
        self.changes += 1

    def register_loader(self, oid: Any, loader: Any) -> None:
        super().register_loader(oid, loader)
        self.changes += 1


class Connection(AsyncConnection[Any]):
    """One connection of a pool: in autocommit mode, BEGIN and COMMIT are statements like others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop = asyncio.get_running_loop()
        self._fd = self.pgconn.socket
        self._observer: ConnectionObserver | None = None
        self._flight: Flight | None = None
        self._flights = 0
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_watched = False
        self._is_writing = False
        self._is_dropped = False
        self._foreign_waits = 0
        self._foreign_end: asyncio.Future[None] | None = None
        self._prepares = True
        self._adapter_changes = 0
        self._formatting: tuple[bytes | None, ...] = ()
        self.has_changed_schema = False
        """A statement of the open transaction created, changed or dropped something."""
        self.plans = StatementCache()
        self.server_version = self.pgconn.server_version
        """As libpq reports it: 180004."""
        self.transformer: abc.Transformer
        """Converts parameters and rows; kept while adapters and settings stay the same, its caches save much."""

    @classmethod
    async def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, observer: ConnectionObserver | None = None, **kwargs: Any
    ) -> Self:
        """Connect; the observer learns of the outcome.

        Raises:
            psycopg.OperationalError: It failed; the text names host, port and reason only.
        """
        try:
            connection = await super().connect(conninfo, autocommit=True, prepare_threshold=None, **kwargs)
        except e.Error as error:
            if observer is None:
                raise
            raise observer.failed(error) from None
        connection._refresh_transformer()
        connection._observer = observer
        if observer is not None:
            connection._prepares = observer.prepares
            observer.opened(connection)
        connection._watch()
        return connection

    # What the session layer asks

    @property
    def transaction_status(self) -> TransactionStatus:
        """Where the server's transaction stands, as of its last answer."""
        return TransactionStatus(self.pgconn.transaction_status)

    @property
    def is_usable(self) -> bool:
        """Whether it is open and nothing is under way on it."""
        return self.pgconn.status != _BAD and self._flight is None and not self._foreign_waits

    @property
    def is_pooled(self) -> bool:
        """Whether it lies in the pool, lent to nobody."""
        return getattr(self, "_pool", None) is None

    @property
    def is_idle(self) -> bool:
        """Outside any transaction."""
        return self.pgconn.transaction_status == _IDLE

    @property
    def is_in_transaction(self) -> bool:
        """Inside a transaction that can go on."""
        return self.pgconn.transaction_status == _INTRANS

    @property
    def has_failed_transaction(self) -> bool:
        """Inside a transaction that only a rollback can end."""
        return self.pgconn.transaction_status == _INERROR

    @property
    def in_recovery(self) -> bool | None:
        """Whether the server said that it is a hot standby; None for servers that do not say (before 14)."""
        if self.pgconn.status == _BAD:
            return None
        state = self.pgconn.parameter_status(b"in_hot_standby")
        return None if state is None else state == b"on"

    @property
    def adapters(self) -> _WatchedAdapters:
        """The adapters of this connection; what is registered here counts from the next exchange on."""
        adapters = self._adapters
        if not isinstance(adapters, _WatchedAdapters):
            self._adapters = adapters = _WatchedAdapters(super().adapters)
        return adapters

    # The hot path

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> Exchange:
        """Send statements and one Sync, and collect their results: one round trip.

        Outside a transaction they are one implicit transaction, which ends at the Sync. Errors of the server and of
        the connection are not raised: they are in the answer, beside what arrived before them.

        Args:
            statements: What to send; may be empty, to hear whether the server is there.
            deadline: Event-loop time at which the server is asked to cancel. A server that does not react within
                `CANCEL_LIMIT_S` is cut off.
            flush_after: Index of a statement whose answer the server is asked to send at once. An answer that the
                server still buffers is lost with the connection.

        Raises:
            psycopg.Error, TypeError, ...: A mistake of the caller's, as psycopg's cursor raises it for the same
                statement; nothing was sent.
            asyncio.CancelledError: What was sent is still under way: hand the connection to `Endpoint.reclaim`.
        """
        if self._flight is not None or self._foreign_waits:
            raise InterfaceError("another task is using this connection; a connection serves one task at a time")
        flight = Flight(self, self._to_commands(statements))
        exchange = flight.exchange
        try:
            flight.send(flush_after)
            is_pending = self.pgconn.flush()
        except e.Error as error:
            flight.lose(error)
            exchange.failed_at = None
            self._drop()
            return exchange
        self._flight = flight
        if not self._is_watched:
            self._watch()
        if is_pending:
            self._loop.add_writer(self._fd, self._on_writable)
            self._is_writing = True
        if deadline is not None:
            self._set_deadline(deadline)
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            # When cancelled, what still arrives is collected, for nobody.
            self._waiter = None
        if self._flight is flight:
            await self._stop(flight)
            exchange.timed_out = exchange.error is not None
        return exchange

    def count_flight(self) -> int:
        """A number for the pipeline that is about to leave."""
        self._flights += 1
        return self._flights

    def _to_commands(self, statements: Sequence[Statement]) -> list[Command]:
        if self.adapters.changes != self._adapter_changes:
            self._refresh_transformer()
        transformer = self.transformer
        commands: list[Command] = []
        for statement in statements:
            params = statement.params
            converted = convert(statement.query, transformer, has_params=params is not None)
            if converted.is_client_copy:
                raise ProgrammingError(COPY_REFUSED)
            text = converted.text
            if params is None or not converted.formats:
                if params is not None:
                    converted.order(params)
                values = formats = None
                types: tuple[int, ...] = ()
            else:
                values = transformer.dump_sequence(converted.order(params), converted.formats)
                types = transformer.types or ()
                formats = transformer.formats
                if len(values) > MAX_PARAMS:
                    raise OperationalError(
                        f"sending query and params failed: number of parameters must be between 0 and {MAX_PARAMS}"
                    )
            plan = None
            prepare = statement.prepare
            if prepare is not False and self._prepares and (prepare or len(text) <= MAX_CACHED_LENGTH):
                plan = self.plans.plan(text, types, at_once=prepare is True)
                if plan.name is None:
                    plan = None
            commands.append((text, values, types, formats, plan))
        return commands

    def _on_readable(self) -> None:
        pgconn = self.pgconn
        flight = self._flight
        try:
            pgconn.consume_input()
            if flight is None:
                # Idle: a notice, a notification, a changed parameter; or the server's farewell.
                pgconn.is_busy()
                self._refresh_transformer()
            elif flight.receive():
                self._land()
        except e.Error as error:
            self._lose(error)
            return
        notification = pgconn.notifies()
        while notification is not None:
            if pgconn.notify_handler:
                pgconn.notify_handler(notification)
            notification = pgconn.notifies()

    def _on_writable(self) -> None:
        try:
            if self.pgconn.flush():
                return
        except e.Error:
            # What the server said before it closed is still to be read; the reader notices the end.
            pass
        self._stop_writing()

    def _land(self) -> None:
        """The last Sync has arrived: back to an ordinary psycopg connection."""
        self.pgconn.exit_pipeline_mode()
        flight = self._flight
        self._flight = None
        self._deadline = None
        if self._refresh_transformer() and flight is not None:
            # Rows are read by the settings they were sent with.
            for result in flight.exchange.results:
                if result is not None:
                    result.transformer = self.transformer
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _lose(self, cause: BaseException) -> None:
        """The connection is gone."""
        flight = self._flight
        if flight is not None:
            self._flight = None
            self._deadline = None
            flight.lose(cause)
        self._drop()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _drop(self) -> None:
        """Free what a connection that cannot be used any more still holds."""
        self._is_dropped = True
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._foreign_waits:
            # psycopg's own wait would find its descriptor gone; it ends by itself, then the connection is closed.
            self.pgconn.finish()
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.closed(self)

    def _refresh_transformer(self) -> bool:
        """Make a new transformer if a setting or an adapter that psycopg's adapters depend on has changed."""
        pgconn = self.pgconn
        status = pgconn.parameter_status
        formatting = (status(b"TimeZone"), status(b"DateStyle"), status(b"IntervalStyle"), status(b"client_encoding"))
        changes = self.adapters.changes
        if formatting == self._formatting and changes == self._adapter_changes:
            return False
        self._formatting = formatting
        self._adapter_changes = changes
        self.transformer = Transformer(self)
        return True

    # Watching the socket

    def _watch(self) -> None:
        if not self._is_watched and self.pgconn.status != _BAD:
            self._loop.add_reader(self._fd, self._on_readable)
            self._is_watched = True

    def _unwatch(self) -> None:
        # Before the descriptor is closed: the next connection may get the same number.
        self._stop_writing()
        if self._is_watched:
            self._is_watched = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            if not self._loop.is_closed():
                self._loop.remove_writer(self._fd)

    # Deadlines and stopping

    def _set_deadline(self, deadline: float) -> None:
        # A timer that comes too early sets itself anew. So hardly an exchange needs one of its own: the timer of one
        # long past serves the next, thousands of times.
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        # A millisecond's grace: uvloop's clock has no finer steps.
        if self._loop.time() < deadline - 0.001:
            self._set_deadline(deadline)
            return
        self._deadline = None
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _stop(self, flight: Flight) -> None:
        """End what is under way: cancel it on the server and wait for the Sync, or cut."""
        started = time.monotonic()
        is_answered = await self.cancel_on_server(CANCEL_LIMIT_S)
        left_s = max(0.1, CANCEL_LIMIT_S - (time.monotonic() - started))
        if self._flight is flight and is_answered:
            await self._await_landing(left_s)
        if self._flight is flight:
            self._on_readable()
        if self._flight is flight:
            self.cut("the server did not stop the statement in time")
        elif not is_answered:
            # The request may still be on its way, and would cancel a stranger's statement.
            self._lose(OperationalError("the connection was closed after a cancel request without an answer"))

    async def cancel_on_server(self, limit_s: float) -> bool:
        """Ask the server to cancel what this connection runs.

        Returns:
            Whether the server has taken the request within `limit_s`.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self.cancel_safe(timeout=limit_s)
        except (e.Error, TimeoutError, OSError):
            if self._observer is not None:
                self._observer.went_silent()
            return False
        return True

    async def _await_landing(self, limit_s: float) -> None:
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(limit_s, _resolve, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            timer.cancel()

    async def settle(self, *, limit_s: float = CANCEL_LIMIT_S, reset: bool = False) -> bool:
        """Bring a connection in any state back to idle: cancel, drain to the Sync, roll back. Otherwise cut it.

        Args:
            limit_s: Seconds for the rollback, and for the reset.
            reset: Also discard what outlives a transaction: settings, temporary tables, prepared statements, locks.

        Returns:
            Whether it can be used again.
        """
        if self._foreign_waits:
            await self._end_foreign_waits()
        flight = self._flight
        if flight is not None:
            await self._stop(flight)
        if self.pgconn.status == _BAD:
            self._lose(OperationalError("the connection is closed"))
            return False
        if self.pgconn.pipeline_status or self.pgconn.transaction_status not in (_IDLE, _INTRANS, _INERROR):
            # psycopg was left in the middle of a pipeline or of a COPY: there is no safe way out.
            self.cut("the connection was left in the middle of an operation")
            return False
        if self.pgconn.transaction_status != _IDLE:
            await self.exchange((ROLLBACK,), deadline=self._loop.time() + limit_s)
        if reset and self.pgconn.status != _BAD and self.is_idle:
            outcome = await self.exchange((DISCARD,), deadline=self._loop.time() + limit_s)
            if outcome.error is not None and not outcome.is_lost:
                self.cut("the connection could not be reset")
        if self.pgconn.status == _BAD:
            return False
        if not self.is_idle:
            self.cut("the transaction could not be rolled back")
            return False
        return True

    def cut(self, reason: str) -> None:
        """Close the connection at once, without waiting for anybody; whoever waits on it learns `reason`."""
        if self.pgconn.status != _BAD:
            shut_down(self.pgconn.socket)
        self._lose(OperationalError(f"the connection was cut: {reason}"))

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._lose(OperationalError("the connection is closed"))

    # psycopg's own operations: those of the pool here, those of the user through `view`

    def view(self) -> ConnectionView:
        """This connection as an ordinary psycopg one, for as long as its user may have it."""
        from .view import ConnectionView

        return ConnectionView(self)

    async def wait(self, gen: PQGen[RV], interval: float = _WAIT_INTERVAL_S, timeout: float | None = None) -> RV:
        """Run one of psycopg's own operations, those of the pool: bounded, whatever the server does."""
        limit_s = timeout
        if limit_s is None:
            limit_s = self._observer.check_limit_s if self._observer is not None else 10.0
        try:
            async with asyncio.timeout(limit_s):
                return await self.wait_foreign(gen)
        except TimeoutError:
            self.cut(f"no answer within {limit_s:.1f} s")
            raise OperationalError(f"the server did not answer within {limit_s:.1f} s") from None
        except asyncio.CancelledError:
            self.cut("the operation was cancelled")
            raise

    async def wait_foreign(self, gen: PQGen[RV]) -> RV:
        """Run one of psycopg's own operations; the socket is psycopg's meanwhile.

        When cancelled, what was sent is still under way.
        """
        if self._flight is not None:
            raise InterfaceError("another task is using this connection; a connection serves one task at a time")
        self._unwatch()
        self._foreign_waits += 1
        try:
            return await waiting.wait_async(gen, self._fd, interval=_WAIT_INTERVAL_S)
        finally:
            self._foreign_waits -= 1
            if not self._foreign_waits:
                if self._foreign_end is not None:
                    _resolve(self._foreign_end)
                if self.pgconn.status == _BAD or self._is_dropped:
                    self._drop()
                else:
                    self._refresh_transformer()
                    self._watch()

    async def _end_foreign_waits(self) -> None:
        """A task still waits in one of psycopg's operations: make it end."""
        if await self.cancel_on_server(CANCEL_LIMIT_S) and await self._foreign_waits_ended(CANCEL_LIMIT_S):
            return
        shut_down(self._fd)
        await self._foreign_waits_ended(CANCEL_LIMIT_S)

    async def _foreign_waits_ended(self, limit_s: float) -> bool:
        if self._foreign_waits:
            self._foreign_end = end = self._loop.create_future()
            await asyncio.wait((end,), timeout=limit_s)
            self._foreign_end = None
        return not self._foreign_waits


def shut_down(fd: int) -> None:
    """Shut a socket down under its owner, who finds the stream ended. Closing it would free its number for others."""
    try:
        with socket.socket(fileno=os.dup(fd)) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It was not connected any more.
        return


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
