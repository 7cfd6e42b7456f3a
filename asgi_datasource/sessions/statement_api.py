"""The methods that run statements: of a session, and of its views with a fixed intent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, overload

from ..drivers.protocol import Result, RowFactory
from ..drivers.statements import Params, Query, Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent

T = TypeVar("T")

Row = dict[str, Any]
"""One row: column name to value, as psycopg adapts it."""


class StatementMethods:
    """`execute`, `fetch_all` and the others, on top of one `run`."""

    __slots__ = ()

    _intent: AccessIntent | None = None
    """The intent of every statement; None uses the intent in force."""

    def run_one(
        self,
        query: Query,
        params: Params | None,
        intent: AccessIntent | None,
        read: Callable[[Result, Any], T],
        row_factory: Any,
    ) -> Coroutine[Any, Any, T]:
        """Run one statement; `read` converts its result with the row factory."""
        raise NotImplementedError

    def _run_all(self, statements: Sequence[Statement]) -> Coroutine[Any, Any, Sequence[Result]]:
        """Run statements in one round trip."""
        raise NotImplementedError

    def _iterate(
        self, query: Query, params: Params | None, row_factory: RowFactory[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        """Fetch a cursor's rows in batches of `size`."""
        raise NotImplementedError

    def execute(self, query: Query, params: Params | None = None) -> Coroutine[Any, Any, int]:
        """Run a statement.

        Args:
            query: SQL with psycopg's placeholders (`%s`, `%(name)s`), or a `psycopg.sql` object.
            params: Values for the placeholders; a sequence or a mapping.

        Returns:
            The number of rows it affected or returned; -1 for a command without such a number.

        Raises:
            DataError: It failed; see `kind`.
            SessionClosed: The request's response has started.
        """
        return self.run_one(query, params, self._intent, _rowcount, None)

    async def executemany(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a statement once for each set of parameters, all in one round trip and one transaction.

        Returns:
            The sum of the affected rows.

        Raises:
            DataError: One of them failed; none of them takes effect.
            SessionClosed: The request's response has started.
        """
        statements = [Statement(query, params) for params in params_seq]
        return sum(max(0, result.rowcount) for result in await self._run_all(statements)) if statements else 0

    @overload
    def fetch_all(self, query: Query, params: Params | None = None) -> Coroutine[Any, Any, list[Row]]: ...

    @overload
    def fetch_all(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]
    ) -> Coroutine[Any, Any, list[T]]: ...

    def fetch_all(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Coroutine[Any, Any, list[Any]]:
        """Run a statement and return all its rows.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: One of psycopg's row factories (`class_row(Order)`); None gives dictionaries.

        Raises:
            DataError: It failed, or returns no rows.
            SessionClosed: The request's response has started.
        """
        return self.run_one(query, params, self._intent, _all_rows, row_factory)

    @overload
    def fetch_one(self, query: Query, params: Params | None = None) -> Coroutine[Any, Any, Row | None]: ...

    @overload
    def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]
    ) -> Coroutine[Any, Any, T | None]: ...

    def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Coroutine[Any, Any, Any | None]:
        """Run a statement and return its first row; None when there is none. Arguments and errors: `fetch_all`."""
        return self.run_one(query, params, self._intent, _first_row, row_factory)

    def fetch_value(self, query: Query, params: Params | None = None) -> Coroutine[Any, Any, Any]:
        """Run a statement and return the first column of its first row; None when there is none."""
        return self.run_one(query, params, self._intent, _scalar, None)

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
        """Run a query through a server-side cursor and yield its rows one by one, in bounded memory.

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
        return self._iterate(query, params, row_factory, size)


def _rowcount(result: Result, _: Any) -> int:
    return result.rowcount


def _all_rows(result: Result, row_factory: RowFactory[Any] | None) -> list[Any]:
    if not result.returns_rows:
        raise _no_rows(result)
    return result.rows(row_factory)


def _first_row(result: Result, row_factory: RowFactory[Any] | None) -> Any | None:
    if not result.returns_rows:
        raise _no_rows(result)
    return result.first(row_factory)


def _scalar(result: Result, _: Any) -> Any | None:
    if not result.returns_rows:
        raise _no_rows(result)
    return result.scalar()


def _no_rows(result: Result) -> DataError:
    return DataError(
        DataErrorKind.QUERY,
        f"{result.status_message or 'the statement'} returns no rows; use execute(), or add RETURNING",
    )
