"""Causal consistency of one session: the WAL positions that its client has seen, and those its reads require."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from .. import Consistency, Freshness, Position
from .token import NOTHING_SEEN, Mark, Token, TokenSigner
from .token_transport import TokenTransport

NOWHERE: Final = Position(2**32 - 1, 0)
"""A position that no server has: reads that require it go to the primary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """Settings of consistency tokens: reads see the client's writes across requests.

    Attributes:
        signer: Signs and verifies tokens.
        transport: The cookie and header that carry them.
        wait_s: Seconds that a read waits for a replica to catch up.
        is_monotonic: A client never sees an older state than it has seen, even if it has not written.
    """

    signer: TokenSigner
    transport: TokenTransport
    wait_s: float
    is_monotonic: bool


class ClientHistory:
    """What a session's client has seen of one datasource as one tenant.

    Args:
        policy: The configured policy.
        scope: Scope of the marks of this tenant and datasource; see `scope_of`.
        token: The client's token.
    """

    __slots__ = ("_carried", "_has_more", "_noted", "_policy", "_positions", "_scope", "is_blank", "timeline", "wait_s")

    def __init__(self, policy: TokenPolicy, scope: bytes, token: Token = NOTHING_SEEN) -> None:
        self._policy = policy
        self._scope = scope
        self._carried = token
        self._positions: tuple[Position, ...] = ()
        self._noted: dict[int, Position] = {}
        self._has_more = False
        """Marks of other scopes were included that the client does not have yet."""
        self.is_blank = True
        """Whether the client has seen no position yet."""
        self.timeline = 0
        """The newest timeline that the client has seen; 0 for none."""
        self.wait_s = policy.wait_s
        """Seconds that a read waits for a replica to catch up."""
        if token.marks:
            self._positions = token.positions(scope)
            self.is_blank = not self._positions
            for position in self._positions:
                if self.timeline < position.timeline != NOWHERE.timeline:
                    self.timeline = position.timeline

    def consistency(self, freshness: Freshness) -> Consistency:
        """The consistency of a read: its own or the configured one."""
        if freshness.consistency is not None:
            return freshness.consistency
        return Consistency.SESSION if self._policy.is_monotonic else Consistency.TOKEN

    def is_monotonic(self, freshness: Freshness) -> bool:
        """Whether the state that a read sees is a lower bound for the client's later reads."""
        asked = freshness.consistency
        return self._policy.is_monotonic if asked is None else asked is Consistency.SESSION

    def needed(self, freshness: Freshness) -> Position | None:
        """The position that a server must have replayed for a read; None if any server qualifies.

        Of several timelines the newest is used, with the highest LSN of all. A position on an older timeline is either
        before the fork, so that the newer timeline contains it, or it is lost on every server.
        """
        if freshness.consistency in (Consistency.STRONG, Consistency.EVENTUAL):
            return None
        positions = self._positions if not self._noted else self._needed_positions(freshness)
        if len(positions) < 2:
            return positions[0] if positions else None
        return Position(positions[0].timeline, max([position.lsn for position in positions]))

    def _needed_positions(self, freshness: Freshness) -> tuple[Position, ...]:
        if not self.is_monotonic(freshness):
            return self._positions
        by_timeline = {position.timeline: position for position in self._positions}
        for timeline, position in self._noted.items():
            known = by_timeline.get(timeline)
            if known is None or known.lsn < position.lsn:
                by_timeline[timeline] = position
        return tuple(sorted(by_timeline.values(), key=lambda position: position.timeline, reverse=True))

    def note(self, position: Position) -> None:
        """Record the position of a commit, or an upper bound of the state that a read has seen."""
        known = self._noted.get(position.timeline)
        if known is None or known.lsn < position.lsn:
            self._noted[position.timeline] = position
            self.is_blank = False
            if self.timeline < position.timeline != NOWHERE.timeline:
                self.timeline = position.timeline

    def token(self) -> Token | None:
        """The token to send to the client; None if the client has an equivalent one."""
        news = self._news() if self._noted else []
        return self._with(news) if news or self._has_more else None

    def include(self, other: ClientHistory) -> None:
        """Send to the client what it has seen of another datasource as well."""
        found = other.token()
        if found is not None:
            self._carried = self._carried.merged(found)
            self._has_more = True

    def whole(self) -> Token:
        """Everything that the client has seen, in all scopes of its token."""
        return self._with(self._news())

    def _with(self, news: list[Position]) -> Token:
        now = int(time.time())
        marks: list[Mark] = []
        for position in news:
            marks.append(Mark(self._scope, position, now))
        noted = Token(tuple(marks))
        return self._carried.merged(noted) if self._carried.marks else noted

    def _news(self) -> list[Position]:
        if not self._positions:
            return list(self._noted.values())
        known = {position.timeline: position.lsn for position in self._positions}
        return [position for timeline, position in self._noted.items() if known.get(timeline, -1) < position.lsn]
