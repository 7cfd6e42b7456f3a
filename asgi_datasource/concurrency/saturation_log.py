"""Warnings about a limit that was reached, aggregated over time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger("asgi_datasource.saturation")

INTERVAL_S: Final = 10.0
"""Seconds between two warnings about the same limit; events in between are counted in the next warning."""


class SaturationLog:
    """Warns that a limit was reached: the first event at once, later ones in a summary every `INTERVAL_S`.

    Args:
        describe: Formats the text of a warning.
    """

    def __init__(self, describe: Callable[[SaturationCounts], str]) -> None:
        self._describe = describe
        self._refused = 0
        self._delayed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def record(self, *, refused: bool) -> None:
        """Count a request that was refused, or that was served only after a long wait."""
        loop = asyncio.get_running_loop()
        if refused:
            self._refused += 1
        else:
            self._delayed += 1
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._report(None)

    def close(self) -> None:
        """Drop the events that were not reported yet, and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refused = self._delayed = 0

    def _report(self, seconds: float | None) -> None:
        self._timer = None
        if self._loop is None or not (self._refused or self._delayed):
            return
        logger.warning("%s", self._describe(SaturationCounts(self._refused, self._delayed, seconds)))
        self._refused = self._delayed = 0
        self._timer = self._loop.call_later(INTERVAL_S, self._report, INTERVAL_S)


@dataclass(frozen=True, slots=True)
class SaturationCounts:
    """Events at a limit within one interval.

    Attributes:
        refused: Requests that were refused.
        delayed: Requests that were served only after a long wait.
        seconds: Length of the interval; None for the very first event.
    """

    refused: int
    delayed: int
    seconds: float | None

    def __str__(self) -> str:
        parts = [
            f"{count} {what}"
            for count, what in ((self.refused, "refused"), (self.delayed, "served after a long wait"))
            if count
        ]
        when = "" if self.seconds is None else f" in {self.seconds:.0f} s"
        return f"{' and '.join(parts)}{when}"
