"""The normalized host of a request; forwarding headers count only from trusted proxies.

`Host` is case-insensitive, may contain a port and a trailing dot, and holds names of other scripts in their ASCII form
(RFC 9110, section 7.2; RFC 5890). Forwarding headers count only on connections from `trusted_proxies`, since clients
can send them too, and only those under `trusted_headers`: a proxy passes on the headers that it does not set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable, Sequence
from typing import Final

from starlette.types import Scope

from ..config.hostnames import normalize_host
from .forwarded import Element, parse_forwarded, sender_of
from .resolution import Reads, bad_request, header_text, header_values, single_header

UNIX: Final = "unix"
"""In `trusted_proxies`: connections through a Unix socket, which have no address."""

FORWARDED: Final = "forwarded"
FORWARDED_HOST: Final = "x-forwarded-host"


class RequestHost:
    """Returns the normalized host of a request.

    Args:
        trusted_proxies: Addresses and networks (`10.0.0.0/8`) whose headers count, and `unix` for Unix sockets.
        trusted_headers: Headers, of `forwarded` and `x-forwarded-host`, that all of these proxies set themselves.
    """

    __slots__ = ("_known", "_networks", "_reads_common", "_reads_standard", "_trusts_unix", "reads")

    def __init__(self, trusted_proxies: Iterable[str] = (), trusted_headers: Iterable[str] = ()) -> None:
        entries = list(trusted_proxies)
        names = set(trusted_headers) if entries else set[str]()
        self._reads_standard = FORWARDED in names
        self._reads_common = FORWARDED_HOST in names
        headers = (("Forwarded", self._reads_standard), ("X-Forwarded-Host", self._reads_common))
        self.reads = Reads(tuple(name for name, is_read in headers if is_read))
        self._trusts_unix = UNIX in entries
        self._networks = [ipaddress.ip_network(entry, strict=False) for entry in entries if entry != UNIX]
        self._known: dict[str, bool] = {}

    def __call__(self, scope: Scope, /) -> str | None:
        """The normalized host; None if the request has none, or one that is not valid.

        Raises:
            DataError: TENANT (400): the request has several hosts, or a trusted proxy's header is malformed.
        """
        if self.reads.headers and self._is_proxy(scope.get("client")):
            forwarded = self._forwarded(scope)
            if forwarded is not None:
                return normalize_host(forwarded)
        value = single_header(scope, b"host")
        return None if value is None else normalize_host(header_text(value))

    def _forwarded(self, scope: Scope) -> str | None:
        """The host that a trusted proxy forwards; None without its header."""
        hosts: set[str] = set()
        if self._reads_standard:
            host = self._of_forwarded(scope)
            if host is not None:
                hosts.add(host)
        common = single_header(scope, b"x-forwarded-host") if self._reads_common else None
        if common is not None:
            # Most proxies replace this header; if one appends, it is unknown which of the values it has checked.
            hosts.update(value.strip() for value in common.split(","))
        if len(hosts) > 1 and len({normalize_host(header_text(host)) for host in hosts}) > 1:
            raise bad_request("the proxies' headers name more than one host")
        return header_text(hosts.pop()) if hosts else None

    def _of_forwarded(self, scope: Scope) -> str | None:
        """The host that the outermost trusted proxy received (RFC 7239, section 5.3).

        Each proxy appends an element. The last one is from the peer; each earlier one counts only if the element behind
        it says `for` a trusted proxy.
        """
        elements: list[Element] = []
        try:
            # Several lines are one list (RFC 9110, section 5.3), but no element spans two lines.
            for line in header_values(scope, b"forwarded"):
                elements += parse_forwarded(line)
        except ValueError:
            raise bad_request("the header 'forwarded' is not what RFC 7239 allows") from None
        host: str | None = None
        for element in reversed(elements):
            if "host" in element:
                host = element["host"]
            sender = sender_of(element)
            if sender is None or not self._is_known_address(sender):
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
"""Addresses whose result is cached; behind a proxy there are few."""


class TrustedHosts:
    """The hosts that are served: single hosts, and with `*.` all hosts below a domain."""

    __slots__ = ("_exact", "_suffixes")

    def __init__(self, hosts: Iterable[str]) -> None:
        names = [(entry.startswith("*."), normalize_host(entry.removeprefix("*."))) for entry in hosts]
        self._exact = frozenset(name for is_below, name in names if name and not is_below)
        self._suffixes = tuple("." + name for is_below, name in names if name and is_below)

    def serves(self, host: str, besides: Container[str] = ()) -> bool:
        """Whether requests for a host are served.

        Args:
            host: The normalized host.
            besides: Further hosts that are served.
        """
        return host in self._exact or host.endswith(self._suffixes) or host in besides
