"""Result of one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import AsyncConnection, AsyncCursor, ProgrammingError
from psycopg.pq import ExecStatus

from ..protocol import RowFactory
from .prepared import Plan

if TYPE_CHECKING:
    from psycopg.abc import Transformer
    from psycopg.pq.abc import PGresult

_TUPLES_OK: Final = int(ExecStatus.TUPLES_OK)

TRANSACTION_TAGS: Final = frozenset({b"BEGIN", b"COMMIT", b"ROLLBACK", b"START TRANSACTION", b"PREPARE TRANSACTION"})
"""Tags of commands that begin or end a transaction. ROLLBACK TO SAVEPOINT answers ROLLBACK as well."""


class Result:
    """Result of one successful command; independent of the connection.

    Values are converted when they arrive, by the adapters and settings of that moment.
    """

    # Defaults on the class, for results without rows.
    returns_rows = False
    """Whether the command returns rows, even if there were none."""
    encoding = "utf-8"
    columns: tuple[str, ...] = ()
    """Names of the columns, in order."""
    _values: list[tuple[Any, ...]] | None = None
    _error: Exception | None = None

    def __init__(
        self, pgresult: PGresult, connection: AsyncConnection[Any], transformer: Transformer, plan: Plan | None
    ) -> None:
        """Convert the rows, while the connection exists: some adapters read its settings.

        Args:
            pgresult: libpq's result.
            connection: psycopg's connection, for row factories.
            transformer: Converts values.
            plan: The plan of a prepared statement; it caches the column names.
        """
        self.pgresult = pgresult
        self._connection = connection
        if pgresult.status != _TUPLES_OK:
            return
        self.returns_rows = True
        self.encoding = encoding = transformer.encoding
        columns = None if plan is None else plan.columns
        if columns is None:
            columns = tuple([(pgresult.fname(i) or b"").decode(encoding) for i in range(pgresult.nfields)])
            if plan is not None and plan.is_ready:
                plan.columns = columns
        self.columns = columns
        count = pgresult.ntuples
        if not count:
            self._values = []
            return
        try:
            transformer.set_pgresult(pgresult)
            # psycopg's C code makes `tuple` rows without a call for each row.
            self._values = transformer.load_rows(0, count, tuple)
        except Exception as error:  # noqa: BLE001 - raised where the rows are read, as psycopg's fetch does
            self._error = error

    def __repr__(self) -> str:
        return f"<Result {self.status_message!r}>"

    @property
    def status_message(self) -> str | None:
        """The command tag: `INSERT 0 1`."""
        tag = self.pgresult.command_status
        return tag.decode() if tag else None

    @property
    def rowcount(self) -> int:
        """Rows returned or changed; -1 where that does not apply."""
        if self._values is not None or self._error is not None:
            return self.pgresult.ntuples
        count = self.pgresult.command_tuples
        return -1 if count is None else count

    @property
    def description(self) -> list[tuple[Any, ...]]:
        """The columns as DB-API 2.0 describes them: name, OID of the type, and five times None."""
        ftype = self.pgresult.ftype
        return [(name, ftype(i), None, None, None, None, None) for i, name in enumerate(self.columns)]

    @property
    def ends_transaction(self) -> bool:
        """Whether the command began or ended a transaction, by its tag."""
        return self._values is None and self.pgresult.command_status in TRANSACTION_TAGS

    def rows(self, row_factory: RowFactory[Any] | None = None) -> list[Any]:
        """All rows.

        Args:
            row_factory: One of psycopg's, or a compatible one; None makes dictionaries.

        Raises:
            psycopg.ProgrammingError: The command does not return rows.
            psycopg.DataError: A value does not fit its Python type.
        """
        values = self._values
        if values is None:
            raise self._no_rows()
        if row_factory is None:
            columns = self.columns
            return [dict(zip(columns, row)) for row in values]  # noqa: B905 - equally long; `strict` costs per row
        make_row = row_factory(ResultCursor(self._connection, self))
        return [make_row(row) for row in values]

    def tuples(self) -> list[tuple[Any, ...]]:
        """All rows, each as a tuple; raises the same errors as `rows`."""
        if self._values is None:
            raise self._no_rows()
        return self._values

    def first(self, row_factory: RowFactory[Any] | None = None) -> Any | None:
        """The first row; None without one.

        Raises:
            psycopg.ProgrammingError: The command does not return rows.
            psycopg.DataError: A value does not fit its Python type.
        """
        values = self._values
        if values is None:
            raise self._no_rows()
        if not values:
            return None
        if row_factory is None:
            return dict(zip(self.columns, values[0]))  # noqa: B905 - equally long
        return row_factory(ResultCursor(self._connection, self))(values[0])

    def scalar(self) -> Any | None:
        """The first column of the first row; None without a row, or without a column.

        Raises:
            psycopg.ProgrammingError: The command does not return rows.
            psycopg.DataError: A value does not fit its Python type.
        """
        values = self._values
        if values is None:
            raise self._no_rows()
        return values[0][0] if values and values[0] else None

    def _no_rows(self) -> Exception:
        if self._error is not None:
            return self._error
        tag = self.status_message
        detail = f"command status: {tag}" if tag else f"result status: {ExecStatus(self.pgresult.status).name}"
        return ProgrammingError(f"the last operation didn't produce records ({detail})")


class ResultCursor(AsyncCursor[Any]):
    """The cursor that row factories are called with; it describes this result and cannot execute anything."""

    def __init__(self, connection: AsyncConnection[Any], result: Result) -> None:
        super().__init__(connection)
        self._result = result
        self.pgresult = result.pgresult

    @property
    def rowcount(self) -> int:
        """Rows returned."""
        return self._result.rowcount

    @property
    def statusmessage(self) -> str | None:
        """The command tag."""
        return self._result.status_message

    @property
    def _encoding(self) -> str:
        # psycopg's own implementation asks the connection, which may be closed by now.
        return self._result.encoding
