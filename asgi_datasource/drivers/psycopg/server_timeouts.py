"""How long the server itself lets a session, its statements and its transactions live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .result import Exchange
from .statement import Statement

if TYPE_CHECKING:
    from .connection import Connection


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


ASK_LIMITS: Final = Statement(
    "select name, setting::int as ms, pg_catalog.pg_backend_pid() as pid from pg_catalog.pg_settings"
    " where name operator(pg_catalog.=) any(array["
    "'statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'])",
    prepare=False,
)


def read_limits(exchange: Exchange) -> ServerTimeouts:
    """The answer of `ASK_LIMITS`, which its exchange consists of."""
    answer = exchange.results[0]
    found = {} if answer is None else {row["name"]: row["ms"] for row in answer.rows()}
    return ServerTimeouts(
        found.get("statement_timeout", 0),
        found.get("idle_in_transaction_session_timeout", 0),
        found.get("transaction_timeout"),
    )


def is_behind_pooler(exchange: Exchange, connection: Connection) -> bool:
    """Whether whoever answered `ASK_LIMITS` is another process than the one that the connection was made to.

    A pooler speaks for itself when a client connects, and tells a process id of its own invention.
    """
    answer = exchange.results[0]
    row = None if answer is None else answer.first()
    return row is not None and row["pid"] != connection.pgconn.backend_pid
