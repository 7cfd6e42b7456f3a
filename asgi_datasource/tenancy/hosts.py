"""Which host a request is for: one spelling for each name, and headers of proxies only from proxies that are known.

`Host` knows no case, may carry a port and a dot at its end, and holds names of other scripts in their ASCII form
(RFC 9110, section 7.2; RFC 5890). What a proxy says of the host that it was asked for counts only when the connection
comes from an address under `trusted_proxies`: anybody can send such a header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container, Iterable, Sequence
from typing import Final

from starlette.types import Scope

from ..config.hostnames import normalize_host
from .resolution import bad_request, single_header

UNIX: Final = "unix"
"""Under `trusted_proxies`: whoever connects through a Unix socket, which has no address."""


class RequestHost:
    """Tells the host that a request is for.

    Args:
        trusted_proxies: Addresses and networks (`10.0.0.0/8`) whose `Forwarded` and `X-Forwarded-Host` count, and
            `unix` for whoever connects through a Unix socket.
    """

    __slots__ = ("_known", "_networks", "_trusts_unix")

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        entries = list(trusted_proxies)
        self._trusts_unix = UNIX in entries
        self._networks = [ipaddress.ip_network(entry, strict=False) for entry in entries if entry != UNIX]
        self._known: dict[str, bool] = {}

    def __call__(self, scope: Scope, /) -> str | None:
        """The host, in its one spelling; None when the request names none, or something that is none.

        Raises:
            DataError: TENANT (400): the request names more than one.
        """
        if (self._networks or self._trusts_unix) and self._is_proxy(scope.get("client")):
            forwarded = self._forwarded(scope)
            if forwarded is not None:
                return normalize_host(forwarded)
        value = single_header(scope, b"host")
        return None if value is None else normalize_host(_text(value))

    def _forwarded(self, scope: Scope) -> str | None:
        """The host that the proxy was asked for, where it says so."""
        standard = single_header(scope, b"forwarded")
        common = single_header(scope, b"x-forwarded-host")
        hosts: set[str] = set()
        if standard is not None:
            host = self._of_forwarded(standard)
            if host is not None:
                hosts.add(host)
        if common is not None:
            # Proxies set it, as a rule; one that appends leaves open which of the values it has checked.
            hosts.update(value.strip() for value in common.split(","))
        if len(hosts) > 1 and len({normalize_host(_text(host)) for host in hosts}) > 1:
            raise bad_request("the proxies' headers name more than one host")
        return _text(hosts.pop()) if hosts else None

    def _of_forwarded(self, value: str) -> str | None:
        """The host of the outermost proxy that is known (RFC 7239, section 5.3).

        Each proxy adds an element behind those that it was sent: the last is that of whom we talk to, and those in
        front of one are to be believed while it was sent by a known proxy.
        """
        host: str | None = None
        for element in reversed(_split(value, ",")):
            pairs = [part.partition("=") for part in _split(element, ";")]
            parameters = {name.strip().lower(): _unquote(text.strip()) for name, _, text in pairs}
            host = parameters.get("host") or host
            sender = parameters.get("for", "")
            address = sender.partition("]")[0].removeprefix("[") if sender.startswith("[") else sender.partition(":")[0]
            if not self._is_known_address(address):
                break
        return host

    def _is_proxy(self, client: Sequence[object] | None) -> bool:
        if not client or not client[0]:
            return self._trusts_unix
        return self._is_known_address(str(client[0]))

    def _is_known_address(self, text: str) -> bool:
        known = self._known.get(text)
        if known is None:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                return False
            mapped = getattr(address, "ipv4_mapped", None)
            known = any((mapped or address) in network for network in self._networks)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[text] = known
        return known


_MAX_KNOWN: Final = 1024
"""Addresses whose answer is kept; behind a proxy there are few."""


class TrustedHosts:
    """The hosts that are served: those named, and with `*.` in front everything below a domain."""

    __slots__ = ("_exact", "_suffixes")

    def __init__(self, hosts: Iterable[str]) -> None:
        names = [(entry.startswith("*."), normalize_host(entry.removeprefix("*."))) for entry in hosts]
        self._exact = frozenset(name for is_below, name in names if name and not is_below)
        self._suffixes = tuple("." + name for is_below, name in names if name and is_below)

    def serves(self, host: str, besides: Container[str] = ()) -> bool:
        """Whether requests for this host are answered.

        Args:
            host: In its one spelling.
            besides: Hosts that are served as well.
        """
        return host in self._exact or host.endswith(self._suffixes) or host in besides


def _text(value: str) -> str:
    """A header's value as text: bytes beyond ASCII are UTF-8, where they are anything."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return "\x00"


def _split(value: str, separator: str) -> list[str]:
    """Split where the separator is not inside quotes."""
    if '"' not in value:
        return value.split(separator)
    parts: list[str] = []
    start, is_quoted, is_escaped = 0, False, False
    for index, character in enumerate(value):
        if is_escaped:
            is_escaped = False
        elif is_quoted and character == "\\":
            is_escaped = True
        elif character == '"':
            is_quoted = not is_quoted
        elif character == separator and not is_quoted:
            parts.append(value[start:index])
            start = index + 1
    return [*parts, value[start:]]


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
