"""Durations as the document writes them: a whole number and its unit."""

from __future__ import annotations

import re
from typing import Final

DURATION: Final = "[1-9][0-9]{0,8}ms|[1-9][0-9]{0,5}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h"
"""Pattern of a duration. The longest are about eleven days, well below the maximum of PostgreSQL's timeouts."""
WHOLE_SECONDS: Final = "[1-9][0-9]{0,5}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h"
"""Pattern of a duration that is a number of seconds for libpq."""

_PARTS: Final = re.compile("([0-9]+)(ms|s|m|h)")
_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


def parse_duration(written: str) -> float:
    """The seconds of a duration.

    Raises:
        ValueError: The text is not a duration.
    """
    parts = _PARTS.fullmatch(written) if re.fullmatch(DURATION, written) else None
    if parts is None:
        raise ValueError(f"{written!r} is not a duration such as '250ms', '3s', '10m' or '1h'")
    return int(parts[1]) * _MILLISECONDS[parts[2]] / 1000


def format_duration(seconds: float) -> str:
    """The shortest form of a duration; `parse_duration` reads it back."""
    milliseconds = round(seconds * 1000)
    for unit in ("h", "m", "s"):
        amount, rest = divmod(milliseconds, _MILLISECONDS[unit])
        written = f"{amount}{unit}"
        if not rest and re.fullmatch(DURATION, written):
            return written
    return f"{milliseconds}ms"


_NEAR: Final = re.compile(r"\s*([0-9]{1,9}(?:[.,][0-9]{1,9})?)\s*([A-Za-z]*)\s*")
_OTHER_UNITS: Final = (
    (("", "s", "sec", "secs", "second", "seconds"), 1_000),
    (("ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds"), 1),
    (("m", "min", "mins", "minute", "minutes"), 60_000),
    (("h", "hr", "hrs", "hour", "hours"), 3_600_000),
    (("d", "day", "days"), 86_400_000),
)


def suggest_duration(written: str, *, whole_seconds: bool = False) -> str | None:
    """The duration that was probably meant; None when that is unclear."""
    near = _NEAR.fullmatch(written)
    if near is None:
        return None
    unit = near[2].lower()
    size = next((milliseconds for units, milliseconds in _OTHER_UNITS if unit in units), 0)
    milliseconds = float(near[1].replace(",", ".")) * size
    if milliseconds < 1 or not milliseconds.is_integer():
        return None
    meant = format_duration(milliseconds / 1000)
    return meant if re.fullmatch(WHOLE_SECONDS if whole_seconds else DURATION, meant) else None
