"""Sizes as the document writes them: a whole number and its unit."""

from __future__ import annotations

import re
from typing import Final

SIZE: Final = "[1-9][0-9]{0,8}B|[1-9][0-9]{0,5}KiB|[1-9][0-9]{0,2}MiB"
"""Pattern of a size; the largest is just below a gibibyte."""

_PARTS: Final = re.compile("([0-9]+)(B|KiB|MiB)")
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def parse_size(written: str) -> int:
    """The bytes of a size.

    Raises:
        ValueError: The text is not a size.
    """
    parts = _PARTS.fullmatch(written) if re.fullmatch(SIZE, written) else None
    if parts is None:
        raise ValueError(f"{written!r} is not a size such as '512B', '64KiB' or '1MiB'")
    return int(parts[1]) * _BYTES[parts[2]]


def format_size(size: int) -> str:
    """The shortest form of a size; `parse_size` reads it back."""
    for unit in ("MiB", "KiB"):
        amount, rest = divmod(size, _BYTES[unit])
        written = f"{amount}{unit}"
        if not rest and re.fullmatch(SIZE, written):
            return written
    return f"{size}B"
