"""Whether a destination is asked at all: after it was away, it is tried again with growing pauses, by one batch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0


class CircuitState(StrEnum):
    """Whether messages are sent."""

    CLOSED = "closed"
    OPEN = "open"
    """The destination is away; nothing is sent until the pause is over."""
    PROBING = "probing"
    """One batch is on its way to find out whether the destination is back."""


class Circuit:
    """The state of one destination, shared by all that send to it.

    Args:
        clock: Seconds that only grow.
        first_pause_s, longest_pause_s: The pauses between two attempts; each is up to twice the one before, with
            jitter.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self._clock = clock
        self._first_s = first_pause_s
        self._longest_s = longest_pause_s
        self._pause_s = first_pause_s
        self._opens_at = 0.0
        self.state = CircuitState.CLOSED
        self.successes = 0
        """How many batches were delivered, at least in part."""
        self.reason: str | None = None
        """Why the destination counts as away."""

    def __repr__(self) -> str:
        return f"<Circuit {self.state.value}>"

    @property
    def waits_s(self) -> float:
        """Seconds until a batch may be sent; 0 when one may be sent now."""
        if self.state is CircuitState.CLOSED:
            return 0.0
        if self.state is CircuitState.PROBING:
            return self._first_s
        return max(0.0, self._opens_at - self._clock())

    def admit(self) -> bool:
        """Whether a batch may be sent now; with the destination away, one at a time."""
        if self.state is CircuitState.CLOSED:
            return True
        if self.state is CircuitState.PROBING or self.waits_s > 0:
            return False
        self.state = CircuitState.PROBING
        return True

    def cancel_probe(self) -> None:
        """The admitted batch was not sent after all."""
        if self.state is CircuitState.PROBING:
            self.state = CircuitState.OPEN

    def succeed(self) -> None:
        """The destination has answered."""
        self.successes += 1
        self.state = CircuitState.CLOSED
        self._pause_s = self._first_s
        self.reason = None

    def fail(self, reason: str | None, retry_after_s: float | None = None) -> None:
        """The destination is away.

        Args:
            reason: Why.
            retry_after_s: Seconds that it asked to wait.
        """
        if self.state is CircuitState.OPEN:
            return
        self.state = CircuitState.OPEN
        self.reason = reason
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._pause_s = min(self._longest_s, 2 * self._pause_s)
        if retry_after_s is not None:
            pause_s = max(pause_s, min(retry_after_s, 60 * self._longest_s))
        self._opens_at = self._clock() + pause_s
