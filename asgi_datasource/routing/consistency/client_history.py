"""What the client of a session has seen of its datasource before, and sees in it: the limits of what it reads next."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from .. import Consistency, Freshness, Position
from .token import NOTHING_SEEN, Mark, Token, TokenSigner
from .token_transport import TokenTransport

NOWHERE: Final = Position(2**32 - 1, 0)
"""A position that no server has: the primary answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """Read your writes across requests.

    Attributes:
        signer: Writes and reads tokens.
        carrier: How they travel.
        wait_s: Seconds that a read waits for a replica to catch up.
        is_monotonic: Clients see no older state than they have seen before, also where they have not written.
    """

    signer: TokenSigner
    carrier: TokenTransport
    wait_s: float
    is_monotonic: bool


class ClientHistory:
    """What a session's client has seen of one datasource as one tenant.

    Args:
        policy: What the configuration says.
        scope: What tells the marks of this tenant and datasource.
        token: What the client has brought.
    """

    __slots__ = ("_carried", "_noted", "_policy", "_positions", "_scope", "is_blank", "timeline", "wait_s")

    def __init__(self, policy: TokenPolicy, scope: bytes, token: Token = NOTHING_SEEN) -> None:
        self._policy = policy
        self._scope = scope
        self._carried = token
        self._positions: tuple[Position, ...] = ()
        self._noted: dict[int, Position] = {}
        self.is_blank = True
        """Whether the client has seen nothing so far."""
        self.timeline = 0
        """The newest timeline that the client has seen; 0 is none."""
        self.wait_s = policy.wait_s
        """Seconds that a read waits for a replica to catch up."""
        if token.marks:
            self._positions = token.positions(scope)
            self.is_blank = not self._positions
            for position in self._positions:
                if self.timeline < position.timeline != NOWHERE.timeline:
                    self.timeline = position.timeline

    def consistency(self, freshness: Freshness) -> Consistency:
        """What a read must see of the past."""
        if freshness.consistency is not None:
            return freshness.consistency
        return Consistency.SESSION if self._policy.is_monotonic else Consistency.TOKEN

    def is_monotonic(self, freshness: Freshness) -> bool:
        """Whether what a read sees binds the reads that come after it."""
        asked = freshness.consistency
        return self._policy.is_monotonic if asked is None else asked is Consistency.SESSION

    def needed(self, freshness: Freshness) -> Position | None:
        """The position that a server must have for a read; None when any has it.

        Who has seen something of a newer timeline needs what is the furthest by number there: whatever was seen of an
        older one lies either in front of the branch, and then that server has it, or nobody has it any more.
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
        """Something was committed, and is in the log up to here; or a read has seen the state of at most here."""
        known = self._noted.get(position.timeline)
        if known is None or known.lsn < position.lsn:
            self._noted[position.timeline] = position
            self.is_blank = False
            if self.timeline < position.timeline != NOWHERE.timeline:
                self.timeline = position.timeline

    def token(self) -> Token | None:
        """What the client is to carry from now on; None when it carries that already."""
        news = self._news() if self._noted else None
        return self._with(news) if news else None

    def whole(self) -> Token:
        """Everything that the client has seen, here and elsewhere."""
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
