"""Asks the servers of a datasource how they are, again and again, off every request's path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import uniform
from typing import Any, Final

from ..drivers.protocol import HealthCheck, Server
from ..errors import DataError
from ..routing import Observation, Standing, Track, smooth

logger = logging.getLogger("asgi_datasource.monitor")

JITTER: Final = 0.2
"""The processes of a service should not all ask at once."""
MOST_S: Final = 2.0
LEAST_S: Final = 0.5
"""Seconds that an answer may take: as long as the interval, within these bounds."""


class ReplicaMonitor:
    """Knows how each replica of a datasource stands to its primary.

    Args:
        datasource: Its name.
        primary: The server that takes writes.
        replicas: The others.
        interval_s: Seconds between two questions to each.
        reach_s: How far back the primary's positions are remembered.
        tell: Called when it knows something new.
    """

    def __init__(
        self,
        datasource: str,
        primary: Server,
        replicas: Sequence[Server],
        *,
        interval_s: float,
        reach_s: float,
        tell: Callable[[], None],
    ) -> None:
        self._datasource = datasource
        self._interval_s = interval_s
        self._limit_s = max(LEAST_S, min(MOST_S, interval_s))
        self._primary = primary.health_check()
        self._primary_server = primary
        self._lookouts = {replica.name: (replica, replica.health_check()) for replica in replicas}
        self._tell = tell
        self._task: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self.track = Track(reach_s=reach_s)
        self.standings: dict[str, Standing] = {}
        """What is known of each replica, by name; nothing of those that did not answer."""

    def start(self) -> None:
        """Begin to ask."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Ask no more, and close the connections."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for lookout in self._all():
            lookout.close()

    def inherit(self, other: ReplicaMonitor) -> None:
        """Know what another one has learnt about these servers."""
        if other._primary_server is not self._primary_server:
            return
        self.track = other.track
        for name, (replica, _) in self._lookouts.items():
            before = other._lookouts.get(name)
            if before is not None and before[0] is replica and name in other.standings:
                self.standings[name] = other.standings[name]

    def forget(self, name: str) -> None:
        """A server went down: when it comes back it may be behind where it was."""
        self.standings.pop(name, None)

    def _all(self) -> Iterable[HealthCheck]:
        yield self._primary
        for _, lookout in self._lookouts.values():
            yield lookout

    async def _run(self) -> None:
        try:
            while True:
                interval_s = self._interval_s * uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not for security
                began_at = asyncio.get_running_loop().time()
                # The primary first, so that a replica that keeps up is found where that was. One that does not answer
                # keeps nobody waiting: it is asked again once it has, or its time is up.
                await self._wait([self._begin(self._primary_server.name, self._ask_primary)], interval_s / 2)
                asked = [self._begin(name, partial(self._ask_replica, *pair)) for name, pair in self._lookouts.items()]
                took_s = asyncio.get_running_loop().time() - began_at
                await self._wait(asked, interval_s - took_s)
                took_s = asyncio.get_running_loop().time() - began_at
                await asyncio.sleep(max(0.0, interval_s - took_s))
        finally:
            while self._asking:
                self._asking.popitem()[1].cancel()
            for lookout in self._all():
                lookout.close()

    def _begin(self, name: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = self._asking.get(name)
        if task is None or task.done():
            task = self._asking[name] = asyncio.get_running_loop().create_task(self._guard(ask))
        return task

    @staticmethod
    async def _wait(tasks: Sequence[asyncio.Task[None]], limit_s: float) -> None:
        if limit_s > 0:
            await asyncio.wait(tasks, timeout=limit_s)

    async def _guard(self, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await ask()
        except Exception:
            # It has to go on: what it knows grows old by itself, and old is not fresh.
            logger.exception("datasource %r: asking a server how it is failed", self._datasource)
        self._tell()

    async def _ask_primary(self) -> None:
        primary = self._primary_server
        seen = await self._ask(primary, self._primary)
        if seen is None:
            return
        if seen.is_standby or 0 < seen.position.timeline < primary.timeline:
            # It is the primary no more: ask where new connections lead to.
            self._primary.close()
            return
        primary.hear_of(seen.position.timeline)
        self.track.note_primary(seen)

    async def _ask_replica(self, replica: Server, lookout: HealthCheck) -> None:
        seen = await self._ask(replica, lookout)
        if seen is None:
            self.forget(replica.name)
            return
        if seen.is_standby:
            self.track.note_standby(seen)
        if self.track.is_of_this_cluster(seen):
            # A timeline that the primary does not write has begun at another one.
            self._primary_server.hear_of(seen.position.timeline)
        before = self.standings.get(replica.name)
        standing = self.track.assess(seen)
        rtt_s = smooth(None if before is None else before.rtt_s, seen.rtt_s)
        self.standings[replica.name] = replace(standing, rtt_s=rtt_s, received_lsn=seen.received_lsn)

    async def _ask(self, server: Server, lookout: HealthCheck) -> Observation | None:
        """What a server says; None when it is down, or does not answer."""
        if not server.is_up:
            # Whether it is back is the breaker's to find out.
            lookout.close()
            return None
        try:
            return await lookout.ask(limit_s=self._limit_s)
        except DataError as error:
            logger.debug("%s", error)
            return None
