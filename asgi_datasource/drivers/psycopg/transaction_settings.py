"""Transaction-scoped settings as one statement: the tenant's, READ ONLY, and timeouts.

The client's deadline applies first; the server's timeouts end what a vanished client leaves behind. They are rounded up
to whole seconds, so that a tenant has few distinct statements, which can be cached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from psycopg import DataError

from ...errors import NO_PLACE
from ..statements import OWN_SCHEMA, Statement
from .pipeline import Command, Pipeline
from .prepared import StatementCache


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """The server's own timeouts for a session, in milliseconds; 0 for none.

    Attributes:
        statement_ms: `statement_timeout`.
        idle_ms: `idle_in_transaction_session_timeout`.
        transaction_ms: `transaction_timeout`; None before version 17, which does not have it.
    """

    statement_ms: int = 0
    idle_ms: int = 0
    transaction_ms: int | None = None


ASK_TIMEOUTS: Final = Statement(
    "select name, setting::int as ms, pg_catalog.pg_backend_pid() as pid,"
    " pg_catalog.current_setting('role') as role from pg_catalog.pg_settings"
    " where name operator(pg_catalog.=) any(array["
    "'statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'])",
    prepare=False,
)


def read_timeouts(exchange: Pipeline) -> ServerTimeouts:
    """Read the answer to `ASK_TIMEOUTS`, the first one of its exchange."""
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
    """Whether another process than the one reported at connect has answered `ASK_TIMEOUTS`.

    A pooler answers the connect itself, and reports an invented process id.
    """
    answer = exchange.results[0]
    row = None if answer is None else answer.first()
    return row is not None and row["pid"] != backend_pid


EXACT_BELOW_S: Final = 2.0
"""Remaining seconds below which the server's timeout is exact; above, it is rounded up to whole seconds."""

MAX_TENANTS: Final = 1024
"""Most tenants whose settings statements a connection caches."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_READ_ONLY: Final = (("transaction_read_only", "on"),)
_SCHEMA_GUARD: Final = (
    "pg_catalog.has_schema_privilege(case when pg_catalog.has_schema_privilege("
    "pg_catalog.to_regnamespace(pg_catalog.quote_ident({0}))::pg_catalog.oid,'usage')"
    f" then {{0}} else '{NO_PLACE}' end,'usage')"
)
"""Fails with 3F000 if the schema does not exist, or the current role may not use it.

PostgreSQL evaluates the columns of a SELECT in order: behind the role's setting, the privileges of that role count.

Source: PostgreSQL manual, "The Schema Search Path" and "Access Privilege Inquiry Functions".
"""
_TEXT_OID: Final = 25
"""OID of the type text (PostgreSQL source, pg_type.dat)."""


def limits_of(left_s: float, timeouts: ServerTimeouts, *, is_read: bool) -> list[tuple[str, str]]:
    """The server's timeouts for a transaction with this time left, where they are shorter than its own.

    `transaction_timeout` ends the connection, so it is one second longer than `statement_timeout`, which does not.

    Args:
        left_s: Seconds until the deadline.
        timeouts: The server's own timeouts for this session.
        is_read: The transaction ends with its round trip, so that it is never idle.
    """
    left_ms = max(1, int(left_s * 1000)) if left_s <= EXACT_BELOW_S else (int(left_s) + 1) * 1000
    wanted = [("statement_timeout", left_ms, timeouts.statement_ms)]
    if not is_read:
        wanted.append(("idle_in_transaction_session_timeout", left_ms + 2000, timeouts.idle_ms))
        if timeouts.transaction_ms is not None:
            wanted.append(("transaction_timeout", left_ms + 1000, timeouts.transaction_ms))
    return [(name, str(ours)) for name, ours, theirs in wanted if not 0 < theirs <= ours]


@lru_cache(maxsize=1024)
def _text(names: tuple[str, ...], *, is_read: bool, clears: bytes, is_local: str = "true") -> bytes:
    """The statement that applies settings of these names; a name that is not plain is bound as a parameter."""
    parts = [f"pg_catalog.set_config('{name}','{value}',true)" for name, value in (_READ_ONLY if is_read else ())]
    number = 0
    for name in names:
        if name == OWN_SCHEMA:
            number += 1
            parts.append(_SCHEMA_GUARD.format(f"${number}"))
        elif _PLAIN_NAME.fullmatch(name):
            number += 1
            parts.append(f"pg_catalog.set_config('{name}',${number},{is_local})")
        else:
            number += 2
            parts.append(f"pg_catalog.set_config(${number - 1},${number},{is_local})")
    return b"select " + (clears + b"," if clears else b"") + ",".join(parts).encode("ascii")


class SettingsCache:
    """The settings statements of one connection, encoded.

    Args:
        plans: The connection's plans.
    """

    __slots__ = ("_commands", "_generation", "_plans", "timeouts")

    def __init__(self, plans: StatementCache) -> None:
        self._plans = plans
        self._generation = plans.generation
        self._commands: dict[tuple[tuple[tuple[str, str], ...], bool, int, bytes], Command | None] = {}
        self.timeouts = ServerTimeouts()

    def command(
        self,
        pairs: tuple[tuple[str, str], ...],
        encoding: str,
        left_s: float | None,
        *,
        is_read: bool,
        prepares: bool,
        clears: bytes = b"",
    ) -> Command | None:
        """The statement that applies the settings; None if there are none.

        Args:
            pairs: Names and values of the tenant's settings.
            encoding: The connection's encoding, by its Python name.
            left_s: Seconds until the deadline; None sets no timeout.
            is_read: READ ONLY, for one round trip.
            prepares: Whether statements are prepared on the server.
            clears: Calls of a reset that come first.

        Raises:
            psycopg.DataError: A value contains a NUL character.
        """
        if not prepares or (left_s is not None and left_s <= EXACT_BELOW_S):
            return self._make(pairs, encoding, left_s, is_read=is_read, prepares=prepares, clears=clears)
        key = (pairs, is_read, 0 if left_s is None else int(left_s) + 1, clears)
        if self._generation != self._plans.generation or len(self._commands) > MAX_TENANTS:
            self._commands.clear()
            self._generation = self._plans.generation
        command = self._commands.get(key)
        if command is not None and (command[4] is None or not command[4].is_kept):
            command = None
        if command is None:
            command = self._make(pairs, encoding, left_s, is_read=is_read, prepares=True, clears=clears)
            if command is not None and command[4] is not None:
                self._commands[key] = command
        elif command[4] is not None:
            command[4].was_used = True
        return command

    def _make(
        self,
        pairs: Sequence[tuple[str, str]],
        encoding: str,
        left_s: float | None,
        *,
        is_read: bool,
        prepares: bool,
        clears: bytes,
    ) -> Command | None:
        settings = [*([] if left_s is None else limits_of(left_s, self.timeouts, is_read=is_read)), *pairs]
        if not settings and not is_read:
            return None
        text = _text(tuple([name for name, _ in settings]), is_read=is_read, clears=clears)
        values = _values(settings, encoding)
        types = (_TEXT_OID,) * len(values)
        plan = self._plans.plan(text, types, at_once=False) if prepares else None
        return (text, values, types, None, plan, False)

    def lasting_command(
        self, pairs: tuple[tuple[str, str], ...], encoding: str, *, clears: bytes = b""
    ) -> Command | None:
        """The statement that applies settings to the session; None if there are none. Arguments: `command`."""
        if not pairs:
            return None
        text = _text(tuple([name for name, _ in pairs]), is_read=False, clears=clears, is_local="false")
        values = _values(pairs, encoding)
        return (text, values, (_TEXT_OID,) * len(values), None, None, False)


def _values(settings: Sequence[tuple[str, str]], encoding: str) -> list[bytes | None]:
    """The parameters of the statement of `_text`."""
    values: list[bytes | None] = []
    for name, value in settings:
        if _PLAIN_NAME.fullmatch(name) is None:
            values.append(_encoded(name, encoding))
        values.append(_encoded(value, encoding))
    return values


def _encoded(text: str, encoding: str) -> bytes:
    encoded = text.encode(encoding)
    if b"\0" in encoded:
        # libpq would truncate the value at the NUL.
        raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return encoded
