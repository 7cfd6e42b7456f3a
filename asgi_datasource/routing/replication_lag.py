"""How far a replica is behind, by what the servers themselves say: arithmetic alone, no clock and no server.

The primary is asked again and again where its log ends. What a replica has replayed is compared with that: it has all
that was committed when the primary was last seen at or before that position. So the lag is a time without a heartbeat
table, and it is right when the primary is idle (the replica is where the primary is), when replay is paused (the
primary goes on), when the replica is cut off from the primary, and when nobody has asked for a while (the last time of
which anything is known moves into the past by itself).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .position import Lineage, Position

MAX_SAMPLES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a server said of itself.

    Attributes:
        asked_at: Event-loop time at which it was asked: all that was committed by then is in what it says.
        answered_at: Event-loop time of its answer.
        is_standby: Whether it is in recovery.
        position: Where its log ends; of a standby, what it has replayed.
        received_lsn: What a standby has received.
        system: What tells the database cluster from others; None when it does not say.
        server: What tells this server, since its start, from others.
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
        """How long the answer took."""
        return self.answered_at - self.asked_at


@dataclass(frozen=True, slots=True)
class Standing:
    """How a replica stands to its primary.

    Attributes:
        position: What it has replayed; None when it did not say.
        is_foreign: It is no replica of this primary: it was promoted by itself, left behind, or is of another cluster.
        fresh_at: Event-loop time of which it is known to have had everything; None is not known.
        lag_s: About how long before it was asked the primary had been where it was.
        lag_bytes: How far it was behind what is known of the primary.
        rtt_s: How long its answer took.
        received_lsn: What it had received, replayed or not.
    """

    position: Position | None
    is_foreign: bool = False
    fresh_at: float | None = None
    lag_s: float | None = None
    lag_bytes: int | None = None
    rtt_s: float | None = None
    received_lsn: int | None = None


class Track:
    """Where the primary was when, as far back as it may matter.

    Args:
        reach_s: How far back; what a replica had that is further behind is not known.
    """

    def __init__(self, *, reach_s: float = 600.0) -> None:
        self._reach_s = reach_s
        # Of each sample the position, and when the primary was first and last seen there.
        self._lsns: list[int] = []
        self._since: list[float] = []
        self._until: list[float] = []
        self.latest: Observation | None = None
        """What the primary said last."""
        self.lineage = Lineage()
        """What is known of its timelines."""
        self._standbys: dict[str, Position] = {}

    def note_standby(self, seen: Observation) -> None:
        """A standby's position: should it be promoted, its new timeline has everything up to there from the old one."""
        if seen.server is not None:
            if len(self._standbys) >= MAX_SAMPLES:
                self._standbys.clear()
            self._standbys[seen.server] = seen.position

    def note_primary(self, seen: Observation) -> None:
        """The primary's position."""
        before = self.latest
        self.latest = seen
        if before is not None and (before.system, before.position.timeline) != (seen.system, seen.position.timeline):
            if before.system != seen.system or seen.position.timeline < before.position.timeline:
                # Another cluster in its place: nothing that is known says anything about this one.
                self.forget()
                self.latest = seen
            else:
                self._branch(before.position.timeline, seen)
        lsn = seen.position.lsn
        while self._lsns and self._lsns[-1] > lsn:
            # What was there is not in this one's history.
            for column in self._columns:
                column.pop()
        if self._lsns and self._lsns[-1] == lsn:
            # Idle: it is still where it was, so whoever is there as well has everything up to now.
            self._until[-1] = seen.asked_at
            return
        self._lsns.append(lsn)
        self._since.append(seen.asked_at)
        self._until.append(seen.asked_at)
        self._thin(seen.asked_at)

    def position_at(self, when: float) -> Position | None:
        """Where a server has to be to have everything that was committed by then; None is not known.

        Args:
            when: Event-loop time.
        """
        index = bisect_left(self._until, when)
        if self.latest is None or index == len(self._until):
            return None
        return Position(self.latest.position.timeline, self._lsns[index])

    def is_of_this_cluster(self, seen: Observation) -> bool:
        """Whether a server is certainly of the same cluster as the primary."""
        return self.latest is not None and self.latest.system is not None and self.latest.system == seen.system

    def forget(self) -> None:
        """Know nothing any more."""
        for column in self._columns:
            column.clear()
        self._standbys.clear()
        self.latest = None
        self.lineage = Lineage()

    @property
    def _columns(self) -> tuple[list[Any], ...]:
        return self._lsns, self._since, self._until

    def _branch(self, before: int, seen: Observation) -> None:
        """The primary is on a new timeline. What the promoted server had replayed before is on both."""
        timeline = seen.position.timeline
        replayed = None if seen.server is None else self._standbys.get(seen.server)
        if replayed is not None and timeline == before + 1 and replayed.timeline == before:
            self.lineage = self.lineage.with_fork(timeline, replayed.lsn)

    def _thin(self, now: float) -> None:
        """Forget what is too old, keeping one of it; and every other one of the older half when there are many."""
        gone = bisect_right(self._until, now - self._reach_s) - 1
        for column in self._columns:
            if gone > 0:
                del column[:gone]
            if len(column) > MAX_SAMPLES:
                half = len(column) // 2
                column[:half] = column[:half:2]

    def assess(self, seen: Observation) -> Standing:
        """How a replica stands, by what it said and what is known of the primary."""
        primary = self.latest
        position = seen.position
        if primary is None:
            return Standing(position, rtt_s=seen.rtt_s)
        if self._is_foreign(seen, primary):
            return Standing(position, is_foreign=True, rtt_s=seen.rtt_s)
        lag_bytes = max(0, primary.position.lsn - position.lsn)
        # The shared part of two timelines counts for both; behind the branch nothing can be said.
        if position.timeline != primary.position.timeline and not self._is_before_branch(position, primary.position):
            return Standing(position, rtt_s=seen.rtt_s)
        index = bisect_right(self._lsns, position.lsn) - 1
        if index < 0:
            # Further behind than anything that is remembered.
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
        """About when the primary was at this position: in between two samples, as if it had moved evenly."""
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
            # A primary, too: this one by another name, or one of its own.
            return seen.server is None or seen.server != primary.server
        same_timeline = seen.position.timeline == primary.position.timeline
        # No replica is ahead of its primary. Where it was so before the primary was asked, it has branched off.
        return same_timeline and primary.asked_at >= seen.answered_at and seen.position.lsn > primary.position.lsn


def smooth(before_s: float | None, now_s: float, *, weight: float = 0.2) -> float:
    """A round-trip time that follows the latest one bit by bit."""
    return now_s if before_s is None else before_s + (now_s - before_s) * weight


def choose_interval(wanted_s: float, bounds_s: Sequence[float], *, shortest_s: float = 0.05) -> float:
    """How often to ask: as often as wanted, and often enough that a replica that keeps up passes for fresh.

    What is known is one interval old when it is replaced, and may name the sample before the last one: a quarter of the
    tightest bound leaves half of it for the lag itself.

    Args:
        wanted_s: Seconds between two questions, as configured.
        bounds_s: Every bound on the lag that is asked for.
        shortest_s: The shortest interval.
    """
    return max(shortest_s, min([wanted_s, *(bound / 4 for bound in bounds_s)]))
