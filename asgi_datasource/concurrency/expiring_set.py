"""A set that forgets: bounded in size and in time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class ExpiringSet(Generic[Key]):
    """Members stay for a while; with too many of them, those that were added first go first.

    Args:
        most: How many there are at most.
        keep_s: Seconds for which a member stays.
        clock: Seconds.
    """

    __slots__ = ("_clock", "_keep_s", "_most", "_until")

    def __init__(self, *, most: int, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._keep_s = keep_s
        self._clock = clock
        self._until: OrderedDict[Key, float] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        until = self._until.get(key)
        return until is not None and until > self._clock()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, key: Key) -> None:
        """Take a member, from now on."""
        self._until[key] = self._clock() + self._keep_s
        self._until.move_to_end(key)
        while len(self._until) > self._most:
            self._until.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        self._until.clear()
