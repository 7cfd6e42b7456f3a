"""The control statements of a transaction, and how COMMIT's answer is read.

No I/O here: these functions build statements and judge what came back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from ..drivers.psycopg import Control, Exchange, Result, ServerTimeouts, Statement
from ..errors import NO_PLACE
from .options import Isolation

COMMIT: Final = Statement("commit", prepare=False)
ROLLBACK: Final = Statement("rollback", prepare=False)

# Every name in these statements says its schema: they run with the tenant's search_path, in which the tenant may have a
# function, an operator or a type of its own that fits better than PostgreSQL's (manual, "Typed Functions" under "Type
# Conversion", and "Operators"). What the grammar itself resolves, such as `extract` and `int`, is PostgreSQL's.

READ_ONLY: Final = (Statement("select pg_catalog.set_config('transaction_read_only','on',true)"),)
"""Makes the rest of a transaction, or of a subtransaction, READ ONLY."""

WAL_POSITION: Final = Statement("select pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text")
"""Behind COMMIT in the same round trip: the position that a replica must have replayed to show this commit."""

INCARNATION: Final = (
    "case when pg_catalog.pg_is_in_recovery() then null"
    " else pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)"
    " operator(pg_catalog.||) ' ' operator(pg_catalog.||)"
    " extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time())::pg_catalog.text end"
)
"""What is another value after every event in which a server may give out the id of a lost transaction again.

A failover begins a new timeline, and a crash discards the cumulative statistics; a restart in good order changes
neither. The one without the other proves nothing: a standby may have come by the primary's statistics when it was
made, and a crash keeps the timeline.

Source: PostgreSQL manual, "Timelines" and "The Cumulative Statistics System" ("Statistics Collection Configuration").
"""

IDENTIFY: Final = Statement(
    "select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text as xid,"
    f" pg_catalog.pg_backend_pid() as pid, {INCARNATION} as incarnation"
)
"""What it takes to ask for this transaction's fate later."""


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


def read_identity(result: Result | None) -> Identity | None:
    """The answer of `IDENTIFY`; None while the transaction has not written."""
    if result is None:
        return None
    row = result.rows()[0]
    return None if row["xid"] is None else Identity(row["xid"], row["pid"], row["incarnation"])


@lru_cache(maxsize=32)
def begin(isolation: Isolation | None, *, read_only: bool, is_deferrable: bool = False) -> Statement:
    """BEGIN with its modes. Never READ WRITE: that would defeat a server fenced by `default_transaction_read_only`."""
    text = "begin"
    if isolation is not None:
        text += f" isolation level {isolation.value}"
    if read_only:
        text += " read only"
    if is_deferrable:
        text += " deferrable"
    return Statement(text, prepare=False)


_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")

READ_ONLY_SETTING: Final = ("transaction_read_only", "on")


_SCHEMA_GUARD: Final = (
    "pg_catalog.has_schema_privilege(case when pg_catalog.has_schema_privilege("
    "pg_catalog.to_regnamespace(pg_catalog.quote_ident({0}::pg_catalog.text))::pg_catalog.oid,'usage')"
    f" then {{0}}::pg_catalog.text else '{NO_PLACE}' end,'usage')"
)
"""Fails where the schema is not there, or the role that runs here may not use it.

PostgreSQL passes over such an entry of `search_path`, and names would be found in the shared schemas behind it.

Source: PostgreSQL manual, "The Schema Search Path" and "Access Privilege Inquiry Functions".
"""


@lru_cache(maxsize=1024)
def _settings_text(constant: tuple[tuple[str, str], ...], names: tuple[str, ...], is_guarded: bool) -> str | None:
    """The text for settings of these names; None when one of the names is not so plain that it can stand in it."""
    if not all(_PLAIN_NAME.fullmatch(name) for name in names):
        return None
    fixed = [f"pg_catalog.set_config('{name}','{value}',true)" for name, value in constant]
    bound = [f"pg_catalog.set_config('{name}',${number},true)" for number, name in enumerate(names, 1)]
    # Behind the role, by whose rights it is asked: PostgreSQL works out the columns in their order.
    guard = [_SCHEMA_GUARD.format(f"${len(names) + 1}")] if is_guarded else []
    return "select " + ",".join(fixed + bound + guard)


def settings_statement(
    pairs: Sequence[tuple[str, str]], *, constant: tuple[tuple[str, str], ...] = (), schema: str | None = None
) -> Statement:
    """One statement that applies settings until the end of the transaction.

    Args:
        pairs: Names and values; the values are bound.
        constant: Names and values of the library's own, which stand in the text; applied first.
        schema: One that has to be there, and may be used; None asks for none.
    """
    text = _settings_text(constant, tuple([name for name, _ in pairs]), schema is not None)
    if text is not None:
        values = [value for _, value in pairs]
        if schema is not None:
            values.append(schema)
        return Control(text, values)
    every = [*constant, *pairs]
    columns = ["pg_catalog.set_config(%s,%s,true)"] * len(every)
    texts = [text for pair in every for text in pair]
    if schema is not None:
        columns.append(_SCHEMA_GUARD.format("%s"))
        texts += [schema, schema]
    return Statement("select " + ",".join(columns), texts)


def deadline_settings(
    remaining_s: float, limits: ServerTimeouts, *, is_single_round_trip: bool = False
) -> list[tuple[str, str]]:
    """The server's limits for a transaction that has this long to live, where they are shorter than its own.

    The client's deadline comes first; these end what a client that is gone would leave behind. The server's limit on
    the whole transaction, which costs the connection, stands a second behind the statement's, which does not.

    Args:
        remaining_s: Seconds until the deadline.
        limits: The server's own, for this session.
        is_single_round_trip: The transaction ends with its round trip, so that it cannot be left idle.
    """
    remaining_ms = max(1, int(remaining_s * 1000))
    wanted = [("statement_timeout", remaining_ms, limits.statement_ms)]
    if not is_single_round_trip:
        wanted.append(("idle_in_transaction_session_timeout", remaining_ms + 2000, limits.idle_ms))
        if limits.transaction_ms is not None:
            wanted.append(("transaction_timeout", remaining_ms + 1000, limits.transaction_ms))
    return [(name, str(ours)) for name, ours, theirs in wanted if not 0 < theirs <= ours]


def savepoint(name: str) -> Statement:
    """SAVEPOINT; the name is ours and needs no quoting."""
    return Statement(f"savepoint {name}", prepare=False)


def rollback_to(name: str) -> Statement:
    """ROLLBACK TO SAVEPOINT."""
    return Statement(f"rollback to savepoint {name}", prepare=False)


def release(name: str) -> Statement:
    """RELEASE SAVEPOINT."""
    return Statement(f"release savepoint {name}", prepare=False)


class Verdict(StrEnum):
    """What COMMIT's exchange says."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    """The server answered ROLLBACK: the transaction had failed before."""
    FAILED = "failed"
    """COMMIT itself failed: a deferred constraint, a serialization failure, a timeout. Nothing was committed."""
    LOST = "lost"
    """No answer."""


def judge_commit(exchange: Exchange) -> Verdict:
    """Judge the exchange that a COMMIT stands first in: by its command tag, never by whether something raised.

    Source: PostgreSQL manual, COMMIT: "the command tag is ROLLBACK" for a transaction that had failed.
    """
    result = exchange.results[0]
    if result is not None:
        return Verdict.COMMITTED if result.status_message == "COMMIT" else Verdict.ROLLED_BACK
    # Without an index nothing was sent: the connection had been lost before, and the transaction with it.
    return Verdict.LOST if exchange.is_lost and exchange.failed_at is not None else Verdict.FAILED
