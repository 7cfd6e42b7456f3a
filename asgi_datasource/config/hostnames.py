"""The one spelling of a host's name.

Host names know no case, may end in a dot, and hold names of other scripts in their ASCII form (RFC 9110, section 7.2;
RFC 5890).
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

MAX_HOST_LENGTH: Final = 262
"""Longest value looked at, in characters: 253 of a name, a dot, a colon and a port."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ADDRESS: Final = re.compile(r"\[[0-9a-f:.]+\]")
_PORT: Final = re.compile(r"(?::[0-9]{0,5})?")


def normalize_host(value: str) -> str | None:
    """The one spelling of a host: lower case, in ASCII, without port and without the dot at its end.

    Args:
        value: As it was sent or configured; other scripts may stand in it as themselves.

    Returns:
        The host; None when this is none.
    """
    if not value or len(value) > MAX_HOST_LENGTH:
        return None
    if not value.isascii():
        # Its tables take a while to load; most services never see such a name.
        import idna

        name, colon, port = value.partition(":")
        try:
            # UTS 46, as browsers do it: full-width dots and capital letters included.
            value = idna.encode(name, uts46=True).decode("ascii") + colon + port
        except (idna.IDNAError, UnicodeError):
            return None
    value = value.lower()
    if value.startswith("["):
        address, bracket, port = value.partition("]")
        host = address + bracket
        return host if _ADDRESS.fullmatch(host) and _PORT.fullmatch(port) else None
    host, colon, port = value.partition(":")
    if not _PORT.fullmatch(colon + port):
        return None
    host = host.removesuffix(".")
    return host if len(host) <= 253 and _NAME.fullmatch(host) else None


def lies_within(host: str, domains: Container[str]) -> bool:
    """Whether a host is one of some domains, or lies below one; all of them in their one spelling."""
    while host:
        if host in domains:
            return True
        _, _, host = host.partition(".")
    return False
