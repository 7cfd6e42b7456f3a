"""One timer for many delayed callbacks that are mostly cancelled before they are due.

Most requests end long before their watchers are due. Instead of a timer for each request, set and cancelled thousands
of times a second, all callbacks share one ordered dictionary and one event-loop timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context


class DeferredCalls:
    """A queue of callbacks, each due the same delay after it was added.

    Args:
        after_s: Seconds from `add` to the call.

    Attributes:
        due: Due time of each callback, in event-loop time and in that order, since all have the same delay. To cancel a
            callback, remove it from here.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.due: dict[Callable[[], None], float] = {}
        # A context of its own: the callbacks do not belong to the request that starts the timer.
        self._context = Context()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, callback: Callable[[], None], now: float) -> None:
        """Call `callback` once, `after_s` seconds from now, unless it is removed from `due`.

        Args:
            callback: Called on the event loop, in a context of its own.
            now: The event loop's time.
        """
        self.due[callback] = now + self.after_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(now + self.after_s, self._call_due, context=self._context)

    def close(self) -> None:
        """Drop all callbacks and cancel the timer."""
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
