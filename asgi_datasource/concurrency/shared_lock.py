"""A lock held by one task, or shared by several reads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_EXCLUSIVE: Final = -1


class SharedLock:
    """A fair lock that costs nothing while it is free, and that a bounded number of holders can share.

    Args:
        max_holders: Most holders that share it.
        must_be_exclusive: Called when a holder asks to share; True makes the lock exclusive all the same.
    """

    __slots__ = ("_holders", "_max_holders", "_must_be_exclusive", "_waiting")

    def __init__(self, max_holders: int = 1, must_be_exclusive: Callable[[], bool] | None = None) -> None:
        self._max_holders = max_holders
        self._must_be_exclusive = must_be_exclusive
        self._holders = 0
        self._waiting: deque[tuple[asyncio.Future[None], bool]] | None = None

    @property
    def is_held(self) -> bool:
        """Whether the lock has a holder."""
        return self._holders != 0

    @property
    def is_shareable(self) -> bool:
        """Whether `shared=True` makes a difference."""
        return self._max_holders > 1

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Acquire the lock if that needs no wait.

        Args:
            shared: Other holders that share may hold it at the same time.

        Returns:
            Whether it was acquired.
        """
        if self._holders == 0 and not self._waiting:
            self._holders = 1 if shared and self._allows_sharing() else _EXCLUSIVE
            return True
        return not self._waiting and self._join(shared)

    async def acquire(self, *, shared: bool = False) -> None:
        """Acquire the lock, in the order of the calls."""
        if self.try_acquire(shared=shared):
            return
        if self._waiting is None:
            self._waiting = deque()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, shared))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release()
            else:
                turn.cancel()
                # Waiters behind this one may have waited for it alone.
                self._wake_next()
            raise

    def release(self) -> None:
        """Give up one holder's place and wake the next waiters."""
        self._holders = 0 if self._holders == _EXCLUSIVE else self._holders - 1
        if self._waiting:
            self._wake_next()

    def _wake_next(self) -> None:
        waiting = self._waiting
        while waiting:
            turn, shared = waiting[0]
            if turn.done():
                waiting.popleft()
                continue
            if self._holders == 0:
                self._holders = 1 if shared and self._allows_sharing() else _EXCLUSIVE
            elif not self._join(shared):
                return
            waiting.popleft()
            turn.set_result(None)

    def _join(self, shared: bool) -> bool:
        """Join the holders that share the lock, if there is room."""
        if not shared or not 0 < self._holders < self._max_holders:
            return False
        self._holders += 1
        return True

    def _allows_sharing(self) -> bool:
        return self._max_holders > 1 and (self._must_be_exclusive is None or not self._must_be_exclusive())
