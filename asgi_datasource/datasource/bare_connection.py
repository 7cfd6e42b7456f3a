"""A borrowed connection outside of any transaction block: each statement is sent with a Sync of its own."""

from __future__ import annotations

from ..drivers.protocol import Connection, Exchange, Result, Server
from ..drivers.statements import Settings, Statement
from ..errors import DataError, DataErrorKind
from ..routing import ANY_FRESHNESS, AccessIntent
from .executor import Executor
from .router import Attempt


class BareConnection:
    """A connection of the primary, whose session has the tenant's settings until it is returned.

    Args:
        executor: Has borrowed it.
        server, connection: The connection.
    """

    def __init__(self, executor: Executor, server: Server, connection: Connection) -> None:
        self._executor = executor
        self._server = server
        self._connection: Connection | None = connection

    @classmethod
    async def open(cls, executor: Executor, *, deadline: float | None) -> BareConnection:
        """Borrow a connection and apply the tenant's settings.

        Raises:
            DataError: There is none, or the settings failed. QUERY: a pooler in between shares the session.
        """
        attempt = Attempt()
        server, connection = await executor.connect(AccessIntent.WRITE, attempt, deadline, ANY_FRESHNESS)
        attempt.end_route()
        made = cls(executor, server, connection)
        try:
            # In a round trip of its own, together with a reset where one is due: several statements before one Sync
            # would be a transaction block.
            await made._exchange(Settings(executor.settings, is_read=False, deadline=None, lasts=True), deadline)
        except BaseException:
            await made.close()
            raise
        executor.held = (*executor.held, server)
        executor.note_write()
        return made

    async def run(self, statement: Statement, *, deadline: float | None) -> Result:
        """Run one statement.

        Args:
            statement: The statement.
            deadline: Event-loop time at which it is stopped.

        Raises:
            DataError: It failed; an earlier statement keeps its effect.
        """
        trace = self._executor.trace
        span = None if trace is None else trace.statement(self._server, (statement,), context=trace.parent())
        try:
            exchange = await self._exchange(statement, deadline)
        except BaseException as error:
            if span is not None and trace is not None:
                trace.fail(span, error)
            raise
        finally:
            if span is not None:
                span.end()
        return exchange.answers(0, 1)[0]

    async def _exchange(self, statement: Statement, deadline: float | None) -> Exchange:
        connection, server = self._connection, self._server
        if connection is None:
            raise DataError(
                DataErrorKind.CONNECTION,
                "the connection of db.autocommit() was given up when a statement was interrupted; open another block",
            )
        try:
            exchange = await connection.exchange((statement,), deadline=deadline)
        except Exception as error:
            # Nothing was sent, whichever class the driver, or an adapter, has raised.
            raise server.mistake_of(error) from error
        except BaseException:
            await self.close()
            raise
        if exchange.error is not None:
            raise server.error_of(exchange, is_write=True) from exchange.error
        return exchange

    async def close(self) -> None:
        """Return the connection, after its session was cleared."""
        connection, self._connection = self._connection, None
        if connection is not None:
            held = list(self._executor.held)
            if self._server in held:
                held.remove(self._server)
            self._executor.held = tuple(held)
            await self._executor.give_back(self._server, connection)
