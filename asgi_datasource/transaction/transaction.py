"""One database transaction on one connection, from BEGIN to a known end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, Final

from opentelemetry.trace import Span

from ..concurrency.tasks import BackgroundTasks
from ..drivers.protocol import Connection, Exchange, Result, Server
from ..drivers.statements import Control, ControlKind, Envelope, Params, Query, Statement
from ..errors import CommitUnknown, DataError, DataErrorKind, UnexpectedRollback
from ..observability import tracing
from ..observability.metrics import Measure
from ..routing import Position, parse_lsn
from . import control_statements
from .commit_outcome import Fate, find_fate
from .control_statements import Identity, Verdict
from .options import Isolation
from .state import TxState, check_move

READ_GUARD: Final = (
    Control(ControlKind.SAVEPOINT, "savepoint ads_read", name="ads_read"),
    *control_statements.READ_ONLY,
)
"""In front of a statement with read intent in a transaction that writes: it stays read only there as well.

The subtransaction gives READ ONLY its end: releasing or rolling back to the savepoint restores the mode.
"""
READ_GUARD_END: Final = Control(ControlKind.RELEASE, "release savepoint ads_read", name="ads_read")

LOAN: Final = Control(ControlKind.SAVEPOINT, "savepoint ads_loan", name="ads_loan", prepare=False)
"""In front of what a borrower of the connection sends. Not a part of any other transaction than this one: where
COMMIT AND CHAIN or ROLLBACK AND CHAIN has put another in its place, without the tenant, it cannot be released."""
LOAN_END: Final = Control(ControlKind.RELEASE, "release savepoint ads_loan", name="ads_loan", prepare=False)
LOAN_END_LIMIT_S: Final = 5.0
"""Seconds that releasing it may take."""

_ENVELOPES: Final[dict[tuple[bool, tuple[Control, ...]], Envelope]] = {
    (is_guarded_read, asks): Envelope(
        settings=False,
        between=READ_GUARD if is_guarded_read else (),
        closing=((READ_GUARD_END,) if is_guarded_read else ()) + asks,
    )
    for is_guarded_read in (False, True)
    for asks in ((), (control_statements.IDENTIFY,), (control_statements.IDENTIFY_XID,))
}
"""What goes around one statement in a transaction, by what is to be asked behind it."""


class Transaction:
    """A transaction that is open on a connection; made by `Executor`.

    It owns its connection: every way out gives the connection back whole, or closed.

    What begins with `send` starts a round trip without waiting, where nothing has to be awaited first; the coroutines
    `run` and `commit` tell the whole story, and take over a round trip that did not come back with plain success.
    """

    # Defaults on the class: a transaction in which nothing unusual happens does not pay for setting them.
    failure: DataError | None = None
    """What made the server refuse everything but a rollback; a rollback to a savepoint clears it."""
    wal_position: str | None = None
    """Where the server's WAL stood right after COMMIT."""
    state = TxState.ACTIVE
    note_position: Callable[[Sequence[str | None] | None], None] | None = None
    """Is told where the server is after each round trip, where what is read binds later reads and there is more than
    one snapshot."""
    identified: Sequence[str | None] | None = None
    """The answer to `IDENTIFY`; None while the transaction has written nothing. Every round trip that may have written
    learns it, so that COMMIT is never sent without."""
    _control: asyncio.Task[None] | None = None
    _span: Span | None = None
    _started = 0.0

    def __init__(
        self,
        connection: Connection,
        server: Server,
        background: BackgroundTasks,
        *,
        read_only: bool,
        isolation: Isolation | None,
        is_traced: bool = False,
        traces_statements: bool = False,
        measure: Measure | None = None,
    ) -> None:
        self._measure = measure
        self.connection = connection
        self.server = server
        self.read_only = read_only
        self.isolation = isolation
        self.pending: list[Control] = []
        """SAVEPOINT and RELEASE that wait for the next statement's round trip."""
        self._background = background
        self._is_traced = is_traced
        self._traces_statements = traces_statements

    def __repr__(self) -> str:
        return f"<Transaction {self.state.value} on {self.server.datasource}.{self.server.name}>"

    @property
    def position(self) -> Position | None:
        """Where a server has to be to show this commit; None when nothing was written, or nobody could tell."""
        if self.wal_position is None or self.identified is None:
            return None
        timeline: int | None = self.connection.timeline
        if len(self.identified) > 1:
            identity = self.identity
            timeline = None if identity is None else identity.timeline
        return Position(timeline, parse_lsn(self.wal_position)) if timeline else None

    @property
    def identity(self) -> Identity | None:
        """What to ask by for its fate; None while it has written nothing."""
        return control_statements.read_identity(self.identified, self.connection)

    @property
    def is_open(self) -> bool:
        """Whether the connection is still held for it."""
        return self.state in (TxState.ACTIVE, TxState.DOOMED)

    def send(
        self, query: Query, params: Params | None, *, deadline: float | None, now: float, as_read: bool
    ) -> Exchange | None:
        """Send one statement without waiting; None where something has to be awaited or done first.

        Args:
            query, params: The statement.
            deadline: Event-loop time at which the server is asked to stop.
            now: The event loop's time.
            as_read: It has read intent: refused by the server when it writes.
        """
        if (
            self.state is not TxState.ACTIVE
            or self.failure is not None
            or self.pending
            or self._traces_statements
            or self.note_position is not None
            or (self._control is not None and not self._control.done())
        ):
            return None
        envelope = _ENVELOPES[as_read and not self.read_only, self._asks]
        if self._measure is not None:
            self._started = perf_counter()
        return self.connection.send_one(envelope, (), query, params, deadline=deadline, now=now)

    def take(self, exchange: Exchange, query: Query, *, as_read: bool) -> Result | None:
        """The result of `send`, once it has come back; None where anything was not plain success: `run` takes over."""
        envelope = _ENVELOPES[as_read and not self.read_only, self._asks]
        result = exchange.take(envelope.index, in_transaction=True)
        if result is None:
            return None
        if self._asks:
            self.note_identity(exchange, envelope.index + len(envelope.closing))
        if self._measure is not None:
            self._measure.ran(self.server, tracing.operation_of(str(query)), perf_counter() - self._started, None)
        return result

    async def run(
        self,
        statements: Sequence[Statement],
        *,
        deadline: float | None,
        as_read: bool = False,
        is_guarded: bool = False,
        begun: Exchange | None = None,
    ) -> Sequence[Result]:
        """Send statements in one round trip.

        Args:
            statements: What to send.
            deadline: Event-loop time at which the server is asked to stop.
            as_read: They have read intent: refused by the server when they write.
            is_guarded: They run in a savepoint that is READ ONLY already.
            begun: The round trip of the one statement where `send` has started it.

        Returns:
            A result for each.

        Raises:
            DataError: The first failure; from then on the server refuses all but a rollback to a savepoint.
        """
        if begun is None:
            await self._control_done()
            self._check_usable()
        guard = as_read and not self.read_only and not is_guarded
        if not statements and not self.pending:
            return ()
        batch: list[Statement] = list(self.pending)
        if guard:
            batch += READ_GUARD
        first = len(batch)
        batch += statements
        if guard:
            batch.append(READ_GUARD_END)
        batch += self.questions
        exchange = await self._exchange(batch, statements, deadline, begun)
        if exchange.failed_at is None or exchange.failed_at >= len(self.pending):
            self.pending.clear()
        if exchange.error is not None:
            raise await self.fail(exchange, is_write=not as_read) from exchange.error
        self.note_answers(exchange, len(batch))
        results = exchange.answers(first, len(statements))
        await self.check_still_open(results)
        return results

    @property
    def _asks(self) -> tuple[Control, ...]:
        if self.read_only or self.identified is not None:
            return ()
        return _ASK_XID if self.connection.incarnation is not None else _ASK_ALL

    @property
    def questions(self) -> Sequence[Control]:
        """What to send behind everything that may write, or show more than was seen before."""
        return self._asks if self.note_position is None else (control_statements.ASK_POSITION, *self._asks)

    def note_answers(self, exchange: Exchange, count: int) -> None:
        """Take the answers to the `questions` that an exchange of `count` statements ended with."""
        asks = self._asks
        if self.note_position is not None:
            self.note_position(exchange.values(count - 1 - len(asks)))
        if asks:
            self.note_identity(exchange, count - 1)

    def note_identity(self, exchange: Exchange, index: int) -> None:
        """Take the answer to `IDENTIFY`, which stands at `index`."""
        xid = exchange.value(index)
        if xid is not None:
            self.identified = (xid,) if self.connection.incarnation is not None else exchange.values(index)

    def forget_pending_savepoint(self, name: str) -> bool:
        """A block ends before any statement in it was sent: its savepoint need not be. True where that was so."""
        for index, statement in enumerate(self.pending):
            if statement.kind is ControlKind.SAVEPOINT and statement.name == name:
                del self.pending[index:]
                return True
        return False

    async def rollback_to(self, name: str, *, deadline: float | None) -> None:
        """Undo everything since a savepoint and forget it; the transaction goes on.

        Raises:
            DataError: The connection was lost; nothing is left to go on with.
        """
        await self._run_control(self._rollback_to(name, deadline))

    async def _run_control(self, work: Coroutine[Any, Any, None]) -> None:
        # In a task of its own, so that a cancelled caller leaves no half of it; whoever comes next waits for it.
        self._control = self._background.spawn(_after(self._control, work))
        await asyncio.shield(self._control)

    async def _control_done(self) -> None:
        control = self._control
        if control is not None and not control.done() and control is not asyncio.current_task():
            await asyncio.wait({control})

    async def _rollback_to(self, name: str, deadline: float | None) -> None:
        if not self.is_open:
            return
        self.pending.clear()
        batch = [control_statements.rollback_to(name), control_statements.release(name), *self.questions]
        exchange = await self._exchange(batch, (), deadline)
        if exchange.error is not None:
            raise await self.fail(exchange, is_write=False) from exchange.error
        self.note_answers(exchange, len(batch))
        self.failure = None

    async def take_back(self) -> None:
        """The connection was on loan: see what state it came back in.

        Raises:
            DataError: QUERY: the borrower ended the transaction.
        """
        if self.is_open:
            await self._run_control(self._take_back())

    async def _take_back(self) -> None:
        connection = self.connection
        error = refuse_transaction_command("COMMIT or ROLLBACK")
        if connection.closed:
            error = DataError(
                DataErrorKind.CONNECTION, f"the connection to {self.server.label} was lost while it was borrowed"
            )
        elif connection.is_midway:
            error = DataError(
                DataErrorKind.QUERY,
                "an operation on the borrowed connection was cut short, and the transaction rolled back",
            )
        elif connection.has_failed_transaction:
            if self.note_position is not None:
                # What the borrower has read before that, nobody knows.
                self.note_position(None)
            self.failure = DataError(DataErrorKind.QUERY, "a statement on the borrowed connection failed")
            return
        elif connection.is_in_transaction:
            limit = asyncio.get_running_loop().time() + LOAN_END_LIMIT_S
            batch = [LOAN_END, *self.questions]
            exchange = await connection.exchange(batch, deadline=limit)
            if exchange.error is None:
                self.note_answers(exchange, len(batch))
                return
            if self.note_position is not None:
                self.note_position(None)
            if exchange.is_lost or exchange.timed_out:
                raise await self.fail(exchange, is_write=False) from exchange.error
        self.failure = error
        self._move(TxState.ROLLED_BACK)
        await self._give_back_rolled_back(error.message)
        raise error

    async def check_still_open(self, results: Sequence[Result]) -> None:
        """Make sure that no statement has ended or replaced the transaction.

        Raises:
            DataError: QUERY: one has; what is left of the transaction is rolled back. CONNECTION: the connection was
                cut behind the answer.
        """
        command = next((result.status_message for result in results if result.ends_transaction), None)
        if command is None and self.connection.is_in_transaction:
            return
        if command is None and self.connection.closed:
            error = DataError(
                DataErrorKind.CONNECTION,
                f"the connection to {self.server.label} was lost before the transaction had ended; send the request"
                " again",
                is_retryable=True,
            )
        else:
            error = refuse_transaction_command(command or "COMMIT")
        await self.rollback(error.message)
        self.failure = error
        raise error

    async def fail(self, exchange: Exchange, *, is_write: bool) -> DataError:
        """Classify a failed exchange, and give the connection back at once when nothing is left to roll back on it."""
        error = self.server.error_of(exchange, is_write=is_write and not self.read_only)
        self.failure = error
        if error.sqlstate == "25006" and error.kind is DataErrorKind.CONNECTION:
            self.server.refused_write(self.connection)
        if exchange.is_lost and self.is_open:
            self._move(TxState.ROLLED_BACK)
            await self._background.run(self.server.reclaim(self.connection))
        return error

    def doom(self, error: DataError) -> None:
        """Leave only rollback, for a reason that the commit will raise."""
        if self.state is TxState.ACTIVE:
            self._move(TxState.DOOMED)
        self.failure = error

    def send_commit(self, *, deadline: float | None) -> Exchange | None:
        """Send COMMIT without waiting; None where something has to be awaited or done first.

        Args:
            deadline: Event-loop time at which a COMMIT that is still running is cancelled.
        """
        connection = self.connection
        if (
            self.state is not TxState.ACTIVE
            or self.failure is not None
            or (
                self.identified is not None and (len(self.identified) > 1 or connection.timeline < self.server.timeline)
            )
            or (self._control is not None and not self._control.done())
        ):
            return None
        batch = _END if self.identified is None else _END_OF_WRITES
        exchange = connection.send_controls(batch, deadline=deadline)
        if exchange is not None:
            self.state = TxState.COMMITTING
            if self._is_traced or self._measure is not None:
                self._time_commit()
        return exchange

    def take_commit(self, exchange: Exchange) -> bool:
        """Whether the COMMIT of `send_commit` has come back with plain success; otherwise `commit` takes over."""
        if not exchange.has_landed or exchange.error is not None or exchange.tag(0) != "COMMIT":
            return False
        self.state = TxState.COMMITTED
        if self.identified is not None:
            self.wal_position = exchange.value(1)
        self.server.release(self.connection)
        if self._is_traced or self._measure is not None:
            self._note_outcome()
            self._note_commit_ended(None)
        return True

    async def commit(
        self,
        *,
        deadline: float | None,
        doubt_timeout_s: float,
        begun: Exchange | None = None,
        final: Sequence[Statement] = (),
    ) -> None:
        """End the transaction and learn the truth of it, in one round trip.

        To be run in a task of the library's own, out of reach of the request's cancellation.

        Args:
            final: Writes in front of COMMIT in the same round trip. Their transaction has written before: its id is
                known, so that its fate can be found out.
            deadline: Event-loop time at which a COMMIT that is still running is cancelled.
            doubt_timeout_s: Seconds that finding out may take when the connection is lost meanwhile.
            begun: The round trip of COMMIT where `send_commit` has started it.

        Raises:
            UnexpectedRollback: The transaction had failed before; it was rolled back.
            CommitUnknown: The connection was lost and nobody could tell.
            DataError: COMMIT failed; nothing was committed.
        """
        if begun is None:
            await self._check_committable()
            self._move(TxState.COMMITTING)
            self._time_commit()
        connection = self.connection
        try:
            if begun is None:
                batch: Sequence[Statement] = _END if self.identified is None else _END_OF_WRITES
                if final:
                    batch = (*final, *batch)
                exchange = await connection.exchange(batch, deadline=deadline)
            else:
                exchange = begun
                await connection.arrival(exchange)
                await connection.finish(exchange)
        except BaseException as reason:
            # Only shutdown cancels this task. The connection is closed, and the server decides by itself.
            self._move(TxState.IN_DOUBT)
            self.server.discard(connection)
            self._note_commit_ended(reason)
            raise
        verdict = control_statements.judge_commit(exchange, len(final))
        failure: DataError | None = None
        try:
            if verdict is Verdict.COMMITTED:
                self._move(TxState.COMMITTED)
                if self.identified is not None:
                    self.wal_position = exchange.value(len(final) + 1)
                await self._give_back()
            elif verdict is Verdict.LOST:
                await self._resolve(exchange, within=doubt_timeout_s)
            else:
                error: DataError
                if verdict is Verdict.ROLLED_BACK:
                    error = unexpected_rollback(None)
                else:
                    error = self.server.error_of(exchange, is_write=not self.read_only)
                self._move(TxState.ROLLED_BACK)
                await self.server.reclaim(connection)
                raise error from exchange.error
        except DataError as error:
            failure = error
            raise
        finally:
            self._note_commit_ended(failure)

    async def _check_committable(self) -> None:
        """Roll back what cannot be committed.

        Raises:
            DataError: It could not.
        """
        await self._control_done()
        if self.failure is not None or self.state is TxState.DOOMED or self.connection.has_failed_transaction:
            cause = self.failure
            if self.is_open:
                self._move(TxState.ROLLED_BACK)
                await self._give_back_rolled_back("failed before commit")
            raise unexpected_rollback(cause) from cause
        if self.identified is not None and self._is_left_behind:
            self._move(TxState.ROLLED_BACK)
            await self._give_back_rolled_back("failed over")
            raise DataError(
                DataErrorKind.CONNECTION,
                f"{self.server.label}: a failover took place during the transaction, which was on the former primary:"
                " it was rolled back; send the request again",
                is_retryable=True,
            )

    @property
    def _is_left_behind(self) -> bool:
        """Whether another server has become the primary meanwhile: what is committed here would be lost."""
        timeline = self.connection.timeline
        if self.identified is not None and len(self.identified) > 1:
            identity = self.identity
            timeline = (None if identity is None else identity.timeline) or 0
        return 0 < timeline < self.server.timeline

    async def rollback(self, reason: str) -> None:
        """Undo everything and give the connection back; bounded, and never an error to the caller."""
        if not self.is_open:
            return
        self._move(TxState.ROLLED_BACK)
        await self._background.run(self._give_back_rolled_back(reason))

    def _time_commit(self) -> None:
        if self._is_traced:
            self._span = self._start_span("COMMIT")
        if self._measure is not None:
            self._started = perf_counter()

    def _note_commit_ended(self, failure: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None and isinstance(failure, DataError):
            tracing.fail_span(span, failure)
        if span is not None:
            self._end_span(span, self._outcome())
        if self._measure is not None:
            self._note_run("COMMIT", self._started, failure)
            if self.state is TxState.IN_DOUBT:
                self._note_outcome()

    async def _resolve(self, exchange: Exchange, *, within: float) -> None:
        """The connection was lost while COMMIT ran: find out what became of it, then say so."""
        self._move(TxState.IN_DOUBT)
        await self.server.reclaim(self.connection)
        identity = self.identity
        if identity is not None:
            fate = await find_fate(self.server, identity, timeout_s=within)
        elif self.read_only or self.server.identifies_writes:
            # Where nothing was written there is nothing to decide.
            fate = Fate.COMMITTED
        else:
            fate = Fate.UNKNOWN
        if fate is Fate.COMMITTED:
            self._move(TxState.COMMITTED)
            return
        if fate is Fate.ABORTED:
            self._move(TxState.ROLLED_BACK)
            error = self.server.error_of(exchange, is_write=True)
            if error.kind is not DataErrorKind.TIMEOUT:
                error = DataError(
                    DataErrorKind.CONNECTION,
                    f"the connection to {self.server.label} was lost during COMMIT, and the server has rolled the"
                    " transaction back; send the request again",
                    is_retryable=True,
                )
            raise error from exchange.error
        raise CommitUnknown(
            f"the connection to {self.server.label} was lost during COMMIT and no server could tell within"
            f" {within:.0f} s whether it took effect; look before you send the request again"
        ) from exchange.error

    def _outcome(self) -> str:
        return "unknown" if self.state is TxState.IN_DOUBT else self.state.value

    def _check_usable(self) -> None:
        if self.state is not TxState.ACTIVE or self.failure is not None:
            cause = self.failure
            because = f" ({cause.message})" if cause is not None else ""
            raise DataError(
                DataErrorKind.QUERY,
                f"an earlier failure has ended this transaction{because}; wrap what may fail in"
                " `async with db.transaction():`, a savepoint, or call `await db.rollback()` before you go on",
                sqlstate="25P02",
            ) from cause

    async def _exchange(
        self,
        batch: Sequence[Statement],
        statements: Sequence[Statement],
        deadline: float | None,
        begun: Exchange | None = None,
    ) -> Exchange:
        span = None
        if self._traces_statements and statements:
            span = tracing.start_statement_span(statements[0].text, len(statements), self.server.attributes)
        measure = self._measure if statements else None
        started = 0.0 if measure is None else perf_counter() if begun is None else self._started
        failure: BaseException | None = None
        try:
            if begun is None:
                exchange = await self.connection.exchange(batch, deadline=deadline)
            else:
                exchange = begun
                await self.connection.finish(exchange)
            if exchange.error is not None and (span is not None or measure is not None):
                failure = error = self.server.error_of(exchange, is_write=not self.read_only)
                if span is not None:
                    tracing.fail_span(span, error)
            return exchange
        except asyncio.CancelledError as error:
            failure = error
            await self._cancelled()
            raise
        finally:
            if span is not None:
                span.end()
            if measure is not None:
                operation = tracing.operation_of(statements[0].text)
                measure.ran(self.server, operation, perf_counter() - started, failure)

    async def abandon(self, statement: Statement) -> None:
        """The caller of `send` was cancelled while it waited for the answer."""
        if self._measure is not None:
            operation = tracing.operation_of(statement.text)
            took_s = perf_counter() - self._started
            self._measure.ran(self.server, operation, took_s, asyncio.CancelledError())
        await self._cancelled()

    async def _cancelled(self) -> None:
        """A statement may still run on the server: it is stopped there, and the transaction with it."""
        if self.is_open:
            self._move(TxState.ROLLED_BACK)
            self.failure = DataError(
                DataErrorKind.QUERY, "a statement of this transaction was cancelled, and the transaction rolled back"
            )
            await self._background.run(self.server.reclaim(self.connection))

    async def _give_back_rolled_back(self, reason: str) -> None:
        span = self._start_span("ROLLBACK")
        if span is not None:
            span.set_attribute(tracing.ROLLBACK_REASON, reason)
        started = 0.0 if self._measure is None else perf_counter()
        try:
            await self._give_back()
        finally:
            self._end_span(span, TxState.ROLLED_BACK.value)
            self._note_run("ROLLBACK", started, None)

    async def _give_back(self) -> None:
        await self._control_done()
        await self.server.reclaim(self.connection)

    def _note_run(self, operation: str, started: float, failure: BaseException | None) -> None:
        if self._measure is not None:
            self._measure.ran(self.server, operation, perf_counter() - started, failure)

    def _note_outcome(self) -> None:
        if self._measure is not None:
            self._measure.ended(self.server.datasource, self._outcome())

    def _start_span(self, name: str) -> Span | None:
        return tracing.start_client_span(name, self.server.attributes) if self._is_traced else None

    @staticmethod
    def _end_span(span: Span | None, outcome: str) -> None:
        if span is not None:
            span.set_attribute(tracing.OUTCOME, outcome)
            span.end()

    def _move(self, following: TxState) -> None:
        self.state = check_move(self.state, following)
        if following is TxState.COMMITTED or following is TxState.ROLLED_BACK:
            self._note_outcome()


_ASK_XID: Final = (control_statements.IDENTIFY_XID,)
_ASK_ALL: Final = (control_statements.IDENTIFY,)
_END: Final = (control_statements.COMMIT,)
_END_OF_WRITES: Final = (control_statements.COMMIT, control_statements.WAL_POSITION)


async def _after(previous: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
    if previous is not None and not previous.done():
        await asyncio.wait({previous})
    await work


def refuse_transaction_command(command: str) -> DataError:
    """The error for a statement that is itself BEGIN, COMMIT or ROLLBACK."""
    return DataError(
        DataErrorKind.QUERY,
        f"{command} was sent as a statement: it would end the session's transaction, and the tenant with it; use"
        " `await db.commit()`, `await db.rollback()` or `async with db.transaction():`",
    )


def unexpected_rollback(cause: DataError | None) -> UnexpectedRollback:
    """The error of a commit that could only roll back."""
    because = f": {cause.message}" if cause is not None else ""
    return UnexpectedRollback(
        f"nothing was committed, because the transaction had failed before{because}",
        sqlstate=None if cause is None else cause.sqlstate,
    )


def isolation_refused(wanted: Isolation | None, present: Isolation | None) -> DataError:
    """The error for an isolation that the transaction around it does not have."""
    return DataError(
        DataErrorKind.QUERY,
        f"isolation {wanted.value if wanted else 'default'!r} was asked for inside a transaction that has"
        f" {present.value if present else 'the default'!r}; isolation is decided where the transaction is opened",
    )
