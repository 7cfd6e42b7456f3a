"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration, with the precision that matters: `340 ms`, `12.3 s`, `5 min 03 s`, `2 h 14 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:02.0f} h"


def size(count: float) -> str:
    """A number of bytes: `12 kB`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(count: float) -> str:
    """A count with thin separators; `12 345`."""
    return f"{count:,.0f}".replace(",", "\u202f")


def rate(per_s: float) -> str:
    """A rate for each second: `0`, `0.4`, `12`."""
    return "0" if not per_s else f"{per_s:.1f}" if per_s < 10 else number(per_s)
