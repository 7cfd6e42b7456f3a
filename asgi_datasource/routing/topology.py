"""The servers of a datasource at one moment, as the choice sees them; and where a statement went, and why.

A picture is drawn anew when something about a server changes, many reads apart. So what most reads need is worked out
when it is drawn: the routes to take in turn are made already.
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
    """The replica whose turn it is."""
    STICKY = "sticky"
    """The replica that this request read from before."""
    PROVED = "proved"
    """A replica that proves, in the read's own round trip, that it has what the client's token asks for."""
    BEHIND = "behind"
    """No replica has what the client's token asks for yet: the primary."""
    LAGGING = "lagging"
    """Every replica that is up is, or may be, further behind than the read allows: the primary."""
    UNHEALTHY = "unhealthy"
    """No replica is up: the primary stands in. Or none of all is, and this one is tried all the same."""
    NO_REPLICAS = "no_replicas"
    """The datasource has none: the primary."""
    FAILOVER = "failover"
    """The first choice could not be reached: the next one."""
    STALE_OK = "stale_ok"
    """A replica that lags: the primary is down, and the datasource prefers old data to none."""


_ANCIENT: Final = -inf
NEAR_S: Final = 0.0005
NEAR_SHARE: Final = 0.25
"""Servers whose answers take at most so much longer than the nearest one's are as near as that one."""


@dataclass(frozen=True, slots=True)
class Node:
    """One server as the choice sees it.

    Attributes:
        name: Its name in the configuration; `primary` for the primary.
        role: What it is in its datasource.
        health: Whether connections to it can be made.
        weight: Its share of the reads, relative to the others'.
        tier: 0 for the servers that go first, those of the own zone.
        is_draining: It gets no new work.
        is_foreign: It answers, but it is no replica of this primary: it was promoted by itself, or left behind.
        fresh_at: Event-loop time of which it is known to have had everything; None is not known.
        lag_s: How long ago the primary was where it was, when it was last asked.
        lag_bytes: How far behind the primary it was then.
        position: Where it was then.
        rtt_s: How long its answers take.
        received_lsn: What it had received then, replayed or not.
        failures: Attempts to connect that have failed since it was last up.
        up_since: Event-loop time at which it came back after it had been down; None for one that never was.
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
        """Whether reads may go to it, as far as it alone is concerned."""
        return self.health is Health.CLOSED and not self.is_draining and not self.is_foreign

    def is_fresh(self, now: float, max_lag_s: float | None) -> bool:
        """Whether its data is certainly not older than that. What is not known is not fresh."""
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
    picture: Topology = field(repr=False)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The servers that could have been chosen, and how they looked: `("r1 lag 3 ms", "r2 down", "primary up")`."""
        return self.picture.describe()

    def __str__(self) -> str:
        return f"{self.datasource} → {self.node} ({self.reason.value})"


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """The servers of one datasource at one moment; replaced whole, never changed.

    Attributes:
        datasource: The datasource's name.
        primary: The server that takes writes.
        replicas: The others, in the order of the configuration.
        policy: How to choose from them.
        lineage: What is known of the timelines.
        usable: The replicas that reads may go to, whatever they ask for.
        fresh_at: The time of which all of those are known to have had everything; minus infinity is not known.
        warm_at: From that time on, all of those get their whole share.
        write: The route of a write.
        pinned, strong, no_replicas: Those of a read that the primary answers for one of these reasons.
        balanced, proved: By name, those of a read that a replica answers for one of these reasons.
        held_timeline, held_lsn: What all of those were known to have when they were last asked.
        turns: The routes of reads that ask for nothing more, in turn.
        proofs: The same for reads that ask for a position which all of them should have.
        sticky: By name, the route of a read that stays with the server of the request's reads before.
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
        """The way to one of these servers."""
        return Route(self.datasource, intent, node.role, node.name, reason, self)

    def describe(self) -> tuple[str, ...]:
        """One short text a candidate, replicas first: `("r1 lag 3 ms", "r2 down", "primary up")`."""
        return tuple(map(str, (*self.replicas, self.primary)))


def best_tier(nodes: Sequence[Node]) -> Sequence[Node]:
    """Those that go first."""
    if len(nodes) < 2:
        return nodes
    tier = min([node.tier for node in nodes])
    return [node for node in nodes if node.tier == tier]


def nearest(nodes: Sequence[Node]) -> Sequence[Node]:
    """Those whose answers come soonest, and as good as soonest; all, where no answer was timed yet."""
    times = [node.rtt_s for node in nodes if node.rtt_s is not None]
    if not times:
        return nodes
    bound = min(times) + max(NEAR_S, min(times) * NEAR_SHARE)
    return [node for node in nodes if node.rtt_s is not None and node.rtt_s <= bound]


def take_turns(nodes: Sequence[Node], balance: Balance) -> Sequence[Node]:
    """The order in which they take turns: each once; by weight, each as often as it weighs, well mixed."""
    if balance is not Balance.WEIGHTED:
        return nodes
    return [nodes[index] for index in _mix(tuple([node.weight for node in nodes]))]


@lru_cache(maxsize=256)
def _mix(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Smooth weighted round robin: at every point each has had its share, to within one turn.

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
