"""The protocol: send these commands and one Sync, collect the answers up to the first error.

No waiting here: `Flight.send` fills libpq's buffer, and `Flight.receive` takes what has arrived whenever the socket
was readable. libpq does the rest (PostgreSQL manual, "Pipeline Mode").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from psycopg import OperationalError, ProgrammingError, capabilities
from psycopg import errors as e
from psycopg.pq import ExecStatus

from .result import Exchange, Result, is_stale_plan

if TYPE_CHECKING:
    from psycopg.abc import Buffer
    from psycopg.pq.abc import PGconn, PGresult

    from .connection import Connection
    from .statements import Plan

Command = tuple[bytes, "Sequence[Buffer | None] | None", tuple[int, ...], "Sequence[int] | None", "Plan | None"]
"""Text; values, types and formats of the parameters; and the plan of a statement that is prepared."""

_TUPLES_OK: Final = int(ExecStatus.TUPLES_OK)
_COMMAND_OK: Final = int(ExecStatus.COMMAND_OK)
_WORKED: Final = (_TUPLES_OK, _COMMAND_OK, int(ExecStatus.EMPTY_QUERY))
_FATAL_ERROR: Final = int(ExecStatus.FATAL_ERROR)
_ABORTED: Final = int(ExecStatus.PIPELINE_ABORTED)
_SYNC: Final = int(ExecStatus.PIPELINE_SYNC)

_HAS_CLOSE: Final = capabilities.has_send_close_prepared()
"""libpq 17 and later close a prepared statement by a message of the protocol, which cannot fail."""

_SCHEMA_TAGS: Final = frozenset({b"ALT", b"CRE", b"DRO"})
_FORGET_TAGS: Final = frozenset({b"DEA", b"DIS"})

COPY_REFUSED: Final = "COPY from or to the client cannot be used here; use copy() of a psycopg cursor instead"


class Flight:
    """One pipeline on its way: what was sent, and whose answer is next."""

    __slots__ = ("_commands", "_connection", "_position", "_slots", "_syncs", "exchange")

    def __init__(self, connection: Connection, commands: Sequence[Command]) -> None:
        self.exchange = Exchange([None] * len(commands))
        self._connection = connection
        self._commands = commands
        self._position = 0
        self._syncs = 1
        self._slots: list[int | Plan] | None = None
        """What each answer is for where that is not simply one a statement: a statement's index, or a plan's Parse."""

    def send(self, flush_after: int | None) -> None:
        """Put everything into libpq's buffer, and into the socket's what that takes.

        Args:
            flush_after: Index of a statement after which the server is asked to send what it has.

        Raises:
            OperationalError: libpq refused; the connection cannot be used any more.
        """
        connection = self._connection
        pgconn = connection.pgconn
        pgconn.enter_pipeline_mode()
        slots: list[int | Plan] | None = None
        if connection.plans.to_close:
            self._send_closes(pgconn)
            slots = self._slots
        number = connection.count_flight()
        for index, (text, values, types, formats, plan) in enumerate(self._commands):
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
            OperationalError: The answers make no sense; the connection cannot be used any more.
        """
        pgconn = self._connection.pgconn
        while not pgconn.is_busy():
            pgresult = pgconn.get_result()
            if pgresult is None:
                raise OperationalError("the connection ended in the middle of a pipeline")
            status = pgresult.status
            if status == _SYNC:
                self._syncs -= 1
                if not self._syncs:
                    return True
                continue
            self._take(pgresult, status)
            # Every command's answers end with a None, which is there as soon as the answer is.
            pgconn.get_result()
        return False

    def lose(self, cause: BaseException) -> None:
        """The connection is gone: take what had arrived before, and note the loss."""
        exchange = self.exchange
        if self._connection.pgconn.pipeline_status:
            try:
                # An answer such as the xid in front of a COMMIT may have come in with the end of the stream.
                self.receive()
            except e.Error as error:
                cause = cause or error
        exchange.is_lost = True
        if exchange.error is None:
            exchange.error = cause
        if exchange.failed_at is None and exchange.results:
            exchange.failed_at = self._index_at(self._position)

    def _take(self, pgresult: PGresult, status: int) -> None:
        position = self._position
        self._position = position + 1
        slots = self._slots
        if status in _WORKED:
            index = position
            if slots is not None:
                slot = slots[position]
                if not isinstance(slot, int):
                    self._connection.plans.note_ready(slot)
                    return
                if slot == _CLOSED:
                    return
                index = slot
            connection = self._connection
            self.exchange.results[index] = Result(
                pgresult, connection, connection.transformer, self._commands[index][4]
            )
            if status == _COMMAND_OK:
                self._note_tag(pgresult.command_status)
        elif status == _FATAL_ERROR:
            self._fail(e.error_from_result(pgresult, self._connection.transformer.encoding), position)
        elif status != _ABORTED:
            # COPY is refused before it is sent; should one come through after all, the protocol is in a state of
            # its own that a pipeline has no way out of.
            self._fail(ProgrammingError(COPY_REFUSED), position)
            raise OperationalError(COPY_REFUSED)

    def _fail(self, error: e.Error, position: int) -> None:
        exchange = self.exchange
        slots = self._slots
        if slots is not None and position < len(slots) and slots[position] == _CLOSED:
            return
        if exchange.error is None:
            exchange.error = error
            if exchange.results:
                exchange.failed_at = self._index_at(position)
            if is_stale_plan(error):
                self._connection.plans.retire()

    def _index_at(self, position: int) -> int:
        """The statement that this answer is for; the last one when it is the Sync's, where constraints are checked."""
        slots = self._slots
        last = len(self._commands) - 1
        if slots is None:
            return min(position, last)
        for slot in slots[position:]:
            if isinstance(slot, int) and slot >= 0:
                return slot
        return last

    def _note_tag(self, tag: bytes | None) -> None:
        """Some commands take prepared statements away, or change what they refer to."""
        if not tag:
            return
        head = tag[:3]
        connection = self._connection
        if head in _SCHEMA_TAGS:
            connection.has_changed_schema = True
            connection.plans.retire()
        elif head in _FORGET_TAGS:
            connection.plans.retire()
        elif connection.has_changed_schema and head in (b"COM", b"ROL"):
            connection.has_changed_schema = False
            connection.plans.retire()

    def _send_closes(self, pgconn: PGconn) -> None:
        names = self._connection.plans.to_close
        slots: list[int | Plan] = [_CLOSED for _ in names]
        self._slots = slots
        for name in names:
            if _HAS_CLOSE:
                pgconn.send_close_prepared(name)
            else:
                pgconn.send_query_params(b"deallocate " + name, None)
                # A Sync of its own: this one can fail, in a failed transaction, and must take nothing with it.
                pgconn.pipeline_sync()
                self._syncs += 1
        names.clear()


_CLOSED: Final = -1
"""Slot of a Close, whose answer nobody waits for."""
