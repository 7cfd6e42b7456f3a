"""One logical database: a primary, its replicas, and the picture of them that the choice reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from .drivers.psycopg import Endpoint
from .routing import Node, Picture, Role


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

    def picture(self) -> Picture:
        """The servers as they look now; immutable."""
        ...

    @property
    def turn(self) -> int:
        """The round-robin counter: whose turn it is."""
        ...

    def take_turn(self) -> None:
        """A replica was chosen because it was its turn: the next one is next."""
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


class PostgresDataSource:
    """A primary and its streaming replicas, each behind a pool of its own."""

    __slots__ = (
        "_endpoints",
        "_flags",
        "_picture",
        "_replicas",
        "_users",
        "_when_left",
        "name",
        "primary",
        "state",
        "turn",
    )

    def __init__(self, name: str, primary: Endpoint, replicas: Sequence[Endpoint] = ()) -> None:
        self.name = name
        self.primary = primary
        self._replicas = tuple(replicas)
        self._endpoints = {endpoint.name: endpoint for endpoint in (*self._replicas, primary)}
        # One counter for all requests. They share an event loop, so nothing comes between reading and counting.
        self.turn = 0
        self.state = DataSourceState.CONFIGURED
        self._users = 0
        self._when_left: Callable[[], None] | None = None
        self._flags: tuple[bool, ...] = ()
        self._picture = self._draw()

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Every server by its name; the primary is `primary`."""
        return self._endpoints

    @property
    def replicas(self) -> tuple[Endpoint, ...]:
        """The replicas in the order of the configuration."""
        return self._replicas

    def picture(self) -> Picture:
        """The servers as they look now; the same object until a server goes down or comes up."""
        flags = tuple([endpoint.is_up for endpoint in self._endpoints.values()])
        if flags != self._flags:
            self._flags = flags
            self._picture = self._draw()
        return self._picture

    def take_turn(self) -> None:
        """A replica was chosen because it was its turn: the next one is next."""
        self.turn += 1

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
        if when_left is not None:
            when_left()

    def _draw(self) -> Picture:
        return Picture(
            Node(self.primary.name, Role.PRIMARY, self.primary.is_up),
            tuple([Node(replica.name, Role.REPLICA, replica.is_up) for replica in self._replicas]),
        )

    def __repr__(self) -> str:
        return f"PostgresDataSource({self.name!r}, {', '.join(self._picture.describe())})"
