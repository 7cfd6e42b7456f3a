"""A session as a DB-API 2.0 connection (PEP 249): a cursor's `execute` is a statement of the session.

It opens nothing. `commit()` and `rollback()` are the session's. SQLAlchemy's dialect (`dialect.py`) uses it from
greenlets, and blocking code (`blocking.py`) from threads; `SessionLink.wait` knows which of the two it is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Generator, Iterator, Sequence
from typing import Any, Final, TypeVar

from ..concurrency.threads import wait_in_thread
from ..drivers.protocol import Result
from ..drivers.statements import CursorDeclaration, Params, Query, Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent
from ..sessions.context import Frame, current_frame
from ..sessions.core import SessionCore
from ..sessions.scope import Scope, current_scope
from ..sessions.statement_runner import Snapshot
from ..sessions.transaction_block import TransactionBlock
from ..transaction import Propagation, TransactionOptions, isolation_refused, parse_isolation

T = TypeVar("T")

ROWS_A_ROUND_TRIP: Final = 500
"""Rows that a server-side cursor fetches at a time, unless more are asked for."""

_SAVEPOINT: Final = TransactionOptions(propagation=Propagation.NESTED)


class _Undone(Exception):
    """Leaves a block whose savepoint is rolled back."""


class SessionLink:
    """A session as a DB-API connection.

    Args:
        session: Runs the statements.
    """

    driver_error: type[Exception] | tuple[()] = ()
    """Errors of the driver that are raised in place of the `DataError` that was made of them."""

    def __init__(self, session: SessionCore) -> None:
        self.session = session
        self.is_kept = False
        """`rollback()` and `commit()` do nothing: an object of the ORM's ends, the transaction goes on."""
        self.failure: DataError | None = None
        """What the last statement has failed with."""
        self.is_doomed = False
        """A flush has failed, and `rollback()` was not called since."""
        self.is_autocommit = False
        """Each statement commits by itself."""
        self._level: str | None = None
        self._blocks: list[TransactionBlock] = []
        self._around: list[tuple[Scope | None, Frame | None]] = []
        """What was in force around each."""

    def __repr__(self) -> str:
        return f"<SessionLink of {self.session!r}>"

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the event loop in a thread that has none."""
        return wait_in_thread(self.session.registry_loop, coroutine)

    # DB-API 2.0

    def cursor(self, name: str | None = None) -> SessionCursor:
        """A cursor; with a name, one on the server that is read in steps."""
        return SessionCursor(self) if name is None else ServerCursor(self)

    def commit(self) -> None:
        """Commit what the session has written so far: `DataSession.commit()`."""
        if not self.is_kept:
            self._end_all(commit=True)

    def rollback(self) -> None:
        """Undo what the session has written since its last commit: `DataSession.rollback()`.

        Inside a block of the session's it leaves that nothing but its own rollback.
        """
        if not self.is_kept:
            self._end_all(commit=False)

    def _end_all(self, *, commit: bool) -> None:
        while self._blocks:
            # SQLAlchemy ends a transaction without ending its savepoints first.
            self.end_savepoint(undone=not commit)
        self.wait(self._end(commit=commit))

    def close(self) -> None:
        """Nothing is given back: the connection is the session's, and ends with it."""

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """While something ends that is not the transaction."""
        was_kept, self.is_kept = self.is_kept, True
        try:
            yield
        finally:
            self.is_kept = was_kept

    async def _end(self, *, commit: bool) -> None:
        session = self.session
        self.is_doomed = False
        if not commit and session.innermost_scope() is not None:
            session.doom(sys.exc_info()[1] or DataError(DataErrorKind.OTHER, "rollback() was called inside a block"))
            return
        with self.kept():
            await session.end_midway(commit=commit)

    def doom(self) -> None:
        """Half of something was sent: leave the transaction around it nothing but a rollback."""
        if self.session.is_writing:
            self.is_doomed = True
            self.session.doom(sys.exc_info()[1] or DataError(DataErrorKind.OTHER, "a flush did not come to its end"))

    def prepare(self) -> None:
        """A statement is about to be sent."""
        if self._level is not None and not self.session.is_isolation_settled:
            self._settle_isolation()

    # Savepoints

    def open_savepoint(self) -> None:
        """Begin a part that can be undone alone, of the session as a whole: `DataSession.transaction()`."""
        around = current_scope.get(), current_frame.get()
        scope, frame = self.wait(self._enter())
        # A thread waits for a task whose context ends with it.
        current_scope.set(scope)
        current_frame.set(frame)
        self._around.append(around)

    def end_savepoint(self, *, undone: bool) -> None:
        """End the innermost one."""
        if self._blocks:
            try:
                self.wait(self._leave(_Undone() if undone else None))
            finally:
                self._restore()

    def _restore(self) -> None:
        """What was in force around the innermost savepoint is in force again."""
        scope, frame = self._around.pop()
        current_scope.set(scope)
        current_frame.set(frame)

    async def _enter(self) -> tuple[Scope | None, Frame | None]:
        block = TransactionBlock(self.session, _SAVEPOINT)
        await block.__aenter__()
        self._blocks.append(block)
        return current_scope.get(), current_frame.get()

    async def _leave(self, error: _Undone | None) -> None:
        await self._blocks.pop().__aexit__(None if error is None else _Undone, error, None)

    # Isolation

    @property
    def level(self) -> str | None:
        """The isolation of its transactions; what was set, or else that of the one around, as far as that is known."""
        if self._level is not None:
            return self._level
        found = self.session.isolation
        return None if found is None else found.value

    def set_level(self, level: str | None) -> None:
        """Set the isolation of the transactions that the next statements open; None leaves it to the session.

        Raises:
            DataError: QUERY: one is open already, with another isolation.
        """
        self._level = level
        self._settle_isolation()

    def _settle_isolation(self) -> None:
        """The transaction that the next statement opens has the isolation that was asked for."""
        # PostgreSQL's READ UNCOMMITTED is READ COMMITTED (manual, "Transaction Isolation").
        wanted = parse_isolation("read committed" if self._level == "read uncommitted" else self._level)
        if wanted is None:
            return
        session = self.session
        if session.is_isolation_settled and session.isolation not in (wanted, None):
            raise isolation_refused(wanted, session.isolation)
        session.adopt_isolation(wanted)


class SessionCursor:
    """A DB-API cursor: one statement of the session, whose rows have all arrived."""

    lastrowid = None
    arraysize = 1

    def __init__(self, link: SessionLink) -> None:
        self.connection = link
        self.intent: AccessIntent | None = None
        """Read or write; None takes what holds for the session."""
        self.rowcount = -1
        self._result: Result | None = None
        self._rows: Sequence[tuple[Any, ...]] = ()
        self._position = 0

    def __enter__(self) -> SessionCursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def description(self) -> Sequence[tuple[Any, ...]] | None:
        """The columns, seven values each; None where the statement returns no rows."""
        result = self._result
        return result.description if result is not None and result.returns_rows else None

    def execute(self, operation: Query, parameters: Params | None = None) -> SessionCursor:
        """Run a statement, with psycopg's placeholders."""
        self._rows, self._position, self.rowcount = (), 0, -1
        link = self.connection
        result = self._run(link.session.run_one(operation, parameters, self.intent, _itself, None))
        self._result, self.rowcount = result, result.rowcount
        if result.returns_rows:
            self._rows = self._read(result)
        return self

    def executemany(self, operation: Query, seq_of_parameters: Sequence[Params]) -> SessionCursor:
        """Run a statement once for each set of parameters, in one round trip."""
        self._rows, self._position, self._result, self.rowcount = (), 0, None, 0
        statements = [Statement(operation, parameters) for parameters in seq_of_parameters]
        if statements:
            results = self._run(self.connection.session.run(statements, self.intent))
            self.rowcount = sum(max(0, result.rowcount) for result in results)
        return self

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a statement; what the driver has raised is raised here, as of a connection of its own."""
        link = self.connection
        try:
            link.prepare()
        except BaseException:
            coroutine.close()
            raise
        try:
            result = link.wait(coroutine)
            if link.is_autocommit:
                link.commit()
        except DataError as error:
            cause = error.__cause__
            if not isinstance(cause, link.driver_error):
                raise
            link.failure = error
            raise cause from None
        return result

    def _read(self, result: Result) -> Sequence[tuple[Any, ...]]:
        return result.tuples()

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row; None behind the last one."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> Sequence[tuple[Any, ...]]:
        """The next rows."""
        first = self._position
        self._position = min(len(self._rows), first + (self.arraysize if size is None else size))
        return self._rows[first : self._position]

    def fetchall(self) -> Sequence[tuple[Any, ...]]:
        """All rows that are left."""
        first, self._position = self._position, len(self._rows)
        return self._rows if first == 0 else self._rows[first:]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while (row := self.fetchone()) is not None:
            yield row

    def close(self) -> None:
        """Let the rows go."""
        self._rows, self._result = (), None

    async def _async_soft_close(self) -> None:
        """SQLAlchemy leaves an asynchronous driver's cursor with this; there is nothing to give back."""

    def setinputsizes(self, sizes: Sequence[Any]) -> None:
        """Without effect (PEP 249)."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Without effect (PEP 249)."""


class ServerCursor(SessionCursor):
    """A cursor on the server, read in steps: bounded memory for results of any size."""

    def __init__(self, link: SessionLink) -> None:
        super().__init__(link)
        self._name = ""
        self._snapshot: Snapshot | None = None
        self._is_open = False
        self._stream_intent: AccessIntent | None = None
        self.rowcount = -1

    def execute(self, operation: Query, parameters: Params | None = None) -> SessionCursor:
        """Declare the cursor, and fetch the first rows in the same round trip."""
        self._result = self._run(self._declare(operation, parameters))
        self._take(self._result, ROWS_A_ROUND_TRIP)
        return self

    def _take(self, result: Result, asked: int) -> None:
        """Take the rows of a round trip; fewer than asked for are the last ones."""
        self._rows, self._position = self._read(result), 0
        if len(self._rows) < asked:
            self._run(self._end(sends=True))

    async def _declare(self, operation: Query, parameters: Params | None) -> Result:
        session = self.connection.session
        session.check_open()
        self._name = session.next_savepoint()
        self._stream_intent, self._snapshot = await session.begin_stream(self.intent)
        self._is_open = True
        try:
            declare = CursorDeclaration(self._name, operation, parameters)
            return (await session.run((declare, self._fetch(ROWS_A_ROUND_TRIP)), self._stream_intent))[1]
        except BaseException:
            await self._end(sends=False)
            raise

    def _fetch(self, size: int) -> Statement:
        return Statement(f"fetch forward {size} from {self._name}", prepare=False)

    async def _next(self, size: int) -> Result:
        return (await self.connection.session.run((self._fetch(size),), self._stream_intent))[0]

    async def _end(self, *, sends: bool) -> None:
        if not self._is_open:
            return
        self._is_open = False
        session = self.connection.session
        if self._snapshot is not None:
            await session.end_stream(self._snapshot)
        elif sends and session.is_open and session.transaction_in_use is not None:
            with contextlib.suppress(DataError):
                await session.run((Statement(f"close {self._name}", prepare=False),), self._stream_intent)

    def fetchmany(self, size: int | None = None) -> Sequence[tuple[Any, ...]]:
        """The next rows; from the server, where those at hand are not enough."""
        wanted = self.arraysize if size is None else size
        rows = list(super().fetchmany(wanted))
        while len(rows) < wanted and self._is_open:
            asked = max(ROWS_A_ROUND_TRIP, wanted - len(rows))
            self._take(self._run(self._next(asked)), asked)
            rows += super().fetchmany(wanted - len(rows))
        return rows

    def fetchall(self) -> Sequence[tuple[Any, ...]]:
        """All rows that are left."""
        rows: list[tuple[Any, ...]] = []
        while more := self.fetchmany(ROWS_A_ROUND_TRIP):
            rows += more
        return rows

    def close(self) -> None:
        """End the cursor on the server."""
        if self._is_open:
            self._run(self._end(sends=True))
        super().close()


def _itself(result: Result, _: Any) -> Result:
    return result


FACADES: Final = {"dbapi_connection": SessionLink}


def read_intent(value: object) -> AccessIntent | None:
    """The intent that an execution option names: an `AccessIntent`, "read" or "write"."""
    if value is None or isinstance(value, AccessIntent):
        return value
    try:
        return AccessIntent(str(value))
    except ValueError:
        raise ValueError(f'access_intent: {value!r} is neither "read" nor "write"') from None
