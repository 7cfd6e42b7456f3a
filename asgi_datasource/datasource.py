"""One logical database: a primary, its replicas, and the picture of them that the choice reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from .drivers.psycopg import Endpoint
from .routing import Node, Picture, Role


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


class PostgresDataSource:
    """A primary and its streaming replicas, each behind a pool of its own."""

    __slots__ = ("_endpoints", "_flags", "_picture", "_replicas", "name", "primary", "turn")

    def __init__(self, name: str, primary: Endpoint, replicas: Sequence[Endpoint] = ()) -> None:
        self.name = name
        self.primary = primary
        self._replicas = tuple(replicas)
        self._endpoints = {endpoint.name: endpoint for endpoint in (*self._replicas, primary)}
        # One counter for all requests. They share an event loop, so nothing comes between reading and counting.
        self.turn = 0
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

    def _draw(self) -> Picture:
        return Picture(
            Node(self.primary.name, Role.PRIMARY, self.primary.is_up),
            tuple([Node(replica.name, Role.REPLICA, replica.is_up) for replica in self._replicas]),
        )

    def __repr__(self) -> str:
        return f"PostgresDataSource({self.name!r}, {', '.join(self._picture.describe())})"
