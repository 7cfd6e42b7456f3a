"""The connection that `db.connection()` gives: an ordinary psycopg connection that expires with its block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection
from psycopg.adapt import AdaptersMap

from ...errors import DataError, DataErrorKind, SessionClosed
from .connection import PsycopgConnection
from .socket import CANCEL_LIMIT_S

if TYPE_CHECKING:
    from psycopg.abc import RV, PQGen


class BorrowedConnection(AsyncConnection[Any]):
    """Shares the socket of a pooled connection: cursors, COPY, server-side cursors, savepoints, all of psycopg.

    The transaction and its tenant belong to the session, so commands that would end or change them are refused. Every
    command goes through `wait`, so that nothing reaches the server after the expiry, even from a cursor that is kept.
    """

    def __init__(self, owner: PsycopgConnection) -> None:
        pgconn = owner.pgconn
        notice_handler, notify_handler = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        # psycopg has installed its own; notices go to the handlers of the pooled connection.
        pgconn.notice_handler, pgconn.notify_handler = notice_handler, notify_handler
        self._owner = owner
        self._expired: str | None = None
        self._autocommit = True
        # One manager for all views of a connection, so that names are unique. It prepares only on request: statements
        # that a failed pipeline skipped would count as prepared.
        self._prepared = owner._prepared
        self.prepare_threshold = None
        # Adapters registered here end with this view; the next session must not find them.
        self._adapters = AdaptersMap(owner.current_adapters)
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
        return await self._owner.wait_foreign(gen, stop_limit_s=CANCEL_LIMIT_S)

    async def close(self) -> None:
        """Close the underlying connection; the session's transaction is lost with it."""
        self._check_open()
        await self._owner.close()

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


def _refused(what: str, instead: str) -> DataError:
    return DataError(
        DataErrorKind.QUERY, f"{what} would end the session's transaction, and the tenant with it; use {instead}"
    )


def lend(connection: PsycopgConnection) -> BorrowedConnection:
    """A pooled connection as an ordinary psycopg connection."""
    # The library does not see its statements.
    connection.needs_reset = True
    return BorrowedConnection(connection)
