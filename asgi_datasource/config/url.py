"""Connection URLs: their form, their masking, and the server that they lead to."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from pydantic import SecretStr

URL_PATTERN: Final = r"^(?:[a-z][a-z0-9+.-]*://|[a-z][a-z0-9_]* *= *[^= ])"
"""The start of a URL or keyword string, by which libpq distinguishes them (PostgreSQL manual, "Connection Strings").
Other schemes than libpq's are for other drivers."""

PLACEHOLDER: Final = "{tenant}"
"""The tenant's name in the URL of a datasource with a database for each tenant."""

_URL: Final = re.compile(URL_PATTERN)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HOST: Final = r"(?:\[[0-9A-Fa-f:.%]+\]|[^@/?#\s:,\[\]]*)(?::[0-9]*)?"
_PARTS: Final = re.compile(
    rf"(?P<scheme>postgres(?:ql)?)://(?:[^@/?#\s]*@)?(?P<hosts>{_HOST}(?:,{_HOST})*)"
    r"(?:/(?P<dbname>[^@/?#\s]*))?(?:\?[^@#\s]*)?"
)
HIDDEN: Final = "**********"
"""What is printed in place of a secret."""


class DatabaseUrl(SecretStr):
    """A connection URL. It prints its servers and database; only driver calls use `get_secret_value()`."""

    def _display(self) -> str:
        return mask_url(self.get_secret_value())


def mask_url(url: str) -> str:
    """The servers and the database of a connection URL, without user, password and parameters.

    An ambiguous URL (with an unescaped `@` or `/` in the password) is masked as a whole.
    """
    parts = _PARTS.fullmatch(url)
    if parts is None or not parts["hosts"]:
        return HIDDEN if url else ""
    dbname = f"/{parts['dbname']}" if parts["dbname"] else ""
    return f"{parts['scheme']}://{parts['hosts']}{dbname}"


def read_url(value: object) -> DatabaseUrl:
    """Read a connection URL.

    Raises:
        ValueError: The value is not a URL; the message contains nothing of it.
    """
    url = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(url, str) or _URL.match(url) is None or _CONTROL.search(url):
        raise ValueError("not a connection URL")
    # `str` removes the type `Given`. `encode` refuses lone surrogates, which libpq cannot take.
    url.encode()
    return DatabaseUrl(str(url))


_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>[0-9]*))?")
_PLACE_KEYS: Final = ("host", "hostaddr", "port", "dbname", "service")


def server_of(url: str, *, with_database: bool = True) -> str:
    """The canonical server and database of a connection URL, without users, passwords and other parameters.

    A URL that cannot be parsed is returned as it is. The result may contain a password and must not be printed.
    """
    parts = _AUTHORITY.fullmatch(url)
    if parts is None:
        pairs: dict[str, str] = dict(_PAIR.findall(url))
        if not pairs or "service" in pairs or not _KEYWORDS.fullmatch(url.rstrip()):
            return url
        hosts = [(host, "") for host in pairs.get("hostaddr", pairs.get("host", "")).strip("'").split(",")]
        ports = pairs.get("port", "").strip("'").split(",")
        hosts = [(host, ports[min(number, len(ports) - 1)]) for number, (host, _) in enumerate(hosts)]
        dbname = pairs.get("dbname", pairs.get("user", "")).strip("'")
    else:
        user, rest = str(parts["user"] or ""), str(parts["rest"])
        path, _, query = rest.partition("?")
        if any(parameter.partition("=")[0] in _PLACE_KEYS for parameter in query.split("&")):
            return url
        found = [_HOST_AND_PORT.fullmatch(part) for part in str(parts["hosts"]).split(",")]
        hosts = [(str(match["host"]).strip("[]"), str(match["port"] or "")) if match else (url, "") for match in found]
        dbname = path.lstrip("/") or user.partition(":")[0]
    servers = ",".join(f"{host.lower()}:{port or 5432}" for host, port in hosts)
    return f"{servers}/{dbname}" if with_database else servers


def user_of(url: str) -> str:
    """The user of a connection URL; empty if libpq chooses it. Not for messages."""
    parts = _AUTHORITY.fullmatch(url)
    if parts is None:
        pairs: dict[str, str] = dict(_PAIR.findall(url))
        return pairs.get("user", "").strip("'")
    query = str(parts["rest"]).partition("?")[2]
    given = [value for key, _, value in (each.partition("=") for each in query.split("&")) if key == "user"]
    return unquote(given[-1] if given else str(parts["user"] or "").partition(":")[0])


_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://")
_PAIR: Final = re.compile(r"([a-z][a-z0-9_]*) *= *('(?:[^'\\]|\\.)*'|[^ ']*)")
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE_FIX: Final = "Write a percent sign as %25."
_AUTHORITY: Final = re.compile(r"postgres(?:ql)?://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*")
_KEYWORDS: Final = re.compile(r"(?: *[a-z][a-z0-9_]* *= *(?:'(?:[^'\\]|\\.)*'|(?:[^ '\\]|\\.)*)(?: |\Z))*")


def find_fault(url: str) -> tuple[str, str] | None:
    """Find what libpq would reject or misread in a connection URL.

    Returns:
        The problem and its fix, without any part of the URL; None when there is none.

    Source: PostgreSQL manual, "Connection Strings".
    """
    parts = _AUTHORITY.fullmatch(url)
    if parts is None and _SCHEME.match(url):
        fix = "Write postgresql://user@host/database, or name the driver of that database with driver."
        return "this is not a URL of PostgreSQL", fix
    if parts is None:
        if _KEYWORDS.fullmatch(url.rstrip()):
            return None
        return "not a list of keyword=value", "Quote values with spaces: 'value'; escape quotes in them: \\'."
    if any(character in url for character in " \t"):
        return "there is a space in the URL", "Write it as %20."
    if "#" in url:
        return "there is a '#' in the URL", "Write it as %23."
    if "@" in (parts["user"] or "") or "@" in parts["rest"].partition("?")[0]:
        fix = "Write @ in a user name or password as %40, / as %2F, ? as %3F."
        return "it is unclear where the password ends and the host begins", fix
    if _ESCAPE.search(url):
        return "a percent sign that begins no escape", _ESCAPE_FIX
    if _HOSTS.fullmatch(parts["hosts"]) is None:
        return "host and port cannot be told apart", "Write host:5432, and an IPv6 address in brackets: [::1]:5432."
    ports = re.findall(r":([0-9]+)(?=,|\Z)", parts["hosts"])
    if any(not 1 <= int(port) <= 65535 for port in ports):
        return "a port that is not one", "Ports go from 1 to 65535."
    return None
