"""Whose turn it is: one task at a time, or several reads side by side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_ALONE: Final = -1


class SharedLock:
    """A lock that is free at no cost, fair, and can be shared up to a number of holders.

    Args:
        shared: How many may share it.
        is_closed_to_sharing: Asked when somebody would share: whether it has to be held alone after all.
    """

    __slots__ = ("_holders", "_is_closed_to_sharing", "_shared", "_waiting")

    def __init__(self, shared: int = 1, is_closed_to_sharing: Callable[[], bool] | None = None) -> None:
        self._shared = shared
        self._is_closed_to_sharing = is_closed_to_sharing
        self._holders = 0
        self._waiting: deque[tuple[asyncio.Future[None], bool]] | None = None

    @property
    def is_taken(self) -> bool:
        """Whether somebody has it."""
        return self._holders != 0

    @property
    def can_be_shared(self) -> bool:
        """Whether asking for a shared turn makes any difference."""
        return self._shared > 1

    def take(self, *, may_share: bool = False) -> bool:
        """Take it if that needs no waiting.

        Args:
            may_share: Others who may share can have it at the same time.

        Returns:
            Whether the caller has it now.
        """
        if self._holders == 0 and not self._waiting:
            self._holders = 1 if may_share and self._is_open_to_sharing() else _ALONE
            return True
        return not self._waiting and self._take_beside(may_share)

    async def wait(self, *, may_share: bool = False) -> None:
        """Take it when it is the caller's turn; those who came first go first."""
        if self.take(may_share=may_share):
            return
        if self._waiting is None:
            self._waiting = deque()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, may_share))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave()
            else:
                turn.cancel()
                # Those behind may have waited for this one alone.
                self._call_next()
            raise

    def leave(self) -> None:
        """The holder is done."""
        self._holders = 0 if self._holders == _ALONE else self._holders - 1
        if self._waiting:
            self._call_next()

    def _call_next(self) -> None:
        waiting = self._waiting
        while waiting:
            turn, may_share = waiting[0]
            if turn.done():
                waiting.popleft()
                continue
            if self._holders == 0:
                self._holders = 1 if may_share and self._is_open_to_sharing() else _ALONE
            elif not self._take_beside(may_share):
                return
            waiting.popleft()
            turn.set_result(None)

    def _take_beside(self, may_share: bool) -> bool:
        """Take it beside those who share it already."""
        if not may_share or not 0 < self._holders < self._shared:
            return False
        self._holders += 1
        return True

    def _is_open_to_sharing(self) -> bool:
        return self._shared > 1 and (self._is_closed_to_sharing is None or not self._is_closed_to_sharing())
