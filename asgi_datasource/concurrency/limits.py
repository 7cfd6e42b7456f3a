"""Who gets in when not everybody can: priorities, lines that keep them, and bounds on what is under way.

More than the servers can do piles up in front of them, until every request waits longer than its client does. So what
is under way is bounded, and whoever is beyond the bound is refused at once: the others are served in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, TypeVar

from ..errors import DataError, DataErrorKind

T = TypeVar("T")

logger = logging.getLogger("asgi_datasource.saturation")

INTERVAL_S: Final = 10.0
"""Seconds between two warnings about one place: what happens meanwhile is told together."""


class Priority(IntEnum):
    """Who goes first when connections are scarce."""

    LOW = 0
    """Waits behind all others, is the first to lose its place, and gets in where no more than half is taken."""
    NORMAL = 1
    HIGH = 2
    """Waits in front of all others, and gets in where they are refused: health checks, administration."""


class PriorityQueue(Generic[T]):
    """Those who wait: the higher priority first, and of equals who came first."""

    # Read with every connection that comes back: spelled out, an iteration over the priorities would cost ten times it.
    __slots__ = ("_high", "_low", "_normal", "_ranks")

    def __init__(self) -> None:
        self._low: deque[T] = deque()
        self._normal: deque[T] = deque()
        self._high: deque[T] = deque()
        self._ranks = (self._low, self._normal, self._high)

    def __len__(self) -> int:
        return len(self._low) + len(self._normal) + len(self._high)

    def __bool__(self) -> bool:
        return bool(self._normal or self._high or self._low)

    def __contains__(self, waiter: T) -> bool:
        return any(waiter in rank for rank in self._ranks)

    def append(self, waiter: T, priority: Priority = Priority.NORMAL) -> None:
        """Somebody comes to wait."""
        self._ranks[priority].append(waiter)

    def count(self, priority: Priority) -> int:
        """How many wait with this priority."""
        return len(self._ranks[priority])

    @property
    def highest(self) -> Priority:
        """The priority of the first."""
        return Priority.HIGH if self._high else Priority.NORMAL if self._normal else Priority.LOW

    @property
    def first(self) -> T:
        """Who is next."""
        return (self._high or self._normal or self._low)[0]

    def pop(self) -> T:
        """Who is next; waits no more."""
        return (self._high or self._normal or self._low).popleft()

    def last(self, priority: Priority) -> T:
        """Who came last of those with this priority."""
        return self._ranks[priority][-1]

    def prune(self, is_done: Callable[[T], bool]) -> None:
        """Strike those from the front who do not wait any more: all of them, sooner or later, and at no cost."""
        for rank in self._ranks:
            while rank and is_done(rank[0]):
                rank.popleft()

    def remove(self, waiter: T) -> None:
        """Somebody has given up."""
        for rank in self._ranks:
            if waiter in rank:
                rank.remove(waiter)
                return


class SaturationLog:
    """Warns that a limit was reached: the first time at once, then once in a while what has happened since.

    Args:
        describe: Makes the text of a warning.
    """

    def __init__(self, describe: Callable[[SaturationCounts], str]) -> None:
        self._describe = describe
        self._refused = 0
        self._delayed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def record(self, *, refused: bool) -> None:
        """Somebody was refused, or was served after a long wait only."""
        loop = asyncio.get_running_loop()
        if refused:
            self._refused += 1
        else:
            self._delayed += 1
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._report(None)

    def close(self) -> None:
        """Tell nothing more of what has happened."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refused = self._delayed = 0

    def _report(self, seconds: float | None) -> None:
        self._timer = None
        if self._loop is None or not (self._refused or self._delayed):
            return
        logger.warning("%s", self._describe(SaturationCounts(self._refused, self._delayed, seconds)))
        self._refused = self._delayed = 0
        self._timer = self._loop.call_later(INTERVAL_S, self._report, INTERVAL_S)


@dataclass(frozen=True, slots=True)
class SaturationCounts:
    """What has happened at a limit.

    Attributes:
        refused: How many were refused.
        delayed: How many were served after a long wait only.
        seconds: In how many seconds; None for the very first.
    """

    refused: int
    delayed: int
    seconds: float | None

    def __str__(self) -> str:
        told = [
            f"{count} {what}"
            for count, what in ((self.refused, "refused"), (self.delayed, "served after a long wait"))
            if count
        ]
        when = "" if self.seconds is None else f" in {self.seconds:.0f} s"
        return f"{' and '.join(told)}{when}"


@dataclass(slots=True)
class InFlight:
    """How many are under way."""

    count: int = 0


class ConcurrencyLimit:
    """Lets no more in than may be under way at a time; nobody waits here.

    Args:
        label: What it stands in front of, for messages.
        limit: How many may be in.
        advice: What to change when that is too few.
        in_flight: Who is in already: shared with the limit that this one replaces on a reload.
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
        """Let somebody in, who calls `leave` in the end.

        Args:
            priority: High gets in always; low where no more than half is taken.

        Raises:
            DataError: RESOURCE: as many as may be are in already.
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
        """Somebody who was let in is done."""
        self.in_flight.count -= 1

    def _describe(self, counts: SaturationCounts) -> str:
        return f"{self._label} is saturated: {counts}; {self.limit} requests may be under way. {self._advice}"
