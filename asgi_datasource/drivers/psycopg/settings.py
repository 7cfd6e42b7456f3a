"""How one server is reached: checked settings, and messages that never name a user, a password or a whole URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import ConfigError

DEFAULT_PORT: Final = 5432
APPLICATION_NAME: Final = "asgi-datasource"
"""What connections call themselves where the URL gives them no `application_name`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How to reach one server, and how many connections to it to keep.

    Attributes:
        conninfo: libpq's connection string or URL. What it says of keepalives and timeouts wins.
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
    """

    conninfo: str = field(repr=False)
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


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, without who asks.

    Attributes:
        host: The first one where there are several.
        port: The first one where there are several.
        dbname: The database.
        conninfo: The whole of it, for libpq only.
    """

    host: str
    port: int
    dbname: str
    conninfo: str = field(repr=False)
    secret: str = field(repr=False)


def resolve(settings: ServerSettings, *, where: str) -> Address:
    """Complete a connection string with the settings.

    Args:
        settings: The settings.
        where: Names the server in the error.

    Raises:
        ConfigError: It is not a connection string. Its text stays out of the message: it may hold the password.
    """
    timeouts: dict[str, str | int] = {
        "connect_timeout": max(2, round(settings.connect_timeout_s)),
        "tcp_user_timeout": round(settings.tcp_user_timeout_s * 1000),
        "keepalives": 1,
        "keepalives_idle": max(1, round(settings.keepalives_idle_s)),
        "keepalives_interval": max(1, round(settings.keepalives_interval_s)),
        "keepalives_count": settings.keepalives_count,
        "fallback_application_name": APPLICATION_NAME,
    }
    try:
        parts = conninfo_to_dict(settings.conninfo)
        conninfo = make_conninfo("", **{**timeouts, **parts})
        host = str(parts.get("host") or parts.get("hostaddr") or "localhost").split(",")[0]
        port = str(parts.get("port") or DEFAULT_PORT).split(",")[0]
        address = Address(
            host=host,
            port=int(port or DEFAULT_PORT),
            dbname=str(parts.get("dbname") or parts.get("user") or ""),
            conninfo=conninfo,
            secret=str(parts.get("password") or ""),
        )
    except (Error, ValueError):
        raise ConfigError(
            f"{where}: the connection URL cannot be read; write postgresql://user:password@host:5432/database and"
            " percent-encode what is special in the password"
        ) from None
    return address


def is_unknown_database(error: BaseException | None, dbname: str) -> bool:
    """Whether a server refused a connection because it has no database of that name.

    A refused connection has no SQLSTATE, only a text. Where the server speaks another language than English this says
    no, and the failure is told as one of the connection.
    """
    return error is not None and str(error).endswith(f'database "{dbname}" does not exist')


_REASON: Final = re.compile(r"connection to server .*? failed: (?:[A-Z]+: +)?", re.DOTALL)
_ATTEMPT: Final = re.compile(r"- host: '(.*?)', port: '(.*?)', hostaddr: .*?: (.*)")
"""How psycopg tells of one of several attempts (its source, connection_async.py)."""
_PREFIX: Final = re.compile(r"^(?:connection failed|connection is bad): ")


def connect_failure(error: BaseException, address: Address) -> str:
    """Why connecting failed: `10.0.0.5:5432: Connection refused`.

    Args:
        error: psycopg's; its text may quote the connection string.
        address: Where to; its secret is taken out of the text, wherever it may stand.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    each = [found.groups() for line in lines if (found := _ATTEMPT.match(line))]
    if not each:
        each = [(address.host, str(address.port), lines[0] if lines else type(error).__name__)]
    # A name may stand for several addresses, all of which fail alike.
    reasons = dict.fromkeys([f"{host}:{port}: {_reason(text)}" for host, port, text in each])
    text = "; ".join(reasons)
    return text.replace(address.secret, "***") if address.secret else text


def _reason(text: str) -> str:
    return _REASON.sub("", _PREFIX.sub("", text)) or text
