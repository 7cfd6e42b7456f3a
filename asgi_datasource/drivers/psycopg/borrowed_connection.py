"""What `db.connection()` hands out: an ordinary psycopg connection that ends with its session."""

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
    """Shares the socket of a pooled connection: cursors, COPY, server-side cursors, savepoints, everything of psycopg.

    The transaction and its tenant belong to the session, so what would end or change them is refused. Every command
    goes through `wait`, so that nothing reaches the server once the view has expired, whoever still holds a cursor.
    """

    def __init__(self, owner: PsycopgConnection) -> None:
        pgconn = owner.pgconn
        notice_handler, notify_handler = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        # psycopg has put its own there; notices go on to the handlers of the connection that stays.
        pgconn.notice_handler, pgconn.notify_handler = notice_handler, notify_handler
        self._owner = owner
        self._expired: str | None = None
        self._autocommit = True
        # One manager for all views of a connection, so that names are never given twice. It prepares nothing unless
        # asked to: what a failed pipeline skipped would count as prepared.
        self._prepared = owner._prepared
        self.prepare_threshold = None
        # Adapters registered here end with the view; the next session must not find them.
        self._adapters = AdaptersMap(owner.adapters)
        # psycopg warns of open connections that are dropped, but not of a pool's.
        self._pool = None
        owner.lend_socket()

    @property
    def connection(self) -> BorrowedConnection:
        """What the user gets: this."""
        return self

    def expire(self, message: str) -> None:
        """Let every further use of this connection, and of what was made from it, raise `SessionClosed(message)`."""
        if self._expired is None:
            self._owner.end_loan()
        self._expired = message
        # Our plans may have been dropped by the user's own DEALLOCATE or DISCARD, whose tags only psycopg saw.
        self._owner.plans.retire()

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Run one of psycopg's operations.

        Raises:
            SessionClosed: The view has expired.
        """
        if self._expired is not None:
            gen.close()
            raise SessionClosed(self._expired)
        return await self._owner.wait_foreign(gen, stop_limit_s=CANCEL_LIMIT_S)

    async def close(self) -> None:
        """Close the connection itself; the session's transaction is lost with it."""
        self._check_open()
        await self._owner.close()

    async def commit(self) -> None:
        """Refused: the transaction is the session's."""
        self._check_open()
        raise _refused("commit()", "`await db.commit()`")

    async def rollback(self) -> None:
        """Refused: the transaction is the session's."""
        self._check_open()
        raise _refused("rollback()", "`await db.rollback()`")

    async def set_autocommit(self, value: bool) -> None:
        """Refused: the transaction is the session's."""
        self._check_open()
        raise _refused("set_autocommit()", "`async with db.transaction():`")

    def _check_open(self) -> None:
        if self._expired is not None:
            raise SessionClosed(self._expired)

    def _should_cancel(self) -> bool:
        # A late cancel would stop whatever the connection runs by then.
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
    """A pooled connection as an ordinary psycopg one, for as long as its user may have it."""
    # What its user sends does not pass through the library.
    connection.needs_reset = True
    return BorrowedConnection(connection)
