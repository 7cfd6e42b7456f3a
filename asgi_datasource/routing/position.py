"""Positions in the write-ahead log, and which server's history holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PAGE: Final = 8192
_SHORT_HEADER: Final = 24
"""Bytes of a page's header in the log (PostgreSQL source, src/include/access/xlog_internal.h)."""


def parse_lsn(text: str) -> int:
    """The number of a position that PostgreSQL prints as `0/3000148`.

    The insert position of a server that has just filled a page stands behind the next page's header, where no record
    ends: no replica would ever get there while the primary is idle. It is taken for the end of the full page.

    Raises:
        ValueError: It is none.

    Source: PostgreSQL manual, "pg_lsn Type".
    """
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no position in the write-ahead log")
    lsn = (int(high, 16) << 32) + int(low, 16)
    return lsn - _SHORT_HEADER if lsn % _PAGE == _SHORT_HEADER else lsn


def format_lsn(lsn: int) -> str:
    """A position as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a server's data goes: a point on one timeline.

    Attributes:
        timeline: Each promotion begins a new one.
        lsn: Bytes of write-ahead log up to there, from the beginning of time.
    """

    timeline: int
    lsn: int

    def __str__(self) -> str:
        return f"{self.timeline}:{format_lsn(self.lsn)}"


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known of where timelines branched off: of each, a point that it shares with those before it.

    Attributes:
        forks: Timeline to the furthest position that it is known to have in common with its predecessors. The true one
            may be further: what is not known does not count.
    """

    forks: tuple[tuple[int, int], ...] = ()

    def covers(self, held: Position, wanted: Position) -> bool:
        """Whether a server at `held` certainly has everything up to `wanted`.

        A position of an older timeline counts up to the branch only: behind it, the same number is something else.
        One of a newer timeline is not here.
        """
        if held.lsn < wanted.lsn or held.timeline < wanted.timeline:
            return False
        if held.timeline == wanted.timeline:
            return True
        for timeline, fork in self.forks:
            if wanted.timeline < timeline <= held.timeline and wanted.lsn > fork:
                return False
        known = {timeline for timeline, _ in self.forks}
        return all(timeline in known for timeline in range(wanted.timeline + 1, held.timeline + 1))

    def with_fork(self, timeline: int, lsn: int) -> Lineage:
        """The same, where it is also known that `timeline` shares everything up to `lsn`."""
        forks = dict(self.forks)
        forks[timeline] = max(lsn, forks.get(timeline, 0))
        return Lineage(tuple(sorted(forks.items())))
