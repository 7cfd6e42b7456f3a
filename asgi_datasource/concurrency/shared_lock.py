"""Whose turn it is: one task at a time, or several reads side by side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_EXCLUSIVE: Final = -1


class SharedLock:
    """A lock that is free at no cost, fair, and can be shared up to a number of holders.

    Args:
        max_holders: How many may share it.
        must_be_exclusive: Asked when somebody would share: whether it has to be held alone after all.
    """

    __slots__ = ("_holders", "_max_holders", "_must_be_exclusive", "_waiting")

    def __init__(self, max_holders: int = 1, must_be_exclusive: Callable[[], bool] | None = None) -> None:
        self._max_holders = max_holders
        self._must_be_exclusive = must_be_exclusive
        self._holders = 0
        self._waiting: deque[tuple[asyncio.Future[None], bool]] | None = None

    @property
    def is_held(self) -> bool:
        """Whether somebody has it."""
        return self._holders != 0

    @property
    def is_shareable(self) -> bool:
        """Whether asking for a shared turn makes any difference."""
        return self._max_holders > 1

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take it if that needs no waiting.

        Args:
            shared: Others who may share can have it at the same time.

        Returns:
            Whether the caller has it now.
        """
        if self._holders == 0 and not self._waiting:
            self._holders = 1 if shared and self._allows_sharing() else _EXCLUSIVE
            return True
        return not self._waiting and self._join(shared)

    async def acquire(self, *, shared: bool = False) -> None:
        """Take it when it is the caller's turn; those who came first go first."""
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
                # Those behind may have waited for this one alone.
                self._wake_next()
            raise

    def release(self) -> None:
        """The holder is done."""
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
        """Take it beside those who share it already."""
        if not shared or not 0 < self._holders < self._max_holders:
            return False
        self._holders += 1
        return True

    def _allows_sharing(self) -> bool:
        return self._max_holders > 1 and (self._must_be_exclusive is None or not self._must_be_exclusive())
