"""One logical database: a primary, its replicas, and the topology that routing reads."""

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
    """Life cycle of a datasource."""

    CONFIGURED = "configured"
    RETIRED = "retired"
    """Removed by a reload; only requests that began before still use it."""
    LEFT = "left"
    """Removed, and not in use any more."""


@runtime_checkable
class DataSource(Protocol):
    """One logical database, as sessions see it."""

    @property
    def name(self) -> str:
        """Name in the configuration."""
        ...

    servers: Mapping[str, Server]
    """The servers by name; the primary is `primary`."""

    @property
    def topology(self) -> Topology:
        """The current state of the servers: an immutable snapshot, replaced at each change."""
        ...

    turn: int
    """Round-robin counter, incremented by each choice that takes a turn."""

    @property
    def concurrency_limit(self) -> ConcurrencyLimit | None:
        """Bound on the sessions that use it at a time; None sets no bound."""
        ...

    @property
    def held(self) -> dict[str, Position]:
        """Positions that replicas have proved since their last health check, by name."""
        ...

    def load(self) -> Mapping[str, float]:
        """Load of each replica by name: borrowed connections by its weight."""
        ...

    def position_at(self, when: float, /) -> Position | None:
        """Where a server has to be to have everything that was committed by this event-loop time; None is not known."""
        ...

    async def open(self, predecessor: DataSource | None = None) -> None:
        """Open the pools and start the health checks. Returns at once, even if a server is down.

        Args:
            predecessor: The datasource that this one replaces; its knowledge about common servers is kept.
        """
        ...

    def stop(self) -> None:
        """Stop the health checks; the owner of the pools closes them."""
        ...

    def abandon(self) -> None:
        """The event loop in which it was opened is closed: stop, and close the pools without it."""
        ...

    @property
    def state(self) -> DataSourceState:
        """Life-cycle state."""
        ...

    def enter(self, priority: Priority = Priority.NORMAL) -> None:
        """Admit a session; pair this with `leave`.

        Raises:
            DataError: RESOURCE: the concurrency limit is reached.
        """
        ...

    def leave(self) -> None:
        """A session that has entered ends."""
        ...

    def retire(self, when_left: Callable[[], None]) -> None:
        """Mark it as removed from the configuration.

        Args:
            when_left: Called once no session uses it any more; at once if none does.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReplicaTraits:
    """Configured properties of a replica, besides its address.

    Attributes:
        weight: Share of the reads, relative to the other replicas.
        zone: Its zone.
        is_draining: It gets no new work.
    """

    weight: int = 1
    zone: str | None = None
    is_draining: bool = False


class ReplicatedDataSource:
    """A primary and its streaming replicas, each behind a pool of its own.

    Args:
        name: Name in the configuration.
        primary: The server that takes writes.
        replicas: The other servers.
        policy: Policy of the server choice.
        traits: Configured properties of the replicas, by name.
        concurrency_limit: Bound on the sessions that use it at a time; None sets no bound.
    """

    __slots__ = (
        "__weakref__",
        "_drained",
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
        "policy",
        "primary",
        "replicas",
        "servers",
        "state",
        "topology",
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
        self._drained: set[str] = set()
        self._draining = {name for name, trait in self._traits.items() if trait.is_draining}
        # One counter for all requests. They share an event loop, so reading and incrementing it is atomic.
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
            on_change=self._refresh_topology,
        )
        self.topology = self._build_topology()

    def __repr__(self) -> str:
        return f"ReplicatedDataSource({self.name!r}, {', '.join(self.topology.describe())})"

    def is_like(self, other: DataSource) -> bool:
        """Whether the other datasource has the same configuration."""
        return (
            isinstance(other, ReplicatedDataSource)
            and list(self.servers.values()) == list(other.servers.values())
            and self.policy == other.policy
            and self._traits == other._traits
            and (None if self.concurrency_limit is None else self.concurrency_limit.limit)
            == (None if other.concurrency_limit is None else other.concurrency_limit.limit)
        )

    def load(self) -> Mapping[str, float]:
        """Load of each replica by name: borrowed connections by its weight."""
        return {replica.name: replica.borrowed / self._traits[replica.name].weight for replica in self.replicas}

    def position_at(self, when: float) -> Position | None:
        """Where a server has to be to have everything that was committed by this event-loop time; None is not known."""
        return self._monitor.track.position_at(when)

    def drain(self, name: str) -> None:
        """Give a replica no new work; requests that use it finish there.

        Raises:
            KeyError: There is no replica of this name.
        """
        self._check_replica(name)
        self._drained.add(name)
        self._draining.add(name)
        self._refresh_topology()

    def undrain(self, name: str) -> None:
        """Give a replica work again.

        Raises:
            KeyError: There is no replica of this name.
        """
        self._check_replica(name)
        self._drained.discard(name)
        self._draining.discard(name)
        self._refresh_topology()

    def _check_replica(self, name: str) -> None:
        if name not in self._traits:
            raise KeyError(f"the datasource {self.name!r} has no replica {name!r}")

    # -- life cycle

    async def open(self, predecessor: DataSource | None = None) -> None:
        """Open the pools and start the health checks. Returns at once, even if a server is down.

        Args:
            predecessor: The datasource that this one replaces; its knowledge about common servers is kept.
        """
        if isinstance(predecessor, ReplicatedDataSource):
            self._monitor.inherit(predecessor._monitor)
            # Replicas that were drained by hand stay so.
            self._drained |= predecessor._drained & self._traits.keys()
            self._draining |= self._drained
        self.watch()
        for server in self.servers.values():
            await server.open()
        self._update_monitor()

    def watch(self) -> None:
        """Subscribe to the servers' changes and start the health checks; the pools may be opened elsewhere."""
        if not self._is_watching:
            self._is_watching = True
            for server, watcher in self._watchers.items():
                server.watch(watcher)
        self._refresh_topology()

    def abandon(self) -> None:
        """The event loop in which it was opened is closed: stop, and close the pools without it."""
        for server in self.servers.values():
            server.abandon()
        self._monitor.abandon()
        self._users = 0
        self.stop()

    def stop(self) -> None:
        """Stop the health checks; the owner of the pools closes them."""
        if self._is_watching:
            self._is_watching = False
            self._update_monitor()
            for server, watcher in self._watchers.items():
                server.unwatch(watcher)

    # -- use by sessions

    def enter(self, priority: Priority = Priority.NORMAL) -> None:
        """Admit a session; pair this with `leave`.

        Raises:
            DataError: RESOURCE: the concurrency limit is reached.
        """
        if self.concurrency_limit is not None:
            self.concurrency_limit.enter(priority)
        self._users += 1

    def leave(self) -> None:
        """A session that has entered ends."""
        self._users -= 1
        if self.concurrency_limit is not None:
            self.concurrency_limit.leave()
        if not self._users and self._when_left is not None:
            self._end()

    def retire(self, when_left: Callable[[], None]) -> None:
        """Mark it as removed from the configuration; `when_left` is called once no session uses it."""
        self.state = DataSourceState.RETIRED
        self._when_left = when_left
        # From here on its data grows old: the health checks are done for the datasource that replaces it.
        self._update_monitor()
        if not self._users:
            self._end()

    def _end(self) -> None:
        when_left, self._when_left = self._when_left, None
        self.state = DataSourceState.LEFT
        self.stop()
        if when_left is not None:
            when_left()

    # -- topology

    def _changed(self, server: Server) -> None:
        """A server went down or came up, or its pool was opened or closed."""
        if not (server.is_up and server.is_open):
            self._monitor.forget(server.name)
            self.held.pop(server.name, None)
        self._update_monitor()
        self._refresh_topology()

    def _update_monitor(self) -> None:
        """Run the health checks while there is a choice between servers."""
        is_asked = self._is_watching and self.state is DataSourceState.CONFIGURED
        if is_asked and any(replica.is_open for replica in self.replicas):
            self._monitor.start()
        else:
            self._monitor.stop()

    def _refresh_topology(self) -> None:
        self.topology = self._build_topology()

    def _build_topology(self) -> Topology:
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
