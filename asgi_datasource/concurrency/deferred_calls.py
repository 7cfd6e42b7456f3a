"""Calls back those requests that are still there after a while, and costs the others next to nothing.

Most requests are done long before anything has to be watched. A timer for each of them would be set and cancelled for
nothing, thousands of times a second; here they stand in one line, in the order in which their time comes, behind one
timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context


class DeferredCalls:
    """One line of callbacks, each due the same time after it was added.

    Args:
        after_s: Seconds from `add` to the call.

    Attributes:
        due: When each callback is due, as event-loop time; in that order, for all wait equally long. To take one back
            is to remove it from here: nothing of it is kept.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.due: dict[Callable[[], None], float] = {}
        # Not the context of the first request: what is called belongs to others.
        self._context = Context()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, callback: Callable[[], None], now: float) -> None:
        """Call `callback` once, `after_s` from now, unless it is taken back.

        Args:
            callback: Called on the event loop, in a context of its own.
            now: The event loop's time.
        """
        self.due[callback] = now + self.after_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(now + self.after_s, self._call_due, context=self._context)

    def close(self) -> None:
        """Call nothing any more."""
        self.due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call_due(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for callback in [callback for callback, due in self.due.items() if due <= now]:
            if self.due.pop(callback, None) is not None:
                callback()
        if self.due and self._timer is None:
            self._timer = loop.call_at(next(iter(self.due.values())), self._call_due, context=self._context)
