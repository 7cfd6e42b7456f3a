"""The connection that `db.connection()` gives: an ordinary psycopg connection that expires with its block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.adapt import AdaptersMap

from ...errors import DataError, DataErrorKind, SessionClosed
from ..statement_analysis import transaction_command_in
from ..statements import Params
from .connection import PsycopgConnection
from .socket import CANCEL_LIMIT_S

if TYPE_CHECKING:
    from typing import Self

    from psycopg.abc import RV, PQGen

Handler = Callable[[Any], None]


class BorrowedConnection(AsyncConnection[Any]):
    """Shares the socket of a pooled connection: cursors, COPY, server-side cursors, savepoints, all of psycopg.

    The transaction and its tenant belong to the session, so commands that would end or change them are refused. Every
    command goes through `wait`, so that nothing reaches the server after the expiry, even from a cursor that is kept.

    Attributes:
        refusal: The error of the last command that was refused because it would have begun or ended a transaction.
    """

    def __init__(self, owner: PsycopgConnection) -> None:
        pgconn = owner.pgconn
        notice_handler, notify_handler = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        # psycopg has installed the handlers of this view; those of the pooled connection are called as well.
        self._handlers_before = notice_handler, notify_handler
        pgconn.notice_handler = _both(notice_handler, pgconn.notice_handler)
        pgconn.notify_handler = _both(notify_handler, pgconn.notify_handler)
        self._owner = owner
        self.cursor_factory = BorrowedCursor
        self.refusal: DataError | None = None
        self._expired: str | None = None
        self._autocommit = True
        threshold = self.prepare_threshold
        # One manager for all views of a connection, so that names are unique.
        self._prepared = owner.own_plans
        self.prepare_threshold = threshold if owner.may_prepare else None
        # Adapters registered here end with this view; the next session must not find them.
        self._adapters = AdaptersMap(owner.current_adapters)
        # psycopg warns about open connections that are dropped, except for a pool's.
        self._pool = None
        owner.lend_socket()

    @property
    def connection(self) -> BorrowedConnection:
        """The connection that the user gets: this one."""
        return self

    @property
    def closed(self) -> bool:
        """Whether it is closed; what runs on it may still have to end."""
        return self._closed or super().closed

    def expire(self, message: str) -> None:
        """Make all further use of this connection, and of objects made from it, raise `SessionClosed(message)`."""
        if self._expired is None:
            owner = self._owner
            owner.end_loan()
            owner.pgconn.notice_handler, owner.pgconn.notify_handler = self._handlers_before
            # Discarded when the connection returns to its pool; psycopg would still use these names.
            owner.plans.to_close.extend(owner.own_plans.forget())
        self._expired = message
        # The user's own DEALLOCATE or DISCARD may have dropped our plans; only psycopg saw its command tag.
        self._owner.plans.retire()

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Run an operation of psycopg.

        Raises:
            SessionClosed: The view has expired.
        """
        if self._expired is not None:
            gen.close()
            raise SessionClosed(self._expired)
        return await self._owner.wait_foreign(gen, stop_limit_s=CANCEL_LIMIT_S, interval_s=interval, timeout_s=timeout)

    async def close(self) -> None:
        """Close the underlying connection; the session's transaction is lost with it."""
        self._check_open()
        if self.closed:
            return
        self._closed = True
        await self._owner.close()

    def check_commands(self, query: object) -> None:
        """Refuse statements that begin or end a transaction, before they are sent; the transaction can only roll back.

        Raises:
            DataError: QUERY: there is one.
        """
        if isinstance(query, sql.Composable):
            text = query.as_bytes(self)
        elif isinstance(query, str):
            text = query.encode("utf-8", "replace")
        elif isinstance(query, bytes):
            text = query
        else:
            # A template, whose effect is checked at the end of the loan, or nothing that psycopg takes.
            return
        command = transaction_command_in(text)
        if command is not None:
            self.refusal = _refused(command, "`await db.commit()`, `await db.rollback()` or `db.transaction()`")
            raise self.refusal

    async def commit(self) -> None:
        """Refused: the transaction belongs to the session."""
        self._check_open()
        raise _refused("commit()", "`await db.commit()`")

    async def rollback(self) -> None:
        """Refused: the transaction belongs to the session."""
        self._check_open()
        raise _refused("rollback()", "`await db.rollback()`")

    async def set_autocommit(self, value: bool) -> None:
        """Refused: the transaction belongs to the session."""
        self._check_open()
        raise _refused("set_autocommit()", "`async with db.transaction():`")

    def _check_open(self) -> None:
        if self._expired is not None:
            raise SessionClosed(self._expired)

    def _should_cancel(self) -> bool:
        # A late cancel request would stop the connection's next statement.
        self._check_open()
        return super()._should_cancel()

    def _check_connection_ok(self) -> None:
        self._check_open()
        super()._check_connection_ok()


class BorrowedCursor(AsyncCursor[Any]):
    """The cursors of a borrowed connection, unless the application chooses another class."""

    async def execute(
        self, query: Any, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """As psycopg's; a statement that begins or ends a transaction is refused."""
        cast("BorrowedConnection", self._conn).check_commands(query)
        return await super().execute(query, params, prepare=prepare, binary=binary)

    async def executemany(self, query: Any, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """As psycopg's; a statement that begins or ends a transaction is refused."""
        cast("BorrowedConnection", self._conn).check_commands(query)
        await super().executemany(query, params_seq, returning=returning)

    def stream(
        self, query: Any, params: Params | None = None, *, binary: bool | None = None, size: int = 1
    ) -> AsyncIterator[Any]:
        """As psycopg's; a statement that begins or ends a transaction is refused."""
        cast("BorrowedConnection", self._conn).check_commands(query)
        return super().stream(query, params, binary=binary, size=size)


def _both(first: Handler | None, second: Handler | None) -> Handler:
    """Call two of libpq's handlers."""

    def call(event: Any) -> None:
        for handler in (first, second):
            if handler is not None:
                handler(event)

    return call


def _refused(what: str, instead: str) -> DataError:
    return DataError(
        DataErrorKind.QUERY, f"{what} would end the session's transaction, and the tenant with it; use {instead}"
    )


def lend(connection: PsycopgConnection) -> BorrowedConnection:
    """A pooled connection as an ordinary psycopg connection."""
    # The library does not see its statements.
    connection.needs_reset = True
    return BorrowedConnection(connection)
