"""A psycopg connection whose hot path drives libpq's pipeline itself: one `exchange`, one round trip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from psycopg import DataError, InterfaceError, OperationalError, ProgrammingError
from psycopg import errors as e
from psycopg.pq import TransactionStatus

from ...concurrency.fair_queue import Share
from ...observability.metrics import Use
from ...routing import Position
from .pipeline import COPY_REFUSED, Command, Drain, Pipeline
from .prepared import StatementCache
from .result import Exchange
from .server_timeouts import ServerTimeouts
from .socket import BAD, CANCEL_LIMIT_S, IN_USE, Receiver, WatchedSocket, shut_down
from .statement import MAX_CACHED_LENGTH, MAX_PARAMS, Control, Statement, convert

if TYPE_CHECKING:
    from .borrowed_connection import BorrowedConnection
    from .pool import Lender

_IDLE: Final = int(TransactionStatus.IDLE)
_INTRANS: Final = int(TransactionStatus.INTRANS)
_INERROR: Final = int(TransactionStatus.INERROR)
_ACTIVE: Final = int(TransactionStatus.ACTIVE)

_TEXT_OID: Final = 25
"""Of the type text (PostgreSQL source, pg_type.dat)."""

_CLOCK_STEP_S: Final = 0.001
"""uvloop's clock has no finer steps: its timers come up to one early."""

_ROLLBACK: Final = Statement("rollback", prepare=False)
OUTLIVES_REFUSED: Final = (
    "this statement may change the session itself, and behind a pooler in transaction mode the session is shared with"
    " other tenants; use SET LOCAL, set_config(name, value, true), pg_advisory_xact_lock, a table that is not temporary"
)
_DISCARD: Final = Statement("discard all", prepare=False)


class Connection(WatchedSocket):
    """One connection of a pool: in autocommit mode, BEGIN and COMMIT are statements like others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._flights = 0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.has_changed_schema = False
        """A statement of the open transaction created, changed or dropped something."""
        self.needs_reset = False
        """Something may have been changed that outlives a transaction; undone before it is lent again."""
        self.share: Share | None = None
        """On whose account it is borrowed, where that is counted."""
        self.use: Use | None = None
        """Is told when it is given back, where that is measured."""
        self.is_kept = False
        """The keeper of its pool counts it as in use."""
        self.due_at = inf
        """Event-loop time from which on it is not lent again: its pool replaces it."""
        self.lender: Lender | None = None
        """Where it came from and goes back to; None while it is in its pool."""
        self.plans = StatementCache()
        self.server_version = self.pgconn.server_version
        """As libpq reports it: 180004."""
        self.held: Position | None = None
        """Where the server at the other end has said that it is; it only goes on from there."""
        self.timeline = 0
        """The timeline that the primary at the other end writes; 0 is not known."""
        self.limits = ServerTimeouts()
        """The server's own; known of a pool's connections."""

    # What the session layer asks

    @property
    def transaction_status(self) -> TransactionStatus:
        """Where the server's transaction stands, as of its last answer."""
        return TransactionStatus(self.pgconn.transaction_status)

    @property
    def is_midway(self) -> bool:
        """Whether psycopg is, or was left, in the middle of one of its own operations."""
        pgconn = self.pgconn
        return bool(self._foreign_waits or pgconn.transaction_status == _ACTIVE or pgconn.pipeline_status)

    @property
    def is_idle(self) -> bool:
        """Outside any transaction."""
        return self.pgconn.transaction_status == _IDLE

    @property
    def is_in_transaction(self) -> bool:
        """Inside a transaction that can go on."""
        return self.pgconn.transaction_status == _INTRANS

    @property
    def has_failed_transaction(self) -> bool:
        """Inside a transaction that only a rollback can end."""
        return self.pgconn.transaction_status == _INERROR

    @property
    def in_recovery(self) -> bool | None:
        """Whether the server said that it is a hot standby; None when it does not say (before version 14)."""
        if self.pgconn.status == BAD:
            return None
        state = self.pgconn.parameter_status(b"in_hot_standby")
        return None if state is None else state == b"on"

    @property
    def takes_writes(self) -> bool:
        """Whether the server has said that it is no standby, and that transactions may write unless told otherwise.

        Servers say so by themselves, with each change (PostgreSQL manual, "Asynchronous Operations" of the protocol);
        those before version 14, and some poolers, do not.
        """
        if self.pgconn.status == BAD:
            return False
        status = self.pgconn.parameter_status
        return status(b"in_hot_standby") == b"off" and status(b"default_transaction_read_only") == b"off"

    def retire(self) -> None:
        """Let its pool replace it as soon as it comes back."""
        self.due_at = self._expire_at = -inf

    # The hot path

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> Exchange:
        """Send statements and one Sync, and collect their results: one round trip.

        Outside a transaction they are one implicit transaction, which ends at the Sync. Errors of the server and of
        the connection are not raised: they are in the answer, beside what arrived before them.

        Args:
            statements: What to send; may be empty, to hear whether the server is there.
            deadline: Event-loop time at which the server is asked to cancel. A server that does not react within
                `CANCEL_LIMIT_S` is cut off.
            flush_after: Index of a statement whose answer the server is asked to send at once. An answer that the
                server still buffers is lost with the connection.

        Raises:
            psycopg.Error, TypeError, ...: A mistake of the caller's, as psycopg's cursor raises it for the same
                statement; nothing was sent.
            asyncio.CancelledError: What was sent is still under way: hand the connection to `PsycopgServer.reclaim`.
        """
        if self._receiver is not None or self._foreign_waits:
            raise InterfaceError(IN_USE)
        if self._cancel_request is not None:
            await self._outlast_cancel()
        # Without messages for it, names are closed by a statement, which could fail the transaction it runs in.
        closes = self.plans.take_closes() if self.plans.closes_by_message or self.is_idle else ()
        try:
            flight = Pipeline(self, self._to_commands(statements), closes, resets_mode=self._was_psycopgs)
        except BaseException:
            self.plans.put_back_closes(closes)
            raise
        if self._is_gone:
            flight.exchange.error, flight.exchange.is_lost = self.reason_of_end, True
            return flight.exchange
        if deadline is not None and deadline <= self._loop.time():
            self.plans.put_back_closes(closes)
            return _too_late(flight.exchange)
        try:
            flight.send(flush_after)
            is_pending = self.pgconn.flush()
        except e.Error as error:
            self._receiver = flight
            self._lose(error)
            flight.exchange.failed_at = None
            return flight.exchange
        self._receiver = flight
        self._was_psycopgs = False
        if not self._is_watched:
            self._watch()
        if is_pending:
            self._write_later()
        if deadline is not None:
            self._set_deadline(deadline)
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            # When cancelled, what still arrives is collected, for nobody. Somebody else may wait here by now.
            if self._waiter is waiter:
                self._waiter = None
        if self._receiver is flight:
            await self._stop(flight)
            flight.exchange.timed_out = flight.exchange.error is not None
        return flight.load()

    def count_flight(self) -> int:
        """A number for the pipeline that is about to leave."""
        self._flights += 1
        return self._flights

    def _to_commands(self, statements: Sequence[Statement]) -> list[Command]:
        if self.adapters.changes != self._adapter_changes:
            self.refresh_transformer()
        transformer = self.transformer
        prepares = self._observer is None or self._observer.prepares
        commands: list[Command] = []
        for statement in statements:
            if type(statement) is Control:
                commands.append(self._control_command(statement, prepares=prepares))
                continue
            params = statement.params
            converted = convert(statement.query, transformer, has_params=params is not None)
            if converted.is_client_copy:
                raise ProgrammingError(COPY_REFUSED)
            if converted.outlives_transaction:
                if self.is_lent and self._observer is not None and self._observer.is_pooled:
                    raise ProgrammingError(OUTLIVES_REFUSED)
                self.needs_reset = True
            text = converted.text
            values = formats = None
            types: tuple[int, ...] = ()
            if params is not None:
                ordered = converted.order(params)
                if len(ordered) > MAX_PARAMS:
                    raise OperationalError(
                        f"sending query and params failed: number of parameters must be between 0 and {MAX_PARAMS}"
                    )
                if ordered:
                    values = transformer.dump_sequence(ordered, converted.formats)
                    types = transformer.types or ()
                    formats = transformer.formats
            prepare = statement.prepare
            plan = None
            if prepare is not False and prepares and (prepare or len(text) <= MAX_CACHED_LENGTH):
                plan = self.plans.plan(text, types, at_once=prepare is True)
            commands.append((text, values, types, formats, plan, True))
        return commands

    def _control_command(self, statement: Control, *, prepares: bool) -> Command:
        encoding = self.transformer.encoding
        values: list[bytes | None] = []
        for value in cast("Sequence[str]", statement.params):
            encoded = value.encode(encoding)
            if b"\0" in encoded:
                # libpq would take what stands before it for the whole.
                raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
            values.append(encoded)
        types = (_TEXT_OID,) * len(values)
        plan = self.plans.plan(statement.encoded, types, at_once=False) if prepares else None
        return (statement.encoded, values, types, None, plan, statement.loads)

    def _land(self, receiver: Receiver) -> None:
        self._deadline = None
        if isinstance(receiver, Pipeline):
            self.pgconn.exit_pipeline_mode()
        super()._land(receiver)

    def _lose(self, cause: BaseException) -> None:
        self._deadline = None
        if isinstance(self._receiver, Pipeline):
            self._receiver.lose(self._farewell or cause)
            # Now, while libpq still knows the connection's settings.
            self._receiver.load()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super()._lose(cause)

    # Deadlines

    def _set_deadline(self, deadline: float) -> None:
        # A timer that comes too early sets itself anew. So hardly an exchange needs one of its own: the timer of one
        # long past serves the next, thousands of times.
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        if self._loop.time() < deadline - _CLOCK_STEP_S:
            self._set_deadline(deadline)
            return
        self._deadline = None
        self._wake()

    # Coming to rest

    async def _stop(self, receiver: Receiver) -> None:
        """End what is under way: cancel it on the server and wait for the Sync, or cut."""
        observer = self._observer
        started = time.monotonic()
        is_answered = await self.cancel_on_server(CANCEL_LIMIT_S)
        if not is_answered and observer is not None:
            observer.went_silent()
        if self._receiver is receiver and is_answered:
            await self._await_landing(max(0.1, CANCEL_LIMIT_S - (time.monotonic() - started)))
        if self._receiver is receiver:
            # What is there by now counts, such as the answer to a COMMIT.
            self._on_readable()
        if self._receiver is receiver:
            self.cut("the server did not stop the statement in time")
        elif not is_answered and isinstance(receiver, Pipeline):
            # The cancel request may still be on its way, and would stop a stranger's statement.
            self.cut("a cancel request was not answered")
            receiver.lose(OperationalError("the connection was cut: a cancel request was not answered"))

    async def _await_landing(self, limit_s: float) -> None:
        # Whoever still waits for what is stopped here waits on: nobody else would wake him.
        before = self._waiter
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(limit_s, self._wake)
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None
            timer.cancel()
            if before is not None and not before.done():
                before.set_result(None)

    async def settle(self, *, limit_s: float = CANCEL_LIMIT_S) -> bool:
        """Bring a connection in any state back to idle: cancel, drain to the Sync, roll back. Otherwise cut it.

        Where `needs_reset` is set, also discard what outlives a transaction: settings, temporary tables, prepared
        statements, locks.

        Args:
            limit_s: Seconds for the rollback, and for the reset.

        Returns:
            Whether it can be used again.
        """
        if self._foreign_waits:
            await self._end_foreign_waits()
        self._loans = 0
        self._watch()
        if self._receiver is None and not self._is_gone and self.is_midway:
            # psycopg was cancelled in the middle of one of its own operations.
            self._receiver = drain = Drain(self.pgconn)
            try:
                drain.begin()
                self._on_readable()
            except e.Error as error:
                self._lose(error)
        if self._receiver is not None:
            await self._stop(self._receiver)
        if not self._is_gone and not self.is_idle:
            await self.exchange((_ROLLBACK,), deadline=self._loop.time() + limit_s)
        if self.needs_reset and self._observer is not None and self._observer.is_pooled:
            # It would reset whichever connection the pooler has at hand.
            self.needs_reset = False
        if self.needs_reset and not self._is_gone and self.is_idle:
            discarded = await self.exchange((_DISCARD,), deadline=self._loop.time() + limit_s)
            if discarded.error is None:
                self.needs_reset = False
            elif not self._is_gone:
                self.cut("the connection could not be reset")
        if not self._is_gone and not self.is_idle:
            self.cut("the transaction could not be rolled back")
        return not self._is_gone

    async def _end_foreign_waits(self) -> None:
        """A task still waits in one of psycopg's operations: make it end."""
        if await self.cancel_on_server(CANCEL_LIMIT_S) and await self.foreign_waits_ended(CANCEL_LIMIT_S):
            return
        shut_down(self._fd)
        if not await self.foreign_waits_ended(CANCEL_LIMIT_S):
            self.cut("a task did not let go of it")

    # psycopg's own connection, for the session's user

    def view(self) -> BorrowedConnection:
        """This connection as an ordinary psycopg one, for as long as its user may have it."""
        from .borrowed_connection import BorrowedConnection

        # What its user sends does not pass through here.
        self.needs_reset = True
        return BorrowedConnection(self)


def _too_late(exchange: Exchange) -> Exchange:
    exchange.error = OperationalError("the deadline had passed before the statement was sent")
    exchange.timed_out = True
    return exchange
