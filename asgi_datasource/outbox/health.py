"""How an outbox is: of a relay from its own numbers, of a process without one by asking the databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from ..errors import DataError
from .lanes import Site
from .operate import Status, operate
from .stats import RelayStats
from .vacuum import SNAPSHOT_LIMIT_S, held_back

PARALLEL: Final = 8
"""Databases that are asked at a time."""

HealthStatus = Literal["ok", "warning"]


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    """How the outbox of one database is.

    Attributes:
        name: The database.
        reasons: Why it is a warning; none while it is well.
        backlog: Events that wait, counted up to 100,000.
        oldest_s: Age of the oldest of them in seconds.
        held, dead: Events of keys that wait for a refused one, and dead ones.
        lanes: Lanes that this process owns, or, where it has no relay, that any relay owns.
        snapshot_s: Age of the oldest snapshot, as far as it is known.
    """

    name: str
    reasons: tuple[str, ...] = ()
    backlog: int = 0
    oldest_s: float = 0.0
    held: int = 0
    dead: int = 0
    lanes: int = 0
    snapshot_s: float = 0.0

    @property
    def status(self) -> HealthStatus:
        """A warning where there is a reason for one."""
        return "warning" if self.reasons else "ok"


@dataclass(frozen=True, slots=True)
class OutboxHealth:
    """How the outbox of a configuration is; a warning stops no request, since events only wait.

    Attributes:
        databases: Each database.
        destination: Why the destination counts as away; None while it does not, or where this process has no relay.
    """

    databases: tuple[DatabaseHealth, ...]
    destination: str | None = None

    @property
    def status(self) -> HealthStatus:
        """A warning while the destination is away, or a database has a reason for one."""
        return "warning" if self.reasons else "ok"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is a warning, with the names of databases."""
        away = () if self.destination is None else (self.destination,)
        return (*away, *(f"{one.name}: {reason}" for one in self.databases for reason in one.reasons))

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        databases = [{**asdict(one), "reasons": list(one.reasons), "status": one.status} for one in self.databases]
        return {
            "status": self.status,
            "reasons": list(self.reasons),
            "destination": self.destination,
            "databases": databases,
        }


def health_of(stats: RelayStats, *, warn_age_s: float) -> DatabaseHealth:
    """How one database is, by the numbers of the relay of this process.

    Args:
        stats: The numbers; the backlog is up to 15 s old.
        warn_age_s: Age of an event from which on it is a warning.
    """
    age_s = stats.oldest_s
    if stats.measured_at is not None and stats.backlog:
        age_s += (datetime.now(UTC) - stats.measured_at).total_seconds()
    reasons = [*_reasons(stats.oldest_s, stats.dead, warn_age_s)]
    if stats.snapshot_of is not None and stats.snapshot_s > SNAPSHOT_LIMIT_S:
        reasons.append(held_back(stats.snapshot_of, stats.snapshot_s))
    if stats.failure is not None:
        reasons.append(f"the database does not answer the relay: {stats.failure}")
    return DatabaseHealth(
        stats.name,
        tuple(reasons),
        stats.backlog,
        round(age_s, 3),
        stats.held,
        stats.dead,
        stats.lanes,
        round(stats.snapshot_s, 3),
    )


async def ask_health(sites: Iterable[Site], *, warn_age_s: float) -> OutboxHealth:
    """How every database is, by its tables: for processes without a relay.

    Args:
        sites: The databases; each is asked over a connection of its own, a few at a time.
        warn_age_s: Age of an event from which on it is a warning.
    """
    slots = asyncio.Semaphore(PARALLEL)

    async def one(site: Site) -> DatabaseHealth:
        try:
            async with slots, operate(site) as outbox:
                return _asked(await outbox.status(), warn_age_s)
        except (DataError, OSError) as error:
            told = error.message if isinstance(error, DataError) else type(error).__name__
            return DatabaseHealth(site.name, (f"the database does not answer: {told}",))

    return OutboxHealth(tuple(await asyncio.gather(*(one(site) for site in sites))))


def _asked(status: Status, warn_age_s: float) -> DatabaseHealth:
    reasons = [*_reasons(status.oldest_s, status.dead, warn_age_s)]
    if status.backlog and not status.lanes:
        reasons.append("no relay runs")
    return DatabaseHealth(
        status.database,
        tuple(reasons),
        status.backlog,
        round(status.oldest_s, 3),
        status.held,
        status.dead,
        status.lanes,
    )


def _reasons(oldest_s: float, dead: int, warn_age_s: float) -> Iterable[str]:
    if oldest_s > warn_age_s:
        yield f"an event has waited for {oldest_s:.0f} s, longer than outbox.warn_age"
    if dead:
        yield f"{dead} events are dead: see `asgi-datasource outbox dead list`"
