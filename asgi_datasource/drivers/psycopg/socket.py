"""A psycopg connection whose socket the event loop watches as long as it is open.

A permanent watch saves two system calls for each exchange, and detects at once when an idle connection dies. During
psycopg's own operations the socket belongs to psycopg.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Protocol

from psycopg import AsyncConnection, InterfaceError, OperationalError, abc, waiting
from psycopg import errors as e
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import ConnStatus, TransactionStatus

from .tenant_types import TenantTypes, TypeContext

if TYPE_CHECKING:
    from typing import Self

    from psycopg.abc import RV, PQGen

BAD: Final = int(ConnStatus.BAD)
_ACTIVE: Final = int(TransactionStatus.ACTIVE)

CANCEL_LIMIT_S: Final = 1.0
"""Seconds for cancelling a statement, including the rest of its answer; then the connection is cut."""

IN_USE: Final = "another task is using this connection; a connection serves one task at a time"

MAX_TRANSFORMERS: Final = 256
"""Tenants with types of their own whose transformers a connection keeps."""


class ConnectGivenUp(OperationalError):
    """The pool was closed while it connected: nothing has failed."""

    def __init__(self) -> None:
        super().__init__("connecting was given up")


_DEFAULT_CHECK_LIMIT_S: Final = 10.0


class ConnectionObserver(Protocol):
    """The server that observes its connections."""

    check_limit_s: float
    """Timeout of the pool's own commands in seconds."""
    prepares: bool
    """Whether statements are prepared on the server."""
    is_pooled: bool
    """Whether the configuration names a pooler that gives each transaction another server connection."""
    shares_sessions: bool
    """Whether a pooler in between gives each transaction another server connection, named or detected."""
    attempts: set[asyncio.Timeout]
    """Connects in progress; rescheduling one ends it."""

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made."""

    def connect_failed(self, error: e.Error) -> e.Error:
        """A connect has failed; returns the error to raise, without secrets."""
        ...

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """A connection has ended: closed by the client, or lost."""

    def went_silent(self) -> None:
        """The server did not answer a cancel request."""


class Receiver(Protocol):
    """Reads what arrives on the socket."""

    def receive(self) -> bool:
        """Read what has arrived; returns whether that was all."""
        ...


class _CountingAdapters(AdaptersMap):
    """An adapters map that counts registrations, so that its connection notices them."""

    changes: int = 0

    def register_dumper(self, cls: Any, dumper: Any) -> None:
        super().register_dumper(cls, dumper)
        self.changes += 1

    def register_loader(self, oid: Any, loader: Any) -> None:
        super().register_loader(oid, loader)
        self.changes += 1


class WatchedSocket(AsyncConnection[Any]):
    """Owns the socket: who reads it, and what happens when it ends."""

    was_cut = False
    """`cut` was called: it did not end by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop = asyncio.get_running_loop()
        # Our own descriptor of the socket: libpq closes its descriptor at the end of the stream, and an event loop that
        # still watches a closed one can neither stop, nor watch the next connection with the same number.
        self._fd = os.dup(self.pgconn.socket)
        self._has_fd = True
        self._pid = os.getpid()
        self._observer: ConnectionObserver | None = None
        self._receiver: Receiver | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_watched = False
        self._is_writing = False
        self._is_gone = False
        self._farewell: e.Error | None = None
        """Why the connection has ended, for later users."""
        self._loans = 0
        self._was_psycopgs = False
        self._foreign_waits = 0
        self._foreign_end: asyncio.Future[None] | None = None
        self._cancel_request: asyncio.Task[bool] | None = None
        self._adapter_changes = 0
        self._counting_adapters: _CountingAdapters
        self._formatting: tuple[bytes | None, ...] = ()
        self.is_lent = False
        """Borrowed: outside its pool."""
        self.connect_s = 0.0
        """Duration of the connect in seconds."""
        self.connected_at = 0.0
        """Event-loop time at which it was made."""
        self.when_gone: Callable[[], None] | None = None
        """Called once when the connection ends, for tasks that wait for notifications."""
        self.add_notice_handler(self._note_farewell)
        # Without a handler, psycopg would collect notifications for `notifies()`, which no code calls here.
        self.add_notify_handler(_drop_notification)
        self._types: TenantTypes | None = None
        self._transformers: dict[TenantTypes, tuple[abc.Transformer, AdaptersMap]] = {}
        """The transformers of tenants with types of their own, and their adapters."""
        self.transformer: abc.Transformer
        """Converts parameters and rows; kept while adapters and settings stay the same, for its caches."""

    @classmethod
    async def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        observer: ConnectionObserver | None = None,
        line_up: Callable[[], Awaitable[str]] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Connect; the observer is told the outcome.

        Args:
            conninfo: The connection string.
            observer: Observes the connection.
            line_up: Called for this attempt's connection string, instead of `conninfo`.
            kwargs: More parameters, as psycopg takes them.

        Raises:
            psycopg.Error: It failed; with an observer, the text names host, port and reason only.
        """
        if observer is None:
            return await cls._connect_watched(conninfo, kwargs)
        scope = asyncio.timeout(None)
        began = asyncio.get_running_loop().time()
        observer.attempts.add(scope)
        connection: Self | None = None
        failure: e.Error = ConnectGivenUp()
        try:
            async with scope:
                if line_up is not None:
                    conninfo = await line_up()
                connection = await cls._connect_watched(conninfo, kwargs)
        except TimeoutError:
            pass
        except e.Error as error:
            failure = observer.connect_failed(error)
        finally:
            observer.attempts.discard(scope)
        if connection is None:
            # Raised here, without a context: that would refer to the attempt's socket and password.
            raise failure
        connection._observer = observer
        connection.connected_at = connection._loop.time()
        connection.connect_s = connection.connected_at - began
        observer.connected(connection)
        return connection

    @classmethod
    async def _connect_watched(cls, conninfo: str, kwargs: dict[str, Any]) -> Self:
        try:
            connection = await super().connect(conninfo, autocommit=True, prepare_threshold=None, **kwargs)
        except asyncio.CancelledError as error:
            # The attempt's frames refer to its socket, and a task keeps the error that it ended with: the server would
            # wait for our password, and a standby does not go on replaying DROP DATABASE while it waits.
            raise error.with_traceback(None) from None
        connection.refresh_transformer()
        connection._watch()
        return connection

    @property
    def is_usable(self) -> bool:
        """Whether it is open and no round trip is in progress."""
        return self.pgconn.status != BAD and self._receiver is None and not self._foreign_waits

    @property
    def adapters(self) -> _CountingAdapters:
        """The adapters of this connection; registrations apply from the next exchange on."""
        adapters = self._adapters
        if not isinstance(adapters, _CountingAdapters):
            self._adapters = self._counting_adapters = adapters = _CountingAdapters(super().adapters)
        return adapters

    def refresh_transformer(self) -> None:
        """Make a new transformer if an adapter was registered, or a setting that adapters read has changed."""
        status = self.pgconn.parameter_status
        formatting = (status(b"TimeZone"), status(b"DateStyle"), status(b"IntervalStyle"), status(b"client_encoding"))
        changes = self.adapters.changes
        if formatting != self._formatting or changes != self._adapter_changes:
            self._formatting = formatting
            self._adapter_changes = changes
            self._transformers.clear()
            self._choose_transformer()

    def use_types(self, types: TenantTypes | None) -> None:
        """Convert values of these types as well, from the next exchange on."""
        if self._types is not types:
            self._types = types
            self._choose_transformer()

    @property
    def types_in_use(self) -> TenantTypes | None:
        """The types whose values it converts now, beside those of its adapters."""
        return self._types

    @property
    def current_adapters(self) -> AdaptersMap:
        """The adapters of the connection, and those of its tenant's types."""
        found = None if self._types is None else self._transformers.get(self._types)
        return self.adapters if found is None else found[1]

    def _choose_transformer(self) -> None:
        types = self._types
        if types is None:
            self.transformer = Transformer(self)
            return
        found = self._transformers.get(types)
        if found is None:
            if len(self._transformers) >= MAX_TRANSFORMERS:
                self._transformers.clear()
            adapters = types.adapters(self.adapters)
            context: Any = TypeContext(adapters, self)
            found = self._transformers[types] = (Transformer(context), adapters)
        self.transformer = found[0]

    # The socket

    def _watch(self) -> None:
        if not self._is_watched and not self._is_gone:
            # In a context of its own: the request's would be kept, and the request with it, while the socket is idle.
            Context().run(self._loop.add_reader, self._fd, self._on_readable)
            self._is_watched = True

    def _unwatch(self) -> None:
        self._stop_writing()
        if self._is_watched:
            self._is_watched = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def _write_later(self) -> None:
        self._loop.add_writer(self._fd, self._on_writable)
        self._is_writing = True

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            if not self._loop.is_closed():
                self._loop.remove_writer(self._fd)

    def _on_readable(self) -> None:
        pgconn = self.pgconn
        receiver = self._receiver
        try:
            while True:
                pgconn.consume_input()
                if receiver is None:
                    # Idle: a notice, a notification, a changed setting, or the server's reason for closing.
                    pgconn.is_busy()
                    if self._farewell is not None:
                        # The end of the stream follows; until it arrives, libpq takes the connection for a good one.
                        raise self._farewell
                    self.refresh_transformer()
                elif receiver.receive():
                    self._land()
                    break
                if not self._has_hung_up():
                    break
                # uvloop reports a reset connection only once: read to its end now.
        except Exception as error:  # noqa: BLE001 - after any error, no task may go on waiting on this connection
            self._lose(error)
            return
        notification = pgconn.notifies()
        while notification is not None:
            if pgconn.notify_handler:
                pgconn.notify_handler(notification)
            notification = pgconn.notifies()

    def _has_hung_up(self) -> bool:
        """Whether the other side has closed or reset the connection; there may be unread data."""
        poll = select.poll()
        poll.register(self._fd, 0)  # errors and the end of the connection are always reported
        return bool(poll.poll(0))

    def _on_writable(self) -> None:
        try:
            if self.pgconn.flush():
                return
        except e.Error:
            # libpq has read the server's last message, and may have closed its socket: then the event loop will not
            # call the reader again.
            self._on_readable()
            return
        self._stop_writing()

    def _land(self) -> None:
        """The answer is complete: the connection is an ordinary psycopg connection again."""
        raise NotImplementedError

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The end

    def _note_farewell(self, notice: e.Diagnostic) -> None:
        """Outside an exchange, libpq treats the server's reason for closing the connection as a notice."""
        if notice.severity_nonlocalized in ("FATAL", "PANIC"):
            try:
                cls = e.lookup(notice.sqlstate or "")
            except KeyError:
                cls = OperationalError
            self._farewell = cls(notice.message_primary or "")

    @property
    def reason_of_end(self) -> e.Error:
        """The error for later users of the connection: the server's own reason if it sent one."""
        return self._farewell or OperationalError("the connection was lost before it was used again")

    def _lose(self, cause: BaseException) -> None:
        """The connection has ended, or has to end."""
        if self._farewell is None and isinstance(cause, e.Error):
            self._farewell = cause
        self._receiver = None
        self._drop(was_lost=not self._closed)
        self._wake()

    def _drop(self, *, was_lost: bool) -> None:
        """Free the resources of an unusable connection."""
        self._is_gone = True
        self._unwatch()
        if not self._foreign_waits:
            # Otherwise psycopg's wait would use a closed, perhaps reused descriptor: it ends by itself.
            self.pgconn.finish()
            if self._has_fd:
                self._has_fd = False
                os.close(self._fd)
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.disconnected(self, was_lost=was_lost)
        when_gone, self.when_gone = self.when_gone, None
        if when_gone is not None:
            when_gone()

    def cut(self, reason: str) -> None:
        """Close the connection at once, without waiting; tasks that wait on it get `reason`."""
        self.was_cut = True
        if self._has_fd:
            shut_down(self._fd)
        self._lose(OperationalError(f"the connection was cut: {reason}"))

    def abandon(self) -> None:
        """Close a connection whose event loop is closed: nothing of it can be awaited or scheduled any more."""
        self._closed = self._is_gone = True
        self._is_watched = self._is_writing = False
        self._receiver = self._observer = self.when_gone = None
        if self._pid == os.getpid():
            # In a forked process, this would end the parent's session as well.
            self.pgconn.finish()
        if self._has_fd:
            self._has_fd = False
            os.close(self._fd)

    async def close(self) -> None:
        """Close the connection; an operation of psycopg's that waits on it ends."""
        self._closed = True
        if self._foreign_waits and self._has_fd:
            shut_down(self._fd)
        self._lose(OperationalError("the connection is closed"))

    # psycopg's own operations

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Run one of psycopg's own operations for the pool, within bounded time."""
        limit_s = timeout
        if limit_s is None:
            limit_s = _DEFAULT_CHECK_LIMIT_S if self._observer is None else self._observer.check_limit_s
        observer = self._observer
        try:
            async with asyncio.timeout(limit_s):
                return await self.wait_foreign(gen)
        except TimeoutError:
            self.cut(f"no answer within {limit_s:.1f} s")
            if observer is not None:
                observer.went_silent()
            raise OperationalError(f"the server did not answer within {limit_s:.1f} s") from None
        except asyncio.CancelledError:
            self.cut("the operation was cancelled")
            raise

    async def wait_foreign(
        self, gen: PQGen[RV], *, stop_limit_s: float = 0.0, interval_s: float = 0.1, timeout_s: float | None = None
    ) -> RV:
        """Run one of psycopg's own operations.

        Args:
            gen: The operation.
            stop_limit_s: When cancelled, seconds to stop it on the server and read its end, as psycopg does. After a
                second cancellation, or if the server does not stop, it remains in progress.
            interval_s: Seconds between two wake-ups of the operation.
            timeout_s: Seconds after which psycopg's own timeout error is raised; None is no limit.

        Raises:
            psycopg.InterfaceError: Another task is using the connection.
            psycopg.OperationalError: The connection has ended.
        """
        if self._cancel_request is not None and self._receiver is None:
            await self._outlast_cancel()
        if self._is_gone:
            # The number of its socket may belong to another connection by now.
            gen.close()
            raise self.reason_of_end.with_traceback(None)
        if self._receiver is not None:
            gen.close()
            raise InterfaceError(IN_USE)
        self._unwatch()
        self._foreign_waits += 1
        try:
            if timeout_s is None:
                return await waiting.wait_async(gen, self._fd, interval=interval_s)
            return await waiting.wait_async(gen, self._fd, interval=interval_s, timeout=timeout_s)
        except asyncio.CancelledError:
            if stop_limit_s and self.pgconn.transaction_status == _ACTIVE:
                await self._stop_foreign(gen, stop_limit_s)
            raise
        finally:
            self._foreign_waits -= 1
            if not self._foreign_waits:
                self._take_socket_back()

    async def _stop_foreign(self, gen: PQGen[Any], limit_s: float) -> None:
        if not await self.cancel_on_server(limit_s):
            return
        # It usually ends with the error of a cancelled statement; the caller gets the cancellation itself.
        with suppress(e.Error, TimeoutError):
            async with asyncio.timeout(limit_s):
                await waiting.wait_async(gen, self._fd, interval=0.1)

    def _take_socket_back(self) -> None:
        self._was_psycopgs = True
        if self._foreign_end is not None:
            _resolve(self._foreign_end)
        if self.pgconn.status == BAD or self._is_gone:
            self._lose(OperationalError("the connection is closed"))
        else:
            self.refresh_transformer()
            if not self._loans:
                self._watch()

    def lend_socket(self) -> None:
        """Leave the socket to psycopg until `end_loan`: the watch would read the data that psycopg waits for."""
        self._loans += 1
        if self._receiver is None:
            self._unwatch()

    def end_loan(self) -> None:
        """End one use by psycopg."""
        self._loans = max(0, self._loans - 1)
        if not self._loans and not self._foreign_waits:
            self._watch()

    async def foreign_waits_ended(self, limit_s: float) -> bool:
        """Wait until no task waits in one of psycopg's operations.

        Returns:
            Whether that happened within `limit_s`.
        """
        if self._foreign_waits:
            self._foreign_end = end = self._loop.create_future()
            await asyncio.wait((end,), timeout=limit_s)
            self._foreign_end = None
        return not self._foreign_waits

    async def cancel_on_server(self, limit_s: float) -> bool:
        """Ask the server to cancel what runs on this connection.

        Returns:
            Whether the server has taken the request within `limit_s`. If not, the request may arrive late and stop
            another statement.
        """
        request = self._cancel_request
        if request is None:
            request = self._cancel_request = self._loop.create_task(self._request_cancel(limit_s))
        # Shielded from a cancelled caller: an abandoned request could still be on its way.
        is_answered = await asyncio.shield(request)
        self._cancel_request = None
        return is_answered

    async def _outlast_cancel(self) -> None:
        """Wait for a cancel request whose sender was cancelled: it must not stop what is sent next."""
        if not await self.cancel_on_server(CANCEL_LIMIT_S):
            self.cut("a cancel request was not answered")

    async def _request_cancel(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self.cancel_safe(timeout=limit_s)
        except (e.Error, TimeoutError, OSError):
            return False
        return True


def shut_down(fd: int) -> None:
    """Shut a socket down without closing it: its owner sees the end of the stream, and its number is not reused."""
    try:
        with socket.socket(fileno=os.dup(fd)) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        # Not connected any more.
        return


def _drop_notification(_: object) -> None:
    """Notifications of a pooled connection have no recipient."""


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
