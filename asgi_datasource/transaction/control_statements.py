"""The control statements of a transaction, and the evaluation of COMMIT's answer.

No I/O: these functions build statements and evaluate answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from ..drivers.protocol import Connection, Exchange
from ..drivers.statements import INCARNATION, Begin, Control, ControlKind
from ..routing import Position, parse_lsn
from .options import Isolation

COMMIT: Final = Control(ControlKind.COMMIT, "commit")

READ_ONLY: Final = (Control(ControlKind.READ_ONLY, "select pg_catalog.set_config('transaction_read_only','on',true)"),)
"""Makes the rest of a transaction, or of a subtransaction, READ ONLY."""

WAL_POSITION: Final = Control(
    ControlKind.COMMIT_POSITION, "select pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text"
)
"""Sent behind COMMIT in the same round trip: the position that a replica must have replayed to show this commit."""

IDENTIFY: Final = Control(
    ControlKind.IDENTIFY,
    "select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, pg_catalog.pg_backend_pid()::pg_catalog.text,"
    f" {INCARNATION}",
)
"""Returns what `find_fate` needs to look up this transaction later."""

IDENTIFY_XID: Final = Control(
    ControlKind.IDENTIFY, "select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text"
)
"""The same on a connection whose backend and incarnation are known since it was made."""

_PRIMARY_TIMELINE: Final = (
    "('x' operator(pg_catalog.||) pg_catalog.left("
    "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int"
)

ASK_POSITION: Final = Control(
    ControlKind.POSITION,
    "select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()"
    " else pg_catalog.pg_current_wal_insert_lsn() end::pg_catalog.text,"
    f" case when pg_catalog.pg_is_in_recovery() then null else {_PRIMARY_TIMELINE}::pg_catalog.text end",
)
"""The server's position at this moment: a statement behind it sees no older state. The timeline of a standby is not
included: that would need more privileges."""

ASK_SEEN_POSITION: Final = Control(
    ControlKind.SEEN_POSITION,
    f"{ASK_POSITION.text}, case when pg_catalog.pg_is_in_recovery()"
    " then coalesce(pg_catalog.pg_last_wal_receive_lsn()::pg_catalog.text, '') end",
)
"""The same for `read_seen_position`, sent behind a statement, with the position that a standby has received."""


def read_position(values: Sequence[str | None] | None, *, standby_timeline: int) -> Position | None:
    """Read the answer to `ASK_POSITION`; None if it is missing.

    Args:
        values: The answer's row.
        standby_timeline: The server's timeline if it is a standby; 0 if unknown.
    """
    if values is None or values[0] is None:
        return None
    timeline = values[1]
    return Position(standby_timeline if timeline is None else int(timeline), parse_lsn(values[0]))


def read_seen_position(values: Sequence[str | None] | None, *, standby_timeline: int) -> Position | None:
    """Read the answer to `ASK_SEEN_POSITION`: an upper bound of what the statements in front of it have seen.

    A standby makes a commit visible while it replays the commit's record, and advances its replay position only
    afterwards. If it has received more than it has replayed, such a commit may be the next record: the bound is then a
    byte further, a position that a server has only after that record. (PostgreSQL source, xlogrecovery.c,
    `ApplyWalRecord`: `lastReplayedEndRecPtr` is set behind `rm_redo`.)

    Args:
        values: The answer's row.
        standby_timeline: The server's timeline if it is a standby; 0 if unknown.
    """
    position = read_position(values, standby_timeline=standby_timeline)
    if position is None or values is None or values[2] is None or values[2] == values[0]:
        return position
    return Position(position.timeline, position.lsn + 1)


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies a transaction that has written.

    Attributes:
        xid: 64-bit transaction id, as text.
        backend_pid: Process id of its backend.
        incarnation: The server's `INCARNATION`; a changed value means that the id may have been reused.
    """

    xid: str
    backend_pid: int
    incarnation: str | None

    @property
    def timeline(self) -> int | None:
        """Timeline of the server; None if unknown."""
        return None if self.incarnation is None else timeline_of(self.incarnation)


def timeline_of(incarnation: str) -> int:
    """Timeline of a server, from its `INCARNATION`."""
    return int(incarnation[:8], 16)


def read_identity(values: Sequence[str | None] | None, connection: Connection) -> Identity | None:
    """Read the answer to `IDENTIFY` or `IDENTIFY_XID`; None while the transaction has not written.

    Args:
        values: The answer's row.
        connection: The transaction's connection, which may know the backend and incarnation.
    """
    if values is None or values[0] is None:
        return None
    if len(values) == 1:
        return Identity(values[0], connection.backend_pid, connection.incarnation)
    return Identity(values[0], int(values[1] or 0), values[2])


@lru_cache(maxsize=32)
def begin(isolation: Isolation | None, *, read_only: bool, is_deferrable: bool = False) -> Begin:
    """BEGIN with its modes."""
    return Begin(None if isolation is None else isolation.value, read_only=read_only, deferrable=is_deferrable)


def savepoint(name: str) -> Control:
    """SAVEPOINT; the name is generated and needs no quoting."""
    return Control(ControlKind.SAVEPOINT, f"savepoint {name}", name=name, prepare=False)


def rollback_to(name: str) -> Control:
    """ROLLBACK TO SAVEPOINT."""
    return Control(ControlKind.ROLLBACK_TO, f"rollback to savepoint {name}", name=name, prepare=False)


def release(name: str) -> Control:
    """RELEASE SAVEPOINT."""
    return Control(ControlKind.RELEASE, f"release savepoint {name}", name=name, prepare=False)


class Verdict(StrEnum):
    """Result of COMMIT's exchange."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    """The server answered ROLLBACK: the transaction had failed before."""
    FAILED = "failed"
    """COMMIT itself failed: a deferred constraint, a serialization failure, a timeout. Nothing was committed."""
    LOST = "lost"
    """No answer."""


def judge_commit(exchange: Exchange, index: int = 0) -> Verdict:
    """Evaluate an exchange with a COMMIT in it: by the command tag, not by whether an error was raised.

    Args:
        exchange: The round trip.
        index: Where COMMIT stands in it.

    Source: PostgreSQL manual, COMMIT: "the command tag is ROLLBACK" for a transaction that had failed.
    """
    if exchange.was_answered(index):
        return Verdict.COMMITTED if exchange.tag(index) == "COMMIT" else Verdict.ROLLED_BACK
    # Without an index nothing was sent: the connection had been lost before, and the transaction with it.
    return Verdict.LOST if exchange.is_lost and exchange.failed_at is not None else Verdict.FAILED
