"""One round trip in libpq's pipeline mode: send commands and one Sync, collect the answers up to the first error.

Nothing waits here: `Pipeline.send` fills libpq's buffer, and `Pipeline.receive` reads what has arrived whenever the
    socket
is readable (PostgreSQL manual, "Pipeline Mode").
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from psycopg import AsyncConnection, Error, OperationalError, ProgrammingError
from psycopg import errors as e
from psycopg.pq import ExecStatus, TransactionStatus

from .prepared import Plan, StatementCache
from .result import TRANSACTION_TAGS, Result

if TYPE_CHECKING:
    from psycopg.abc import Buffer, Transformer
    from psycopg.pq.abc import PGconn, PGresult

Command = tuple[bytes, "Sequence[Buffer | None] | None", tuple[int, ...], "Sequence[int] | None", Plan | None, bool]
"""Text; values, types and formats of the parameters; the plan of a prepared statement; and whether its rows are
converted for the user."""

_TUPLES_OK: Final = int(ExecStatus.TUPLES_OK)
_COMMAND_OK: Final = int(ExecStatus.COMMAND_OK)
_EMPTY_QUERY: Final = int(ExecStatus.EMPTY_QUERY)
_FATAL_ERROR: Final = int(ExecStatus.FATAL_ERROR)
_ABORTED: Final = int(ExecStatus.PIPELINE_ABORTED)
_SYNC: Final = int(ExecStatus.PIPELINE_SYNC)
_COPY_IN: Final = int(ExecStatus.COPY_IN)
_COPY_OUT: Final = int(ExecStatus.COPY_OUT)

_IDLE: Final = int(TransactionStatus.IDLE)
_INTRANS: Final = int(TransactionStatus.INTRANS)

_NO_PLAN: Final = b"ads_0"
"""A name that no plan has."""

_PRELUDE: Final = -1
"""Slot of commands in front of the statements, whose answers are ignored."""

_SCHEMA_TAGS: Final = frozenset({b"ALT", b"CRE", b"DRO"})
_DEALLOCATE_TAGS: Final = frozenset({b"DEA", b"DIS"})
_END_TAGS: Final = frozenset({b"COM", b"ROL"})
_NOTED_TAGS: Final = _SCHEMA_TAGS | _DEALLOCATE_TAGS

COPY_REFUSED: Final = "COPY from or to the client cannot be used here; use copy() of a psycopg cursor instead"


class PipelineHost(AsyncConnection[Any]):
    """The connection that a pipeline is sent on."""

    plans: StatementCache
    transformer: Transformer
    has_changed_schema: bool
    """A statement of the open transaction has changed the schema."""
    pipelines: int
    """Number of pipelines with a Parse that were sent."""
    parses_answered: int
    """Number of the last pipeline whose Parse messages were answered."""


class Pipeline:
    """The commands of a round trip and their answers; the `Exchange` of `drivers.protocol`."""

    # Defaults on the class: an ordinary round trip does not pay for setting them.
    error: BaseException | None = None
    failed_at: int | None = None
    is_lost = False
    timed_out = False
    has_landed = False
    closes: Sequence[bytes] = ()
    """Names of prepared statements to close first."""
    resets_mode = False
    """psycopg has used the connection. After its stream(), libpq would return the first command's rows one by one as
    well: it resets that mode only between two commands of a pipeline. So a command without rows goes first."""
    reset: Sequence[Command] | None = None
    """Commands that clear another tenant's session state, in the transaction that this pipeline opens."""
    reset_at = 0
    """Number of statements before the reset: 1 after BEGIN."""
    is_read = False
    """In a pipeline with a reset: everything after the reset is READ ONLY."""
    query: str | None = None
    """Text of the one statement of a read that other reads may join."""
    deadline: float | None = None
    """Event-loop time at which its caller stops waiting."""
    began_at: float | None = None
    """`perf_counter` time at which the reads in front of it were done; None if there were none."""
    is_withdrawn = False
    """The read stood behind a slow one on a shared connection: it has to be run on another."""
    tenancy = 0
    """With a reset: the connection's count of tenant changes when it was sent."""
    number = 0
    """Number of this pipeline among those with a Parse; 0 without one."""
    waiter: asyncio.Future[None]
    _results: list[Result | None] | None = None
    _makes_sense = True
    _position = 0
    _syncs = 1
    _slots: list[int | Plan] | None = None
    """What each answer belongs to, unless that is simply one per statement: a statement's index, or a plan's Parse."""

    def __init__(self, host: PipelineHost, commands: Sequence[Command]) -> None:
        """Prepare a round trip.

        Args:
            host: The connection.
            commands: The commands.
        """
        self._host = host
        self._commands = commands
        self._answers: list[PGresult | None] = [None] * len(commands)

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "failed" if self.error is not None else "ok"
        answered = sum(1 for answer in self._answers if answer is not None)
        return f"<Pipeline {state}, {answered} of {len(self._answers)} answered>"

    # Answers

    @property
    def is_stale_plan(self) -> bool:
        """The server refused a statement only because its prepared form is outdated: a retry is likely to succeed."""
        return is_stale_plan(self.error)

    @property
    def failed_text(self) -> str | None:
        """The text of the statement that has failed, with its placeholders; None where no single one has."""
        if self.failed_at is None:
            return None
        return self._commands[self.failed_at][0].decode(self._host.transformer.encoding, "replace")

    def take(self, index: int, *, in_transaction: bool) -> Result | None:
        """Read the result of one statement if the round trip succeeded; None if not.

        Args:
            index: Index of the statement.
            in_transaction: Required state of the connection afterwards: inside a transaction, or outside.
        """
        host = self._host
        if (
            not self.has_landed
            or self.error is not None
            or (
                # Loaded: a read that shares its connection, whose state is not its own.
                self._results is None and host.pgconn.transaction_status != (_INTRANS if in_transaction else _IDLE)
            )
        ):
            return None
        answer = self._answers[index]
        if answer is None or (answer.status == _COMMAND_OK and answer.command_status in TRANSACTION_TAGS):
            return None
        if self._results is not None:
            return self._results[index]
        return Result(answer, host, host.transformer, self._commands[index][4])

    @property
    def results(self) -> list[Result | None]:
        """A result for each statement; None for control statements, and for those without an answer."""
        if self._results is None:
            self.load()
        return self._results or []

    def load(self) -> None:
        """Convert all results that have arrived, once, while the connection exists."""
        if self._results is not None:
            return
        host = self._host
        self._results = results = list[Result | None]()
        for answer, command in zip(self._answers, self._commands, strict=True):
            if answer is None or not command[5]:
                results.append(None)
                continue
            results.append(Result(answer, host, host.transformer, command[4]))

    def answers(self, first: int, count: int) -> list[Result]:
        """The results of a range of statements, all of which succeeded."""
        return [result for result in self.results[first : first + count] if result is not None]

    def was_answered(self, index: int) -> bool:
        """Whether a statement, control statements included, has run."""
        return self._answers[index] is not None

    def tag(self, index: int) -> str | None:
        """The command tag of a statement, control statements included; None without an answer."""
        answer = self._answers[index]
        tag = None if answer is None else answer.command_status
        return None if tag is None else tag.decode()

    def value(self, index: int) -> str | None:
        """The first value of a control statement's answer, as text; None without one."""
        answer = self._answers[index]
        found = None if answer is None or not answer.ntuples else answer.get_value(0, 0)
        return None if found is None else found.decode()

    def values(self, index: int) -> list[str | None] | None:
        """The first row of a control statement's answer, as text; None without an answer."""
        answer = self._answers[index]
        if answer is None or not answer.ntuples:
            return None
        values = [answer.get_value(0, column) for column in range(answer.nfields)]
        return [None if value is None else value.decode() for value in values]

    def sends(self, index: int) -> bool:
        """Whether a statement has a text."""
        return bool(self._commands[index][0])

    @property
    def has_committed(self) -> bool:
        """Whether a transaction that has ended with it, or within it, took effect."""
        if self.error is not None:
            return False
        # Without BEGIN all of it is one transaction, which ends with it.
        has_committed = self.reset is not None and not self.reset_at
        for answer in self._answers:
            tag = None if answer is None else answer.command_status
            if tag == b"ROLLBACK":
                return False
            has_committed = has_committed or tag == b"COMMIT"
        return has_committed

    # Sending

    def send(self, flush_after: int | None) -> None:
        """Write all commands into libpq's buffer.

        Args:
            flush_after: Index of a statement after which the server is asked to flush its output.

        Raises:
            psycopg.Error: libpq refused; the connection is unusable.
        """
        host = self._host
        pgconn = host.pgconn
        pgconn.enter_pipeline_mode()
        if self.closes or self.resets_mode:
            self._send_prelude(pgconn)
        slots = self._slots
        number = 0
        commands = self._commands
        if self.reset is not None:
            at, count = self.reset_at, len(self.reset)
            commands = [*commands[:at], *self.reset, *commands[at:]]
            self._answers = [None] * len(commands)
            if flush_after is not None and flush_after >= at:
                flush_after += count
        for index, (text, values, types, formats, plan, _) in enumerate(commands):
            if plan is None:
                pgconn.send_query_params(text, values, types, formats)
            elif plan.is_ready:
                pgconn.send_query_prepared(plan.name, values, formats)  # type: ignore[arg-type]  # ready ones have one
            elif plan.sent_in > host.parses_answered and plan.sent_in != number:
                # Its Parse is on its way in another read's round trip, and may fail with that.
                pgconn.send_query_params(text, values, types, formats)
            else:
                name = plan.name or b""
                if not number:
                    number = self.number = host.pipelines = host.pipelines + 1
                # Its Parse may have been sent in this pipeline already; if that fails, so does this command.
                if plan.sent_in != number:
                    plan.sent_in = number
                    if slots is None:
                        slots = self._slots = list(range(index))
                    pgconn.send_prepare(name, text, types)
                    slots.append(plan)
                pgconn.send_query_prepared(name, values, formats)
            if slots is not None:
                slots.append(index)
            if index == flush_after:
                pgconn.send_flush_request()
        pgconn.pipeline_sync()

    def _send_prelude(self, pgconn: PGconn) -> None:
        """Send the commands in front of the statements, whose answers are ignored."""
        names = (_NO_PLAN, *self.closes) if self.resets_mode else self.closes
        slots: list[int | Plan] = [_PRELUDE for _ in names]
        self._slots = slots
        for name in names:
            if self._host.plans.closes_by_message:
                pgconn.send_close_prepared(name)
                continue
            # It fails if the name does not exist or the transaction has failed; with a Sync of its own, the failure
            # affects nothing else.
            pgconn.send_query_params(b"" if name == _NO_PLAN else b"deallocate " + name, None)
            pgconn.pipeline_sync()
            self._syncs += 1

    # Receiving

    def receive(self) -> bool:
        """Read the answers that have arrived.

        Returns:
            Whether the last Sync has arrived, so that the connection is free again.

        Raises:
            psycopg.Error: The answers are inconsistent; the connection is unusable.
        """
        host = self._host
        pgconn = host.pgconn
        # Success of an ordinary statement is the common case; `_take` handles everything else.
        is_plain = self._slots is None
        answers = self._answers
        while not pgconn.is_busy():
            answer = pgconn.get_result()
            if answer is None:
                self._makes_sense = False
                raise OperationalError("the connection ended in the middle of a pipeline")
            status = answer.status
            if status == _SYNC:
                self._syncs -= 1
                if not self._syncs:
                    self.has_landed = True
                    if self.reset is not None:
                        self._drop_reset()
                    return True
                continue
            try:
                if is_plain and (status == _TUPLES_OK or status == _COMMAND_OK):  # noqa: SIM109 - hot
                    answers[self._position] = answer
                    self._position += 1
                    if status == _COMMAND_OK:
                        tag = answer.command_status
                        if tag is not None and (tag[:3] in _NOTED_TAGS or host.has_changed_schema):
                            self._note_tag(tag[:3], self._position - 1)
                else:
                    self._take(answer, status)
            except IndexError:
                self._makes_sense = False
                raise OperationalError("the server gave more answers than it was asked questions") from None
            # Every command's answers end with a None, which is there as soon as the answer is.
            pgconn.get_result()
        return False

    def lose(self, cause: BaseException, *, reads_rest: bool = True) -> None:
        """The connection is lost: read the answers that arrived before, and record the loss.

        Args:
            cause: Why it is lost.
            reads_rest: What has arrived may be an answer to this round trip.
        """
        if self._makes_sense and reads_rest:
            # An answer, such as the xid in front of a COMMIT, may have arrived with the end of the stream.
            with suppress(Error):
                self.receive()
        self.has_landed = False
        self.is_lost = True
        error = self.error
        if error is None or (isinstance(error, OperationalError) and error.sqlstate is None):
            # libpq only sees the end of the stream; the server may have sent the reason.
            self.error = cause
        if self.failed_at is None and self._commands:
            self.failed_at = self._index_at(self._position)
        self._drop_reset()

    def _take(self, answer: PGresult, status: int) -> None:
        position = self._position
        self._position = position + 1
        slots = self._slots
        if status == _TUPLES_OK or status == _COMMAND_OK or status == _EMPTY_QUERY:  # noqa: SIM109 - hot
            index = position
            if slots is not None:
                slot = slots[position]
                if not isinstance(slot, int):
                    self._host.plans.note_ready(slot)
                    return
                if slot == _PRELUDE:
                    return
                index = slot
            self._answers[index] = answer
            if status == _COMMAND_OK:
                tag = answer.command_status
                if tag is not None:
                    self._note_tag(tag[:3], index)
        elif status == _FATAL_ERROR:
            if slots is None or position >= len(slots) or slots[position] != _PRELUDE:
                error = e.error_from_result(answer, self._host.transformer.encoding)
                if error.sqlstate is None:
                    # An error of libpq, not of the server: the connection is lost.
                    error = OperationalError(str(error))
                if self.reset is not None and self.error is None:
                    error = self._judge_reset(error, position)
                self._fail(error, position)
        elif status != _ABORTED:
            # COPY is refused before it is sent. If one is started all the same, the pipeline cannot leave it.
            self._makes_sense = False
            self._fail(ProgrammingError(COPY_REFUSED), position)
            raise OperationalError(COPY_REFUSED)

    def _judge_reset(self, error: Error, position: int) -> Error:
        """Part with a connection whose session could not be cleared; any other error is returned as it is."""
        if not self._is_of_reset(self._sent_at(position)) or is_stale_plan(error):
            return error
        self._makes_sense = False
        self.error = OperationalError(f"the session could not be reset for another tenant (SQLSTATE {error.sqlstate})")
        raise self.error

    def _fail(self, error: Error, position: int) -> None:
        if self.error is not None:
            return
        self.error = error
        if not self._commands:
            return
        self.failed_at = index = self._index_at(position)
        if is_stale_plan(error):
            plans = self._host.plans
            plans.retire()
            if error.sqlstate != "26000":
                # Its columns depend on the tenant's schema.
                plans.exclude(self._commands[index][0])

    def _is_of_reset(self, index: int) -> bool:
        """Whether a command that was sent belongs to the reset."""
        return self.reset is not None and 0 <= index - self.reset_at < len(self.reset)

    def _drop_reset(self) -> None:
        """Keep the answers of the statements only."""
        if self.reset is not None and len(self._answers) > len(self._commands):
            del self._answers[self.reset_at : self.reset_at + len(self.reset)]

    def _index_at(self, position: int) -> int:
        """The statement that an answer belongs to; the last one for the Sync's, where constraints are checked."""
        index = self._sent_at(position)
        if self.reset is not None and index >= self.reset_at:
            index = max(self.reset_at, index - len(self.reset))
        return min(index, len(self._commands) - 1)

    def _sent_at(self, position: int) -> int:
        """The command that an answer belongs to, by its place among those that were sent."""
        slots = self._slots
        last = len(self._commands) + (0 if self.reset is None else len(self.reset)) - 1
        if slots is None:
            return min(position, last)
        return next((slot for slot in slots[position:] if isinstance(slot, int) and slot >= 0), last)

    def _note_tag(self, head: bytes, index: int) -> None:
        """Track commands that drop prepared statements, or change the objects they use."""
        if self._is_of_reset(index):
            return
        host = self._host
        if head in _SCHEMA_TAGS:
            host.has_changed_schema = True
            host.plans.retire()
        elif head in _DEALLOCATE_TAGS:
            host.plans.retire()
        elif head in _END_TAGS and host.has_changed_schema:
            host.has_changed_schema = False
            host.plans.retire()


class Drain:
    """Reads the rest of the answer to one of psycopg's own operations that was cancelled halfway."""

    __slots__ = ("_pgconn", "_was_empty")

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._was_empty = False

    def begin(self) -> None:
        """Send a Sync for a pipeline that has none, so that the answer ends."""
        if self._pgconn.pipeline_status:
            self._pgconn.pipeline_sync()

    def receive(self) -> bool:
        """Read what has arrived.

        Returns:
            Whether the connection is idle.

        Raises:
            psycopg.Error: It cannot become idle.
        """
        pgconn = self._pgconn
        while not pgconn.is_busy():
            answer = pgconn.get_result()
            if answer is None:
                if not pgconn.pipeline_status:
                    return True
                # In a pipeline a None ends one command; two in a row mean that nothing is left.
                if self._was_empty:
                    pgconn.exit_pipeline_mode()
                    return True
                self._was_empty = True
                continue
            self._was_empty = False
            if answer.status == _COPY_IN:
                pgconn.put_copy_end(b"cancelled")
                pgconn.flush()
            elif answer.status == _COPY_OUT:
                while True:
                    size, _ = pgconn.get_copy_data(1)
                    if size == 0:
                        return False
                    if size < 0:
                        break
        return False


def is_stale_plan(error: BaseException | None) -> bool:
    """Whether an error says that a prepared statement does not exist, or that its result's columns have changed."""
    if not isinstance(error, Error):
        return False
    if error.sqlstate == "26000":
        return True
    # 0A000 has many causes and its text may be translated; the source function identifies this one.
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"
