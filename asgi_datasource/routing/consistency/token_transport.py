"""Reads and writes consistency tokens in HTTP: in a cookie, a header, or both, and keeps caches correct."""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Message

Headers = list[tuple[bytes, bytes]]

_SHARED: Final = frozenset({"public", "s-maxage", "proxy-revalidate"})
_PRIVATE: Final = frozenset({"private", "no-store"})


@dataclass(frozen=True, slots=True)
class TokenTransport:
    """The cookie and header that carry tokens.

    Attributes:
        cookie: Name of the cookie; None disables it.
        header: Name of the header; None disables it.
        max_age_s: Lifetime of the cookie in seconds.
        besides: Other request headers that a response depends on.
        cookie_key, header_key: The same names as bytes, the header's in lower case, as in an ASGI scope.
        names: Names of the request headers that a response depends on.
        vary: The `Vary` header that lists them.
    """

    cookie: str | None
    header: str | None
    max_age_s: int
    besides: tuple[str, ...] = ()
    cookie_key: bytes | None = field(init=False, repr=False)
    header_key: bytes | None = field(init=False, repr=False)
    names: tuple[str, ...] = field(init=False, repr=False)
    vary: tuple[bytes, bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        header = None if self.header is None else self.header.lower().encode()
        names = [name for name in ("Cookie" if self.cookie is not None else None, self.header) if name is not None]
        known = {name.lower() for name in names}
        names += [name for name in self.besides if name.lower() not in known]
        object.__setattr__(self, "header_key", header)
        object.__setattr__(self, "cookie_key", None if self.cookie is None else self.cookie.encode())
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "vary", (b"vary", ", ".join(names).encode()))

    def find(self, scope: MutableMapping[str, Any]) -> Sequence[str]:
        """The tokens of a request, unverified."""
        found: list[str] = []
        for name, value in scope["headers"]:
            if name == b"cookie" and self.cookie_key is not None:
                found += _cookies(value, self.cookie_key)
            elif name == self.header_key:
                found += value.decode("latin-1").replace(" ", "").split(",")
        return found

    def give(self, message: Message, text: str | None, *, is_secure: bool) -> Message:
        """Add a token, `Vary` and `Cache-Control` to the start of a response.

        A shared cache must not serve the token to another client.

        Args:
            message: The `http.response.start`; left unchanged.
            text: The token; None if the client has the current one.
            is_secure: The request used TLS: the cookie gets `Secure`.
        """
        headers: Headers = list(message.get("headers", ()))
        told: set[str] = set()
        for name, value in headers:
            if name == b"vary":
                told.update(value.decode("latin-1").lower().replace(" ", "").split(","))
        if not told:
            headers.append(self.vary)
        elif "*" not in told:
            missing = [name for name in self.names if name.lower() not in told]
            if missing:
                headers.append((b"vary", ", ".join(missing).encode()))
        if text is not None:
            if self.cookie is not None:
                secure = "; Secure" if is_secure else ""
                cookie = f"{self.cookie}={text}; Path=/; Max-Age={self.max_age_s}; HttpOnly; SameSite=Lax{secure}"
                headers.append((b"set-cookie", cookie.encode()))
            if self.header_key is not None:
                headers.append((self.header_key, text.encode()))
            headers = _kept_private(headers)
        return {**message, "headers": headers}


def _kept_private(headers: Headers) -> Headers:
    """The headers, with `Cache-Control` changed so that only a private cache stores the response."""
    said: list[bytes] = []
    for name, value in headers:
        if name == b"cache-control":
            said.append(value)
    if not said:
        headers.append(_ONLY_PRIVATE)
        return headers
    directives = [part.strip() for value in said for part in _split(_text(value))]
    names = {part.partition("=")[0].strip().lower() for part in directives}
    if names & _PRIVATE:
        return headers
    kept = [part for part in directives if part and part.partition("=")[0].strip().lower() not in _SHARED]
    rest = [(name, value) for name, value in headers if name != b"cache-control"]
    return [*rest, (b"cache-control", ", ".join(["private", *kept]).encode("latin-1"))]


_ONLY_PRIVATE: Final = (b"cache-control", b"private")


_PART: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+')


def _split(directives: str) -> Iterable[str]:
    """Split directives at commas outside quotes."""
    return _PART.findall(directives)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _cookies(header: bytes, name: bytes) -> list[str]:
    """The values of a cookie in a `Cookie` header; a browser sends one of each name and path.

    Source: RFC 6265, section 4.2.1.
    """
    found: list[str] = []
    for part in header.split(b";"):
        key, equals, value = part.strip().partition(b"=")
        text = value.strip(b' "').decode("latin-1")
        if equals and key == name and text:
            found.append(text)
    return found
