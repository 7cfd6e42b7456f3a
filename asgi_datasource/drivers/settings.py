"""What the configuration says of one server, as a driver gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Reset(StrEnum):
    """When what a session keeps beyond its transactions is cleared."""

    ON_TENANT_CHANGE = "on_tenant_change"
    """Before another tenant's first statement than the one that the connection has served last."""
    ALWAYS = "always"
    """Before the first statement of each borrower."""
    NEVER = "never"
    """Not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How to reach one server, and how many connections to it to keep.

    Attributes:
        conninfo: The connection string or URL. What it says of keepalives and timeouts wins.
        driver: Where the driver is found that reads it; None is the default one.
        min_size: Connections kept open.
        max_size: Most connections; processes times this must fit the server's `max_connections`.
        acquire_timeout_s: Longest wait for a connection.
        max_waiting: Longest queue; the next one is refused at once. 0 sets no bound.
        connect_timeout_s: Longest attempt to connect, in whole seconds; libpq's shortest is 2.
        reconnect_pause_s: Longest pause between two attempts to reach a server that is down.
        max_lifetime_s: Oldest age of a connection.
        max_idle_s: Connections beyond `min_size` are closed when they were not used for this long.
        tcp_user_timeout_s: Longest silence of the network with data in flight.
        keepalives_idle_s, keepalives_interval_s, keepalives_count: When an idle connection is probed by the system.
        check_timeout_s: Longest answer to a command of the pool's own.
        prepares: Statements are prepared on the server; not behind a pooler that shares a server connection.
        is_pooled: A pooler in transaction mode is in between: what a session has, the next transaction does not.
        is_fair: Tenants take turns at the pool, each with a queue of its own.
        reset: When what a session keeps beyond its transactions is cleared.
    """

    conninfo: str = field(repr=False)
    driver: str | None = None
    min_size: int = 1
    max_size: int = 10
    acquire_timeout_s: float = 5.0
    max_waiting: int = 100
    connect_timeout_s: float = 3.0
    reconnect_pause_s: float = 2.0
    max_lifetime_s: float = 3600.0
    max_idle_s: float = 600.0
    tcp_user_timeout_s: float = 10.0
    keepalives_idle_s: float = 10.0
    keepalives_interval_s: float = 3.0
    keepalives_count: int = 3
    check_timeout_s: float = 2.0
    prepares: bool = True
    is_pooled: bool = False
    is_fair: bool = False
    reset: Reset = Reset.ON_TENANT_CHANGE
