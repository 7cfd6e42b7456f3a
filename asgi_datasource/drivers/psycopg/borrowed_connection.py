"""The connection that `db.connection()` gives: an ordinary psycopg connection that expires with its block."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import AdaptersMap

from ...errors import DataError, DataErrorKind, SessionClosed
from ..statement_analysis import transaction_command_in
from ..statements import Params, Query, Statement
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
    """

    def __init__(self, owner: PsycopgConnection) -> None:
        pgconn = owner.pgconn
        notice_handler, notify_handler = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        # psycopg has installed those of this view; the pooled connection's are called as well.
        self._handlers_before = notice_handler, notify_handler
        pgconn.notice_handler = _both(notice_handler, pgconn.notice_handler)
        pgconn.notify_handler = _both(notify_handler, pgconn.notify_handler)
        self._owner = owner
        self.cursor_factory = BorrowedCursor
        self.refusal: DataError | None = None
        self._expired: str | None = None
        self._autocommit = True
        # One manager for all views of a connection, so that names are unique. It prepares only on request: statements
        # that a failed pipeline skipped would count as prepared.
        self._prepared = owner._prepared
        self.prepare_threshold = sys.maxsize if owner.may_prepare else None
        # Adapters registered here end with this view; the next session must not find them.
        self._adapters = AdaptersMap(owner.adapters)
        # psycopg warns about open connections that are dropped, except for a pool's.
        self._pool = None
        owner.lend_socket()

    @property
    def connection(self) -> BorrowedConnection:
        """The connection that the user gets: this one."""
        return self

    def expire(self, message: str) -> None:
        """Make all further use of this connection, and of objects made from it, raise `SessionClosed(message)`."""
        if self._expired is None:
            self._owner.end_loan()
            self._owner.pgconn.notice_handler, self._owner.pgconn.notify_handler = self._handlers_before
            prepared = self._prepared
            self._owner.plans.to_close.extend(prepared._names.values())
            for kept in (prepared._names, prepared._counts, prepared._to_flush):
                kept.clear()
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
        return await self._owner.wait_foreign(
            gen, stop_limit_s=CANCEL_LIMIT_S, interval_s=interval, timeout_s=timeout
        )

    async def close(self) -> None:
        """Close the underlying connection; the session's transaction is lost with it."""
        self._check_open()
        self._closed = True
        await self._owner.close()

    def check_commands(self, query: Query) -> None:
        """Refuse statements that begin or end a transaction, before they are sent; the transaction can only roll back.

        Raises:
            DataError: QUERY: there is one.
        """
        text = query if isinstance(query, bytes) else Statement(query).text.encode("utf-8", "replace")
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


def _both(first: Handler | None, second: Handler | None) -> Handler:
    """Call two handlers of libpq's."""

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
