"""The address of one server, and error messages that never contain a user, a password or a whole URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import ConfigError
from ..settings import ServerSettings

DEFAULT_PORT: Final = 5432
APPLICATION_NAME: Final = "asgi-datasource"
"""Application name of connections whose URL sets no `application_name`."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server, without the login.

    Attributes:
        host: The host; the first one of several.
        port: The port; the first one of several.
        dbname: Name of the database.
        conninfo: The whole connection string, for libpq only.
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
        ConfigError: It is not a connection string. The message does not quote it: it may contain the password.
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

    A refused connection has no SQLSTATE, only a text. If the server's messages are not in English, this returns False
    and the failure is reported as a connection error.
    """
    return error is not None and str(error).endswith(f'database "{dbname}" does not exist')


_REASON: Final = re.compile(r"connection to server .*? failed: (?:[A-Z]+: +)?", re.DOTALL)
_ATTEMPT: Final = re.compile(r"- host: '(.*?)', port: '(.*?)', hostaddr: .*?: (.*)")
"""psycopg's text for one of several attempts (its source, connection_async.py)."""
_PREFIX: Final = re.compile(r"^(?:connection failed|connection is bad): ")


def connect_failure(error: BaseException, address: Address) -> str:
    """Reason of a failed connect: `10.0.0.5:5432: Connection refused`.

    Args:
        error: psycopg's error; its text may quote the connection string.
        address: The target; its password is removed from the text.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    each = [found.groups() for line in lines if (found := _ATTEMPT.match(line))]
    if not each:
        each = [(address.host, str(address.port), lines[0] if lines else type(error).__name__)]
    # A name may resolve to several addresses that all fail for the same reason.
    reasons = dict.fromkeys([f"{host}:{port}: {_reason(text)}" for host, port, text in each])
    text = "; ".join(reasons)
    return text.replace(address.secret, "***") if address.secret else text


_LOCATION: Final = re.compile(r"(?:^|(?<=; ))\S+:\d+: ")
_HOST: Final = re.compile(r"""\b(host(?: name)?) (?:'[^']*'|"[^"]*")""")


def without_location(reason: str) -> str:
    """A reason of `connect_failure` without the addresses in it: `Connection refused`."""
    parts = dict.fromkeys(_LOCATION.sub("", reason).split("; "))
    return _HOST.sub(r"\1 '...'", "; ".join(parts))


def _reason(text: str) -> str:
    return _REASON.sub("", _PREFIX.sub("", text)) or text
