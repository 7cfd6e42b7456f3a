"""The control statements of a transaction, and how COMMIT's answer is read.

No I/O here: these functions build statements and judge what came back.
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

READ_ONLY: Final = (Control(ControlKind.READ_ONLY, "select set_config('transaction_read_only','on',true)"),)
"""Makes the rest of a transaction, or of a subtransaction, READ ONLY."""

WAL_POSITION: Final = Control(ControlKind.COMMIT_POSITION, "select pg_current_wal_insert_lsn()::text")
"""Behind COMMIT in the same round trip: the position that a replica must have replayed to show this commit."""

IDENTIFY: Final = Control(
    ControlKind.IDENTIFY,
    f"select pg_current_xact_id_if_assigned()::text, pg_backend_pid()::text, {INCARNATION}",
)
"""What it takes to ask for this transaction's fate later."""

IDENTIFY_XID: Final = Control(ControlKind.IDENTIFY, "select pg_current_xact_id_if_assigned()::text")
"""The same on a connection that has told the rest when it was made."""

_PRIMARY_TIMELINE: Final = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"

ASK_POSITION: Final = Control(
    ControlKind.POSITION,
    "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text,"
    f" case when pg_is_in_recovery() then null else {_PRIMARY_TIMELINE}::text end",
)
"""Where a server is at this moment, beside other statements: in front of one, what that sees is no older; behind it, no
newer. A standby's timeline would take more than may be asked for here."""


def read_position(values: Sequence[str | None] | None, *, standby_timeline: int) -> Position | None:
    """The answer of `ASK_POSITION`; None when the server does not say.

    Args:
        values: The answer's row.
        standby_timeline: The timeline of the server if it is a standby, as far as that is known.
    """
    if values is None or values[0] is None:
        return None
    timeline = values[1]
    return Position(standby_timeline if timeline is None else int(timeline), parse_lsn(values[0]))


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a transaction that has written.

    Attributes:
        xid: Its 64-bit id, as text.
        backend_pid: Process id of its backend on the server.
        incarnation: The server's `INCARNATION`; another value means that the id may have been given out again.
    """

    xid: str
    backend_pid: int
    incarnation: str | None

    @property
    def timeline(self) -> int | None:
        """The timeline that the server writes; None when it does not say."""
        return None if self.incarnation is None else timeline_of(self.incarnation)


def timeline_of(incarnation: str) -> int:
    """The timeline that a server writes, by its `INCARNATION`."""
    return int(incarnation[:8], 16)


def read_identity(values: Sequence[str | None] | None, connection: Connection) -> Identity | None:
    """The answer of `IDENTIFY` or `IDENTIFY_XID`; None while the transaction has not written.

    Args:
        values: The answer's row.
        connection: The transaction's, which may know the rest.
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
    """SAVEPOINT; the name is the library's own and needs no quoting."""
    return Control(ControlKind.SAVEPOINT, f"savepoint {name}", name=name, prepare=False)


def rollback_to(name: str) -> Control:
    """ROLLBACK TO SAVEPOINT."""
    return Control(ControlKind.ROLLBACK_TO, f"rollback to savepoint {name}", name=name, prepare=False)


def release(name: str) -> Control:
    """RELEASE SAVEPOINT."""
    return Control(ControlKind.RELEASE, f"release savepoint {name}", name=name, prepare=False)


class Verdict(StrEnum):
    """What COMMIT's exchange says."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    """The server answered ROLLBACK: the transaction had failed before."""
    FAILED = "failed"
    """COMMIT itself failed: a deferred constraint, a serialization failure, a timeout. Nothing was committed."""
    LOST = "lost"
    """No answer."""


def judge_commit(exchange: Exchange, index: int = 0) -> Verdict:
    """Judge the exchange that a COMMIT stands in: by its command tag, never by whether something raised.

    Args:
        exchange: The round trip.
        index: Where COMMIT stands in it.

    Source: PostgreSQL manual, COMMIT: "the command tag is ROLLBACK" for a transaction that had failed.
    """
    if exchange.was_answered(index):
        return Verdict.COMMITTED if exchange.tag(index) == "COMMIT" else Verdict.ROLLED_BACK
    # Without an index nothing was sent: the connection had been lost before, and the transaction with it.
    return Verdict.LOST if exchange.is_lost and exchange.failed_at is not None else Verdict.FAILED
