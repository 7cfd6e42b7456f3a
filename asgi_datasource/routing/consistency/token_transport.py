"""How a token travels: in a cookie, in a header, or both, without spoiling anybody's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import Message

Headers = list[tuple[bytes, bytes]]

_SHARED: Final = frozenset({"public", "s-maxage", "proxy-revalidate"})
_PRIVATE: Final = frozenset({"private", "no-store"})


@dataclass(frozen=True, slots=True)
class TokenTransport:
    """Where clients carry their token.

    Attributes:
        cookie: Name of the cookie; None where there is none.
        header: Name of the header; None where there is none.
        max_age_s: Seconds for which a browser keeps the cookie.
    """

    cookie: str | None
    header: str | None
    max_age_s: int

    def find(self, scope: MutableMapping[str, Any]) -> list[str]:
        """The tokens that a request carries, not yet looked at."""
        found: list[str] = []
        header = None if self.header is None else self.header.lower().encode()
        for name, value in scope["headers"]:
            if name == b"cookie" and self.cookie is not None:
                found += _cookies(value, self.cookie.encode())
            elif name == header:
                found += [part.strip() for part in value.decode("latin-1").split(",")]
        return [text for text in found if text]

    def give(self, message: Message, text: str, *, is_secure: bool) -> None:
        """Put a token into the start of a response. Nobody but its client may be handed it from a cache.

        Args:
            message: The `http.response.start`; changed.
            text: The token.
            is_secure: The request came over TLS, so the cookie is never to be sent without.
        """
        headers: Headers = list(message.get("headers", ()))
        if self.cookie is not None:
            secure = "; Secure" if is_secure else ""
            cookie = f"{self.cookie}={text}; Path=/; Max-Age={self.max_age_s}; HttpOnly; SameSite=Lax{secure}"
            headers.append((b"set-cookie", cookie.encode()))
        if self.header is not None:
            headers.append((self.header.lower().encode(), text.encode()))
        message["headers"] = _kept_private(headers)

    def vary(self, message: Message) -> None:
        """Tell caches that the response depends on what the client has seen before."""
        names = [name for name in ("Cookie" if self.cookie is not None else None, self.header) if name is not None]
        headers: Headers = list(message.get("headers", ()))
        told = {part.strip().lower() for name, value in headers if name == b"vary" for part in _text(value).split(",")}
        missing = [name for name in names if name.lower() not in told]
        if missing and "*" not in told:
            message["headers"] = [*headers, (b"vary", ", ".join(missing).encode())]


def _kept_private(headers: Headers) -> Headers:
    """The headers, with what they say to caches changed so that only the client's own keeps the response."""
    directives = [part.strip() for name, value in headers if name == b"cache-control" for part in _split(_text(value))]
    names = {part.partition("=")[0].strip().lower() for part in directives}
    if names & _PRIVATE:
        return headers
    kept = [part for part in directives if part and part.partition("=")[0].strip().lower() not in _SHARED]
    rest = [(name, value) for name, value in headers if name != b"cache-control"]
    return [*rest, (b"cache-control", ", ".join(["private", *kept]).encode("latin-1"))]


_PART: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+')


def _split(directives: str) -> Iterable[str]:
    """Directives, parted at the commas that stand outside of quotes."""
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
        if equals and key == name:
            found.append(value.strip(b' "').decode("latin-1"))
    return found
