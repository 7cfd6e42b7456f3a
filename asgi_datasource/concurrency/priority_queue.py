"""Priorities, and the queue that serves the highest priority first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class Priority(IntEnum):
    """Order in which requests are served when connections are scarce."""

    LOW = 0
    """Served last, refused first when a queue is full, and admitted only while at most half of a limit is in use."""
    NORMAL = 1
    HIGH = 2
    """Served first, and admitted beyond a limit: health checks, administration."""


class PriorityQueue(Generic[T]):
    """A queue of waiters: higher priorities first, and first in, first out within a priority."""

    # Read for every connection that is released: iterating over the priorities would take ten times as long.
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
        """Add a waiter."""
        self._ranks[priority].append(waiter)

    def count(self, priority: Priority) -> int:
        """Number of waiters with this priority."""
        return len(self._ranks[priority])

    @property
    def highest(self) -> Priority:
        """Priority of the first waiter."""
        return Priority.HIGH if self._high else Priority.NORMAL if self._normal else Priority.LOW

    @property
    def first(self) -> T:
        """The waiter that is served next."""
        return (self._high or self._normal or self._low)[0]

    def pop(self) -> T:
        """Remove and return the waiter that is served next."""
        return (self._high or self._normal or self._low).popleft()

    def last(self, priority: Priority) -> T:
        """The newest waiter of this priority."""
        return self._ranks[priority][-1]

    def prune(self, is_done: Callable[[T], bool]) -> None:
        """Drop finished waiters from the front of each priority; later ones are dropped once they reach the front."""
        for rank in self._ranks:
            while rank and is_done(rank[0]):
                rank.popleft()

    def remove(self, waiter: T) -> None:
        """Remove a waiter that has given up."""
        for rank in self._ranks:
            if waiter in rank:
                rank.remove(waiter)
                return
