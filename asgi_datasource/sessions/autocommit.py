"""Statements outside of any transaction block, for VACUUM, CREATE INDEX CONCURRENTLY and their like."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ..datasource.bare_connection import BareConnection
from ..drivers.protocol import Result
from ..drivers.statements import Params, Query, Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent
from .core import SessionCore
from .row_classes import RowType
from .statement_api import StatementMethods, fail_reading
from .unit_of_work import check_commands

T = TypeVar("T")


class AutocommitStatements(StatementMethods):
    """The statement methods; each statement takes effect by itself, and no rollback undoes it."""

    __slots__ = ("_connection", "_session")

    def __init__(self, session: SessionCore, connection: BareConnection) -> None:
        self._session = session
        self._connection = connection

    async def run_one(
        self,
        query: Query,
        params: Params | None,
        intent: AccessIntent | None,
        read: Callable[[Result, Any], T],
        row_factory: Any,
    ) -> T:
        """Run one statement."""
        result = await self._run(Statement(query, params, prepare=False))
        try:
            return read(result, row_factory)
        except Exception as error:  # noqa: BLE001 - raised again, some of it as a DataError
            fail_reading(result, error)

    async def _run_all(self, statements: Sequence[Statement]) -> Sequence[Result]:
        return [await self._run(statement) for statement in statements]

    def _iterate(
        self, query: Query, params: Params | None, row_factory: RowType[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        raise DataError(DataErrorKind.QUERY, "a cursor needs a transaction: use db.stream() outside of db.autocommit()")

    async def _run(self, statement: Statement) -> Result:
        self._session.check_open()
        check_commands(None, (statement,))
        return await self._connection.run(statement, deadline=self._session.deadline())


@asynccontextmanager
async def autocommit(session: SessionCore) -> AsyncGenerator[AutocommitStatements]:
    """Lend a connection of the primary for statements outside of any transaction block."""
    session.check_open()
    if session.transaction_in_use is not None or session.innermost_scope() is not None:
        raise DataError(
            DataErrorKind.QUERY,
            "db.autocommit() was called inside a transaction, which would not see its statements, and may hold what"
            " they wait for; end that first (`await db.commit()`), or leave the block",
        )
    if session.outlives_requests:
        await session.renew_tenant()
    session.about_to_write()
    connection = await BareConnection.open(session.use_executor(), deadline=session.deadline())
    try:
        yield AutocommitStatements(session, connection)
    finally:
        await connection.close()
        session.note_written_outside()
