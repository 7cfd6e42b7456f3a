"""A clock for bounds: what a busy machine takes from this process does not count.

A bound says that something ends by a deadline of its own and does not hang; how busy the machine is must not decide
about that.
"""

from __future__ import annotations

import threading
import time
from typing import Final

_TICK_S: Final = 0.02
_WEIGHT: Final = 4
"""Whatever this process waits for (servers, a proxy, another process) is kept waiting as well, one after the other."""


class _Ticker(threading.Thread):
    """Measures how late it is woken: for that long no other task ran either."""

    def __init__(self) -> None:
        super().__init__(name="patience", daemon=True)
        self.stolen_s = 0.0

    def run(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(_TICK_S)
            self.stolen_s += max(0.0, time.monotonic() - before - _TICK_S)


_ticker: _Ticker | None = None


def now() -> float:
    """Seconds that this process could make use of; only differences mean something, and only as an upper bound."""
    global _ticker
    if _ticker is None:
        _ticker = _Ticker()
        _ticker.start()
    return time.monotonic() - _WEIGHT * _ticker.stolen_s
