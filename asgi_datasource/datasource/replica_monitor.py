"""Periodic health checks of a datasource's servers, outside the requests."""

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
"""Relative jitter of the interval: avoids simultaneous checks by the processes of a service."""
MOST_S: Final = 2.0
LEAST_S: Final = 0.5
"""Bounds of a check's timeout in seconds; in between it equals the interval."""


class ReplicaMonitor:
    """Tracks the state of each replica relative to the primary.

    Args:
        datasource: The datasource's name.
        primary: The server that takes writes.
        replicas: The other servers.
        interval_s: Seconds between two checks of a server.
        reach_s: Seconds for which the primary's positions are kept.
        on_change: Called after each new result.
    """

    def __init__(
        self,
        datasource: str,
        primary: Server,
        replicas: Sequence[Server],
        *,
        interval_s: float,
        reach_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self._datasource = datasource
        self._interval_s = interval_s
        self._limit_s = max(LEAST_S, min(MOST_S, interval_s))
        self._primary = primary.health_check()
        self._primary_server = primary
        self._checks = {replica.name: (replica, replica.health_check()) for replica in replicas}
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self.track = Track(reach_s=reach_s)
        self.standings: dict[str, Standing] = {}
        """The state of each replica by name; absent for replicas that did not answer."""

    def start(self) -> None:
        """Start the checks."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Stop the checks, and close their connections."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for check in self._all():
            check.close()

    def inherit(self, other: ReplicaMonitor) -> None:
        """Take over what another monitor knows about the same servers."""
        if other._primary_server is not self._primary_server:
            return
        self.track = other.track
        for name, (replica, _) in self._checks.items():
            before = other._checks.get(name)
            if before is not None and before[0] is replica and name in other.standings:
                self.standings[name] = other.standings[name]

    def forget(self, name: str) -> None:
        """Drop the state of a server that went down: it may come back with less data."""
        self.standings.pop(name, None)

    def _all(self) -> Iterable[HealthCheck]:
        yield self._primary
        for _, check in self._checks.values():
            yield check

    async def _run(self) -> None:
        try:
            while True:
                interval_s = self._interval_s * uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not for security
                began_at = asyncio.get_running_loop().time()
                # The primary first, so that a replica without lag is found at the primary's position. A server that
                # does not answer delays no other: it is asked again once it has answered or timed out.
                await self._wait([self._begin(self._primary_server.name, self._ask_primary)], interval_s / 2)
                asked = [self._begin(name, partial(self._ask_replica, *pair)) for name, pair in self._checks.items()]
                took_s = asyncio.get_running_loop().time() - began_at
                await self._wait(asked, interval_s - took_s)
                took_s = asyncio.get_running_loop().time() - began_at
                await asyncio.sleep(max(0.0, interval_s - took_s))
        finally:
            while self._asking:
                self._asking.popitem()[1].cancel()
            for check in self._all():
                check.close()

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
            # Continue after any error: known states grow older by themselves, and old ones do not count as fresh.
            logger.exception("datasource %r: a health check failed unexpectedly", self._datasource)
        self._on_change()

    async def _ask_primary(self) -> None:
        primary = self._primary_server
        seen = await self._ask(primary, self._primary)
        if seen is None:
            return
        if seen.is_standby or 0 < seen.position.timeline < primary.timeline:
            # It is no longer the primary: follow new connections to the server they lead to.
            self._primary.close()
            return
        primary.hear_of(seen.position.timeline)
        self.track.note_primary(seen)

    async def _ask_replica(self, replica: Server, check: HealthCheck) -> None:
        seen = await self._ask(replica, check)
        if seen is None:
            self.forget(replica.name)
            return
        if seen.is_standby:
            self.track.note_standby(seen)
        if self.track.is_of_this_cluster(seen):
            # A timeline that the primary does not write: another server was promoted.
            self._primary_server.hear_of(seen.position.timeline)
        before = self.standings.get(replica.name)
        standing = self.track.assess(seen)
        rtt_s = smooth(None if before is None else before.rtt_s, seen.rtt_s)
        self.standings[replica.name] = replace(standing, rtt_s=rtt_s, received_lsn=seen.received_lsn)

    async def _ask(self, server: Server, check: HealthCheck) -> Observation | None:
        """A server's state; None if it is down or does not answer."""
        if not server.is_up:
            # The circuit breaker finds out whether it is back.
            check.close()
            return None
        try:
            return await check.ask(limit_s=self._limit_s)
        except DataError as error:
            logger.debug("%s", error)
            return None
