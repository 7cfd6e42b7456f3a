"""One logical database: a primary, its replicas, and the picture of them that the choice reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, Protocol, runtime_checkable

from ..concurrency.limits import ConcurrencyLimit
from ..concurrency.priority_queue import Priority
from ..drivers.protocol import Server
from ..routing import Node, Position, Role, RoutingPolicy, Standing, Topology
from .replica_monitor import ReplicaMonitor

_UNKNOWN: Final = Standing(None)


class DataSourceState(StrEnum):
    """Whether a datasource may be used."""

    CONFIGURED = "configured"
    RETIRED = "retired"
    """A reload has taken it out of the configuration: only those use it who began before."""
    LEFT = "left"
    """Nobody does any more."""


@runtime_checkable
class DataSource(Protocol):
    """One logical database, as sessions see it."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    servers: Mapping[str, Server]
    """Every server by its name; the primary is `primary`."""

    @property
    def picture(self) -> Topology:
        """The servers as they look now; immutable, and another one as soon as they look different."""
        ...

    turn: int
    """The round-robin counter, raised with each choice that takes a turn."""

    @property
    def concurrency_limit(self) -> ConcurrencyLimit | None:
        """How many sessions may use it at a time; None sets no bound."""
        ...

    @property
    def held(self) -> dict[str, Position]:
        """What replicas have shown to have, by name, since they were last asked how they are: mostly for reads that
        prove something."""
        ...

    def load(self) -> Mapping[str, float]:
        """How busy each replica is, by name: borrowed connections by its weight."""
        ...

    async def open(self, predecessor: DataSource | None = None) -> None:
        """Open the pools, and see to it that the picture stays true. Returns at once, also when a server is down.

        Args:
            predecessor: What it takes the place of: what that has learnt about the same servers is known here, too.
        """
        ...

    def stop(self) -> None:
        """Let the picture be; whose the pools are closes them."""
        ...

    @property
    def state(self) -> DataSourceState:
        """Whether it may be used."""
        ...

    def enter(self, priority: Priority = Priority.NORMAL) -> None:
        """A session begins to use it.

        Raises:
            DataError: RESOURCE: as many use it as may.
        """
        ...

    def leave(self) -> None:
        """A session that has entered uses it no more."""
        ...

    def retire(self, when_left: Callable[[], None]) -> None:
        """It is not in the configuration any more.

        Args:
            when_left: Called once nobody uses it any more; at once when nobody does now.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReplicaTraits:
    """What the configuration says of a replica besides where it is.

    Attributes:
        weight: Its share of the reads, relative to the others'.
        zone: Where it is.
        is_draining: It gets no new work.
    """

    weight: int = 1
    zone: str | None = None
    is_draining: bool = False


class PostgresDataSource:
    """A primary and its streaming replicas, each behind a pool of its own.

    Args:
        name: Its name in the configuration.
        primary: The server that takes writes.
        replicas: The others.
        policy: How to choose from them.
        traits: What else is said of each replica, by name.
        concurrency_limit: How many sessions may use it at a time; None sets no bound.
    """

    __slots__ = (
        "__weakref__",
        "_draining",
        "_is_watching",
        "_monitor",
        "_traits",
        "_users",
        "_watchers",
        "_when_left",
        "concurrency_limit",
        "held",
        "name",
        "picture",
        "policy",
        "primary",
        "replicas",
        "servers",
        "state",
        "turn",
    )

    def __init__(
        self,
        name: str,
        primary: Server,
        replicas: Sequence[Server] = (),
        *,
        policy: RoutingPolicy | None = None,
        traits: Mapping[str, ReplicaTraits] | None = None,
        concurrency_limit: ConcurrencyLimit | None = None,
    ) -> None:
        self.name = name
        self.concurrency_limit = concurrency_limit
        self.held: dict[str, Position] = {}
        self.primary = primary
        self.replicas = tuple(replicas)
        """In the order of the configuration."""
        self.policy = policy or RoutingPolicy()
        self.state = DataSourceState.CONFIGURED
        self.servers: Mapping[str, Server] = {server.name: server for server in (*self.replicas, primary)}
        self._traits = {replica.name: (traits or {}).get(replica.name, ReplicaTraits()) for replica in self.replicas}
        self._draining = {name for name, trait in self._traits.items() if trait.is_draining}
        # One counter for all requests. They share an event loop, so nothing comes between reading and counting.
        self.turn = 0
        self._users = 0
        self._when_left: Callable[[], None] | None = None
        self._watchers = {server: partial(self._changed, server) for server in self.servers.values()}
        self._is_watching = False
        self._monitor = ReplicaMonitor(
            name,
            primary,
            self.replicas,
            interval_s=self.policy.check_interval_s,
            reach_s=self.policy.reach_s,
            tell=self._redraw,
        )
        self.picture = self._draw()

    def __repr__(self) -> str:
        return f"PostgresDataSource({self.name!r}, {', '.join(self.picture.describe())})"

    def is_like(self, other: DataSource) -> bool:
        """Whether the other one is the same in all that the configuration says."""
        return (
            isinstance(other, PostgresDataSource)
            and list(self.servers.values()) == list(other.servers.values())
            and self.policy == other.policy
            and self._traits == other._traits
            and (None if self.concurrency_limit is None else self.concurrency_limit.limit)
            == (None if other.concurrency_limit is None else other.concurrency_limit.limit)
        )

    def load(self) -> Mapping[str, float]:
        """How busy each replica is, by name: borrowed connections by its weight."""
        return {replica.name: replica.borrowed / self._traits[replica.name].weight for replica in self.replicas}

    def drain(self, name: str) -> None:
        """Give a replica no new work; what has begun there ends there.

        Raises:
            KeyError: There is no replica of this name.
        """
        self._check_replica(name)
        self._draining.add(name)
        self._redraw()

    def undrain(self, name: str) -> None:
        """Give a replica work again.

        Raises:
            KeyError: There is no replica of this name.
        """
        self._check_replica(name)
        self._draining.discard(name)
        self._redraw()

    def _check_replica(self, name: str) -> None:
        if name not in self._traits:
            raise KeyError(f"the datasource {self.name!r} has no replica {name!r}")

    # -- life

    async def open(self, predecessor: DataSource | None = None) -> None:
        """Open the pools, and see to it that the picture stays true. Returns at once, also when a server is down.

        Args:
            predecessor: What it takes the place of: what that has learnt about the same servers is known here, too.
        """
        if isinstance(predecessor, PostgresDataSource):
            self._monitor.inherit(predecessor._monitor)
        self.watch()
        for server in self.servers.values():
            await server.open()
        self._tend()

    def watch(self) -> None:
        """See to it that the picture stays true, whoever opens the pools. The servers then know of it."""
        if not self._is_watching:
            self._is_watching = True
            for server, watcher in self._watchers.items():
                server.watch(watcher)
        self._redraw()

    def stop(self) -> None:
        """Let the picture be; whose the pools are closes them."""
        if self._is_watching:
            self._is_watching = False
            self._tend()
            for server, watcher in self._watchers.items():
                server.unwatch(watcher)

    # -- who uses it

    def enter(self, priority: Priority = Priority.NORMAL) -> None:
        """A session begins to use it.

        Raises:
            DataError: RESOURCE: as many use it as may.
        """
        if self.concurrency_limit is not None:
            self.concurrency_limit.enter(priority)
        self._users += 1

    def leave(self) -> None:
        """A session that has entered uses it no more."""
        self._users -= 1
        if self.concurrency_limit is not None:
            self.concurrency_limit.leave()
        if not self._users and self._when_left is not None:
            self._end()

    def retire(self, when_left: Callable[[], None]) -> None:
        """It is not in the configuration any more; `when_left` is called once nobody uses it."""
        self.state = DataSourceState.RETIRED
        self._when_left = when_left
        # From here on what it knows grows old: its servers are asked for whatever has taken its place.
        self._tend()
        if not self._users:
            self._end()

    def _end(self) -> None:
        when_left, self._when_left = self._when_left, None
        self.state = DataSourceState.LEFT
        self.stop()
        if when_left is not None:
            when_left()

    # -- how it looks

    def _changed(self, server: Server) -> None:
        """A server went down or came up, or its pool was opened or closed."""
        if not (server.is_up and server.is_open):
            self._monitor.forget(server.name)
            self.held.pop(server.name, None)
        self._tend()
        self._redraw()

    def _tend(self) -> None:
        """Ask the servers how they are while there is something to choose."""
        is_asked = self._is_watching and self.state is DataSourceState.CONFIGURED
        if is_asked and any(replica.is_open for replica in self.replicas):
            self._monitor.start()
        else:
            self._monitor.stop()

    def _redraw(self) -> None:
        self.picture = self._draw()

    def _draw(self) -> Topology:
        primary = Node(
            self.primary.name,
            Role.PRIMARY,
            self.primary.breaker.health,
            failures=self.primary.breaker.failures,
        )
        replicas = tuple([self._node(replica) for replica in self.replicas])
        return Topology(self.name, primary, replicas, self.policy, self._monitor.track.lineage)

    def _node(self, replica: Server) -> Node:
        traits = self._traits[replica.name]
        zone = self.policy.zone
        standing = self._monitor.standings.get(replica.name, _UNKNOWN)
        return Node(
            replica.name,
            Role.REPLICA,
            replica.breaker.health,
            weight=traits.weight,
            tier=0 if zone is None or traits.zone == zone else 1,
            is_draining=replica.name in self._draining,
            is_foreign=standing.is_foreign,
            fresh_at=standing.fresh_at,
            lag_s=standing.lag_s,
            lag_bytes=standing.lag_bytes,
            position=standing.position,
            rtt_s=standing.rtt_s,
            received_lsn=standing.received_lsn,
            failures=replica.breaker.failures,
            up_since=replica.breaker.closed_at,
        )
