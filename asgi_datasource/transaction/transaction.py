"""One database transaction on one connection, from BEGIN to a known outcome."""

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
from ..observability.names import OUTCOME, ROLLBACK_REASON
from ..observability.recording import SessionRecorder
from ..observability.session_trace import TransactionTrace, description_of, note_failed_statement
from ..observability.summary import analyze
from ..observability.tracing import reason_of
from ..routing import Position, format_lsn, parse_lsn
from . import control_statements
from .commit_outcome import Fate, find_fate
from .control_statements import Identity, Verdict
from .options import Isolation
from .state import TxState, check_move

READ_GUARD: Final = (
    Control(ControlKind.SAVEPOINT, "savepoint ads_read", name="ads_read"),
    *control_statements.READ_ONLY,
)
"""Sent in front of a statement with read intent in a transaction that writes: makes that statement READ ONLY.

The subtransaction limits READ ONLY: releasing or rolling back to the savepoint restores the mode.
"""
READ_GUARD_END: Final = Control(ControlKind.RELEASE, "release savepoint ads_read", name="ads_read")

RAW_SAVEPOINT: Final = Control(ControlKind.SAVEPOINT, "savepoint ads_raw", name="ads_raw", prepare=False)
"""Sent in front of statements on the raw connection. The savepoint exists in this transaction only: if COMMIT AND CHAIN
or ROLLBACK AND CHAIN has replaced the transaction, without the tenant's settings, it cannot be released."""
RELEASE_RAW_SAVEPOINT: Final = Control(ControlKind.RELEASE, "release savepoint ads_raw", name="ads_raw", prepare=False)
RELEASE_LIMIT_S: Final = 5.0
"""Seconds that its release may take."""

_ENVELOPES: Final[dict[tuple[bool, tuple[Control, ...]], Envelope]] = {
    (is_guarded_read, asks): Envelope(
        settings=False,
        between=READ_GUARD if is_guarded_read else (),
        closing=((READ_GUARD_END,) if is_guarded_read else ()) + asks,
    )
    for is_guarded_read in (False, True)
    for asks in ((), (control_statements.IDENTIFY,), (control_statements.IDENTIFY_XID,))
}
"""The envelope of a statement in a transaction, by whether it has read intent and the queries behind it."""


class Transaction:
    """An open transaction on a connection; made by `Executor`.

    It owns its connection and returns it in every case, intact or closed.

    The `send...` methods start a round trip without waiting, or return None where something must be awaited first. The
    coroutines `run` and `commit` handle all cases, and take over a round trip that did not succeed.
    """

    # Defaults on the class: only unusual transactions pay for setting them.
    failure: DataError | None = None
    """The error after which the server accepts only a rollback; a rollback to a savepoint clears it."""
    wal_position: str | None = None
    """The server's WAL position right after COMMIT."""
    state = TxState.ACTIVE
    note_position: Callable[[Sequence[str | None] | None], None] | None = None
    """Called with the server's position after each round trip, if the reads bind later ones and the transaction has
    more than one snapshot."""
    identified: Sequence[str | None] | None = None
    """The answer to `IDENTIFY`; None while the transaction has not written. Each round trip that may have written reads
    it, so that it is known before COMMIT is sent."""
    savepoints: tuple[str, ...] = ()
    """The savepoints that the server has, outermost first."""
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
        trace: TransactionTrace | None = None,
        measure: SessionRecorder | None = None,
    ) -> None:
        self._measure = measure
        self.trace = trace
        """Makes its spans; None where the session's trace is not sampled."""
        self.connection = connection
        self.server = server
        self.read_only = read_only
        self.isolation = isolation
        self.pending: list[Control] = []
        """SAVEPOINT and RELEASE, sent with the next statement's round trip."""
        self._background = background

    def __repr__(self) -> str:
        return f"<Transaction {self.state.value} on {self.server.datasource}.{self.server.name}>"

    @property
    def position(self) -> Position | None:
        """The position that a server must have to show this commit; None if nothing was written or it is unknown."""
        if self.wal_position is None or self.identified is None:
            return None
        timeline: int | None = self.connection.timeline
        if len(self.identified) > 1:
            identity = self.identity
            timeline = None if identity is None else identity.timeline
        return Position(timeline, parse_lsn(self.wal_position)) if timeline else None

    @property
    def identity(self) -> Identity | None:
        """Identifies it for the outcome lookup; None while it has not written."""
        return control_statements.read_identity(self.identified, self.connection)

    @property
    def is_open(self) -> bool:
        """Whether it holds its connection."""
        return self.state in (TxState.ACTIVE, TxState.DOOMED)

    def send(
        self, query: Query, params: Params | None, *, deadline: float | None, now: float, as_read: bool
    ) -> Exchange | None:
        """Send one statement without waiting; None where something must be awaited or done first.

        Args:
            query, params: The statement.
            deadline: Event-loop time at which the server is asked to stop.
            now: Event-loop time.
            as_read: It has read intent: the server refuses it if it writes.
        """
        if (
            self.state is not TxState.ACTIVE
            or self.failure is not None
            or self.pending
            or self.trace is not None
            or self.note_position is not None
            or (self._control is not None and not self._control.done())
        ):
            return None
        envelope = _ENVELOPES[as_read and not self.read_only, self._asks]
        if self._measure is not None:
            self._started = perf_counter()
        return self.connection.send_one(envelope, (), query, params, deadline=deadline, now=now)

    def take(self, exchange: Exchange, query: Query, *, as_read: bool) -> Result | None:
        """The result of `send` once it has arrived; None unless it succeeded: then `run` takes over."""
        envelope = _ENVELOPES[as_read and not self.read_only, self._asks]
        result = exchange.take(envelope.index, in_transaction=True)
        if result is None:
            return None
        if self._asks:
            self.note_identity(exchange, envelope.index + len(envelope.closing))
        if self._measure is not None:
            analysis = analyze(query if isinstance(query, str) else Statement(query).text)
            rows = result.rowcount if analysis.operation == "SELECT" else -1
            self._measure.ran(self.server, analysis, perf_counter() - self._started, None, rows)
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
            as_read: They have read intent: the server refuses them if they write.
            is_guarded: They run in a savepoint that is READ ONLY already.
            begun: The round trip, if `send` has started it for the one statement.

        Returns:
            A result for each statement.

        Raises:
            DataError: The first failure; after it the server accepts only a rollback to a savepoint.
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
        if self.trace is not None:
            for control in self.pending:
                if control.kind is ControlKind.SAVEPOINT:
                    self.trace.savepoint(control.name)
        exchange = await self._exchange(
            batch, statements, deadline, begun, reason=_PINNED if as_read and not self.read_only else None
        )
        if self.pending and (exchange.failed_at is None or exchange.failed_at >= len(self.pending)):
            self._note_pending_sent()
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
        """Control statements to send behind everything that may write, or that may see a new snapshot."""
        return self._asks if self.note_position is None else (control_statements.ASK_SEEN_POSITION, *self._asks)

    def note_answers(self, exchange: Exchange, count: int) -> None:
        """Read the answers to `questions` at the end of an exchange of `count` statements."""
        asks = self._asks
        if self.note_position is not None:
            self.note_position(exchange.values(count - 1 - len(asks)))
        if asks:
            self.note_identity(exchange, count - 1)

    def note_identity(self, exchange: Exchange, index: int) -> None:
        """Read the answer to `IDENTIFY` at `index`."""
        xid = exchange.value(index)
        if xid is not None:
            self.identified = (xid,) if self.connection.incarnation is not None else exchange.values(index)

    def forget_pending_savepoint(self, name: str) -> bool:
        """Drop a savepoint that was not sent yet, because its block ends without a statement. True if there was one."""
        for index, statement in enumerate(self.pending):
            if statement.kind is ControlKind.SAVEPOINT and statement.name == name:
                del self.pending[index:]
                return True
        return False

    def _note_pending_sent(self) -> None:
        """The server has what was pending."""
        names = list(self.savepoints)
        for control in self.pending:
            if control.kind is ControlKind.SAVEPOINT:
                names.append(control.name)
            elif control.name in names:
                del names[names.index(control.name) :]
        self.savepoints = tuple(names)
        self.pending.clear()

    async def rollback_to(self, name: str, *, deadline: float | None) -> None:
        """Undo everything since a savepoint and release it; the transaction goes on.

        Raises:
            DataError: The connection was lost, and the transaction with it.
        """
        await self._run_control(self._rollback_to(name, deadline))

    async def _run_control(self, work: Coroutine[Any, Any, None]) -> None:
        # In a task of its own, so that a cancelled caller does not interrupt it; the next statement awaits it.
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
        if name in self.savepoints:
            self.savepoints = self.savepoints[: self.savepoints.index(name)]
        if self.trace is not None:
            self.trace.savepoint_ended(name, "rolled_back", self.failure)
        self.failure = None

    async def take_back(self, refusal: DataError | None) -> None:
        """Check the state of the connection after its use as a raw connection.

        Args:
            refusal: A statement on it was refused because it would have ended the transaction: only a rollback remains.

        Raises:
            DataError: QUERY: the borrower has ended the transaction.
        """
        if self.is_open:
            await self._run_control(self._take_back())
        if refusal is not None and self.failure is None:
            self.failure = refusal

    async def _take_back(self) -> None:
        connection = self.connection
        error = refuse_transaction_command("COMMIT or ROLLBACK")
        if connection.closed:
            error = DataError(
                DataErrorKind.CONNECTION,
                f"the connection to {self.server.full_name} was lost while it was borrowed",
                server=self.server.location,
            )
        elif connection.is_midway:
            error = DataError(
                DataErrorKind.QUERY,
                "an operation on the borrowed connection was cut short, and the transaction rolled back",
            )
        elif connection.has_failed_transaction:
            if self.note_position is not None:
                # The borrower's reads are unknown.
                self.note_position(None)
            self.failure = DataError(DataErrorKind.QUERY, "a statement on the borrowed connection failed")
            return
        elif connection.is_in_transaction:
            limit = asyncio.get_running_loop().time() + RELEASE_LIMIT_S
            batch = [RELEASE_RAW_SAVEPOINT, *self.questions]
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
        """Check that no statement has ended or replaced the transaction.

        Raises:
            DataError: QUERY: a statement has; the rest of the transaction is rolled back. CONNECTION: the connection
                was lost after the answer.
        """
        command = next((result.status_message for result in results if result.ends_transaction), None)
        if command is None and self.connection.is_in_transaction:
            return
        if command is None and self.connection.closed:
            error = DataError(
                DataErrorKind.CONNECTION,
                f"the connection to {self.server.full_name} was lost before the transaction had ended; send the request"
                " again",
                is_retryable=True,
                server=self.server.location,
            )
        else:
            error = refuse_transaction_command(command or "COMMIT")
        await self.rollback(error.message)
        self.failure = error
        raise error

    async def fail(self, exchange: Exchange, *, is_write: bool) -> DataError:
        """Classify a failed exchange, and return the connection at once if there is nothing to roll back on it."""
        error = self.server.error_of(exchange, is_write=is_write)
        self.failure = error
        if error.sqlstate == "25006" and error.kind is DataErrorKind.CONNECTION:
            self.server.refused_write(self.connection)
        if exchange.is_lost and self.is_open:
            self._move(TxState.ROLLED_BACK)
            await self._background.run(self.server.reclaim(self.connection))
            if self.trace is not None:
                self.trace.end(TxState.ROLLED_BACK.value, "the connection was lost", error)
        return error

    def doom(self, error: DataError) -> None:
        """Allow only a rollback; commit raises `error`."""
        if self.state is TxState.ACTIVE:
            self._move(TxState.DOOMED)
        self.failure = error

    def send_commit(self, *, deadline: float | None, final: Statement | None = None) -> Exchange | None:
        """Send COMMIT without waiting; None where something must be awaited or done first.

        Args:
            deadline: Event-loop time at which a COMMIT that is still running is cancelled.
            final: A write in front of COMMIT in its round trip, as in `commit`.
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
        if final is None:
            batch = _END if self.identified is None else _END_OF_WRITES
            exchange = connection.send_controls(batch, deadline=deadline)
        elif self.identified is None or connection.has_failed_transaction:
            # `commit` learns the id in a round trip before, or rolls back.
            return None
        else:
            now = asyncio.get_running_loop().time()
            exchange = connection.send_one(_WRITE_AND_END, (), final.query, final.params, deadline=deadline, now=now)
        if exchange is not None:
            self.state = TxState.COMMITTING
            if self.trace is not None or self._measure is not None:
                self._time_commit()
        return exchange

    def take_commit(self, exchange: Exchange, *, behind: int = 0) -> bool:
        """Whether the COMMIT of `send_commit` succeeded; if not, `commit` takes over.

        Args:
            exchange: The round trip.
            behind: How many writes stand in front of COMMIT.
        """
        if not exchange.has_landed or exchange.error is not None or exchange.tag(behind) != "COMMIT":
            return False
        self.state = TxState.COMMITTED
        if self.identified is not None:
            self.wal_position = exchange.value(behind + 1)
        self.server.release(self.connection)
        if self.trace is not None or self._measure is not None:
            self._note_outcome()
            self._note_commit_ended(None)
        return True

    def take_whole(self, exchange: Exchange, at: int) -> None:
        """The transaction was sent as a whole, and its COMMIT has succeeded.

        Args:
            exchange: Its round trip.
            at: Index of COMMIT.
        """
        self.state = TxState.COMMITTED
        if self.identified is not None:
            self.wal_position = exchange.value(at + 1)
        self.server.release(self.connection)
        self._note_outcome()

    async def commit(
        self,
        *,
        deadline: float | None,
        doubt_timeout_s: float,
        begun: Exchange | None = None,
        at: int = 0,
        final: Sequence[Statement] = (),
    ) -> None:
        """Commit, and look up the outcome if the connection is lost.

        Runs in a background task that the request's cancellation does not reach.

        Args:
            deadline: Event-loop time at which a COMMIT that is still running is cancelled.
            doubt_timeout_s: Seconds that the lookup of the outcome may take.
            begun: The round trip of COMMIT, if it was sent already.
            at: Index of COMMIT in that.
            final: Writes in front of COMMIT in its round trip, in a transaction that has an id already: its outcome can
                be looked up by that. With `begun`: those that were sent.

        Raises:
            UnexpectedRollback: The transaction had failed before; it was rolled back.
            CommitUnknown: The connection was lost, and no server could tell the outcome.
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
            # Only shutdown cancels this task. The connection is closed, and the server decides the outcome.
            self._move(TxState.IN_DOUBT)
            self.server.discard(connection)
            self._note_commit_ended(reason)
            raise
        at = at or len(final)
        verdict = control_statements.judge_commit(exchange, at)
        failure: DataError | None = None
        try:
            if verdict is Verdict.COMMITTED:
                self._move(TxState.COMMITTED)
                if self.identified is not None:
                    self.wal_position = exchange.value(at + 1)
                await self._give_back()
            elif exchange.is_lost and self.read_only and self.isolation is not Isolation.SERIALIZABLE:
                # Whether COMMIT was sent or not: nothing was written, and all that was read belongs together.
                self._move(TxState.COMMITTED)
                await self.server.reclaim(connection)
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
        """Roll back a transaction that cannot be committed.

        Raises:
            DataError: The reason.
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
                f"{self.server.full_name}: a failover took place during the transaction, which was on the former"
                " primary: it was rolled back; send the request again",
                is_retryable=True,
                server=self.server.location,
            )

    @property
    def _is_left_behind(self) -> bool:
        """Whether another server has become the primary: a commit here would be lost."""
        timeline = self.connection.timeline
        if self.identified is not None and len(self.identified) > 1:
            identity = self.identity
            timeline = (None if identity is None else identity.timeline) or 0
        return 0 < timeline < self.server.timeline

    async def rollback(self, reason: str) -> None:
        """Undo everything and return the connection, within bounded time and without raising an error."""
        if not self.is_open:
            return
        self._move(TxState.ROLLED_BACK)
        await self._background.run(self._give_back_rolled_back(reason))

    def _time_commit(self) -> None:
        if self.trace is not None:
            self._span = self.trace.command("COMMIT")
        if self._measure is not None:
            self._started = perf_counter()

    def _note_commit_ended(self, failure: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None and self.trace is not None:
            self._end_commit_span(self.trace, span, failure)
        if self._measure is not None:
            self._note_run("COMMIT", self._started, failure)
            if self.state is TxState.IN_DOUBT:
                self._note_outcome()

    def _end_commit_span(self, trace: TransactionTrace, span: Span, failure: BaseException | None) -> None:
        outcome = self._outcome()
        if failure is not None:
            trace.session.fail(span, failure)
        elif self.state is TxState.COMMITTED:
            trace.committed(span, None if self.wal_position is None else format_lsn(parse_lsn(self.wal_position)))
        span.set_attribute(OUTCOME, outcome)
        span.end()
        trace.end(outcome, None if failure is None else "COMMIT has failed", failure)

    async def _resolve(self, exchange: Exchange, *, within: float) -> None:
        """The connection was lost during COMMIT: look up the outcome and raise it."""
        self._move(TxState.IN_DOUBT)
        if self.trace is not None and self._span is not None:
            self.trace.commit_lost(self._span)
        await self.server.reclaim(self.connection)
        identity = self.identity
        if identity is not None:
            fate = await find_fate(self.server, identity, timeout_s=within)
        elif self.read_only or self.server.identifies_writes:
            # A transaction that has not written has nothing to lose.
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
                    f"the connection to {self.server.full_name} was lost during COMMIT, and the server has rolled the"
                    " transaction back; send the request again",
                    is_retryable=True,
                    server=self.server.location,
                )
            raise error from exchange.error
        raise CommitUnknown(
            f"the connection to {self.server.full_name} was lost during COMMIT and no server could tell within"
            f" {within:.0f} s whether it took effect; look before you send the request again",
            server=self.server.location,
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
        *,
        reason: str | None = None,
    ) -> Exchange:
        trace = self.trace
        span = trace.statement(statements, reason=reason) if trace is not None and statements else None
        measure = self._measure if statements else None
        started = 0.0 if measure is None else perf_counter() if begun is None else self._started
        failure: BaseException | None = None
        rows = -1
        try:
            if begun is None:
                exchange = await self.connection.exchange(batch, deadline=deadline)
            else:
                exchange = begun
                await self.connection.finish(exchange)
            if exchange.error is not None and (span is not None or measure is not None):
                failure = error = self.server.error_of(exchange, is_write=not self.read_only)
                if span is not None and trace is not None:
                    trace.session.fail(span, error)
                    first = next((index for index, one in enumerate(batch) if one is statements[0]), 0)
                    note_failed_statement(span, exchange.failed_at, first, len(statements))
            elif measure is not None and exchange.error is None:
                rows = returned_rows(exchange, batch, statements)
            return exchange
        except asyncio.CancelledError as error:
            failure = error
            if span is not None and trace is not None:
                trace.session.fail(span, error)
                span.end()
            await self._cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - whichever class the driver, or an adapter, has raised
            # A mistake of the caller's that was noticed before anything was sent: the transaction goes on.
            failure = mistake = self.server.mistake_of(error)
            if span is not None and trace is not None:
                trace.session.fail(span, mistake)
            try:
                raise mistake from error
            finally:
                del mistake
        finally:
            if span is not None and span.is_recording():
                span.end()
            if measure is not None:
                measure.ran(self.server, description_of(statements), perf_counter() - started, failure, rows)

    async def abandon(self, statement: Statement) -> None:
        """Clean up after the caller of `send` was cancelled while it awaited the answer."""
        if self._measure is not None:
            analysis = analyze(statement.text)
            took_s = perf_counter() - self._started
            self._measure.ran(self.server, analysis, took_s, asyncio.CancelledError())
        await self._cancelled()

    async def _cancelled(self) -> None:
        """Stop a statement that may still run on the server.

        Inside a savepoint the transaction awaits a rollback to it; otherwise it is rolled back.
        """
        self._note_pending_sent()
        if self.state is TxState.ACTIVE and self.savepoints and asyncio.current_task() is not self._control:
            self.failure = DataError(DataErrorKind.QUERY, "a statement inside a savepoint was cancelled")
            await self._run_control(self._stop_statement())
        elif self.is_open:
            self._move(TxState.ROLLED_BACK)
            self.failure = DataError(
                DataErrorKind.QUERY, "a statement of this transaction was cancelled, and the transaction rolled back"
            )
            await self._background.run(self._end_interrupted())

    async def _end_interrupted(self) -> None:
        cause: BaseException = asyncio.CancelledError()
        if self.trace is not None:
            cause = self.trace.session.cause(cause)
        await self._roll_back(reason_of(cause), self.server.reclaim(self.connection), cause)

    async def _stop_statement(self) -> None:
        if not self.is_open:
            return
        connection = self.connection
        await connection.stop_statement()
        if self.is_open and not (connection.has_failed_transaction or connection.is_in_transaction):
            self.failure = DataError(
                DataErrorKind.QUERY, "a statement was cancelled, and its connection lost with the transaction"
            )
            self._move(TxState.ROLLED_BACK)
            await self.server.reclaim(connection)
            if self.trace is not None:
                self.trace.end(TxState.ROLLED_BACK.value, "the connection was lost", self.failure)

    async def _give_back_rolled_back(self, reason: str) -> None:
        await self._roll_back(reason, self._give_back(), None)

    async def _roll_back(self, reason: str, work: Coroutine[Any, Any, None], error: BaseException | None) -> None:
        trace = self.trace
        span = None if trace is None else trace.command("ROLLBACK")
        started = 0.0 if self._measure is None else perf_counter()
        try:
            await work
        finally:
            if span is not None and trace is not None:
                span.set_attribute(ROLLBACK_REASON, reason)
                span.set_attribute(OUTCOME, TxState.ROLLED_BACK.value)
                span.end()
                trace.end(TxState.ROLLED_BACK.value, reason, error or trace.session.interruption)
            self._note_run("ROLLBACK", started, None)

    async def _give_back(self) -> None:
        await self._control_done()
        await self.server.reclaim(self.connection)

    def _note_run(self, operation: str, started: float, failure: BaseException | None) -> None:
        if self._measure is not None:
            self._measure.ran(self.server, _COMMANDS[operation], perf_counter() - started, failure)

    def _note_outcome(self) -> None:
        if self._measure is not None:
            self._measure.ended(self.server.datasource, self._outcome())

    def _move(self, following: TxState) -> None:
        self.state = check_move(self.state, following)
        if following is TxState.COMMITTED or following is TxState.ROLLED_BACK:
            self._note_outcome()


_PINNED: Final = "pinned"
"""The reason of a read in a transaction that may write."""

_COMMANDS: Final = {name: analyze(name) for name in ("COMMIT", "ROLLBACK")}

_ASK_XID: Final = (control_statements.IDENTIFY_XID,)
_ASK_ALL: Final = (control_statements.IDENTIFY,)
_END: Final = (control_statements.COMMIT,)
_END_OF_WRITES: Final = (control_statements.COMMIT, control_statements.WAL_POSITION)
_WRITE_AND_END: Final = Envelope(settings=False, closing=_END_OF_WRITES)


def returned_rows(exchange: Exchange, batch: Sequence[Statement], statements: Sequence[Statement]) -> int:
    """The number of rows that the one query of a successful round trip has returned; -1 for anything else.

    Args:
        exchange: The round trip.
        batch: All statements of it.
        statements: Those of the application.
    """
    if len(statements) != 1 or statements[0].is_auxiliary or analyze(statements[0].text).operation != "SELECT":
        return -1
    index = next(index for index, one in enumerate(batch) if one is statements[0])
    return exchange.answers(index, 1)[0].rowcount


async def _after(previous: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
    if previous is not None and not previous.done():
        await asyncio.wait({previous})
    await work


def refuse_transaction_command(command: str) -> DataError:
    """The error for a statement that is itself BEGIN, COMMIT or ROLLBACK."""
    return DataError(
        DataErrorKind.QUERY,
        f"{command} as a statement would end the session's transaction, and the tenant with it; use"
        " `await db.commit()`, `await db.rollback()` or `async with db.transaction():`",
    )


def unexpected_rollback(cause: DataError | None) -> UnexpectedRollback:
    """The error of a commit that was only able to roll back."""
    because = f": {cause.message}" if cause is not None else ""
    return UnexpectedRollback(
        f"nothing was committed, because the transaction had failed before{because}",
        sqlstate=None if cause is None else cause.sqlstate,
    )


def isolation_refused(wanted: Isolation | None, present: Isolation | None) -> DataError:
    """The error for an isolation that differs from the surrounding transaction's."""
    return DataError(
        DataErrorKind.QUERY,
        f"isolation {wanted.value if wanted else 'default'!r} was asked for inside a transaction that has"
        f" {present.value if present else 'the default'!r}; isolation is decided where the transaction is opened",
    )
