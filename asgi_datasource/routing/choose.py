"""Which server answers: one pure function of a picture of the servers and of what is asked of them.

No I/O and no clock: the same call gives the same answer in a request, in a test and offline.
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
    picture: Topology,
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
        picture: The datasource's servers as they look now.
        intent: Writes go to the primary, always.
        now: Event-loop time.
        turn: A counter; any integer from 0.
        dice: A random number from 0 up to 1, for servers that get back to their share bit by bit.
        load: Borrowed connections of each replica by its weight, by name; for `least_busy` alone.
        is_pinned: The request has written.
        is_strong: The route asked for the primary.
        max_lag_s: How old the data may be; None sets no bound.
        after: A position that the server must have, and will have to prove; None asks for nothing.
        patience_s: For how long a server that does not have it yet is worth waiting for.
        sticky: Name of the replica that the request read from before.
        failed: Names of the servers that this very statement could not reach.
        behind: Names of those that could not prove to this very statement what was asked.
        held: What servers have shown to have since, by name; what the picture says may be older.

    Returns:
        The way to a server, with the reason; None when every server that may run the statement has failed, or none may.
    """
    if (
        intent is _READ
        and not (is_pinned or is_strong or failed or behind)
        and picture.warm_at <= now
        and (after is None or (after.lsn <= picture.held_lsn and after.timeline == picture.held_timeline))
        and (max_lag_s is None or now - picture.fresh_at <= max_lag_s)
    ):
        # What most reads ask for; worked out when the picture was drawn.
        if sticky is not None:
            route = picture.sticky.get(sticky)
            if route is not None:
                return route
        turns = picture.turns if after is None else picture.proofs
        if turns:
            if load and picture.policy.balance is Balance.LEAST_BUSY:
                return _least(turns, load, turn)
            return turns[turn % len(turns)]
    primary = picture.primary
    if intent is _WRITE:
        return None if primary.name in failed else picture.write
    if is_pinned or is_strong or not picture.replicas:
        if primary.name in failed:
            return None
        return picture.pinned if is_pinned else picture.strong if is_strong else picture.no_replicas
    return _read(picture, now, turn, dice, load, max_lag_s, after, patience_s, sticky, failed, behind, held)


def _read(
    picture: Topology,
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
    usable: Sequence[Node] = picture.usable
    if failed:
        usable = [node for node in usable if node.name not in failed]
    fresh = usable
    if max_lag_s is not None:
        fresh = [node for node in usable if node.fresh_at is not None and now - node.fresh_at <= max_lag_s]
    able = fresh
    if after is not None:
        able = [node for node in fresh if node.name not in behind and may_have(picture, node, after, patience_s, held)]
    if able:
        if sticky is not None:
            for node in able:
                if node.name == sticky:
                    return picture.route(node, _READ, Reason.STICKY)
        node = able[0]
        if len(able) > 1:
            node = _balance(picture, best_tier(warm(picture, able, now, dice)), turn, load)
        if failed:
            return picture.route(node, _READ, Reason.FAILOVER)
        return (picture.balanced if after is None else picture.proved)[node.name]
    return _stand_in(picture, usable, fresh, now, turn, load, max_lag_s, after, failed, behind)


def _stand_in(
    picture: Topology,
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
    """No replica may answer: the primary, or what the policy has in its place."""
    primary = picture.primary
    policy = picture.policy.no_replica
    reason = Reason.BEHIND if fresh else Reason.LAGGING if usable else Reason.UNHEALTHY
    if failed and reason is not Reason.BEHIND:
        reason = Reason.FAILOVER
    if policy is NoReplica.FAIL and reason is not Reason.BEHIND:
        return None
    if primary.is_up and primary.name not in failed:
        return picture.route(primary, _READ, reason)
    if policy is NoReplica.STALE and after is None and usable:
        return picture.route(_balance(picture, best_tier(usable), turn, load), _READ, Reason.STALE_OK)
    # Everything looks down. What looks down may be up again: try what this statement has not tried yet.
    reason = Reason.FAILOVER if failed else Reason.UNHEALTHY
    for node in (primary, *picture.replicas):
        if node.name in failed or node.name in behind or node.is_foreign:
            continue
        if node.role is Role.PRIMARY or node.is_fresh(now, max_lag_s):
            return picture.route(node, _READ, reason)
    return None


def may_have(picture: Topology, node: Node, after: Position, patience_s: float, held: Mapping[str, Position]) -> bool:
    """Whether it is worth asking this server to prove a position: what it proves counts, not what is believed here."""
    shown = held.get(node.name)
    if shown is not None and picture.lineage.covers(shown, after):
        return True
    position = node.position
    if position is None or position.timeline < after.timeline:
        return False
    if picture.lineage.covers(position, after):
        return True
    if position.timeline != after.timeline:
        return False
    # It was not there yet when it was last asked. One that keeps up will be; one that is known to lag will not.
    return node.lag_s is not None and node.lag_s <= patience_s


def warm(picture: Topology, nodes: Sequence[Node], now: float, dice: float) -> Sequence[Node]:
    """Those that take this read: a server that came back takes more of them from moment to moment."""
    warmup_s = picture.policy.warmup_s
    if picture.warm_at <= now or warmup_s <= 0:
        return nodes
    warm = [node for node in nodes if node.up_since is None or now - node.up_since >= dice * warmup_s]
    return warm or nodes


def _balance(picture: Topology, nodes: Sequence[Node], turn: int, load: Mapping[str, float]) -> Node:
    balance = picture.policy.balance
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
