"""The settings of a transaction as one statement: the tenant's, READ ONLY, and the limits of its time.

The client's deadline comes first; the server's limits end what a client that is gone would leave behind. They are
rounded up to whole seconds, so that a tenant's statements are few and can be kept ready.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from psycopg import DataError

from ..statements import Statement
from .pipeline import Command, Pipeline
from .prepared import StatementCache


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """The server's own limits for a session, in milliseconds; 0 is no limit.

    Attributes:
        statement_ms: `statement_timeout`.
        idle_ms: `idle_in_transaction_session_timeout`.
        transaction_ms: `transaction_timeout`; None where the server does not know it (before version 17).
    """

    statement_ms: int = 0
    idle_ms: int = 0
    transaction_ms: int | None = None


ASK_TIMEOUTS: Final = Statement(
    "select name, setting::int as ms, pg_catalog.pg_backend_pid() as pid,"
    " pg_catalog.current_setting('role') as role from pg_catalog.pg_settings"
    " where name in ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')",
    prepare=False,
)


def read_timeouts(exchange: Pipeline) -> ServerTimeouts:
    """The answer of `ASK_TIMEOUTS`, which its exchange begins with."""
    answer = exchange.results[0]
    found = {} if answer is None else {row["name"]: row["ms"] for row in answer.rows()}
    return ServerTimeouts(
        found.get("statement_timeout", 0),
        found.get("idle_in_transaction_session_timeout", 0),
        found.get("transaction_timeout"),
    )


def read_role(exchange: Pipeline) -> str:
    """What role a new session has: `none`, or what its login role takes by itself."""
    answer = exchange.results[0]
    row = None if answer is None else answer.first()
    return "none" if row is None else str(row["role"])


def is_behind_pooler(exchange: Pipeline, backend_pid: int) -> bool:
    """Whether `ASK_TIMEOUTS` was answered by another process than the one that the connection was made to.

    A pooler speaks for itself when a client connects, and tells a process id of its own invention.
    """
    answer = exchange.results[0]
    row = None if answer is None else answer.first()
    return row is not None and row["pid"] != backend_pid


EXACT_BELOW_S: Final = 2.0
"""Seconds below which the server's limit is the exact time that is left; above, it is rounded up to whole seconds."""

MAX_TENANTS: Final = 1024
"""Tenants whose settings one connection keeps ready."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_READ_ONLY: Final = (("transaction_read_only", "on"),)
_TEXT_OID: Final = 25
"""Of the type text (PostgreSQL source, pg_type.dat)."""


def limits_of(left_s: float, timeouts: ServerTimeouts, *, is_read: bool) -> list[tuple[str, str]]:
    """The server's limits for a transaction that has this long to live, where they are shorter than its own.

    The limit on the whole transaction, which costs the connection, stands a second behind the statement's, which does
    not.

    Args:
        left_s: Seconds until the deadline.
        timeouts: The server's own, for this session.
        is_read: The transaction ends with its round trip, so that it cannot be left idle.
    """
    left_ms = max(1, int(left_s * 1000)) if left_s <= EXACT_BELOW_S else (int(left_s) + 1) * 1000
    wanted = [("statement_timeout", left_ms, timeouts.statement_ms)]
    if not is_read:
        wanted.append(("idle_in_transaction_session_timeout", left_ms + 2000, timeouts.idle_ms))
        if timeouts.transaction_ms is not None:
            wanted.append(("transaction_timeout", left_ms + 1000, timeouts.transaction_ms))
    return [(name, str(ours)) for name, ours, theirs in wanted if not 0 < theirs <= ours]


@lru_cache(maxsize=1024)
def _text(names: tuple[str, ...], *, is_read: bool) -> bytes:
    """The statement that applies settings of these names; a name that is not plain is bound like a value."""
    parts = [f"set_config('{name}','{value}',true)" for name, value in (_READ_ONLY if is_read else ())]
    number = 0
    for name in names:
        if _PLAIN_NAME.fullmatch(name):
            number += 1
            parts.append(f"set_config('{name}',${number},true)")
        else:
            number += 2
            parts.append(f"set_config(${number - 1},${number},true)")
    return ("select " + ",".join(parts)).encode("ascii")


class SettingsCache:
    """The settings statements of one connection, ready to be sent.

    Args:
        plans: The connection's.
    """

    __slots__ = ("_commands", "_generation", "_plans", "timeouts")

    def __init__(self, plans: StatementCache) -> None:
        self._plans = plans
        self._generation = plans.generation
        self._commands: dict[tuple[tuple[tuple[str, str], ...], bool, int], Command | None] = {}
        self.timeouts = ServerTimeouts()

    def command(
        self, pairs: tuple[tuple[str, str], ...], encoding: str, left_s: float | None, *, is_read: bool, prepares: bool
    ) -> Command | None:
        """The statement that applies the settings; None where there is nothing to apply.

        Args:
            pairs: The tenant's: names and values.
            encoding: The connection's, as Python names it.
            left_s: Seconds until the deadline; None sets no limit.
            is_read: READ ONLY, for one round trip.
            prepares: Whether statements are prepared on the server.

        Raises:
            psycopg.DataError: A value holds what no text of PostgreSQL's can.
        """
        if not prepares or (left_s is not None and left_s <= EXACT_BELOW_S):
            return self._make(pairs, encoding, left_s, is_read=is_read, prepares=prepares)
        key = (pairs, is_read, 0 if left_s is None else int(left_s) + 1)
        if self._generation != self._plans.generation or len(self._commands) > MAX_TENANTS:
            self._commands.clear()
            self._generation = self._plans.generation
        command = self._commands.get(key)
        if command is not None and (command[4] is None or not command[4].is_kept):
            command = None
        if command is None:
            command = self._make(pairs, encoding, left_s, is_read=is_read, prepares=True)
            if command is not None and command[4] is not None:
                self._commands[key] = command
        elif command[4] is not None:
            command[4].was_used = True
        return command

    def _make(
        self, pairs: Sequence[tuple[str, str]], encoding: str, left_s: float | None, *, is_read: bool, prepares: bool
    ) -> Command | None:
        settings = [*([] if left_s is None else limits_of(left_s, self.timeouts, is_read=is_read)), *pairs]
        if not settings and not is_read:
            return None
        text = _text(tuple([name for name, _ in settings]), is_read=is_read)
        values: list[bytes | None] = []
        for name, value in settings:
            if _PLAIN_NAME.fullmatch(name) is None:
                values.append(_encoded(name, encoding))
            values.append(_encoded(value, encoding))
        types = (_TEXT_OID,) * len(values)
        plan = self._plans.plan(text, types, at_once=False) if prepares else None
        return (text, values, types, None, plan, False)


def _encoded(text: str, encoding: str) -> bytes:
    encoded = text.encode(encoding)
    if b"\0" in encoded:
        # libpq would take what stands before it for the whole.
        raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return encoded
