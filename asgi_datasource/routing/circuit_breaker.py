"""Circuit breaker of a server: one state and one transition table, driven by the outcome of real connections."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Health(StrEnum):
    """The state of a server's breaker."""

    CLOSED = "closed"
    """The server is in use."""
    OPEN = "open"
    """The server could not be reached, or has stopped answering: no statement is sent to it."""
    HALF_OPEN = "half_open"
    """One trial connection is made; no statement is sent."""


class Event(StrEnum):
    """An event of a server's connections. Errors that the server reports are not events."""

    CONNECTED = "connected"
    """A connection was made, and the server has the expected role."""
    FAILED = "failed"
    """A connection failed while there was no other, or the server fell silent."""
    TRIAL = "trial"
    """The pause has ended: a trial connection starts."""


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
    """Pauses between connection attempts of an open breaker: doubling, with jitter, up to a bound.

    Attributes:
        first_s, last_s: Shortest and longest pause in seconds.
    """

    first_s: float = 0.2
    last_s: float = 2.0

    def pause_s(self, failures: int, dice: float) -> float:
        """Seconds until the next attempt.

        Args:
            failures: Consecutive failed attempts, from 1.
            dice: A random number from 0 to 1: jitter avoids a thundering herd.
        """
        longest = min(self.last_s, self.first_s * 2.0 ** min(max(0, failures - 1), 30))
        return longest * (0.5 + dice / 2)


class CircuitBreaker:
    """The breaker of one server.

    Attributes:
        health: The state.
        failures: Attempts that have failed since the breaker was last closed.
        closed_at: Event-loop time of the last transition from open to closed; None if it was never open.
        opened_at: Event-loop time at which it was last opened; None if it was never open.
    """

    __slots__ = ("closed_at", "failures", "health", "opened_at")

    def __init__(self) -> None:
        self.health = Health.CLOSED
        self.failures = 0
        self.closed_at: float | None = None
        self.opened_at: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the server is in use."""
        return self.health is Health.CLOSED

    def apply(self, event: Event, *, now: float) -> bool:
        """Apply an event; returns whether the state has changed.

        Args:
            event: The event.
            now: Event-loop time.
        """
        following = _MOVES.get((self.health, event))
        if following is None:
            return False
        if event is Event.FAILED:
            self.failures += 1
            if self.health is Health.CLOSED:
                self.opened_at = now
        elif event is Event.CONNECTED:
            self.failures = 0
            if self.health is not Health.CLOSED:
                self.closed_at = now
        changed = following is not self.health
        self.health = following
        return changed
