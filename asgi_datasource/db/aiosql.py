"""Query files of aiosql, run by a session: `aiosql.from_path("queries", AiosqlAdapter)`.

The queries' functions take the session, or `db.read` or `db.write`, as their connection.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from ..drivers.placeholders import restyle
from ..drivers.statements import Params
from ..errors import DataError, DataErrorKind
from ..sessions.row_classes import RowType
from ..sessions.session import DataSession
from ..sessions.statement_api import StatementMethods

_NAME: Final = re.compile(r"(?<!%)(?:%%)*%\((\w+)\)s")


class AiosqlAdapter:
    """Driver adapter of aiosql.

    Args:
        row_factory: Makes rows of queries without a record class, as of `DataSession.fetch_all`: `tuple` as aiosql's
            own adapters; None makes dictionaries.
    """

    is_aio_driver = True

    def __init__(self, row_factory: RowType[Any] | None = None) -> None:
        self._row_factory = row_factory

    def process_sql(self, query_name: str, op_type: object, sql: str) -> str:
        """The text as it is; its placeholders are converted at each call."""
        return sql

    async def select(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Params | None, record_class: Any = None
    ) -> AsyncGenerator[Any]:
        """Yield all rows, which are fetched at once."""
        for row in await conn.fetch_all(*_prepare(sql, parameters), row_factory=self._rows(record_class)):
            yield row

    async def select_one(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Params | None, record_class: Any = None
    ) -> Any | None:
        """The first row; None without one."""
        return await conn.fetch_one(*_prepare(sql, parameters), row_factory=self._rows(record_class))

    async def select_value(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Params | None
    ) -> Any | None:
        """The first column of the first row; None without a row."""
        return await conn.fetch_value(*_prepare(sql, parameters))

    @asynccontextmanager
    async def select_cursor(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Params | None
    ) -> AsyncGenerator[AsyncIterator[Any]]:
        """An iterator of the rows, which a server-side cursor fetches in batches."""
        rows = cast("Any", conn.stream(*_prepare(sql, parameters), row_factory=self._rows(None)))
        try:
            yield rows
        finally:
            await rows.aclose()

    async def insert_returning(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Params | None
    ) -> Any | None:
        """The value that a statement returns, or its first row if it returns several columns."""
        row = await conn.fetch_one(*_prepare(sql, parameters), row_factory=tuple[Any, ...])
        return row[0] if row is not None and len(row) == 1 else row

    async def insert_update_delete(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Params | None
    ) -> int:
        """The number of affected rows."""
        return await conn.execute(*_prepare(sql, parameters))

    async def insert_update_delete_many(
        self, conn: StatementMethods, query_name: str, sql: str, parameters: Sequence[Params]
    ) -> int:
        """The number of affected rows of all sets of parameters, which are sent in one round trip."""
        sets = [_prepare(sql, one) for one in parameters]
        return await conn.executemany(sets[0][0], [params for _, params in sets]) if sets else 0

    async def execute_script(self, conn: DataSession, sql: str) -> str:
        """Run several statements in the session's transaction; returns the command tag of the first one.

        Raises:
            DataError: One failed; or `conn` is not the session itself.
        """
        if not isinstance(conn, DataSession):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers make mistakes
            raise DataError(
                DataErrorKind.QUERY, "a script of aiosql runs on the session itself, not on one of its views"
            )
        async with conn.connection() as connection:
            cursor = await connection.execute(sql.encode())
            return cursor.statusmessage or ""

    def _rows(self, record_class: Any) -> Any:
        return self._row_factory if record_class is None else record_class


def _prepare(sql: str, parameters: Params | None) -> tuple[str, Mapping[str, object]]:
    """The statement with psycopg's placeholders; positional parameters belong to the names in their order."""
    if parameters and not isinstance(parameters, Mapping):
        text, _ = restyle(sql, {}, "named")
        names = dict.fromkeys(_NAME.findall(text))
        if len(names) != len(parameters):
            raise DataError(
                DataErrorKind.QUERY, f"the query has {len(names)} parameters, but {len(parameters)} were passed"
            )
        parameters = dict(zip(names, parameters, strict=True))
    return restyle(sql, parameters or {}, "named")
