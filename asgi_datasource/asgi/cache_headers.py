"""What caches are told of responses whose tenant does not stand in the URL: `Vary`, and `private`.

A shared cache knows a response by its URL, and by the request headers that `Vary` names (RFC 9111, section 4.1).
Without them it would hand one tenant's page to the next.
"""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Message

from ..tenancy import Reads

NEVER_STORED: Final = frozenset({"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""Methods whose responses shared caches do not keep. RFC 9110, section 9.3.3, would let one keep that of a POST under
conditions that none looks for."""

_SAID: Final = frozenset({b"public", b"private", b"no-store", b"s-maxage"})
"""Directives by which the application says itself what shared caches may do (RFC 9111, section 5.2.2)."""

_DIRECTIVE: Final = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^,"])+')


class CacheHeaders:
    """Adds to the start of responses what caches have to know of how the tenant was found; never takes anything away.

    Args:
        reads: What the tenant depends on.
    """

    __slots__ = ("_is_private", "_names", "_vary")

    def __init__(self, reads: Reads) -> None:
        self._names = tuple(name.encode("latin-1") for name in reads.headers)
        self._vary = (b"vary", ", ".join(reads.headers).encode("latin-1"))
        self._is_private = not reads.is_known

    @classmethod
    def of(cls, reads: Reads) -> CacheHeaders | None:
        """None where the URL alone tells the tenant."""
        return cls(reads) if reads.headers or not reads.is_known else None

    def told(self, message: Message) -> Message:
        """A message to send in place of this one, which is the start of a response; any other message as it is."""
        if message["type"] != "http.response.start":
            return message
        headers = list(message.get("headers", ()))
        if self._names:
            # Loops of their own: nearly every response passes here.
            for name, _ in headers:
                if len(name) == 4 and name.lower() == b"vary":
                    _add_vary(headers, self._names)
                    break
            else:
                headers.append(self._vary)
        if self._is_private:
            _add_private(headers)
        return {**message, "headers": headers}


_Headers = list[tuple[bytes, bytes]]


def _add_vary(headers: _Headers, names: tuple[bytes, ...]) -> None:
    at = _find(headers, b"vary")
    told = {part.strip() for index in at for part in headers[index][1].lower().split(b",")}
    missing = [name for name in names if name.lower() not in told]
    if missing and b"*" not in told:
        _append(headers, at[-1], missing)


def _add_private(headers: _Headers) -> None:
    at = _find(headers, b"cache-control")
    directives = [part for index in at for part in _DIRECTIVE.findall(headers[index][1])]
    if not at:
        headers.append((b"cache-control", b"private"))
    elif not any(part.partition(b"=")[0].strip().lower() in _SAID for part in directives):
        _append(headers, at[-1], [b"private"])


def _find(headers: _Headers, wanted: bytes) -> list[int]:
    return [index for index, (name, _) in enumerate(headers) if name.lower() == wanted]


def _append(headers: _Headers, index: int, words: list[bytes]) -> None:
    name, value = headers[index]
    headers[index] = (name, b", ".join([value, *words] if value.strip() else words))
