"""The methods that run statements, as a session has them and its views with a fixed intent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, overload

from ..drivers.psycopg import Params, Query, Result, RowFactory, Statement
from ..errors import DataError, DataErrorKind

T = TypeVar("T")

Row = dict[str, Any]
"""One row: column name to value, as psycopg adapts it."""


class StatementMethods:
    """`execute`, `fetch_all` and the others, on top of one `run`."""

    __slots__ = ()

    def run(self, statements: Sequence[Statement]) -> Coroutine[Any, Any, list[Result]]:
        """Run statements in one round trip: what the other methods are made of."""
        raise NotImplementedError

    def iterate(
        self, query: Query, params: Params | None, row_factory: RowFactory[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        """What `stream` is made of."""
        raise NotImplementedError

    async def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a statement.

        Args:
            query: SQL with psycopg's placeholders (`%s`, `%(name)s`), or a `psycopg.sql` object.
            params: Values for the placeholders; a sequence or a mapping.

        Returns:
            How many rows it affected or returned; -1 where the command has no such number.

        Raises:
            DataError: It failed; the kind says how.
            SessionClosed: The request's response has started.
        """
        return (await self.run((Statement(query, params),)))[0].rowcount

    async def executemany(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a statement once for each set of parameters, all in one round trip and one transaction.

        Returns:
            The sum of the affected rows.

        Raises:
            DataError: One of them failed; none of them counts then.
            SessionClosed: The request's response has started.
        """
        statements = [Statement(query, params) for params in params_seq]
        return sum(max(0, result.rowcount) for result in await self.run(statements)) if statements else 0

    @overload
    async def fetch_all(self, query: Query, params: Params | None = None) -> list[Row]: ...

    @overload
    async def fetch_all(self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]) -> list[T]: ...

    async def fetch_all(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> list[Any]:
        """Run a statement and return all its rows.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: One of psycopg's row factories (`class_row(Order)`); None gives dictionaries.

        Raises:
            DataError: It failed, or returns no rows.
            SessionClosed: The request's response has started.
        """
        return _with_rows(await self.run((Statement(query, params),))).rows(row_factory)

    @overload
    async def fetch_one(self, query: Query, params: Params | None = None) -> Row | None: ...

    @overload
    async def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]
    ) -> T | None: ...

    async def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Any | None:
        """Run a statement and return its first row; None when there is none. Arguments and errors: `fetch_all`."""
        return _with_rows(await self.run((Statement(query, params),))).first(row_factory)

    async def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Run a statement and return the first column of its first row; None when there is none."""
        return _with_rows(await self.run((Statement(query, params),))).scalar()

    @overload
    def stream(self, query: Query, params: Params | None = None, *, size: int = ...) -> AsyncIterator[Row]: ...

    @overload
    def stream(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T], size: int = ...
    ) -> AsyncIterator[T]: ...

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        size: int = 500,
    ) -> AsyncIterator[Any]:
        """Run a query through a server-side cursor and give its rows one by one, in bounded memory.

        Outside a transaction a connection of a replica is held until the iteration ends. Iterate before the response
        starts, and close the iterator (`contextlib.aclosing`) when you leave it early.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: One of psycopg's row factories; None gives dictionaries.
            size: Rows a round trip.

        Raises:
            DataError: It failed.
            SessionClosed: The request's response has started.
        """
        return self.iterate(query, params, row_factory, size)


def _with_rows(results: Sequence[Result]) -> Result:
    """The one result, which has to be of a command that returns rows."""
    result = results[0]
    if not result.returns_rows:
        raise DataError(
            DataErrorKind.QUERY,
            f"{result.status_message or 'the statement'} returns no rows; use execute(), or add RETURNING",
        )
    return result
