"""A datasource with a database for each tenant: pools are opened on first use, and closed to make room for others.

A member is an ordinary datasource whose pools open when the first connection is borrowed. The fleet bounds the number
of open pools: it closes the least recently used pool that is not in use. If all are in use, the request waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

from ..drivers.protocol import Server
from ..errors import DataError, DataErrorKind
from ..observability.metrics import Metrics
from .datasource import ReplicatedDataSource

logger = logging.getLogger("asgi_datasource.fleet")

CLOSE_LIMIT_S: Final = 5.0
"""Most seconds for closing one pool."""

NEWCOMERS: Final = 8
"""Most pools that may be open without having had a connection: a flood of names without a database does not displace
the pools of existing databases."""


class Fleet:
    """Databases that differ in the tenant only.

    Args:
        name: The datasource's name in the configuration.
        make: Makes the member for a database name; opens nothing.
        replicas: Names of the replicas of each database.
        drained: Replicas that were drained by hand before a reload.
        max_open: Most pools that are open at a time.
        close_idle_after_s: Seconds after which an unused pool is closed.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str, Fleet], ReplicatedDataSource],
        *,
        replicas: Collection[str] = (),
        drained: Collection[str] = (),
        max_open: int,
        close_idle_after_s: float,
        settings: object = None,
    ) -> None:
        self.name = name
        self.settings = settings
        """The settings that it was made from: a reload keeps a fleet with unchanged settings."""
        self._make = make
        self.replicas = tuple(replicas)
        """Names of the replicas of each database."""
        self.drained = frozenset(drained) & frozenset(replicas)
        """The replicas of all databases that were drained by hand."""
        self._max_open = max_open
        self._close_idle_after_s = close_idle_after_s
        # A member lives as long as a session refers to it, or one of its servers is in `_open`: the server refers to it
        # through its listeners.
        self._members: WeakValueDictionary[str, ReplicatedDataSource] = WeakValueDictionary()
        self._open: OrderedDict[Server, float] = OrderedDict()
        """Every open pool and the time of its last use, the least recently used first."""
        self._closing: dict[Server, asyncio.Task[None]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._newcomers = 0
        self._timer: asyncio.TimerHandle | None = None
        self.metrics: Metrics | None = None
        """Records new connections."""
        self.configurers: Sequence[Callable[[Any], Any]] = ()
        """Run for each new connection of a pool."""
        self._is_retired = False
        self._is_open = False

    def __repr__(self) -> str:
        return f"<Fleet {self.name}: {len(self._open)} of {self._max_open} pools open, {len(self._waiting)} waiting>"

    @property
    def open_pools(self) -> int:
        """Number of open pools."""
        return len(self._open)

    @property
    def open_servers(self) -> tuple[Server, ...]:
        """The servers whose pools are open at this moment."""
        return tuple(self._open)

    def member(self, database: str) -> ReplicatedDataSource:
        """The datasource of a database; its pools open when the first connection is borrowed.

        Raises:
            DataError: TENANT: this is not a valid name of a database.
        """
        member = self._members.get(database)
        if member is None:
            member = self._members[database] = self._make(database, self)
            for server in member.servers.values():
                server.metrics = self.metrics
                server.configurers = self.configurers
            for replica in self.drained:
                member.drain(replica)
            member.watch()
        return member

    @property
    def members(self) -> tuple[ReplicatedDataSource, ...]:
        """The databases that sessions use, or whose pools are open."""
        return tuple(self._members.values())

    def drain(self, name: str) -> None:
        """Give a replica no new work in any database.

        Raises:
            KeyError: There is no replica of this name.
        """
        self._check_replica(name)
        self.drained |= {name}
        for member in self.members:
            member.drain(name)

    def undrain(self, name: str) -> None:
        """Give a replica work again, in every database.

        Raises:
            KeyError: There is no replica of this name.
        """
        self._check_replica(name)
        self.drained -= {name}
        for member in self.members:
            member.undrain(name)

    def _check_replica(self, name: str) -> None:
        if name not in self.replicas:
            raise KeyError(f"the datasource {self.name!r} has no replica {name!r}")

    def detached(self, database: str) -> ReplicatedDataSource:
        """A separate datasource of a database, for queries that must not affect the sessions' one.

        Raises:
            DataError: TENANT: this is not a valid name of a database.
        """
        return self._make(database, self)

    # Called by servers (`PoolKeeper`)

    async def make_room(self, server: Server, *, timeout_s: float) -> None:
        """Open a server's pool; at the bound, close an idle one first, or wait for one.

        Raises:
            DataError: RESOURCE: all pools stayed in use for `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while not server.is_open:
            if not self._is_open:
                raise DataError(DataErrorKind.CONNECTION, f"{self.name}: the pools are not open")
            closing = self._closing.get(server)
            if closing is not None:
                await self._wait(asyncio.shield(closing), give_up_at)
                continue
            if not self._has_room(server):
                await self._wait_for_room(give_up_at)
                continue
            self._open[server] = loop.time()
            if not server.was_reached:
                self._newcomers += 1
            try:
                await server.open()
            except BaseException:
                self._forget(server)
                raise
            self._schedule_closing()

    def used(self, server: Server) -> None:
        """A connection of the server is being borrowed."""
        if server in self._open:
            self._open[server] = asyncio.get_running_loop().time()
            self._open.move_to_end(server)

    def rested(self, server: Server) -> None:
        """The last borrowed connection of the server was returned."""
        if not server.was_reached or self._is_retired:
            # Never reached: probably there is no such database.
            self._close(server)
        elif self._waiting:
            self._wake()

    def reached(self, server: Server) -> None:
        """The first connection of the server was made."""
        if server in self._open:
            self._newcomers -= 1
            self._wake()

    # Life cycle

    def open(self) -> None:
        """Allow pools to be opened, from now until `close`."""
        self._is_open = True

    async def close(self, *, timeout_s: float) -> None:
        """Close every pool."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        servers = list(self._open)
        self._open.clear()
        self._newcomers = 0
        await asyncio.gather(*(server.close(timeout_s=timeout_s) for server in servers))
        if self._closing:
            await asyncio.wait(list(self._closing.values()), timeout=timeout_s)

    def abandon(self) -> None:
        """The event loop is closed: close every pool without it."""
        for member in self._members.values():
            member.abandon()
            member.watch()
        self._open.clear()
        self._closing.clear()
        self._waiting.clear()
        self._newcomers = 0
        self._timer = None
        self._is_open = False

    def retire(self) -> None:
        """A reload has removed the datasource: close each pool as soon as it is not in use."""
        self._is_retired = True
        for server in list(self._open):
            if not server.is_in_use:
                self._close(server)

    # Inside

    def _has_room(self, server: Server) -> bool:
        if not server.was_reached and self._newcomers >= NEWCOMERS:
            return False
        if len(self._open) + len(self._closing) < self._max_open:
            return True
        # Pools that are being closed are for the requests that wait already.
        is_due = len(self._closing) <= len(self._waiting)
        idle = next((other for other in self._open if not other.is_in_use), None)
        if idle is not None and is_due:
            # Its connections count until they are closed; the waiters are woken then.
            self._close(idle)
        return False

    def _forget(self, server: Server) -> None:
        if self._open.pop(server, None) is not None and not server.was_reached:
            self._newcomers -= 1

    def _close(self, server: Server) -> None:
        if server not in self._open:
            return
        self._forget(server)
        self._closing[server] = asyncio.get_running_loop().create_task(self._close_pool(server))

    async def _close_pool(self, server: Server) -> None:
        try:
            await server.close(timeout_s=CLOSE_LIMIT_S)
        except Exception:
            logger.warning("%s: its pool could not be closed", server.label, exc_info=True)
        finally:
            self._closing.pop(server, None)
            self._wake()

    def _wake(self) -> None:
        # Wake all: the first may have to go on waiting while there is room for the next.
        waiting, self._waiting = self._waiting, []
        for room in waiting:
            if not room.done():
                room.set_result(None)

    async def _wait_for_room(self, give_up_at: float) -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(room)
        try:
            await self._wait(room, give_up_at)
        finally:
            if room in self._waiting:
                self._waiting.remove(room)

    async def _wait(self, what: asyncio.Future[None], give_up_at: float) -> None:
        try:
            async with asyncio.timeout_at(give_up_at):
                await what
        except TimeoutError:
            raise DataError(
                DataErrorKind.RESOURCE,
                f"{self.name}: no room for another pool ({len(self._open)} of {self._max_open} open, all in use). Raise"
                " pool.max_open_pools, or shorten transactions",
            ) from None

    def _schedule_closing(self) -> None:
        """Schedule closing the least recently used pool once it has been idle for too long."""
        if self._timer is None and self._open:
            loop = asyncio.get_running_loop()
            due = min(self._open.values()) + self._close_idle_after_s
            self._timer = loop.call_at(max(due, loop.time() + self._close_idle_after_s / 4), self._close_idle)

    def _close_idle(self) -> None:
        self._timer = None
        limit = asyncio.get_running_loop().time() - self._close_idle_after_s
        for server, used in list(self._open.items()):
            if used <= limit and not server.is_in_use:
                self._close(server)
        self._schedule_closing()
