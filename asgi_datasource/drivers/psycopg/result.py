"""What a command brought back: one `Result` each, and the `Exchange` that holds those of one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import AsyncCursor, ProgrammingError
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from psycopg.abc import Transformer
    from psycopg.pq.abc import PGresult
    from psycopg.rows import AsyncRowFactory

    from .connection import Connection
    from .statements import Plan

TUPLES_OK: Final = int(ExecStatus.TUPLES_OK)

TRANSACTION_ENDS: Final = frozenset({b"BEGIN", b"COMMIT", b"ROLLBACK", b"START TRANSACTION", b"PREPARE TRANSACTION"})
"""Tags of commands that begin or end a transaction. ROLLBACK TO SAVEPOINT answers ROLLBACK as well."""


class Result:
    """The outcome of one command that worked. Holds what was received; reading it needs no server.

    Values are converted when they are asked for, by the adapters that the connection had when they arrived.
    """

    __slots__ = ("_connection", "_plan", "pgresult", "transformer")

    def __init__(self, pgresult: PGresult, connection: Connection, transformer: Transformer, plan: Plan | None) -> None:
        self.pgresult = pgresult
        self.transformer = transformer
        self._connection = connection
        self._plan = plan

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
        if self.pgresult.status == TUPLES_OK:
            return self.pgresult.ntuples
        count = self.pgresult.command_tuples
        return -1 if count is None else count

    @property
    def returns_rows(self) -> bool:
        """Whether the command answers with rows, even if there were none."""
        return self.pgresult.status == TUPLES_OK

    @property
    def ends_transaction(self) -> bool:
        """Whether the command itself began or ended a transaction, by its tag."""
        return self.pgresult.status != TUPLES_OK and self.pgresult.command_status in TRANSACTION_ENDS

    def rows(self, row_factory: AsyncRowFactory[Any] | None = None) -> list[Any]:
        """All rows.

        Args:
            row_factory: One of psycopg's or one in its manner; None makes dictionaries.

        Raises:
            psycopg.ProgrammingError: The command does not return rows.
        """
        pgresult = self.pgresult
        if pgresult.status != TUPLES_OK:
            raise self._no_rows()
        count = pgresult.ntuples
        if row_factory is None:
            if not count:
                return []
            self.transformer.set_pgresult(pgresult)
            names = self._columns()
            # `tuple` is the row maker that psycopg's C code makes without a call for each row.
            return [
                dict(zip(names, values))  # noqa: B905 - as long as each other, and `strict` costs on each row
                for values in self.transformer.load_rows(0, count, tuple)
            ]
        make_row = row_factory(ResultCursor(self._connection, self))
        self.transformer.set_pgresult(pgresult)
        return self.transformer.load_rows(0, count, make_row)

    def first(self, row_factory: AsyncRowFactory[Any] | None = None) -> Any | None:
        """The first row; None without one.

        Raises:
            psycopg.ProgrammingError: The command does not return rows.
        """
        pgresult = self.pgresult
        if pgresult.status != TUPLES_OK:
            raise self._no_rows()
        if not pgresult.ntuples:
            return None
        if row_factory is None:
            self.transformer.set_pgresult(pgresult)
            return dict(zip(self._columns(), self.transformer.load_row(0, tuple)))  # noqa: B905 - equally long
        make_row = row_factory(ResultCursor(self._connection, self))
        self.transformer.set_pgresult(pgresult)
        return self.transformer.load_row(0, make_row)

    def scalar(self) -> Any | None:
        """The first column of the first row; None without a row, or without a column.

        Raises:
            psycopg.ProgrammingError: The command does not return rows.
        """
        row = self.first(_tuple_row)
        return row[0] if row else None

    def _columns(self) -> tuple[str, ...]:
        plan = self._plan
        if plan is not None and plan.columns is not None:
            return plan.columns
        pgresult = self.pgresult
        encoding = self.transformer.encoding
        names = tuple([(pgresult.fname(i) or b"").decode(encoding) for i in range(pgresult.nfields)])
        if plan is not None and plan.is_ready:
            plan.columns = names
        return names

    def _no_rows(self) -> ProgrammingError:
        tag = self.status_message
        detail = f"command status: {tag}" if tag else f"result status: {ExecStatus(self.pgresult.status).name}"
        return ProgrammingError(f"the last operation didn't produce records ({detail})")


class ResultCursor(AsyncCursor[Any]):
    """What a row factory is called with: a cursor that has this result. It is not for executing anything."""

    def __init__(self, connection: Connection, result: Result) -> None:
        super().__init__(connection, row_factory=_tuple_row)
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


class Exchange:
    """The outcome of one round trip: what arrived before the first error, and that error.

    Attributes:
        results: One for each statement; None for those that did not run or were not answered.
        error: The first error as psycopg raises it.
        failed_at: Index of the statement that failed, or of the first one without an answer when the connection was
            lost; None when nothing was sent.
        is_lost: The connection is gone.
        timed_out: Our own deadline ended it.
    """

    __slots__ = ("error", "failed_at", "is_lost", "results", "timed_out")

    def __init__(self, results: list[Result | None]) -> None:
        self.results = results
        self.error: BaseException | None = None
        self.failed_at: int | None = None
        self.is_lost = False
        self.timed_out = False

    @property
    def is_stale_plan(self) -> bool:
        """The server refused a statement only because of how it had been prepared: run anew it may well work."""
        return is_stale_plan(self.error)

    def answers(self, first: int, count: int) -> list[Result]:
        """The results of some of the statements, all of which worked."""
        return [result for result in self.results[first : first + count] if result is not None]

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "failed" if self.error is not None else "ok"
        return f"<Exchange {state}, {sum(1 for r in self.results if r is not None)} of {len(self.results)} answered>"


def is_stale_plan(error: BaseException | None) -> bool:
    """Whether this error says that a prepared statement is gone, or that its result would have other columns."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate == "26000":
        return True
    # 0A000 has many causes and its text may be translated; the place in the server's source is not.
    return sqlstate == "0A000" and _source_function(error) == "RevalidateCachedQuery"


def _source_function(error: BaseException | None) -> str | None:
    diagnostics = getattr(error, "diag", None)
    return None if diagnostics is None else diagnostics.source_function


def _tuple_row(cursor: Any) -> type[tuple[Any, ...]]:
    return tuple
