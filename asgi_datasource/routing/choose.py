"""Server choice: one pure function of the topology and the request.

It does no I/O and reads no clock, so the same call gives the same answer in a request, in a test and offline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from .intent import AccessIntent
from .policy import Balance, NoReplica
from .position import Position
from .topology import Node, Reason, Role, Route, Topology, best_tier, nearest, take_turns

_NOBODY: Final[frozenset[str]] = frozenset()
_NO_LOAD: Final[Mapping[str, float]] = MappingProxyType({})
_NOTHING_HELD: Final[Mapping[str, Position]] = MappingProxyType({})
_WRITE: Final = AccessIntent.WRITE
_READ: Final = AccessIntent.READ


def choose(
    topology: Topology,
    intent: AccessIntent,
    *,
    now: float = 0.0,
    turn: int = 0,
    dice: float = 0.0,
    load: Mapping[str, float] = _NO_LOAD,
    is_pinned: bool = False,
    is_strong: bool = False,
    max_lag_s: float | None = None,
    after: Position | None = None,
    patience_s: float = 0.0,
    sticky: str | None = None,
    failed: frozenset[str] = _NOBODY,
    behind: frozenset[str] = _NOBODY,
    held: Mapping[str, Position] = _NOTHING_HELD,
) -> Route | None:
    """Choose the server for a statement that runs outside an open transaction.

    Args:
        topology: The datasource's servers in their current state.
        intent: Writes always go to the primary.
        now: Event-loop time.
        turn: A counter for round robin; any integer from 0.
        dice: A random number in [0, 1), for the warm-up of servers that came back.
        load: Borrowed connections of each replica by its weight, by name; for `least_busy` only.
        is_pinned: The request has written.
        is_strong: The route requires the primary.
        max_lag_s: Maximum age of the data in seconds; None sets no bound.
        after: A position that the server has to prove; None for no requirement.
        patience_s: Seconds that the read may wait for a server to reach `after`.
        sticky: Name of the replica that answered the request's earlier reads.
        failed: Names of the servers that this statement could not reach.
        behind: Names of the servers that did not prove `after` to this statement.
        held: Positions that servers have proved since, by name; those in the topology may be older.

    Returns:
        The route, with its reason; None if every server that may run the statement has failed, or none may run it.
    """
    if (
        intent is _READ
        and not (is_pinned or is_strong or failed or behind)
        and topology.warm_at <= now
        and (after is None or (after.lsn <= topology.held_lsn and after.timeline == topology.held_timeline))
        and (max_lag_s is None or now - topology.fresh_at <= max_lag_s)
    ):
        # The common case: its routes were computed with the topology.
        if sticky is not None:
            route = topology.sticky.get(sticky)
            if route is not None:
                return route
        turns = topology.turns if after is None else topology.proofs
        if turns:
            if load and topology.policy.balance is Balance.LEAST_BUSY:
                return _least(turns, load, turn)
            return turns[turn % len(turns)]
    primary = topology.primary
    if intent is _WRITE:
        return None if primary.name in failed else topology.write
    if is_pinned or is_strong or not topology.replicas:
        if primary.name in failed:
            return None
        return topology.pinned if is_pinned else topology.strong if is_strong else topology.no_replicas
    return _read(topology, now, turn, dice, load, max_lag_s, after, patience_s, sticky, failed, behind, held)


def _read(
    topology: Topology,
    now: float,
    turn: int,
    dice: float,
    load: Mapping[str, float],
    max_lag_s: float | None,
    after: Position | None,
    patience_s: float,
    sticky: str | None,
    failed: frozenset[str],
    behind: frozenset[str],
    held: Mapping[str, Position],
) -> Route | None:
    usable: Sequence[Node] = topology.usable
    if failed:
        usable = [node for node in usable if node.name not in failed]
    fresh = usable
    if max_lag_s is not None:
        fresh = [node for node in usable if node.fresh_at is not None and now - node.fresh_at <= max_lag_s]
    able = fresh
    if after is not None:
        able = [node for node in fresh if node.name not in behind and may_have(topology, node, after, patience_s, held)]
    if able:
        if sticky is not None:
            for node in able:
                if node.name == sticky:
                    return topology.route(node, _READ, Reason.STICKY)
        node = able[0]
        if len(able) > 1:
            node = _balance(topology, best_tier(warm(topology, able, now, dice)), turn, load)
        if failed:
            return topology.route(node, _READ, Reason.FAILOVER)
        return (topology.balanced if after is None else topology.proved)[node.name]
    return _stand_in(topology, usable, fresh, now, turn, load, max_lag_s, after, failed, behind)


def _stand_in(
    topology: Topology,
    usable: Sequence[Node],
    fresh: Sequence[Node],
    now: float,
    turn: int,
    load: Mapping[str, float],
    max_lag_s: float | None,
    after: Position | None,
    failed: frozenset[str],
    behind: frozenset[str],
) -> Route | None:
    """The route when no replica qualifies: the primary, or what `no_replica` says."""
    primary = topology.primary
    policy = topology.policy.no_replica
    reason = Reason.BEHIND if fresh else Reason.LAGGING if usable else Reason.UNHEALTHY
    if failed and reason is not Reason.BEHIND:
        reason = Reason.FAILOVER
    if policy is NoReplica.FAIL and reason is not Reason.BEHIND:
        return None
    if primary.is_up and primary.name not in failed:
        return topology.route(primary, _READ, reason)
    if policy is NoReplica.STALE and after is None and usable:
        return topology.route(_balance(topology, best_tier(usable), turn, load), _READ, Reason.STALE_OK)
    # Every server looks down. They may be up again: try the ones that this statement has not tried yet.
    reason = Reason.FAILOVER if failed else Reason.UNHEALTHY
    for node in (primary, *topology.replicas):
        if node.name in failed or node.name in behind or node.is_foreign:
            continue
        if node.role is Role.PRIMARY or node.is_fresh(now, max_lag_s):
            return topology.route(node, _READ, reason)
    return None


def may_have(topology: Topology, node: Node, after: Position, patience_s: float, held: Mapping[str, Position]) -> bool:
    """Whether a server may have reached a position. The proof decides; this is only an estimate."""
    shown = held.get(node.name)
    if shown is not None and topology.lineage.covers(shown, after):
        return True
    position = node.position
    if position is None or position.timeline < after.timeline:
        return False
    if topology.lineage.covers(position, after):
        return True
    if position.timeline != after.timeline:
        return False
    # It had not reached the position when it was last asked. A replica within `patience_s` probably has by now.
    return node.lag_s is not None and node.lag_s <= patience_s


def warm(topology: Topology, nodes: Sequence[Node], now: float, dice: float) -> Sequence[Node]:
    """The servers eligible for this read: one that came back gets a share that grows during its warm-up."""
    warmup_s = topology.policy.warmup_s
    if topology.warm_at <= now or warmup_s <= 0:
        return nodes
    warm = [node for node in nodes if node.up_since is None or now - node.up_since >= dice * warmup_s]
    return warm or nodes


def _balance(topology: Topology, nodes: Sequence[Node], turn: int, load: Mapping[str, float]) -> Node:
    balance = topology.policy.balance
    if balance is Balance.NEAREST:
        nodes = nearest(nodes)
    elif balance is Balance.LEAST_BUSY and load:
        least = min([load[node.name] for node in nodes])
        nodes = [node for node in nodes if load[node.name] == least]
    turns = take_turns(nodes, balance)
    return turns[turn % len(turns)]


def _least(turns: Sequence[Route], load: Mapping[str, float], turn: int) -> Route:
    loads = [load[route.node] for route in turns]
    least = min(loads)
    if loads.count(least) == 1:
        return turns[loads.index(least)]
    equals = [route for route, its in zip(turns, loads, strict=True) if its == least]
    return equals[turn % len(equals)]
