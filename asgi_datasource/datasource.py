"""One logical database: a primary, its replicas, and the picture of them that the choice reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from .drivers.psycopg import Endpoint
from .routing import Node, Picture, Role, RoutingPolicy


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

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Every server by its name; the primary is `primary`."""
        ...

    @property
    def picture(self) -> Picture:
        """The servers as they look now; immutable, and another one as soon as they look different."""
        ...

    @property
    def turn(self) -> int:
        """The round-robin counter: whose turn it is."""
        ...

    def take_turn(self) -> None:
        """A replica was chosen because it was its turn: the next one is next."""
        ...

    def load(self) -> Mapping[str, float]:
        """How busy each replica is, by name: borrowed connections by its weight."""
        ...

    async def open(self) -> None:
        """Open the pools, and see to it that the picture stays true. Returns at once, also when a server is down."""
        ...

    def stop(self) -> None:
        """Let the picture be; whose the pools are closes them."""
        ...

    @property
    def state(self) -> DataSourceState:
        """Whether it may be used."""
        ...

    def enter(self) -> None:
        """A session begins to use it."""
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
    """

    __slots__ = (
        "__weakref__",
        "_draining",
        "_endpoints",
        "_is_watching",
        "_traits",
        "_users",
        "_when_left",
        "name",
        "picture",
        "policy",
        "primary",
        "replicas",
        "state",
        "turn",
    )

    def __init__(
        self,
        name: str,
        primary: Endpoint,
        replicas: Sequence[Endpoint] = (),
        *,
        policy: RoutingPolicy | None = None,
        traits: Mapping[str, ReplicaTraits] | None = None,
    ) -> None:
        self.name = name
        self.primary = primary
        self.replicas = tuple(replicas)
        """In the order of the configuration."""
        self.policy = policy or RoutingPolicy()
        self.state = DataSourceState.CONFIGURED
        self._endpoints = {endpoint.name: endpoint for endpoint in (*self.replicas, primary)}
        self._traits = {replica.name: (traits or {}).get(replica.name, ReplicaTraits()) for replica in self.replicas}
        self._draining = {name for name, trait in self._traits.items() if trait.is_draining}
        # One counter for all requests. They share an event loop, so nothing comes between reading and counting.
        self.turn = 0
        self._users = 0
        self._when_left: Callable[[], None] | None = None
        self._is_watching = False
        self.picture = self._draw()

    def __repr__(self) -> str:
        return f"PostgresDataSource({self.name!r}, {', '.join(self.picture.describe())})"

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Every server by its name; the primary is `primary`."""
        return self._endpoints

    def is_like(self, other: DataSource) -> bool:
        """Whether the other one is the same in all that the configuration says."""
        return (
            isinstance(other, PostgresDataSource)
            and list(self._endpoints.values()) == list(other._endpoints.values())
            and self.policy == other.policy
            and self._traits == other._traits
        )

    def take_turn(self) -> None:
        """A replica was chosen because it was its turn: the next one is next."""
        self.turn += 1

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

    async def open(self) -> None:
        """Open the pools, and see to it that the picture stays true. Returns at once, also when a server is down."""
        self.watch()
        for endpoint in self._endpoints.values():
            await endpoint.open()

    def watch(self) -> None:
        """See to it that the picture stays true, whoever opens the pools. The servers then know of it."""
        if not self._is_watching:
            self._is_watching = True
            for endpoint in self._endpoints.values():
                endpoint.watch(self._redraw)
        self._redraw()

    def stop(self) -> None:
        """Let the picture be; whose the pools are closes them."""
        if self._is_watching:
            self._is_watching = False
            for endpoint in self._endpoints.values():
                endpoint.unwatch(self._redraw)

    # -- who uses it

    def enter(self) -> None:
        """A session begins to use it."""
        self._users += 1

    def leave(self) -> None:
        """A session that has entered uses it no more."""
        self._users -= 1
        if not self._users and self._when_left is not None:
            self._end()

    def retire(self, when_left: Callable[[], None]) -> None:
        """It is not in the configuration any more; `when_left` is called once nobody uses it."""
        self.state = DataSourceState.RETIRED
        self._when_left = when_left
        if not self._users:
            self._end()

    def _end(self) -> None:
        when_left, self._when_left = self._when_left, None
        self.state = DataSourceState.LEFT
        self.stop()
        if when_left is not None:
            when_left()

    # -- how it looks

    def _redraw(self) -> None:
        self.picture = self._draw()

    def _draw(self) -> Picture:
        primary = Node(self.primary.name, Role.PRIMARY, self.primary.breaker.health)
        return Picture(self.name, primary, tuple([self._node(replica) for replica in self.replicas]), self.policy)

    def _node(self, replica: Endpoint) -> Node:
        traits = self._traits[replica.name]
        zone = self.policy.zone
        return Node(
            replica.name,
            Role.REPLICA,
            replica.breaker.health,
            weight=traits.weight,
            tier=0 if zone is None or traits.zone == zone else 1,
            is_draining=replica.name in self._draining,
            up_since=replica.breaker.closed_at,
        )
