"""Replication lag computed from the servers' reported positions: pure arithmetic, no clock, no I/O.

The primary's WAL position is sampled periodically. A replica has everything that was committed when the primary was
last seen at or before the replica's replayed position, so the lag is a time without a heartbeat table. It is correct
when the primary is idle (the replica is at the primary's position), when replay is paused (the primary moves on), when
the replica is cut off from the primary, and when the sampling has stopped (the last known time grows older).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .position import Lineage, Position

MAX_SAMPLES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One sample of a server's state.

    Attributes:
        asked_at: Event-loop time of the query: the sample contains all that was committed by then.
        answered_at: Event-loop time of the answer.
        is_standby: Whether the server is in recovery.
        position: End of its log; for a standby, its replay position.
        received_lsn: Receive position of a standby.
        system: Identifies the database cluster; None if unknown.
        server: Identifies this server since its start.
    """

    asked_at: float
    answered_at: float
    is_standby: bool
    position: Position
    received_lsn: int | None = None
    system: str | None = None
    server: str | None = None

    @property
    def rtt_s(self) -> float:
        """Round-trip time of the query in seconds."""
        return self.answered_at - self.asked_at


@dataclass(frozen=True, slots=True)
class Standing:
    """State of a replica relative to its primary.

    Attributes:
        position: Replay position; None if unknown.
        is_foreign: Not a replica of this primary: promoted by itself, left behind, or of another cluster.
        fresh_at: Event-loop time up to which it is known to have everything; None if unknown.
        lag_s: Approximate time between the primary's passing of its position and the sample, in seconds.
        lag_bytes: Distance to the primary's last known position.
        rtt_s: Round-trip time of the sample.
        received_lsn: Receive position, replayed or not.
    """

    position: Position | None
    is_foreign: bool = False
    fresh_at: float | None = None
    lag_s: float | None = None
    lag_bytes: int | None = None
    rtt_s: float | None = None
    received_lsn: int | None = None


class Track:
    """The primary's positions over time.

    Args:
        reach_s: Seconds of history to keep; the lag of a replica that is further behind is unknown.
    """

    def __init__(self, *, reach_s: float = 600.0) -> None:
        self._reach_s = reach_s
        # For each sample: the LSN, and when the primary was first and last seen at it.
        self._lsns: list[int] = []
        self._since: list[float] = []
        self._until: list[float] = []
        self.latest: Observation | None = None
        """The last sample of the primary."""
        self.lineage = Lineage()
        """The known forks of its timelines."""
        self._standbys: dict[str, Position] = {}

    def note_standby(self, seen: Observation) -> None:
        """Record a standby's position: if it is promoted, its new timeline shares everything up to there."""
        if seen.server is not None:
            if len(self._standbys) >= MAX_SAMPLES:
                self._standbys.clear()
            self._standbys[seen.server] = seen.position

    def note_primary(self, seen: Observation) -> None:
        """Record the primary's position."""
        before = self.latest
        self.latest = seen
        if before is not None and (before.system, before.position.timeline) != (seen.system, seen.position.timeline):
            if before.system != seen.system or seen.position.timeline < before.position.timeline:
                # Another cluster has taken its place: the recorded positions mean nothing there.
                self.forget()
                self.latest = seen
            else:
                self._branch(before.position.timeline, seen)
        lsn = seen.position.lsn
        while self._lsns and self._lsns[-1] > lsn:
            # Recorded positions that are not part of this timeline's history.
            for column in self._columns:
                column.pop()
        if self._lsns and self._lsns[-1] == lsn:
            # Idle: the primary is at the same position, so a replica there has everything up to now.
            self._until[-1] = seen.asked_at
            return
        self._lsns.append(lsn)
        self._since.append(seen.asked_at)
        self._until.append(seen.asked_at)
        self._thin(seen.asked_at)

    def is_of_this_cluster(self, seen: Observation) -> bool:
        """Whether a server is known to belong to the primary's cluster."""
        return self.latest is not None and self.latest.system is not None and self.latest.system == seen.system

    def forget(self) -> None:
        """Drop all samples."""
        for column in self._columns:
            column.clear()
        self._standbys.clear()
        self.latest = None
        self.lineage = Lineage()

    @property
    def _columns(self) -> tuple[list[Any], ...]:
        return self._lsns, self._since, self._until

    def _branch(self, before: int, seen: Observation) -> None:
        """The primary is on a new timeline, which shares what the promoted server had replayed before."""
        timeline = seen.position.timeline
        replayed = None if seen.server is None else self._standbys.get(seen.server)
        if replayed is not None and timeline == before + 1 and replayed.timeline == before:
            self.lineage = self.lineage.with_fork(timeline, replayed.lsn)

    def _thin(self, now: float) -> None:
        """Drop outdated samples except for the last one; of many samples, drop every other one of the older half."""
        gone = bisect_right(self._until, now - self._reach_s) - 1
        for column in self._columns:
            if gone > 0:
                del column[:gone]
            if len(column) > MAX_SAMPLES:
                half = len(column) // 2
                column[:half] = column[:half:2]

    def assess(self, seen: Observation) -> Standing:
        """The state of a replica, by its sample and the primary's history."""
        primary = self.latest
        position = seen.position
        if primary is None:
            return Standing(position, rtt_s=seen.rtt_s)
        if self._is_foreign(seen, primary):
            return Standing(position, is_foreign=True, rtt_s=seen.rtt_s)
        lag_bytes = max(0, primary.position.lsn - position.lsn)
        # Up to the fork a position counts on both timelines; behind it the lag is unknown.
        if position.timeline != primary.position.timeline and not self._is_before_branch(position, primary.position):
            return Standing(position, rtt_s=seen.rtt_s)
        index = bisect_right(self._lsns, position.lsn) - 1
        if index < 0:
            # Further behind than the kept history.
            lag_s = seen.answered_at - self._since[0]
            return Standing(position, lag_s=lag_s, lag_bytes=lag_bytes, rtt_s=seen.rtt_s)
        return Standing(
            position,
            fresh_at=self._until[index],
            lag_s=max(0.0, seen.answered_at - self._was_there_at(index, position.lsn, seen.answered_at)),
            lag_bytes=lag_bytes,
            rtt_s=seen.rtt_s,
        )

    def _is_before_branch(self, position: Position, primary: Position) -> bool:
        return position.timeline < primary.timeline and self.lineage.covers(
            Position(primary.timeline, max(primary.lsn, position.lsn)), position
        )

    def _was_there_at(self, index: int, lsn: int, now: float) -> float:
        """Approximate time at which the primary passed this position, interpolated between two samples."""
        if index == len(self._lsns) - 1:
            return now
        begin, end = self._until[index], self._since[index + 1]
        share = (lsn - self._lsns[index]) / (self._lsns[index + 1] - self._lsns[index])
        return begin + (end - begin) * share

    @staticmethod
    def _is_foreign(seen: Observation, primary: Observation) -> bool:
        if None not in (seen.system, primary.system) and seen.system != primary.system:
            return True
        if not seen.is_standby:
            # A primary as well: the same server by another name, or another server.
            return seen.server is None or seen.server != primary.server
        same_timeline = seen.position.timeline == primary.position.timeline
        # A replica ahead of its primary, although the primary was asked later, is on another branch.
        return same_timeline and primary.asked_at >= seen.answered_at and seen.position.lsn > primary.position.lsn


def smooth(before_s: float | None, now_s: float, *, weight: float = 0.2) -> float:
    """Exponential moving average of a round-trip time."""
    return now_s if before_s is None else before_s + (now_s - before_s) * weight


def choose_interval(wanted_s: float, bounds_s: Sequence[float], *, shortest_s: float = 0.05) -> float:
    """The interval of health checks: as configured, or shorter where a lag bound requires it.

    A sample is one interval old when it is replaced, and may refer to the primary's sample before the last one: a
    quarter of the tightest bound leaves half of it for the lag itself.

    Args:
        wanted_s: The configured interval in seconds.
        bounds_s: All configured lag bounds.
        shortest_s: The shortest interval.
    """
    return max(shortest_s, min([wanted_s, *(bound / 4 for bound in bounds_s)]))
