"""Explanations of a server choice: why a server was chosen, and why each of the others was not.

Computed after the choice, from the same topology and arguments; `choose()` holds the rules themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from .choose import may_have, warm
from .circuit_breaker import Health
from .intent import AccessIntent
from .policy import Balance, NoReplica
from .position import Position
from .topology import Node, Reason, Route, Topology, best_tier, nearest

_NO_LOAD: Final[Mapping[str, float]] = MappingProxyType({})
_NOTHING_HELD: Final[Mapping[str, Position]] = MappingProxyType({})


class Verdict(StrEnum):
    """Result for one server in a choice; the closed set that `explain` uses."""

    CHOSEN = "chosen"
    TAKES_NO_WRITES = "takes_no_writes"
    """A replica, and the statement writes."""
    PINNED = "pinned"
    """A replica, and the request has written."""
    STRONG = "strong"
    """A replica, and the route requires the primary."""
    UNREACHABLE = "unreachable"
    """This statement could not reach it."""
    NOT_PROVED = "not_proved"
    """It did not prove the required position to this statement."""
    DOWN = "down"
    FOREIGN = "foreign"
    """It answers, but is not a replica of this primary."""
    DRAINING = "draining"
    LAGGING = "lagging"
    """Its data is, or may be, older than the read allows."""
    BEHIND = "behind"
    """It has not replayed what the client has seen."""
    OTHER_REPLICA = "other_replica"
    """The request's earlier reads went to another replica."""
    OTHER_ZONE = "other_zone"
    """A replica of the local zone qualifies."""
    WARMING_UP = "warming_up"
    """It came back recently and does not have its full share yet."""
    FARTHER = "farther"
    """Another replica has a lower round-trip time."""
    BUSIER = "busier"
    """Another replica has fewer borrowed connections for its weight."""
    NOT_ITS_TURN = "not_its_turn"
    """It qualifies, but it is another replica's turn."""
    SPARED = "spared"
    """The primary, reserved for writes while a replica qualifies, or by the policy."""


COULD_ANSWER: Final = frozenset(
    {
        Verdict.CHOSEN,
        Verdict.OTHER_REPLICA,
        Verdict.OTHER_ZONE,
        Verdict.WARMING_UP,
        Verdict.FARTHER,
        Verdict.BUSIER,
        Verdict.NOT_ITS_TURN,
    }
)
"""Verdicts of replicas that would answer if the preferred ones could not."""

MEANINGS: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.WRITE: "it takes the writes",
        Reason.PINNED: "the request has written, so its reads go to the primary",
        Reason.TRANSACTION: "a transaction is open there",
        Reason.STRONG: "the primary was asked for",
        Reason.BALANCED: "it is the replica whose turn it is",
        Reason.STICKY: "the request has read from it before",
        Reason.PROVED: "it shows, in the read's own round trip, that it has what the client has seen",
        Reason.BEHIND: "no replica has what the client has seen, and the primary has everything",
        Reason.LAGGING: "every replica that is up is, or may be, further behind than the read allows",
        Reason.UNHEALTHY: "no replica is up",
        Reason.NO_REPLICAS: "the datasource has no replicas",
        Reason.FAILOVER: "the first choice could not be reached",
        Reason.STALE_OK: "the primary is down, and old data is better than none here (no_replica: stale)",
    }
)
"""Explanation of each reason, for the chosen server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The arguments of one call of `choose()`."""

    intent: AccessIntent
    now: float = 0.0
    turn: int = 0
    dice: float = 0.0
    load: Mapping[str, float] = field(default_factory=lambda: _NO_LOAD)
    is_pinned: bool = False
    is_strong: bool = False
    max_lag_s: float | None = None
    after: Position | None = None
    patience_s: float = 0.0
    sticky: str | None = None
    failed: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()
    held: Mapping[str, Position] = field(default_factory=lambda: _NOTHING_HELD)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one server.

    Attributes:
        node: The server.
        verdict: The verdict.
        why: The verdict in words, with its figures.
    """

    node: Node
    verdict: Verdict
    why: str


def judge(topology: Topology, asked: Asked, route: Route | None) -> tuple[Judgement, ...]:
    """The verdict on each server, replicas first, in the order of the configuration.

    Args:
        topology: The topology passed to `choose()`.
        asked: The other arguments.
        route: The result of `choose()`.
    """
    judges = [_of_replica(topology, asked, route, node) for node in topology.replicas]
    return (*judges, _of_primary(topology, asked, route))


def _of_replica(topology: Topology, asked: Asked, route: Route | None, node: Node) -> Judgement:
    def is_(verdict: Verdict, why: str) -> Judgement:
        return Judgement(node, verdict, why)

    if route is not None and route.node == node.name:
        return is_(Verdict.CHOSEN, MEANINGS[route.reason])
    if asked.intent is AccessIntent.WRITE:
        return is_(Verdict.TAKES_NO_WRITES, "a replica takes no writes")
    if asked.is_pinned:
        return is_(Verdict.PINNED, "the request has written, so its reads go to the primary")
    if asked.is_strong:
        return is_(Verdict.STRONG, "the primary was asked for")
    if node.name in asked.failed:
        return is_(Verdict.UNREACHABLE, "this statement could not reach it")
    if node.health is not Health.CLOSED:
        trying = ", one connection tries whether it is back" if node.health is Health.HALF_OPEN else ""
        return is_(Verdict.DOWN, f"it is down{trying}")
    if node.is_foreign:
        return is_(Verdict.FOREIGN, "it answers, but it is no replica of this primary")
    if node.is_draining:
        return is_(Verdict.DRAINING, "it is being drained and gets no new reads")
    if not node.is_fresh(asked.now, asked.max_lag_s):
        return is_(Verdict.LAGGING, _lagging(node, asked))
    if asked.after is not None:
        if node.name in asked.behind:
            return is_(Verdict.NOT_PROVED, "it could not prove that it has what the client has seen")
        if not may_have(topology, node, asked.after, asked.patience_s, asked.held):
            return is_(Verdict.BEHIND, _behind(node, asked.after, asked.patience_s))
    return _beside(topology, asked, route, node)


def _beside(topology: Topology, asked: Asked, route: Route | None, node: Node) -> Judgement:
    """The verdict on a replica that qualifies: why another one was preferred."""
    if route is not None and route.reason is Reason.STICKY:
        return Judgement(node, Verdict.OTHER_REPLICA, f"the request has read from {route.node} before")
    able = [other for other in topology.replicas if _is_able(topology, other, asked)]
    warm_ones = warm(topology, able, asked.now, asked.dice)
    if node not in warm_ones:
        age_s = 0.0 if node.up_since is None else asked.now - node.up_since
        share = f"{age_s:.1f} s of {topology.policy.warmup_s:.1f} s"
        return Judgement(node, Verdict.WARMING_UP, f"it came back a moment ago ({share}) and gets a part of its share")
    if node not in best_tier(warm_ones):
        return Judgement(node, Verdict.OTHER_ZONE, f"it is outside of the zone {topology.policy.zone}")
    first = best_tier(warm_ones)
    if topology.policy.balance is Balance.NEAREST and node not in nearest(first):
        took = "not timed yet" if node.rtt_s is None else f"{node.rtt_s * 1000:.1f} ms"
        return Judgement(node, Verdict.FARTHER, f"its answers take longer ({took})")
    load = asked.load
    if topology.policy.balance is Balance.LEAST_BUSY and load and load[node.name] > min(load[n.name] for n in first):
        return Judgement(node, Verdict.BUSIER, f"it is busier ({load[node.name]:g} borrowed for its weight)")
    return Judgement(node, Verdict.NOT_ITS_TURN, "it may answer, but it is another one's turn")


def _of_primary(topology: Topology, asked: Asked, route: Route | None) -> Judgement:
    node = topology.primary
    if route is not None and route.node == node.name:
        tried = "" if node.is_up else "; it looks down as well, and is tried all the same"
        return Judgement(node, Verdict.CHOSEN, MEANINGS[route.reason] + tried)
    if node.name in asked.failed:
        return Judgement(node, Verdict.UNREACHABLE, "this statement could not reach it")
    if route is None:
        if topology.policy.no_replica is NoReplica.FAIL:
            return Judgement(node, Verdict.SPARED, "it is spared, although no replica may answer (no_replica: fail)")
        return Judgement(node, Verdict.DOWN, "it is down")
    if route.reason is Reason.STALE_OK:
        return Judgement(node, Verdict.DOWN, "it is down")
    return Judgement(node, Verdict.SPARED, "a replica may answer, so it is left to the writes")


def _is_able(topology: Topology, node: Node, asked: Asked) -> bool:
    return (
        node.is_usable
        and node.name not in asked.failed
        and node.is_fresh(asked.now, asked.max_lag_s)
        and (
            asked.after is None
            or (node.name not in asked.behind and may_have(topology, node, asked.after, asked.patience_s, asked.held))
        )
    )


def _lagging(node: Node, asked: Asked) -> str:
    allowed = f"{asked.max_lag_s:g} s are allowed"
    if node.fresh_at is None:
        return f"how old its data is, is not known, and {allowed}"
    return f"its data may be {asked.now - node.fresh_at:.1f} s old, and {allowed}"


def _behind(node: Node, after: Position, patience_s: float) -> str:
    position = node.position
    if position is None:
        return f"where it is, is not known, and the client has seen {after}"
    if position.timeline != after.timeline:
        return f"it is at {position}, and the client has seen {after}, on a timeline that it is not known to share"
    lag = "a lag that is not known" if node.lag_s is None else f"a lag of {node.lag_s * 1000:.0f} ms"
    waits = f"longer than the {patience_s * 1000:.0f} ms that a read waits" if patience_s else "and reads do not wait"
    return f"it is at {position}, {after.lsn - position.lsn} bytes before what the client has seen, with {lag}, {waits}"
