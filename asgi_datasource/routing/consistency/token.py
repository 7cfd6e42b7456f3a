"""The consistency token: the WAL positions that a client has seen, signed.

    version, key id, marks, MAC        1 + 1 + 22 for each mark + 16 bytes, in base64url without padding: 54 characters

A mark is a position in the write-ahead log of one datasource as one tenant sees it. A client of several services, or of
several tenants, has one mark for each; a service passes on the marks of other services. The MAC is the first half of an
HMAC-SHA256, 128 bits.

Source: RFC 2104, section 5 (truncated output); RFC 4648, section 5 (base64url).
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from operator import attrgetter
from struct import Struct
from typing import Any, Final

from ..position import Position, format_lsn

VERSION: Final = 1
MAX_MARKS: Final = 8
MAX_LENGTH: Final = 280
"""Longest token in characters; longer ones are ignored without parsing."""
KNOWN_TOKENS: Final = 1024
"""Size of the cache of verified tokens; keyed by token, and valid for the signer's secrets."""
FUTURE_S: Final = 60
"""Tolerated clock difference in seconds between machines that share a secret."""

_HEAD: Final = Struct(">BB")
_MARK: Final = Struct(">6sIIQ")
_MAC_SIZE: Final = 16
_PURPOSE: Final = b"asgi-datasource token v1"


@dataclass(frozen=True, slots=True)
class Mark:
    """One position that the client has seen.

    Attributes:
        scope: Tenant and datasource; see `scope_of`.
        position: Reads must see everything up to it.
        issued_at: When it was recorded, in seconds since 1970.
    """

    scope: bytes
    position: Position
    issued_at: int


@dataclass(frozen=True, slots=True)
class Token:
    """The positions that the client has seen, one mark for each scope and timeline."""

    marks: tuple[Mark, ...] = ()

    def positions(self, scope: bytes) -> tuple[Position, ...]:
        """The positions of a scope, the newest timeline first."""
        found: list[Position] = []
        for mark in self.marks:
            if mark.scope == scope:
                found.append(mark.position)
        if len(found) > 1:
            found.sort(key=attrgetter("timeline"), reverse=True)
        return tuple(found)

    def merged(self, *others: Token) -> Token:
        """The union of tokens, with the furthest position of each scope and timeline.

        Beyond `MAX_MARKS`, the oldest marks are dropped: they are the first to expire anyway.
        """
        best: dict[tuple[bytes, int], Mark] = {}
        marks = list(self.marks)
        for other in others:
            marks += other.marks
        for mark in marks:
            position = mark.position
            known = best.get((mark.scope, position.timeline), mark)
            # The furthest position gets the latest expiry, because it also stands for the later mark.
            furthest = position if position.lsn > known.position.lsn else known.position
            best[mark.scope, position.timeline] = Mark(mark.scope, furthest, max(mark.issued_at, known.issued_at))
        latest = sorted(best.values(), key=_by_age, reverse=True)
        return Token(tuple(latest[:MAX_MARKS]))

    def without_expired(self, now: float, ttl_s: float) -> Token:
        """The marks that have not expired."""
        for mark in self.marks:
            if not now - ttl_s <= mark.issued_at <= now + FUTURE_S:
                return Token(tuple([mark for mark in self.marks if now - ttl_s <= mark.issued_at <= now + FUTURE_S]))
        return self


NOTHING_SEEN: Final = Token()


def _by_age(mark: Mark) -> tuple[int, int, int, bytes]:
    return mark.issued_at, mark.position.timeline, mark.position.lsn, mark.scope


@lru_cache(maxsize=4096)
def scope_of(tenant: str | None, datasource: str) -> bytes:
    """Six bytes that identify a tenant's datasource in marks; the default tenant has no name."""
    text = f"{'' if tenant is None else tenant}\x00{datasource}"
    return sha256(text.encode("utf-8", "surrogatepass")).digest()[:6]


class TokenSigner:
    """Signs and verifies tokens.

    Args:
        secrets: The first one signs; all of them verify.
        ttl_s: Lifetime of a mark in seconds.
    """

    __slots__ = ("_keys", "_verify", "ttl_s")

    def __init__(self, secrets: Sequence[str], *, ttl_s: float) -> None:
        self._keys = [_key_of(secret) for secret in secrets]
        # A client sends the same token with each request until it has seen a new position.
        self._verify = lru_cache(maxsize=KNOWN_TOKENS)(partial(_verified, tuple(self._keys)))
        self.ttl_s = ttl_s

    def __repr__(self) -> str:
        return f"<TokenSigner, {len(self._keys)} keys>"

    def sign(self, token: Token) -> str:
        """Encode and sign a token."""
        key_id, key = self._keys[0]
        body = _HEAD.pack(VERSION, key_id)
        for mark in token.marks[:MAX_MARKS]:
            body += _MARK.pack(mark.scope, mark.issued_at, mark.position.timeline, mark.position.lsn)
        mac = hmac.digest(key, body, "sha256")[:_MAC_SIZE]
        return urlsafe_b64encode(body + mac).rstrip(b"=").decode()

    def read(self, texts: Iterable[str], *, now: float) -> Token:
        """Merge the valid tokens of a request. Foreign, invalid and expired ones are ignored.

        Args:
            texts: The tokens as received, with any content.
            now: Seconds since 1970.
        """
        tokens: list[Token] = []
        for text in texts:
            token = self._verify(text)
            if token is not None:
                tokens.append(token)
        if not tokens:
            return NOTHING_SEEN
        first = tokens[0] if len(tokens) == 1 else tokens[0].merged(*tokens[1:])
        return first.without_expired(now, self.ttl_s)

    def describe(self, text: str) -> Mapping[str, Any] | None:
        """Describe a token as JSON (`schemas/token/v1.json`); None if it is invalid."""
        token = self._verify(text)
        if token is None:
            return None
        return {
            "version": VERSION,
            "marks": [
                {
                    "scope": mark.scope.hex(),
                    "timeline": mark.position.timeline,
                    "lsn": format_lsn(mark.position.lsn),
                    "issued_at": mark.issued_at,
                }
                for mark in token.marks
            ],
        }


def _verified(keys: Sequence[tuple[int, bytes]], text: str) -> Token | None:
    """Decode a token; None if it is invalid."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (NotBase64, ValueError):
        return None
    body, mac = raw[:-_MAC_SIZE], raw[-_MAC_SIZE:]
    size = len(body) - _HEAD.size
    if size < 0 or size % _MARK.size or size > MAX_MARKS * _MARK.size or body[0] != VERSION:
        return None
    if not any(
        key_id == body[1] and hmac.compare_digest(hmac.digest(key, body, "sha256")[:_MAC_SIZE], mac)
        for key_id, key in keys
    ):
        return None
    return Token(
        tuple(
            [
                Mark(scope, Position(timeline, lsn), issued_at)
                for scope, issued_at, timeline, lsn in _MARK.iter_unpack(body[_HEAD.size :])
            ]
        )
    )


def _key_of(secret: str) -> tuple[int, bytes]:
    """The key id of a secret, and the signing key derived from it for this purpose only."""
    key = hmac.digest(secret.encode(), _PURPOSE, "sha256")
    return sha256(key).digest()[0], key
