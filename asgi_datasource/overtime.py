"""Calls back those requests that are still there after a while, and costs the others next to nothing.

Most requests are done long before anything has to be watched. A timer for each of them would be set and cancelled for
nothing, thousands of times a second; here they stand in one line, in the order in which their time comes, behind one
timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context


class Overtime:
    """One line of callbacks, each due the same time after it was added.

    Args:
        after_s: Seconds from `add` to the call.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        # Not that of whoever came first: what is called belongs to other requests.
        self._context = Context()
        self._line: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, callback: Callable[[], None], now: float) -> None:
        """Call `callback` once, `after_s` from now. It cannot be taken back; it looks whether it is still wanted.

        Args:
            callback: Called on the event loop, in a context of its own.
            now: The event loop's time.
        """
        self._line.append((now + self.after_s, callback))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(now + self.after_s, self._call_due, context=self._context)

    def close(self) -> None:
        """Call nobody any more."""
        self._line.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call_due(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        line = self._line
        now = loop.time()
        while line and line[0][0] <= now:
            line.popleft()[1]()
        if line and self._timer is None:
            self._timer = loop.call_at(line[0][0], self._call_due, context=self._context)
