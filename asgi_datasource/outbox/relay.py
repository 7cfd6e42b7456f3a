"""The relay of a process: a database relay for each database, or a few that visit many databases in turn."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from typing import Any, Final
from uuid import UUID, uuid4

from ..errors import DataError
from .circuit import Circuit
from .database_relay import DatabaseRelay, RelaySettings
from .health import OutboxHealth, health_of
from .lanes import Site
from .metrics import RelayMeasure, unwatch, watch
from .protocols import OutboxPublisher
from .stats import RelayStats

logger = logging.getLogger("asgi_datasource.outbox")

VISIT_EVERY_S: Final = 60.0
"""Seconds between two visits to a database that has nothing to deliver, where there are more than connections."""
REFRESH_S: Final = 10.0
"""Seconds after which the list of databases is read again."""
RETRY_FIRST_S: Final = 0.5
RETRY_LONGEST_S: Final = 60.0


class Relay:
    """Delivers the events of all databases of a configuration.

    With no more databases than connections each keeps one. With more, workers visit them: those with a commit of this
    process first, every other one at least each `VISIT_EVERY_S`.

    Args:
        sites: The databases at this moment, by a key that stays the same.
        publisher: Where events go.
        settings: What the configuration says.
        warn_age_s: Age of an event from which on the health is a warning.
        circuit: Whether the destination is there.
        visit_every_s: Seconds between two visits to a database that has nothing to deliver.
        is_measured: Whether there are metrics of it.
    """

    def __init__(
        self,
        sites: Callable[[], Mapping[Any, Site]],
        publisher: OutboxPublisher,
        *,
        settings: RelaySettings | None = None,
        warn_age_s: float = 60.0,
        circuit: Circuit | None = None,
        visit_every_s: float = VISIT_EVERY_S,
        is_measured: bool = False,
    ) -> None:
        self._sites_now = sites
        self._publisher = publisher
        self._settings = settings or RelaySettings()
        self._warn_age_s = warn_age_s
        self._visit_every_s = visit_every_s
        self.circuit = circuit or Circuit()
        self.owner: UUID = uuid4()
        self.stats: dict[Any, RelayStats] = {}
        """The numbers of each database, by its key."""
        self._sites: Mapping[Any, Site] = {}
        self._due: list[tuple[float, int, Any]] = []
        """Heap of the databases that no worker is at: when each is due, a tie-breaker, its key."""
        self._due_at: dict[Any, float] = {}
        """The entry of the heap that counts, by key."""
        self._number = 0
        self._relays: dict[Any, DatabaseRelay] = {}
        self._failures: dict[Any, int] = {}
        self._hinted: set[Any] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._has_due = asyncio.Event()
        self._is_stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self._is_measured = is_measured
        self._measure: RelayMeasure | None = None
        self._context: Context | None = None
        """What workers run in: a commit that calls for one must not lend it its request."""

    def __repr__(self) -> str:
        return f"<Relay {len(self._sites)} databases, {self.circuit!r}>"

    # -- its life

    async def start(self) -> None:
        """Begin to deliver."""
        if self._keeper is None:
            self._context = copy_context()
            if self._is_measured:
                self._measure = watch(self)
            self._refresh()
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Deliver what is under way, acknowledge it, and give the lanes back."""
        self._is_stopping = True
        unwatch(self)
        self._has_due.set()
        for relay in self._relays.values():
            relay.stop()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._workers:
            await asyncio.wait(set(self._workers))
        await self._publisher.close()

    def hint(self, key: Any) -> None:
        """Events were committed to a database by this process."""
        relay = self._relays.get(key)
        if relay is not None:
            relay.wake()
        elif key in self._due_at:
            self._hinted.add(key)
            self._schedule(key, 0.0)
        else:
            # A database of a tenant that was not known before.
            self._hinted.add(key)
            self._refresh()

    # -- what it tells

    @property
    def numbers(self) -> Mapping[str, tuple[RelayStats, ...]]:
        """The statistics of its databases, by datasource; read by metrics, from another thread."""
        found: dict[str, tuple[RelayStats, ...]] = {}
        sites = self._sites
        for key, stats in list(self.stats.items()):
            site = sites.get(key)
            if site is not None:
                found[site.datasource] = (*found.get(site.datasource, ()), stats)
        return found

    def health(self) -> OutboxHealth:
        """How it is: a warning while an event is older than `warn_age_s`, or the destination or a database is away."""
        databases = tuple(health_of(stats, warn_age_s=self._warn_age_s) for stats in self.stats.values())
        reason = self.circuit.reason
        return OutboxHealth(databases, None if reason is None else f"the destination is away: {reason}")

    # -- workers

    async def _keep(self) -> None:
        while not self._is_stopping:
            await asyncio.sleep(REFRESH_S)
            self._refresh()

    def _refresh(self) -> None:
        """Take up databases that are new, and forget those that are gone."""
        self._sites = self._sites_now()
        now = time.monotonic()
        spread_s = self._visit_every_s if len(self._sites) > self._settings.connections else 0.0
        for key, site in self._sites.items():
            if key not in self.stats:
                self.stats[key] = RelayStats(site.name)
            if key not in self._due_at and key not in self._relays:
                first = 0.0 if key in self._hinted else now + random.uniform(0, spread_s)  # noqa: S311 - spreads load
                self._schedule(key, first)
        for key in set(self._relays) - set(self._sites):
            self._relays[key].stop()
        for key in set(self._due_at) - set(self._sites):
            del self._due_at[key]
            self.stats.pop(key, None)
        wanted = min(len(self._sites), self._settings.connections)
        while len(self._workers) < wanted and not self._is_stopping:
            worker = asyncio.get_running_loop().create_task(self._work(), context=self._context)
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def _schedule(self, key: Any, at: float) -> None:
        self._number += 1
        self._due_at[key] = at
        heapq.heappush(self._due, (at, self._number, key))
        self._has_due.set()

    async def _next(self) -> Any:
        """The key of the next database that is due; None when the relay is stopped."""
        while not self._is_stopping:
            now = time.monotonic()
            while self._due and self._due_at.get(self._due[0][2]) != self._due[0][0]:
                heapq.heappop(self._due)
            if self._due and self._due[0][0] <= now:
                _, _, key = heapq.heappop(self._due)
                del self._due_at[key]
                return key
            self._has_due.clear()
            try:
                async with asyncio.timeout(self._due[0][0] - now if self._due else None):
                    await self._has_due.wait()
            except TimeoutError:
                pass
        return None

    def _others_wait(self) -> bool:
        """Whether a database is due that no worker is free for."""
        return len(self._sites) > self._settings.connections

    async def _work(self) -> None:
        while (key := await self._next()) is not None:
            site = self._sites.get(key)
            if site is not None:
                await self._visit(key, site)

    async def _visit(self, key: Any, site: Site) -> None:
        relay = DatabaseRelay(
            site,
            self._publisher,
            circuit=self.circuit,
            settings=self._settings,
            stats=self.stats.get(key),
            owner=self.owner,
            may_leave=self._others_wait,
            measure=self._measure,
        )
        self._relays[key] = relay
        self._hinted.discard(key)
        pause_s = self._visit_every_s
        try:
            if not self._others_wait() or await _has_work(relay):
                await relay.run()
            self._failures.pop(key, None)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            pause_s = min(RETRY_LONGEST_S, RETRY_FIRST_S * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1)  # noqa: S311
            if not isinstance(error, DataError | OSError):
                logger.exception("outbox of %s: the relay has failed", site.name)
            else:
                logger.warning("outbox of %s: %s", site.name, error)
                relay.stats.failure = error.message if isinstance(error, DataError) else type(error).__name__
        finally:
            del self._relays[key]
            relay.store.disconnect()
        if not self._is_stopping and key in self._sites:
            jitter = random.uniform(0.9, 1.0)  # noqa: S311 - jitter
            self._schedule(key, 0.0 if key in self._hinted else time.monotonic() + pause_s * jitter)


async def _has_work(relay: DatabaseRelay) -> bool:
    await relay.store.connect()
    return await relay.store.has_work()
