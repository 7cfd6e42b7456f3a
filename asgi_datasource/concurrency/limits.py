"""Bounds on the requests that are in progress at a time.

Requests beyond the capacity of the servers queue up until each of them waits longer than its client does. A bound
refuses the excess at once, so that the admitted requests are served in time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DataError, DataErrorKind
from .priority_queue import Priority
from .saturation_log import SaturationCounts, SaturationLog


@dataclass(slots=True)
class InFlight:
    """Number of requests in progress."""

    count: int = 0


class ConcurrencyLimit:
    """Admits at most `limit` requests at a time and refuses the others without a wait.

    Args:
        label: Names the limited resource in messages.
        limit: Most requests in progress.
        advice: How to raise the limit, for the error's message.
        in_flight: The counter, shared with the limit that this one replaces on a reload.
    """

    __slots__ = ("_advice", "_label", "_log", "in_flight", "limit")

    def __init__(self, label: str, limit: int, *, advice: str, in_flight: InFlight | None = None) -> None:
        self._label = label
        self.limit = limit
        self._advice = advice
        self.in_flight = in_flight or InFlight()
        self._log = SaturationLog(self._describe)

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self._label}: {self.in_flight.count} of {self.limit} in>"

    def enter(self, priority: Priority = Priority.NORMAL) -> None:
        """Admit a request; the caller pairs this with `leave`.

        Args:
            priority: HIGH is always admitted; LOW only while at most half of the limit is in use.

        Raises:
            DataError: RESOURCE: the limit is reached.
        """
        limit = max(1, self.limit // 2) if priority is Priority.LOW else self.limit
        if self.in_flight.count >= limit and priority is not Priority.HIGH:
            self._log.record(refused=True)
            raise DataError(
                DataErrorKind.RESOURCE,
                f"{self._label}: {self.in_flight.count} requests are under way, of {self.limit} that may be."
                f" {self._advice}",
            )
        self.in_flight.count += 1

    def leave(self) -> None:
        """An admitted request has ended."""
        self.in_flight.count -= 1

    def _describe(self, counts: SaturationCounts) -> str:
        return f"{self._label} is saturated: {counts}; {self.limit} requests may be under way. {self._advice}"
