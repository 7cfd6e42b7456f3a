"""The canonical form of host names.

Host names are case-insensitive, may end in a dot, and encode other scripts in ASCII (RFC 9110, section 7.2; RFC 5890).
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

MAX_HOST_LENGTH: Final = 262
"""Characters of the longest value that is parsed: a name of 253, a dot, a colon and a port."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ADDRESS: Final = re.compile(r"\[[0-9a-f:.]+\]")
_PORT: Final = re.compile(r"(?::[0-9]{0,5})?")


def normalize_host(value: str) -> str | None:
    """The canonical form of a host: lower case, in ASCII, without port and final dot.

    Args:
        value: The host as it was sent or configured, in any script.

    Returns:
        The host; None when the value is not a host.
    """
    if not value or len(value) > MAX_HOST_LENGTH:
        return None
    if not value.isascii():
        # Imported here because its tables take long to load and most services never see such a name.
        import idna

        name, colon, port = value.partition(":")
        try:
            # UTS 46 as in browsers: it also maps full-width dots and capital letters.
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
    """Whether a host is one of some domains, or lies below one; all of them normalized."""
    while host:
        if host in domains:
            return True
        _, _, host = host.partition(".")
    return False
