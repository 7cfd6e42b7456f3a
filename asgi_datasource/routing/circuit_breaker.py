"""Whether a server is used: one state, one table of moves, by what really happened to its connections."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Health(StrEnum):
    """The state of a server's breaker."""

    CLOSED = "closed"
    """In use."""
    OPEN = "open"
    """It could not be reached, or has stopped answering: nothing is sent to it."""
    HALF_OPEN = "half_open"
    """One connection tries whether it is back; nothing else is sent."""


class Event(StrEnum):
    """What happened to a server's connections. Errors that the server answers with are none of these."""

    CONNECTED = "connected"
    """A connection was made, and the server is what it should be."""
    FAILED = "failed"
    """A connection could not be made while there was no other, or the server fell silent."""
    TRIAL = "trial"
    """The pause is over: one more attempt begins."""


_MOVES: Final[dict[tuple[Health, Event], Health]] = {
    (Health.CLOSED, Event.CONNECTED): Health.CLOSED,
    (Health.CLOSED, Event.FAILED): Health.OPEN,
    (Health.OPEN, Event.CONNECTED): Health.CLOSED,
    (Health.OPEN, Event.FAILED): Health.OPEN,
    (Health.OPEN, Event.TRIAL): Health.HALF_OPEN,
    (Health.HALF_OPEN, Event.CONNECTED): Health.CLOSED,
    (Health.HALF_OPEN, Event.FAILED): Health.OPEN,
}


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a breaker stays open between two attempts: doubling, with jitter, up to a bound.

    Attributes:
        first_s, last_s: The shortest and the longest.
    """

    first_s: float = 0.2
    last_s: float = 2.0

    def pause_s(self, failures: int, dice: float) -> float:
        """Seconds until the next attempt.

        Args:
            failures: Attempts that have failed since the server was last up, from 1.
            dice: A random number from 0 to 1, so that the processes of a service do not all knock at once.
        """
        longest = min(self.last_s, self.first_s * 2.0 ** min(max(0, failures - 1), 30))
        return longest * (0.5 + dice / 2)


class CircuitBreaker:
    """The breaker of one server.

    Attributes:
        health: Its state.
        failures: Attempts that have failed since it was last closed.
        closed_at: Event-loop time at which it was last closed after it had been open; None when it never was.
    """

    __slots__ = ("closed_at", "failures", "health")

    def __init__(self) -> None:
        self.health = Health.CLOSED
        self.failures = 0
        self.closed_at: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the server is used."""
        return self.health is Health.CLOSED

    def tell(self, event: Event, *, now: float) -> bool:
        """Something happened; True when the state is another one now.

        Args:
            event: What happened.
            now: Event-loop time.
        """
        following = _MOVES.get((self.health, event))
        if following is None:
            return False
        if event is Event.FAILED:
            self.failures += 1
        elif event is Event.CONNECTED:
            self.failures = 0
            if self.health is not Health.CLOSED:
                self.closed_at = now
        changed = following is not self.health
        self.health = following
        return changed
