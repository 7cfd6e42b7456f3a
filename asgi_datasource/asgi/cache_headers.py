"""Response headers for caches if the URL does not name the tenant: `Vary` and `Cache-Control: private`.

A shared cache selects a response by the URL and by the request headers that `Vary` names (RFC 9111, section 4.1).
Without them it would serve one tenant's response to another.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from starlette.types import Message

from ..routing.consistency.token_transport import TokenTransport
from ..tenancy import Reads

NEVER_STORED: Final = frozenset({"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""Methods whose responses shared caches do not store. RFC 9110, section 9.3.3, allows it for POST under conditions that
no cache implements."""

MOST_VALUES: Final = 64
"""Values of `Vary` for which the merged value is cached."""

_SHARED_CACHE_DIRECTIVES: Final = frozenset({b"public", b"private", b"no-store", b"s-maxage"})
"""Directives with which the application itself controls shared caches (RFC 9111, section 5.2.2)."""

_DIRECTIVE: Final = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^,"])+')


class CacheHeaders:
    """Adds to the start of responses what caches must know about the tenant; never removes anything.

    Args:
        reads: What the tenant depends on.
        transport: How tokens travel; None where there are none.

    Attributes:
        is_private: Whether the application's code decides, so that only `private` is right.
        transport: The same, naming in `Vary` what the tenant depends on as well: one pass adds both.
    """

    __slots__ = ("_merged", "_names", "_vary", "is_private", "transport")

    def __init__(self, reads: Reads, transport: TokenTransport | None = None) -> None:
        self._names = tuple(name.encode("latin-1") for name in reads.headers)
        self._vary = (b"vary", ", ".join(reads.headers).encode("latin-1"))
        self.is_private = not reads.is_known
        self.transport = None if transport is None else replace(transport, besides=reads.headers)
        self._merged: dict[bytes, bytes] = {}

    @classmethod
    def of(cls, reads: Reads, transport: TokenTransport | None = None) -> CacheHeaders | None:
        """The headers for what the tenant depends on; None if the URL alone names it."""
        return cls(reads, transport) if reads.headers or not reads.is_known else None

    def add_to(self, message: Message) -> Message:
        """Return a copy of a response's start with the headers added; any other message unchanged."""
        if message["type"] != "http.response.start":
            return message
        # Any iterable, perhaps one that can be read once (ASGI specification, "Response Start").
        given: Any = message.get("headers", ())
        kind: object = given.__class__
        headers: _Headers = given if kind is list else list(given)
        if not self.is_private:
            # Nearly every response has no `Vary` yet: one loop, no call.
            for name, _ in headers:
                if len(name) == 4 and name.lower() == b"vary":
                    break
            else:
                changed = dict(message)
                changed["headers"] = [*headers, self._vary]
                return changed
        headers = headers[:]
        if self._names:
            found = _find(headers, b"vary")
            if not found:
                headers.append(self._vary)
            elif len(found) == 1:
                name, value = headers[found[0]]
                headers[found[0]] = (name, self._merged.get(value) or self._merge(value))
            else:
                _add_vary(headers, self._names)
        if self.is_private:
            _add_private(headers)
        return {**message, "headers": headers}

    def _merge(self, value: bytes) -> bytes:
        """The value of `Vary` with the names added; cached, since an application uses few values."""
        headers = [(b"vary", value)]
        _add_vary(headers, self._names)
        if len(self._merged) < MOST_VALUES:
            self._merged[value] = headers[0][1]
        return headers[0][1]


_Headers = list[tuple[bytes, bytes]]


def _add_vary(headers: _Headers, names: tuple[bytes, ...]) -> None:
    at = _find(headers, b"vary")
    present = {part.strip() for index in at for part in headers[index][1].lower().split(b",")}
    missing = [name for name in names if name.lower() not in present]
    if missing and b"*" not in present:
        _append(headers, at[-1], missing)


def _add_private(headers: _Headers) -> None:
    at = _find(headers, b"cache-control")
    directives = [part for index in at for part in _DIRECTIVE.findall(headers[index][1])]
    if not at:
        headers.append((b"cache-control", b"private"))
    elif not any(part.partition(b"=")[0].strip().lower() in _SHARED_CACHE_DIRECTIVES for part in directives):
        _append(headers, at[-1], [b"private"])


def _find(headers: _Headers, wanted: bytes) -> list[int]:
    return [index for index, (name, _) in enumerate(headers) if name.lower() == wanted]


def _append(headers: _Headers, index: int, words: list[bytes]) -> None:
    name, value = headers[index]
    headers[index] = (name, b", ".join([value, *words] if value.strip() else words))
