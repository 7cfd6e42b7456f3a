"""The protocol: send these commands and one Sync, collect the answers up to the first error.

No waiting here: `Pipeline.send` fills libpq's buffer, and `Pipeline.receive` takes what has arrived whenever the socket
was readable. libpq does the rest (PostgreSQL manual, "Pipeline Mode").
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from psycopg import OperationalError, ProgrammingError
from psycopg import errors as e
from psycopg.pq import ExecStatus

from .result import Exchange, Result, is_stale_plan

if TYPE_CHECKING:
    from psycopg.abc import Buffer
    from psycopg.pq.abc import PGconn, PGresult

    from .connection import Connection
    from .prepared import Plan

Command = tuple[bytes, "Sequence[Buffer | None] | None", tuple[int, ...], "Sequence[int] | None", "Plan | None", bool]
"""Text; values, types and formats of the parameters; the plan of a statement that is prepared; and whether its rows are
converted."""

_TUPLES_OK: Final = int(ExecStatus.TUPLES_OK)
_COMMAND_OK: Final = int(ExecStatus.COMMAND_OK)
_EMPTY_QUERY: Final = int(ExecStatus.EMPTY_QUERY)
_FATAL_ERROR: Final = int(ExecStatus.FATAL_ERROR)
_ABORTED: Final = int(ExecStatus.PIPELINE_ABORTED)
_SYNC: Final = int(ExecStatus.PIPELINE_SYNC)
_COPY_IN: Final = int(ExecStatus.COPY_IN)
_COPY_OUT: Final = int(ExecStatus.COPY_OUT)

_NO_PLAN: Final = b"ads_0"
"""A name that no plan has."""

_PRELUDE: Final = -1
"""Slot of what goes before the statements, whose answer nobody waits for."""

_SCHEMA_TAGS: Final = frozenset({b"ALT", b"CRE", b"DRO"})
_DEALLOCATE_TAGS: Final = frozenset({b"DEA", b"DIS"})
_END_TAGS: Final = frozenset({b"COM", b"ROL"})

COPY_REFUSED: Final = "COPY from or to the client cannot be used here; use copy() of a psycopg cursor instead"


class Pipeline:
    """One pipeline on its way: what was sent, and whose answer is next."""

    __slots__ = (
        "_closes",
        "_commands",
        "_connection",
        "_makes_sense",
        "_position",
        "_resets_mode",
        "_rows",
        "_slots",
        "_syncs",
        "exchange",
    )

    def __init__(
        self, connection: Connection, commands: Sequence[Command], closes: Sequence[bytes], *, resets_mode: bool
    ) -> None:
        """Make it ready to be sent.

        Args:
            connection: The connection.
            commands: What is asked for.
            closes: Names of prepared statements to close on the server before that.
            resets_mode: psycopg has used the connection. After its stream() libpq would hand out our first command's
                rows one by one too: it resets that only from one command of a pipeline to the next. So another one
                goes first, that has no rows.
        """
        self.exchange = Exchange([None] * len(commands))
        self._connection = connection
        self._commands = commands
        self._closes = closes
        self._resets_mode = resets_mode
        self._makes_sense = True
        self._position = 0
        self._syncs = 1
        self._rows: list[tuple[Result, Plan | None]] = []
        self._slots: list[int | Plan] | None = None
        """What each answer is for where that is not simply one a statement: a statement's index, or a plan's Parse."""

    def send(self, flush_after: int | None) -> None:
        """Put everything into libpq's buffer, and into the socket's what that takes.

        Args:
            flush_after: Index of a statement after which the server is asked to send what it has.

        Raises:
            psycopg.Error: libpq refused; the connection cannot be used any more.
        """
        connection = self._connection
        pgconn = connection.pgconn
        pgconn.enter_pipeline_mode()
        if self._closes or self._resets_mode:
            self._send_prelude(pgconn)
        slots = self._slots
        number = connection.count_flight()
        for index, (text, values, types, formats, plan, _) in enumerate(self._commands):
            if plan is None:
                pgconn.send_query_params(text, values, types, formats)
            else:
                name = plan.name or b""
                # In this pipeline its Parse may be on the way already; should that fail, so does what follows.
                if not plan.is_ready and plan.sent_in != number:
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

    def receive(self) -> bool:
        """Take the answers that have arrived.

        Returns:
            Whether the last Sync was among them: the connection is free again.

        Raises:
            psycopg.Error: The answers make no sense; the connection cannot be used any more.
        """
        pgconn = self._connection.pgconn
        while not pgconn.is_busy():
            pgresult = pgconn.get_result()
            if pgresult is None:
                self._makes_sense = False
                raise OperationalError("the connection ended in the middle of a pipeline")
            status = pgresult.status
            if status == _SYNC:
                self._syncs -= 1
                if not self._syncs:
                    return True
                continue
            try:
                self._take(pgresult, status)
            except IndexError:
                self._makes_sense = False
                raise OperationalError("the server gave more answers than it was asked questions") from None
            # Every command's answers end with a None, which is there as soon as the answer is.
            pgconn.get_result()
        return False

    def load(self) -> Exchange:
        """Convert the rows that have arrived, and hand out the outcome."""
        transformer = self._connection.transformer
        for result, plan in self._rows:
            result.load(transformer, plan)
        self._rows.clear()
        return self.exchange

    def lose(self, cause: BaseException) -> None:
        """The connection is gone: take what had arrived before, and note the loss."""
        exchange = self.exchange
        if self._makes_sense:
            # An answer such as the xid in front of a COMMIT may have come in with the end of the stream.
            with suppress(e.Error):
                self.receive()
        exchange.is_lost = True
        error = exchange.error
        if error is None or (isinstance(error, OperationalError) and error.sqlstate is None):
            # libpq only finds the stream ended; the server may have said why.
            exchange.error = cause
        if exchange.failed_at is None and exchange.results:
            exchange.failed_at = self._index_at(self._position)

    def _take(self, pgresult: PGresult, status: int) -> None:
        position = self._position
        self._position = position + 1
        slots = self._slots
        if status == _TUPLES_OK or status == _COMMAND_OK or status == _EMPTY_QUERY:  # noqa: SIM109 - hot
            index = position
            if slots is not None:
                slot = slots[position]
                if not isinstance(slot, int):
                    self._connection.plans.note_ready(slot)
                    return
                if slot == _PRELUDE:
                    return
                index = slot
            result = self.exchange.results[index] = Result(pgresult, self._connection)
            if status == _TUPLES_OK:
                command = self._commands[index]
                if command[5]:
                    self._rows.append((result, command[4]))
            elif status == _COMMAND_OK:
                self._note_tag(pgresult.command_status)
        elif status == _FATAL_ERROR:
            if slots is None or position >= len(slots) or slots[position] != _PRELUDE:
                error = e.error_from_result(pgresult, self._connection.transformer.encoding)
                if error.sqlstate is None:
                    # Not the server's word but libpq's: the connection is gone.
                    error = OperationalError(str(error))
                self._fail(error, position)
        elif status != _ABORTED:
            # COPY is refused before it is sent. Should one come through after all, the pipeline has no way out of it.
            self._makes_sense = False
            self._fail(ProgrammingError(COPY_REFUSED), position)
            raise OperationalError(COPY_REFUSED)

    def _fail(self, error: e.Error, position: int) -> None:
        exchange = self.exchange
        if exchange.error is not None:
            return
        exchange.error = error
        if not exchange.results:
            return
        exchange.failed_at = index = self._index_at(position)
        if is_stale_plan(error):
            plans = self._connection.plans
            plans.retire()
            if error.sqlstate != "26000":
                # Its columns depend on where it runs: on the tenant's schema.
                plans.exclude(self._commands[index][0])

    def _index_at(self, position: int) -> int:
        """The statement that this answer is for; the last one when it is the Sync's, where constraints are checked."""
        slots = self._slots
        last = len(self._commands) - 1
        if slots is None:
            return min(position, last)
        return next((slot for slot in slots[position:] if isinstance(slot, int) and slot >= 0), last)

    def _note_tag(self, tag: bytes | None) -> None:
        """Some commands take prepared statements away, or change what they refer to."""
        if not tag:
            return
        head = tag[:3]
        connection = self._connection
        if head in _SCHEMA_TAGS:
            connection.has_changed_schema = True
            connection.plans.retire()
        elif head in _DEALLOCATE_TAGS:
            connection.plans.retire()
        elif connection.has_changed_schema and head in _END_TAGS:
            connection.has_changed_schema = False
            connection.plans.retire()

    def _send_prelude(self, pgconn: PGconn) -> None:
        """What goes before the statements, and whose answers nobody waits for."""
        names = (_NO_PLAN, *self._closes) if self._resets_mode else self._closes
        slots: list[int | Plan] = [_PRELUDE for _ in names]
        self._slots = slots
        for name in names:
            if self._connection.plans.closes_by_message:
                pgconn.send_close_prepared(name)
                continue
            # It fails where the name is gone already, or the transaction has; with a Sync of its own it takes nothing
            # else with it.
            pgconn.send_query_params(b"" if name == _NO_PLAN else b"deallocate " + name, None)
            pgconn.pipeline_sync()
            self._syncs += 1


class Drain:
    """Reads away what is left of one of psycopg's own operations that was cancelled in the middle."""

    __slots__ = ("_pgconn", "_was_empty")

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._was_empty = False

    def begin(self) -> None:
        """Ask the server for an end: a Sync for a pipeline that has none."""
        if self._pgconn.pipeline_status:
            self._pgconn.pipeline_sync()

    def receive(self) -> bool:
        """Take what has arrived.

        Returns:
            Whether the connection is at rest.

        Raises:
            psycopg.Error: There is no way to rest.
        """
        pgconn = self._pgconn
        while not pgconn.is_busy():
            pgresult = pgconn.get_result()
            if pgresult is None:
                if not pgconn.pipeline_status:
                    return True
                # In a pipeline a None ends one command; two in a row mean that nothing is left.
                if self._was_empty:
                    pgconn.exit_pipeline_mode()
                    return True
                self._was_empty = True
                continue
            self._was_empty = False
            if pgresult.status == _COPY_IN:
                pgconn.put_copy_end(b"cancelled")
                pgconn.flush()
            elif pgresult.status == _COPY_OUT:
                while True:
                    size, _ = pgconn.get_copy_data(1)
                    if size == 0:
                        return False
                    if size < 0:
                        break
        return False
