"""Warnings about a saturated pool: by how much, and which setting to change."""

from __future__ import annotations

from math import ceil
from typing import Final, Protocol

from ...concurrency.saturation_log import SaturationCounts, SaturationLog
from ..settings import ServerSettings

LONG_SHARE: Final = 0.5
"""A wait of more than this fraction of `acquire_timeout_s` counts as long: refusals are near."""

BLOCKED_S: Final = 0.25
"""Seconds by which a timer fires late from which on the event loop counts as blocked."""

UNBLOCK: Final = "Run blocking calls in a thread: `await asyncio.to_thread(...)`"
SLOW_CONNECT: Final = (
    "Connecting takes longer than that: raise pool.acquire_timeout, or keep more connections with pool.min_size"
)
RAISE_LIMITS: Final = (
    "If the server admits no more connections, raise its max_connections or the CONNECTION LIMIT of the role, or lower"
    " pool.max_size (processes x max_size)"
)

MOST_TIMES: Final = 4
"""Largest recommended pool, as a multiple of the present size: beyond that a larger pool does not help."""


class PoolState(Protocol):
    """State of the pool that the warnings describe."""

    label: str
    settings: ServerSettings
    borrowed: int
    lendings: int

    @property
    def waiting(self) -> int:
        """Number of callers that wait."""
        ...


class Saturation:
    """Counts refusals and long waits at a pool, and warns about them.

    Args:
        pool: The pool.
    """

    __slots__ = ("_late_s", "_lendings_told", "_log", "_pool", "_tenants_log", "_was_full")

    def __init__(self, pool: PoolState) -> None:
        self._pool = pool
        self._lendings_told = 0
        self._late_s = 0.0
        self._was_full = False
        self._log = SaturationLog(self._describe)
        self._tenants_log = SaturationLog(self._describe_tenants)

    def refused(self, late_s: float = 0.0) -> None:
        """No connection was free in time, or the queue is full.

        Args:
            late_s: Seconds by which the event loop noticed the end of the wait late.
        """
        self._late_s = max(self._late_s, late_s)
        self._was_full |= self._pool.borrowed >= self._pool.settings.max_size
        self._log.record(refused=True)

    def refused_by_limit(self) -> None:
        """A tenant at its limit got no connection in time."""
        self._tenants_log.record(refused=True)

    def served(self, waited_s: float) -> None:
        """A connection was borrowed after this wait: long waits precede refusals."""
        if waited_s > self._pool.settings.acquire_timeout_s * LONG_SHARE:
            # The connection itself is not counted yet.
            self._was_full |= self._pool.borrowed + 1 >= self._pool.settings.max_size
            self._log.record(refused=False)

    def close(self) -> None:
        """Stop warning."""
        self._log.close()
        self._tenants_log.close()

    def _describe(self, counts: SaturationCounts) -> str:
        pool = self._pool
        size = pool.settings.max_size
        lent, self._lendings_told = pool.lendings - self._lendings_told, pool.lendings
        told = f"{pool.label} is saturated: {counts}; {pool.borrowed} of {size} connections are in use"
        if pool.waiting:
            told += f", {pool.waiting} wait"
        late_s, self._late_s = self._late_s, 0.0
        was_full, self._was_full = self._was_full, False
        if late_s > BLOCKED_S:
            return f"{told}; meanwhile the event loop was blocked for {late_s:.1f} s or more. {UNBLOCK}"
        if not was_full:
            return f"{told}; the pool did not grow to pool.max_size. {SLOW_CONNECT}. {RAISE_LIMITS}"
        raised = ""
        if counts.seconds is not None and lent > 0:
            # All connections were in use all the time, by so many borrowers one after the other (Little's law).
            told += f"; meanwhile {lent} were lent, for {size * counts.seconds / lent * 1000:.0f} ms on average"
            wanted = ceil(size * (lent + counts.refused) / lent)
            raised = f" to about {wanted}" if size < wanted <= MOST_TIMES * size else ""
        return (
            f"{told}. Raise pool.max_size{raised} where the server has room for it (processes x max_size), shorten"
            " transactions, or bound the routes that take most with max_in_flight"
        )

    def _describe_tenants(self, counts: SaturationCounts) -> str:
        return (
            f"{self._pool.label}: tenants are at their limit: {counts}. Raise limits.max_connections of those that need"
            " more, or shorten their transactions"
        )
