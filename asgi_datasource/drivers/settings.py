"""Settings of one server, as passed to a driver."""

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


@dataclass(frozen=True, slots=True)
class TypeName:
    """A type of the database whose values are converted.

    Attributes:
        kind: `enum`, `composite`, `range`, or the type itself: `hstore`, `vector`, `halfvec`, `sparsevec`.
        name: Its name in SQL, with or without schema.
        python: Import path of its Python class, as `package.module:Class`; None uses the default of the kind.
    """

    kind: str
    name: str
    python: str | None = None

    @classmethod
    def parse(cls, text: str) -> TypeName:
        """Read `hstore` or `enum shop.color as shop.models:Color`."""
        kind, _, rest = text.partition(" ")
        name, _, python = rest.partition(" as ")
        return cls(kind, name.strip() or kind, python.strip() or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Connection and pool settings of one server.

    Attributes:
        conninfo: Connection string or URL. Its keepalives and timeouts take precedence.
        driver: Import path of the driver; None for the default driver.
        min_size: Number of connections that are kept open.
        max_size: Most connections; times the number of processes it must fit the server's `max_connections`.
        acquire_timeout_s: Longest wait for a connection.
        max_waiting: Longest queue; further requests are refused at once. 0 sets no bound.
        connect_timeout_s: Timeout of a connect, in whole seconds; libpq's minimum is 2.
        reconnect_pause_s: Longest pause between attempts to reach a server that is down.
        max_lifetime_s: Maximum age of a connection.
        max_idle_s: Connections beyond `min_size` are closed after this idle time.
        tcp_user_timeout_s: Longest time for which sent data may stay unacknowledged.
        keepalives_idle_s, keepalives_interval_s, keepalives_count: TCP keepalives of idle connections.
        check_timeout_s: Timeout of the pool's own commands.
        prepares: Statements are prepared on the server; not behind a pooler that shares server connections.
        is_pooled: A pooler in transaction mode is in between: session state does not last beyond a transaction.
        is_fair: Tenants take turns at the pool, each with a queue of its own.
        max_depth: Most reads on one connection at a time, where they would otherwise wait for one; 1 for none.
        reset: When what a session keeps beyond its transactions is cleared.
        types: Types whose values are converted, for each tenant by its own search_path.
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
    max_depth: int = 1
    reset: Reset = Reset.ON_TENANT_CHANGE
    types: tuple[TypeName, ...] = ()
