"""Base classes for drivers of libraries that run one statement at a time: results, connections, and a pool.

`docs/drivers.md` shows a complete driver built on them.
"""

# ruff: noqa: B027 - what a driver need not do is empty here

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from ..concurrency.fair_queue import TenantQuota
from ..concurrency.priority_queue import Priority
from ..errors import DataError, DataErrorKind, SessionClosed
from ..observability.query_tags import QueryTag
from ..observability.recording import UseRecorder
from ..routing import Observation, Position, Role
from .protocol import PoolKeeper, RowFactory, TenantIdentity
from .server_base import ServerBase
from .settings import ServerSettings
from .statements import Begin, Control, Envelope, Params, Query, Statement

logger = logging.getLogger("asgi_datasource.server")

TRANSACTION_TAGS: Final = frozenset({"BEGIN", "START TRANSACTION", "COMMIT", "END", "ROLLBACK"})


@dataclass(slots=True)
class RowsResult:
    """The result of one statement.

    Attributes:
        status_message: The command tag, as PostgreSQL writes it: `INSERT 0 1`, `COMMIT`.
        rowcount: Rows returned or changed; -1 where that does not apply.
        columns: The names of the columns.
        values: The rows; None for a statement that returns no rows.
    """

    status_message: str | None
    rowcount: int = -1
    columns: tuple[str, ...] = ()
    values: Sequence[tuple[Any, ...]] | None = None

    @property
    def returns_rows(self) -> bool:
        """Whether the statement returns rows, even if there were none."""
        return self.values is not None

    @property
    def ends_transaction(self) -> bool:
        """Whether the statement began or ended a transaction, by its tag."""
        return self.status_message in TRANSACTION_TAGS

    @property
    def description(self) -> list[tuple[Any, ...]]:
        """The columns as in the DB-API (PEP 249): row factories are called with this object as their cursor."""
        return [(name, None, None, None, None, None, None) for name in self.columns]

    def rows(self, row_factory: RowFactory[Any] | None = None) -> list[Any]:
        """All rows; without a factory as dictionaries. Raises TypeError if the statement returns no rows."""
        if row_factory is None:
            return [dict(zip(self.columns, row, strict=True)) for row in self.tuples()]
        make_row = row_factory(self)
        return [make_row(row) for row in self.tuples()]

    def tuples(self) -> list[tuple[Any, ...]]:
        """All rows, each as a tuple."""
        if self.values is None:
            raise TypeError(f"{self.status_message} returns no rows")
        return list(self.values)

    def first(self, row_factory: RowFactory[Any] | None = None) -> Any | None:
        """The first row; None without one."""
        rows = self.rows(row_factory)
        return rows[0] if rows else None

    def scalar(self) -> Any | None:
        """The first column of the first row; None without a row."""
        rows = self.tuples()
        return rows[0][0] if rows else None


@dataclass(slots=True)
class RowsExchange:
    """A completed round trip: statements were run one after the other, up to the first error.

    Attributes:
        answered: A result for each statement that has run, control statements included.
        count: Number of statements to run.
        controls: Indexes of the control statements.
        error: The first error, as the driver's library raises it.
        is_lost: The connection is lost.
        timed_out: The caller's deadline has passed.
    """

    count: int
    controls: frozenset[int]
    answered: list[RowsResult] = field(default_factory=list[RowsResult])
    error: BaseException | None = None
    is_lost: bool = False
    timed_out: bool = False
    is_stale_plan: bool = False
    is_withdrawn: bool = False
    began_at: float | None = None
    has_landed: bool = True

    @property
    def failed_at(self) -> int | None:
        """Index of the statement that failed."""
        return None if self.error is None else len(self.answered)

    @property
    def results(self) -> Sequence[RowsResult | None]:
        """A result for each statement; None for control statements, and for those that did not run."""
        found = [None if at in self.controls else result for at, result in enumerate(self.answered)]
        return found + [None] * (self.count - len(found))

    @property
    def waiter(self) -> asyncio.Future[None]:
        """A resolved future: the round trip is complete."""
        waiter = asyncio.get_running_loop().create_future()
        waiter.set_result(None)
        return waiter

    def take(self, index: int, *, in_transaction: bool) -> RowsResult | None:
        """Always None: it applies to round trips that were sent without waiting."""
        return None

    def answers(self, first: int, count: int) -> Sequence[RowsResult]:
        """The results of a range of statements, all of which succeeded."""
        return self.answered[first : first + count]

    def values(self, index: int) -> Sequence[str | None] | None:
        """The first row of a control statement's answer, as text; None without an answer."""
        rows = self.answered[index].values if self.was_answered(index) else None
        return [None if value is None else str(value) for value in rows[0]] if rows else None

    def value(self, index: int) -> str | None:
        """The first value of a control statement's answer, as text; None without one."""
        values = self.values(index)
        return values[0] if values else None

    def was_answered(self, index: int) -> bool:
        """Whether a statement, control statements included, has run."""
        return index < len(self.answered)

    def tag(self, index: int) -> str | None:
        """The command tag of a statement; None without an answer."""
        return self.answered[index].status_message if self.was_answered(index) else None


class PlainConnection(ABC):
    """A connection that runs statements one after the other.

    A driver implements how one statement runs, and the state of the connection.
    """

    timeline = 0
    backend_pid = 0
    incarnation: str | None = None
    held: Position | None = None
    leads_to: str | None = ""
    use: UseRecorder | None = None
    tag: QueryTag | None = None
    is_shared = False
    began_at: float | None = None
    when_gone: Callable[[], None] | None = None
    errors: tuple[type[Exception], ...] = ()
    """The exception classes of the library for failed statements."""
    has_failed_transaction = False
    is_midway = False
    closed = False
    closing: asyncio.Task[None] | None = None
    """The task that closes the connection after `cut`."""

    # Implemented by a driver

    @property
    @abstractmethod
    def is_in_transaction(self) -> bool:
        """Inside a transaction that has not failed."""

    @abstractmethod
    async def run(self, statement: Statement) -> RowsResult:
        """Run one statement, or the equivalent of a control statement (`ControlKind`)."""

    @abstractmethod
    async def begin(self) -> None:
        """Open a transaction for statements that are sent together."""

    @abstractmethod
    async def commit(self) -> None:
        """Commit that transaction."""

    @abstractmethod
    async def reset(self) -> None:
        """Roll back an open transaction, and reset the session's state."""

    @abstractmethod
    def interrupt(self) -> None:
        """Stop the running statement, without waiting; it then fails with one of `errors`."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the connection."""

    # Provided by this class

    @property
    def is_idle(self) -> bool:
        """Outside any transaction."""
        return not self.closed and not self.is_in_transaction

    @property
    def is_usable(self) -> bool:
        """Whether it can be borrowed again."""
        return self.is_idle

    def send_one(
        self,
        envelope: Envelope,
        settings: tuple[tuple[str, str], ...],
        query: Query,
        params: Params | None,
        *,
        deadline: float | None,
        now: float,
    ) -> None:
        """Always None: `exchange` awaits the whole round trip."""

    def send_controls(self, statements: tuple[Control, ...], *, deadline: float | None) -> None:
        """Always None, as `send_one`."""

    def stop_sharing(self) -> bool:
        """Always true: a connection has one borrower."""
        return True

    async def arrival(self, exchange: Any, /) -> None:
        """Returns at once: the round trip is complete."""

    async def finish(self, exchange: Any, /) -> None:
        """Returns at once: the round trip is complete."""

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> RowsExchange:
        """Run statements up to the first error; outside a transaction they take effect together or not at all."""
        done = RowsExchange(
            len(statements), frozenset(at for at, one in enumerate(statements) if isinstance(one, Control))
        )
        is_whole = self.is_idle and not any(isinstance(one, Begin) for one in statements)
        loop = asyncio.get_running_loop()
        timer = None if deadline is None else loop.call_at(deadline, self._expire, done)
        try:
            if is_whole:
                await self.begin()
            for statement in statements:
                done.answered.append(await self.run(statement))
            if is_whole:
                await self.commit()
        except self.errors as error:
            done.error, done.is_lost = error, self.closed
        finally:
            if timer is not None:
                timer.cancel()
        if is_whole and not self.closed:
            await self.reset()
        return done

    def _expire(self, done: RowsExchange) -> None:
        done.timed_out = True
        self.interrupt()

    async def stop_statement(self) -> None:
        """Close the connection: what its library makes of a statement that was cut short is not known."""
        self.cut("a statement was cancelled")

    def add_notify_handler(self, callback: Callable[[Any], None], /) -> None:
        """Does nothing: there are no notifications."""

    def cut(self, reason: str) -> None:
        """Close the connection without waiting."""
        if not self.closed:
            logger.debug("a connection is closed: %s", reason)
            self.closed = True
            self.interrupt()
            self.closing = asyncio.get_running_loop().create_task(self.disconnect())
            if self.when_gone is not None:
                self.when_gone()

    async def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self.closed = True
            await self.disconnect()


ConnectionT = TypeVar("ConnectionT", bound=PlainConnection)


class PlainServer(ServerBase, ABC, Generic[ConnectionT]):
    """A server with a pool that makes connections on demand, up to `max_size`, and keeps them.

    A driver implements how to connect, and classifies its library's errors. There are no turns between tenants
    (`is_fair`).
    """

    errors: tuple[type[Exception], ...] = (OSError,)
    """The exception classes of the library for failed connects."""

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
        system: str,
        keeper: PoolKeeper | None = None,
    ) -> None:
        super().__init__(
            name, datasource, role, settings, address=address, port=port, dbname=dbname, system=system, keeper=keeper
        )
        self.is_open = False
        self.borrowed = 0
        self.waiting = 0
        self._at_rest: list[ConnectionT] = []
        self._lent: set[ConnectionT] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(settings.max_size)
        self._keeps_none = False

    # Implemented by a driver

    @abstractmethod
    async def connect(self) -> ConnectionT:
        """Make a connection; raises one of the library's errors."""

    @abstractmethod
    def kind_of(self, error: BaseException, *, is_write: bool) -> DataErrorKind:
        """The kind of one of the library's errors."""

    def describe_error(self, error: BaseException) -> str:
        """Text of an error for messages: without values and passwords."""
        return str(error)

    def native(self, connection: ConnectionT) -> Any:
        """The connection that `db.connection()` gives to the user."""
        raise NotImplementedError

    # Provided by this class

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        return len(self._at_rest)

    @property
    def is_in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be borrowed."""
        return self.borrowed + self.waiting > 0

    async def open(self) -> None:
        """Open the pool; connections are made on demand."""
        self.is_open, self._keeps_none = True, False
        self.notify_watchers()

    async def close(self, *, timeout_s: float) -> None:
        """Close all connections, borrowed ones included."""
        self.is_open = False
        self.notify_watchers()
        for connection in self._lent:
            self._cut(connection, "the pool was closed")
        self._close_idle()
        if self._closing:
            await asyncio.wait(self._closing, timeout=timeout_s)

    def retire(self) -> None:
        """Keep no idle connections from now on."""
        self._keeps_none = True
        self._close_idle()

    def _close_idle(self) -> None:
        while self._at_rest:
            self._cut(self._at_rest.pop(), "it is not needed any more")

    def _cut(self, connection: ConnectionT, reason: str) -> None:
        connection.cut(reason)
        closing = connection.closing
        if closing is not None and not closing.done():
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def try_acquire(
        self, quota: TenantQuota | None = None, tenant: TenantIdentity | None = None, read: str | None = None
    ) -> ConnectionT | None:
        """Always None: `acquire` does not wait either if a connection is idle."""
        return None

    async def acquire(
        self,
        *,
        deadline: float | None,
        must_be_alive: bool = False,
        quota: TenantQuota | None = None,
        priority: Priority = Priority.NORMAL,
        tenant: TenantIdentity | None = None,
        read: str | None = None,
    ) -> ConnectionT:
        """Borrow a connection, in the order of the calls."""
        now = asyncio.get_running_loop().time()
        until = now + self.settings.acquire_timeout_s
        if deadline is not None and deadline <= now:
            raise self.error(DataErrorKind.TIMEOUT, "the deadline has passed")
        if self.waiting >= self.settings.max_waiting > 0:
            raise self.error(DataErrorKind.RESOURCE, f"{self.waiting} wait for a connection already")
        self.waiting += 1
        try:
            async with asyncio.timeout_at(until if deadline is None else min(until, deadline)):
                await self._free.acquire()
        except TimeoutError:
            raise self.error(DataErrorKind.RESOURCE, "no connection became free in time") from None
        finally:
            self.waiting -= 1
        try:
            return self._lend(self._at_rest.pop() if self._at_rest else await self.connect_apart(deadline=until))
        except BaseException:
            self._free.release()
            raise

    def _lend(self, connection: ConnectionT) -> ConnectionT:
        self.borrowed += 1
        self._lent.add(connection)
        return connection

    async def connect_apart(self, *, deadline: float, purpose: str = "check") -> ConnectionT:
        """Connect outside the pool."""
        if not self.is_open:
            raise self.error(DataErrorKind.CONNECTION, "the pool is closed")
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self.connect()
        except (TimeoutError, *self.errors) as error:  # type: ignore[misc] # these are classes of exceptions
            reason = "no answer" if isinstance(error, TimeoutError) else self.describe_error(error)
            self.note_down(reason)
            raise self.error(DataErrorKind.CONNECTION, f"cannot connect: {reason}") from error
        self.note_reached()
        self.note_up()
        return connection

    def release(self, connection: ConnectionT, /) -> None:
        """Return an idle connection."""
        self.borrowed -= 1
        self._lent.discard(connection)
        use = connection.use
        if use is not None:
            connection.use = None
            use.end()
        connection.tag = None
        if connection.is_usable and self.is_open and not self._keeps_none:
            self._at_rest.append(connection)
        else:
            self._cut(connection, "it cannot be lent again")
        self._free.release()

    def put_back(self, connection: ConnectionT, /) -> None:
        """Return a connection on which nothing was sent."""
        self.release(connection)

    async def reclaim(self, connection: ConnectionT, /) -> None:
        """Return a connection in any state: stop a running statement, and roll back."""
        try:
            if not connection.closed:
                connection.interrupt()
                async with asyncio.timeout(self.settings.check_timeout_s):
                    await connection.reset()
        except (TimeoutError, *connection.errors):  # type: ignore[misc] # these are classes of exceptions
            connection.cut("it did not become idle")
        except BaseException:
            connection.cut("giving it back was interrupted")
            raise
        finally:
            self.release(connection)

    def discard(self, connection: ConnectionT, /) -> None:
        """Close a borrowed connection."""
        connection.cut("it was given up")
        self.release(connection)

    def lend(self, connection: ConnectionT, /) -> PlainBorrowedConnection:
        """Give the library's own connection to the user."""
        return PlainBorrowedConnection(self.native(connection))

    def error_of(self, exchange: RowsExchange, /, *, is_write: bool) -> DataError:
        """Classify the error of an exchange."""
        error = exchange.error
        if error is None:
            raise ValueError("the exchange has not failed")
        if exchange.timed_out:
            return self.error(
                DataErrorKind.TIMEOUT, "the deadline passed before the statement ended", is_retryable=False
            )
        kind = DataErrorKind.CONNECTION if exchange.is_lost else self.kind_of(error, is_write=is_write)
        return self.error(kind, self.describe_error(error))

    def health_check(self) -> PlainHealthCheck:
        """A health check that only makes a connection."""
        return PlainHealthCheck(self)


class PlainBorrowedConnection:
    """The library's own connection, given to the user for the length of a block."""

    refusal: Final = None

    def __init__(self, native: Any) -> None:
        self._native = native
        self._message: str | None = None

    @property
    def connection(self) -> Any:
        """The library's connection; raises after the end of the block."""
        return self

    def expire(self, message: str) -> None:
        """Make all further use raise `SessionClosed(message)`."""
        self._message = message

    def __getattr__(self, name: str) -> Any:
        if self._message is not None:
            raise SessionClosed(self._message)
        return getattr(self._native, name)


class PlainHealthCheck:
    """Asks a server that has no replicas: it is there where a connection can be made."""

    def __init__(self, server: PlainServer[Any]) -> None:
        self._server = server

    async def ask(self, *, limit_s: float) -> Observation:
        """Make one connection."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        connection = await self._server.connect_apart(deadline=asked_at + limit_s)
        await connection.close()
        return Observation(asked_at=asked_at, answered_at=loop.time(), is_standby=False, position=Position(1, 0))

    def close(self) -> None:
        """Does nothing: no connection is kept."""
