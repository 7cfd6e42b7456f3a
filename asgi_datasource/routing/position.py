"""Positions in the write-ahead log, and the timelines that contain them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PAGE: Final = 8192
_SHORT_HEADER: Final = 24
"""Size in bytes of a WAL page's short header (PostgreSQL source, src/include/access/xlog_internal.h)."""


def parse_lsn(text: str) -> int:
    """Parse an LSN such as `0/3000148`.

    The insert position of a server that has just filled a page points behind the next page's header, where no record
    ends: while the primary is idle, no replica would ever reach it. It is read as the end of the full page.

    Raises:
        ValueError: The text is not an LSN.

    Source: PostgreSQL manual, "pg_lsn Type".
    """
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no position in the write-ahead log")
    lsn = (int(high, 16) << 32) + int(low, 16)
    return lsn - _SHORT_HEADER if lsn % _PAGE == _SHORT_HEADER else lsn


def format_lsn(lsn: int) -> str:
    """Format an LSN as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, slots=True)
class Position:
    """A point on one timeline of the write-ahead log.

    Attributes:
        timeline: The timeline; each promotion starts a new one.
        lsn: Byte offset in the write-ahead log.
    """

    timeline: int
    lsn: int

    def __str__(self) -> str:
        return f"{self.timeline}:{format_lsn(self.lsn)}"


@dataclass(frozen=True, slots=True)
class Lineage:
    """Known fork points of timelines: for each timeline a position that it shares with its predecessors.

    Attributes:
        forks: Timeline to the furthest position known to be shared with its predecessors. The real fork may be
            further on; only known positions count.
    """

    forks: tuple[tuple[int, int], ...] = ()

    def covers(self, held: Position, wanted: Position) -> bool:
        """Whether a server at `held` certainly contains everything up to `wanted`.

        A position of an older timeline counts up to the fork only: behind it, the same LSN is different data. A
            position
        of a newer timeline is not contained.
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
        """The same lineage, in which `timeline` is also known to share everything up to `lsn`."""
        forks = dict(self.forks)
        forks[timeline] = max(lsn, forks.get(timeline, 0))
        return Lineage(tuple(sorted(forks.items())))
