"""The methods that run statements: of a session, and of its views with a fixed intent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, NoReturn, TypeVar, overload

from ..drivers.placeholders import PlaceholderStyle, restyle
from ..drivers.protocol import Result
from ..drivers.statements import Params, Query, Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent
from .row_classes import RowType, read_first, read_rows

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
        self, query: Query, params: Params | None, row_factory: RowType[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        """Fetch a cursor's rows in batches of `size`."""
        raise NotImplementedError

    def execute(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> Coroutine[Any, Any, int]:
        """Run a statement.

        Args:
            query: SQL with psycopg's placeholders (`%s`, `%(name)s`), a `psycopg.sql` object, or a t-string, whose
                values are bound as parameters.
            params: Values for the placeholders; a sequence or a mapping.
            style: "named" for `:name`, "numeric" for `$1`; None for psycopg's placeholders.

        Returns:
            The number of rows it affected or returned; -1 for a command without such a number.

        Raises:
            DataError: It failed; see `kind`.
            SessionClosed: The request's response has started.
        """
        if style is not None:
            query, params = restyle(query, params, style)
        return self.run_one(query, params, self._intent, _rowcount, None)

    @overload
    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, style: PlaceholderStyle | None = None
    ) -> int: ...

    @overload
    async def executemany(
        self,
        query: Query,
        params_seq: Iterable[Params],
        *,
        returning: Literal[True],
        style: PlaceholderStyle | None = None,
    ) -> list[Row]: ...

    @overload
    async def executemany(
        self,
        query: Query,
        params_seq: Iterable[Params],
        *,
        returning: Literal[True],
        row_factory: RowType[T],
        style: PlaceholderStyle | None = None,
    ) -> list[T]: ...

    async def executemany(
        self,
        query: Query,
        params_seq: Iterable[Params],
        *,
        returning: bool = False,
        row_factory: RowType[Any] | None = None,
        style: PlaceholderStyle | None = None,
    ) -> int | list[Any]:
        """Run a statement once for each set of parameters, all in one round trip and one transaction.

        Args:
            query, style: As of `execute`.
            params_seq: The sets of parameters.
            returning: Return the rows of the statement's RETURNING, of all sets in their order.
            row_factory: As of `fetch_all`.

        Returns:
            The sum of the affected rows; with `returning` the rows.

        Raises:
            DataError: One of them failed; none of them takes effect.
            SessionClosed: The request's response has started.
        """
        if style is not None:
            statements = [Statement(*restyle(query, params, style)) for params in params_seq]
        else:
            statements = [Statement(query, params) for params in params_seq]
        results = await self._run_all(statements) if statements else ()
        if returning:
            return [row for result in results for row in rows_of(result, row_factory)]
        return sum(max(0, result.rowcount) for result in results)

    @overload
    def fetch_all(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> Coroutine[Any, Any, list[Row]]: ...

    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[T],
        style: PlaceholderStyle | None = None,
    ) -> Coroutine[Any, Any, list[T]]: ...

    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[Any] | None = None,
        style: PlaceholderStyle | None = None,
    ) -> Coroutine[Any, Any, list[Any]]:
        """Run a statement and return all its rows.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: The class of the rows (`tuple`, a dataclass, a pydantic model: called with the columns as
                keyword arguments), or one of psycopg's row factories; None gives dictionaries.
            style: As of `execute`.

        Raises:
            DataError: It failed, or returns no rows.
            SessionClosed: The request's response has started.
        """
        if style is not None:
            query, params = restyle(query, params, style)
        return self.run_one(query, params, self._intent, _all_rows, row_factory)

    @overload
    def fetch_one(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> Coroutine[Any, Any, Row | None]: ...

    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[T],
        style: PlaceholderStyle | None = None,
    ) -> Coroutine[Any, Any, T | None]: ...

    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[Any] | None = None,
        style: PlaceholderStyle | None = None,
    ) -> Coroutine[Any, Any, Any | None]:
        """Run a statement and return its first row; None when there is none. Arguments and errors: `fetch_all`."""
        if style is not None:
            query, params = restyle(query, params, style)
        return self.run_one(query, params, self._intent, _first_row, row_factory)

    def fetch_value(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Run a statement and return the first column of its first row; None when there is none."""
        if style is not None:
            query, params = restyle(query, params, style)
        return self.run_one(query, params, self._intent, _scalar, None)

    @overload
    def stream(
        self, query: Query, params: Params | None = None, *, size: int = ..., style: PlaceholderStyle | None = None
    ) -> AsyncIterator[Row]: ...

    @overload
    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[T],
        size: int = ...,
        style: PlaceholderStyle | None = None,
    ) -> AsyncIterator[T]: ...

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[Any] | None = None,
        size: int = 500,
        style: PlaceholderStyle | None = None,
    ) -> AsyncIterator[Any]:
        """Run a query through a server-side cursor and yield its rows one by one, in bounded memory.

        Outside a transaction a connection of a replica is held until the iteration ends. Iterate before the response
        starts, and close the iterator (`contextlib.aclosing`) when you leave it early.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: As of `fetch_all`.
            size: Rows a round trip.
            style: As of `execute`.

        Raises:
            DataError: It failed.
            SessionClosed: The request's response has started.
        """
        if style is not None:
            query, params = restyle(query, params, style)
        return self._iterate(query, params, row_factory, size)


def rows_of(result: Result, row_factory: RowType[Any] | None) -> list[Any]:
    """The rows of a statement that has run in a batch.

    Raises:
        DataError: QUERY: it returns no rows, or a value does not fit its Python type.
        Exception: What the row factory has raised.
    """
    try:
        return _all_rows(result, row_factory)
    except Exception as error:  # noqa: BLE001 - raised again, some of it as a DataError
        fail_reading(result, error)


def fail_reading(result: Result, error: Exception) -> NoReturn:
    """Raise why a result could not be read; what a row factory has raised stays as it is.

    Raises:
        DataError: QUERY: a value does not fit its Python type; the driver's exception is the cause.
        Exception: `error` itself, where the values are all right.
    """
    if isinstance(error, DataError):
        raise error
    try:
        result.tuples()
    except Exception as cause:
        text = f"a value of the result does not fit its Python type ({type(cause).__name__})"
        # It quotes the value, and every traceback prints it.
        cause.args = (text,)
        raise DataError(DataErrorKind.QUERY, text) from cause
    raise error


def _rowcount(result: Result, _: Any) -> int:
    return result.rowcount


def _all_rows(result: Result, row_factory: RowType[Any] | None) -> list[Any]:
    if not result.returns_rows:
        raise _no_rows(result)
    return result.rows() if row_factory is None else read_rows(result, row_factory)


def _first_row(result: Result, row_factory: RowType[Any] | None) -> Any | None:
    if not result.returns_rows:
        raise _no_rows(result)
    return result.first() if row_factory is None else read_first(result, row_factory)


def _scalar(result: Result, _: Any) -> Any | None:
    if not result.returns_rows:
        raise _no_rows(result)
    return result.scalar()


def _no_rows(result: Result) -> DataError:
    return DataError(
        DataErrorKind.QUERY,
        f"{result.status_message or 'the statement'} returns no rows; use execute(), or add RETURNING",
    )
