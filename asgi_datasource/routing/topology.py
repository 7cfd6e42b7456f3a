"""Snapshot of a datasource's servers for the server choice, and the route of a statement.

A snapshot is replaced when the state of a server changes, which is rare compared to reads. So the routes of common
reads are computed with the snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from math import gcd, inf
from typing import Final

from .circuit_breaker import Health
from .intent import AccessIntent
from .policy import Balance, RoutingPolicy
from .position import Lineage, Position


class Role(StrEnum):
    """Role of a server in its datasource."""

    PRIMARY = "primary"
    REPLICA = "replica"


class Reason(StrEnum):
    """Why a server was chosen; the closed set that spans, `explain` and metrics use."""

    WRITE = "write"
    """The statement writes: the primary."""
    PINNED = "pinned"
    """The request has written: its reads go to the primary."""
    TRANSACTION = "transaction"
    """A transaction is open: its connection is used."""
    STRONG = "strong"
    """The route requires the primary."""
    BALANCED = "balanced"
    """The replica whose turn it is."""
    STICKY = "sticky"
    """The replica that answered the request's earlier reads."""
    PROVED = "proved"
    """A replica that proves, in the read's own round trip, that it has what the client's token requires."""
    BEHIND = "behind"
    """No replica has replayed what the client's token requires: the primary."""
    LAGGING = "lagging"
    """Every replica that is up lags, or may lag, more than the read allows: the primary."""
    UNHEALTHY = "unhealthy"
    """No replica is up: the primary. Or no server at all is up, and this one is tried anyway."""
    NO_REPLICAS = "no_replicas"
    """The datasource has no replicas: the primary."""
    FAILOVER = "failover"
    """The preferred server could not be reached: the next one."""
    STALE_OK = "stale_ok"
    """A replica that lags: the primary is down, and the datasource prefers old data to an error."""


_ANCIENT: Final = -inf
NEAR_S: Final = 0.0005
NEAR_SHARE: Final = 0.25
"""Two servers are equally near if their round-trip times differ by at most `NEAR_S` or this fraction."""


@dataclass(frozen=True, slots=True)
class Node:
    """State of one server.

    Attributes:
        name: Name in the configuration; `primary` for the primary.
        role: Role in the datasource.
        health: Whether connections to it can be made.
        weight: Share of the reads, relative to the other replicas.
        tier: 0 for preferred servers: those of the local zone.
        is_draining: It gets no new work.
        is_foreign: It answers, but is not a replica of this primary: promoted by itself, or left behind.
        fresh_at: Event-loop time up to which it is known to have everything; None if unknown.
        lag_s: Replication lag in seconds at the last health check.
        lag_bytes: Replication lag in bytes at the last health check.
        position: Replay position at the last health check.
        rtt_s: Round-trip time in seconds.
        received_lsn: Receive position at the last health check, replayed or not.
        failures: Failed connection attempts since it was last up.
        up_since: Event-loop time at which it came back; None if it was never down.
    """

    name: str
    role: Role
    health: Health = Health.CLOSED
    weight: int = 1
    tier: int = 0
    is_draining: bool = False
    is_foreign: bool = False
    fresh_at: float | None = None
    lag_s: float | None = None
    lag_bytes: int | None = None
    position: Position | None = None
    rtt_s: float | None = None
    received_lsn: int | None = None
    failures: int = 0
    up_since: float | None = None

    @property
    def is_up(self) -> bool:
        """Whether connections to it can be made."""
        return self.health is Health.CLOSED

    @property
    def is_usable(self) -> bool:
        """Whether its own state allows reads."""
        return self.health is Health.CLOSED and not self.is_draining and not self.is_foreign

    def is_fresh(self, now: float, max_lag_s: float | None) -> bool:
        """Whether its data is certainly not older than the bound; an unknown age counts as older."""
        return max_lag_s is None or (self.fresh_at is not None and now - self.fresh_at <= max_lag_s)

    def __str__(self) -> str:
        if self.health is not Health.CLOSED:
            return f"{self.name} down"
        if self.is_foreign:
            return f"{self.name} foreign"
        if self.is_draining:
            return f"{self.name} draining"
        if self.lag_s is None:
            return f"{self.name} up"
        lag_ms = self.lag_s * 1000
        return f"{self.name} lag {lag_ms:.0f} ms" if lag_ms < 10_000 else f"{self.name} lag {self.lag_s:.0f} s"


@dataclass(frozen=True, slots=True)
class Route:
    """Route of a statement and its reason; `DataSession.last_route`.

    Attributes:
        datasource: The datasource's name.
        intent: The statement's intent.
        role: Role of the server that ran it.
        node: Name of that server in the configuration; `primary` for the primary.
        reason: Why it was chosen.
        topology: The servers at the time of the choice.
    """

    datasource: str
    intent: AccessIntent
    role: Role
    node: str
    reason: Reason
    topology: Topology = field(repr=False)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The candidates and their state: `("r1 lag 3 ms", "r2 down", "primary up")`."""
        return self.topology.describe()

    def __str__(self) -> str:
        return f"{self.datasource} → {self.node} ({self.reason.value})"


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """Immutable snapshot of one datasource's servers.

    Attributes:
        datasource: The datasource's name.
        primary: The server that takes writes.
        replicas: The other servers, in the order of the configuration.
        policy: Policy of the choice.
        lineage: Known forks of timelines.
        usable: Replicas whose own state allows reads.
        fresh_at: Event-loop time up to which all of them are known to have everything; minus infinity if unknown.
        warm_at: Event-loop time from which all of them get their full share.
        write: The route of writes.
        pinned, strong, no_replicas: Routes of reads to the primary, one for each of these reasons.
        balanced, proved: Routes of reads to replicas for these reasons, by server name.
        held_timeline, held_lsn: Position that all usable replicas had at their last health check.
        turns: Routes of reads without further requirements, in round-robin order.
        proofs: The same for reads that require a position which all replicas should have.
        sticky: Routes of reads that stay with the server of the request's earlier reads, by server name.
    """

    datasource: str
    primary: Node
    replicas: tuple[Node, ...] = ()
    policy: RoutingPolicy = RoutingPolicy()
    lineage: Lineage = Lineage()
    usable: tuple[Node, ...] = field(init=False)
    fresh_at: float = field(init=False)
    warm_at: float = field(init=False)
    held_timeline: int = field(init=False)
    held_lsn: int = field(init=False)
    write: Route = field(init=False, repr=False)
    pinned: Route = field(init=False, repr=False)
    strong: Route = field(init=False, repr=False)
    no_replicas: Route = field(init=False, repr=False)
    balanced: Mapping[str, Route] = field(init=False, repr=False)
    proved: Mapping[str, Route] = field(init=False, repr=False)
    turns: tuple[Route, ...] = field(init=False, repr=False)
    proofs: tuple[Route, ...] = field(init=False, repr=False)
    sticky: Mapping[str, Route] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        usable = tuple([node for node in self.replicas if node.is_usable])
        warmup_s = self.policy.warmup_s
        first = nearest(best_tier(usable)) if self.policy.balance is Balance.NEAREST else best_tier(usable)
        turns = take_turns(first, self.policy.balance)
        positions = [node.position for node in usable if node.position is not None]
        timelines = {position.timeline for position in positions}
        are_alike = len(positions) == len(usable) and len(timelines) == 1
        read = AccessIntent.READ
        balanced, proved, sticky = [
            {node.name: self.route(node, read, reason) for node in usable}
            for reason in (Reason.BALANCED, Reason.PROVED, Reason.STICKY)
        ]
        derived = {
            "usable": usable,
            "fresh_at": min(
                [_ANCIENT if node.fresh_at is None else node.fresh_at for node in usable], default=_ANCIENT
            ),
            "warm_at": max(
                [node.up_since + warmup_s for node in usable if node.up_since is not None], default=_ANCIENT
            ),
            "held_timeline": timelines.pop() if are_alike else 0,
            "held_lsn": min([position.lsn for position in positions]) if are_alike else 0,
            "write": self.route(self.primary, AccessIntent.WRITE, Reason.WRITE),
            "pinned": self.route(self.primary, read, Reason.PINNED),
            "strong": self.route(self.primary, read, Reason.STRONG),
            "no_replicas": self.route(self.primary, read, Reason.NO_REPLICAS),
            "balanced": balanced,
            "proved": proved,
            "sticky": sticky,
            "turns": tuple([balanced[node.name] for node in turns]),
            "proofs": tuple([proved[node.name] for node in turns]),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def route(self, node: Node, intent: AccessIntent, reason: Reason) -> Route:
        """A route to one of these servers."""
        return Route(self.datasource, intent, node.role, node.name, reason, self)

    def describe(self) -> tuple[str, ...]:
        """One short text for each candidate, replicas first: `("r1 lag 3 ms", "r2 down", "primary up")`."""
        return tuple(map(str, (*self.replicas, self.primary)))


def best_tier(nodes: Sequence[Node]) -> Sequence[Node]:
    """The servers of the lowest tier."""
    if len(nodes) < 2:
        return nodes
    tier = min([node.tier for node in nodes])
    return [node for node in nodes if node.tier == tier]


def nearest(nodes: Sequence[Node]) -> Sequence[Node]:
    """The servers with the lowest round-trip time, and those about as near; all if none was measured yet."""
    times = [node.rtt_s for node in nodes if node.rtt_s is not None]
    if not times:
        return nodes
    bound = min(times) + max(NEAR_S, min(times) * NEAR_SHARE)
    return [node for node in nodes if node.rtt_s is not None and node.rtt_s <= bound]


def take_turns(nodes: Sequence[Node], balance: Balance) -> Sequence[Node]:
    """The round-robin order: each server once, or as often as it weighs, well mixed."""
    if balance is not Balance.WEIGHTED:
        return nodes
    return [nodes[index] for index in _mix(tuple([node.weight for node in nodes]))]


@lru_cache(maxsize=256)
def _mix(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Smooth weighted round robin: at every point each server has had its share, to within one turn.

    Source: nginx, src/http/ngx_http_upstream_round_robin.c (the algorithm's best known use).
    """
    divisor = gcd(*weights) or 1
    shares = [weight // divisor for weight in weights]
    due = [0] * len(shares)
    order: list[int] = []
    for _ in range(sum(shares)):
        due = [waited + share for waited, share in zip(due, shares, strict=True)]
        index = due.index(max(due))
        due[index] -= sum(shares)
        order.append(index)
    return tuple(order)
