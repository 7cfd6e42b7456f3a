"""Which server answers: one pure function of the intent, the pin and the picture of the servers.

No I/O and no clock: the same call gives the same answer in a request, in a test and offline.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .intent import AccessIntent


class Role(StrEnum):
    """What an endpoint is in its datasource."""

    PRIMARY = "primary"
    REPLICA = "replica"


class Reason(StrEnum):
    """Why a server was chosen: the closed set that spans, `explain` and metrics speak."""

    WRITE = "write"
    """Write intent: the primary."""
    PINNED = "pinned"
    """The request has written before: its reads go to the primary."""
    TRANSACTION = "transaction"
    """A transaction is open: its connection is used."""
    STRONG = "strong"
    """The route asked for the primary."""
    BALANCED = "balanced"
    """The next replica in turn."""
    STICKY = "sticky"
    """The replica that this request read from before."""
    UNHEALTHY = "unhealthy"
    """No replica is up: the primary stands in."""
    NO_REPLICAS = "no_replicas"
    """The datasource has none: the primary."""
    FAILOVER = "failover"
    """The first choice could not be reached: the next one."""


@dataclass(frozen=True, slots=True)
class Node:
    """One server as the choice sees it.

    Attributes:
        name: Its name in the configuration; `primary` for the primary.
        role: What it is in its datasource.
        is_up: False from a failed connect, or a server that fell silent, until a connect works again.
    """

    name: str
    role: Role
    is_up: bool = True

    def __str__(self) -> str:
        return f"{self.name} {'up' if self.is_up else 'down'}"


@dataclass(frozen=True, slots=True)
class Picture:
    """The servers of one datasource at one moment; replaced whole, never changed."""

    primary: Node
    replicas: tuple[Node, ...] = ()

    def describe(self) -> tuple[str, ...]:
        """One short text a candidate, replicas first: `("r1 up", "r2 down", "primary up")`."""
        return tuple(map(str, (*self.replicas, self.primary)))


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen server and why."""

    node: Node
    reason: Reason


@dataclass(frozen=True, slots=True)
class Route:
    """Where a statement went and why; `DataSession.last_route`.

    Attributes:
        datasource: The datasource's name.
        intent: What the statement wanted.
        role: Role of the server that ran it.
        node: Name of that server in the configuration; `primary` for the primary.
        reason: Why that one.
        picture: The servers as they looked when the choice was made.
    """

    datasource: str
    intent: AccessIntent
    role: Role
    node: str
    reason: Reason
    picture: Picture

    @property
    def candidates(self) -> tuple[str, ...]:
        """The servers that could have been chosen, and how they looked: `("r1 up", "r2 down", "primary up")`."""
        return self.picture.describe()

    def __str__(self) -> str:
        return f"{self.datasource} → {self.node} ({self.reason.value})"


def choose(
    picture: Picture,
    intent: AccessIntent,
    *,
    turn: int = 0,
    is_pinned: bool = False,
    is_strong: bool = False,
    sticky: str | None = None,
    failed: frozenset[str] = frozenset(),
) -> Choice | None:
    """Choose the server for a statement that runs outside an open transaction.

    Args:
        picture: The datasource's servers as they look now.
        intent: Writes go to the primary, always.
        turn: The datasource's round-robin counter; any integer from 0.
        is_pinned: The request has written.
        is_strong: The route asked for the primary.
        sticky: Name of the replica that the request read from before.
        failed: Names of the servers that this very statement could not reach.

    Returns:
        The server and the reason; None when every server that may run the statement has failed.
    """
    primary = picture.primary
    if intent is AccessIntent.WRITE:
        return None if primary.name in failed else Choice(primary, Reason.WRITE)
    if is_pinned or is_strong:
        return None if primary.name in failed else Choice(primary, Reason.PINNED if is_pinned else Reason.STRONG)
    replicas = picture.replicas
    if not replicas:
        return None if primary.name in failed else Choice(primary, Reason.NO_REPLICAS)
    usable = [node for node in replicas if node.is_up and node.name not in failed]
    if usable:
        if sticky is not None:
            for node in usable:
                if node.name == sticky:
                    return Choice(node, Reason.STICKY)
        node = usable[turn % len(usable)]
        return Choice(node, Reason.FAILOVER if failed else Reason.BALANCED)
    if primary.name not in failed and primary.is_up:
        return Choice(primary, Reason.FAILOVER if failed else Reason.UNHEALTHY)
    # Everything looks down. What looks down may be up again: try what this statement has not tried yet.
    for node in (primary, *replicas):
        if node.name not in failed:
            return Choice(node, Reason.FAILOVER if failed else Reason.UNHEALTHY)
    return None
