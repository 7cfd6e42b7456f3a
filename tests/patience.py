"""A clock for bounds that excludes the time in which a busy machine does not run this process.

A bound tests that an operation ends by its own deadline and does not hang; the load of the machine must not affect
the result.
"""

from __future__ import annotations

import threading
import time
from typing import Final

_TICK_S: Final = 0.02
_WEIGHT: Final = 4
"""Factor for other processes (servers, proxies), which the load delays as well, one after the other."""


class _Ticker(threading.Thread):
    """Measures how late it is woken: the process did not run during this time."""

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
    """Seconds that were available to this process; only differences are meaningful, as an upper bound."""
    global _ticker
    if _ticker is None:
        _ticker = _Ticker()
        _ticker.start()
    return time.monotonic() - _WEIGHT * _ticker.stolen_s
