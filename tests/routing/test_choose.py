"""`choose()` is a pure function: every rule of routing is tested by its arguments and result."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource.routing import (
    AccessIntent,
    Balance,
    Health,
    Lineage,
    Node,
    NoReplica,
    Position,
    Reason,
    Role,
    Route,
    RoutingPolicy,
    Topology,
    choose,
)

NAMES = ("r1", "r2", "r3")
NOW = 1000.0

READ, WRITE = AccessIntent.READ, AccessIntent.WRITE
DOWN = Health.OPEN


def replica(name: str, **attributes: Any) -> Node:
    return Node(name, Role.REPLICA, **attributes)


def seen(*replicas: Node, primary: Health = Health.CLOSED, lineage: Lineage | None = None, **policy: Any) -> Topology:
    return Topology(
        "orders",
        Node("primary", Role.PRIMARY, primary),
        replicas,
        RoutingPolicy(**policy),
        lineage=lineage or Lineage(),
    )


def up(count: int, **policy: Any) -> Topology:
    return seen(*(replica(name) for name in NAMES[:count]), **policy)


def answer(route: Route | None) -> tuple[str, Reason]:
    assert route is not None
    return route.node, route.reason


def taken(topology: Topology, turns: int = 60, **requirements: Any) -> Counter[tuple[str, Reason]]:
    return Counter(
        answer(choose(topology, READ, **{"now": NOW, "turn": turn, **requirements})) for turn in range(turns)
    )


positions = st.builds(Position, st.integers(1, 3), st.integers(0, 5))
nodes = st.builds(
    Node,
    st.just(""),
    st.just(Role.REPLICA),
    health=st.sampled_from(Health),
    weight=st.integers(1, 3),
    tier=st.integers(0, 1),
    is_draining=st.booleans(),
    is_foreign=st.booleans(),
    fresh_at=st.none() | st.sampled_from([NOW - 9, NOW - 1, NOW]),
    lag_s=st.none() | st.sampled_from([0.0, 0.01, 5.0]),
    position=st.none() | positions,
    rtt_s=st.none() | st.sampled_from([0.001, 0.0011, 0.01]),
    up_since=st.none() | st.sampled_from([NOW - 100, NOW - 1, NOW]),
)
pictures = st.builds(
    lambda nodes, primary, policy, lineage: Topology(
        "orders",
        Node("primary", Role.PRIMARY, primary),
        tuple(dataclasses.replace(node, name=name) for name, node in zip(NAMES, nodes, strict=False)),
        policy,
        lineage,
    ),
    st.lists(nodes, max_size=3),
    st.sampled_from(Health),
    st.builds(
        RoutingPolicy,
        balance=st.sampled_from(Balance),
        no_replica=st.sampled_from(NoReplica),
        warmup_s=st.sampled_from([0.0, 10.0]),
    ),
    st.builds(
        Lineage,
        st.lists(st.tuples(st.integers(2, 3), st.integers(0, 5)), max_size=2, unique_by=lambda f: f[0]).map(tuple),
    ),
)
some_names = st.frozensets(st.sampled_from((*NAMES, "primary")))
requests = st.fixed_dictionaries(
    {
        "turn": st.integers(0, 100),
        "dice": st.floats(0, 1, exclude_max=True),
        "load": st.sampled_from([{}, {"r1": 0.0, "r2": 1.0, "r3": 1.0}]),
        "is_pinned": st.booleans(),
        "is_strong": st.booleans(),
        "max_lag_s": st.none() | st.sampled_from([0.5, 5.0]),
        "after": st.none() | positions,
        "patience_s": st.sampled_from([0.0, 0.05]),
        "sticky": st.none() | st.sampled_from(NAMES),
        "behind": st.frozensets(st.sampled_from(NAMES)),
    }
)


# Properties that hold for every state of the servers.


@given(pictures, requests)
def test_a_write_goes_to_the_primary(topology: Topology, requirements: dict[str, Any]) -> None:
    assert answer(choose(topology, WRITE, now=NOW, **requirements)) == ("primary", Reason.WRITE)


@given(pictures, requests)
def test_a_read_of_a_request_that_has_written_goes_to_the_primary(
    topology: Topology, requirements: dict[str, Any]
) -> None:
    assert answer(choose(topology, READ, now=NOW, **{**requirements, "is_pinned": True})) == ("primary", Reason.PINNED)


@given(pictures, requests)
def test_a_strong_read_goes_to_the_primary(topology: Topology, requirements: dict[str, Any]) -> None:
    requirements = {**requirements, "is_pinned": False, "is_strong": True}
    assert answer(choose(topology, READ, now=NOW, **requirements)) == ("primary", Reason.STRONG)


@given(pictures, some_names, requests, st.sampled_from(AccessIntent))
def test_a_failed_server_is_never_chosen_again_so_attempts_end(
    topology: Topology, failed: frozenset[str], requirements: dict[str, Any], intent: AccessIntent
) -> None:
    tried = set(failed)
    for _ in range(5):
        route = choose(topology, intent, now=NOW, failed=frozenset(tried), **requirements)
        if route is None:
            return
        assert route.node not in tried
        tried.add(route.node)
    raise AssertionError("five servers were chosen where there are four at most")


@settings(max_examples=200)
@given(pictures, some_names, requests)
def test_no_read_gets_data_that_is_or_may_be_older_than_max_lag(
    topology: Topology, failed: frozenset[str], requirements: dict[str, Any]
) -> None:
    route = choose(topology, READ, now=NOW, failed=failed, **requirements)
    if route is None or route.role is Role.PRIMARY or route.reason is Reason.STALE_OK:
        return
    node = next(node for node in topology.replicas if node.name == route.node)
    limit = requirements["max_lag_s"]
    assert limit is None or (node.fresh_at is not None and NOW - node.fresh_at <= limit)


@settings(max_examples=200)
@given(pictures, some_names, requests)
def test_excluded_replicas_get_no_reads(
    topology: Topology, failed: frozenset[str], requirements: dict[str, Any]
) -> None:
    route = choose(topology, READ, now=NOW, failed=failed, **requirements)
    if route is None or route.role is Role.PRIMARY:
        return
    node = next(node for node in topology.replicas if node.name == route.node)
    assert not node.is_foreign
    assert node.name not in requirements["behind"] or requirements["after"] is None
    if route.reason in (Reason.BALANCED, Reason.STICKY, Reason.PROVED, Reason.STALE_OK):
        assert node.is_up
        assert not node.is_draining


@settings(max_examples=200)
@given(pictures, some_names, requests)
def test_stale_data_is_read_only_if_allowed_and_while_the_primary_is_down(
    topology: Topology, failed: frozenset[str], requirements: dict[str, Any]
) -> None:
    route = choose(topology, READ, now=NOW, failed=failed, **requirements)
    if route is not None and route.reason is Reason.STALE_OK:
        assert topology.policy.no_replica is NoReplica.STALE
        assert requirements["after"] is None
        assert "primary" in failed or not topology.primary.is_up


@settings(max_examples=200)
@given(pictures, requests)
def test_the_reason_is_true(topology: Topology, requirements: dict[str, Any]) -> None:
    requirements = {**requirements, "is_pinned": False, "is_strong": False}
    route = choose(topology, READ, now=NOW, **requirements)
    if route is None:
        return
    truths = {
        Reason.NO_REPLICAS: not topology.replicas,
        Reason.UNHEALTHY: not topology.usable or not topology.primary.is_up,
        Reason.LAGGING: all(not node.is_fresh(NOW, requirements["max_lag_s"]) for node in topology.usable),
        Reason.BEHIND: requirements["after"] is not None,
        Reason.PROVED: requirements["after"] is not None,
        Reason.STICKY: route.node == requirements["sticky"],
        Reason.BALANCED: requirements["after"] is None,
        Reason.STALE_OK: not topology.primary.is_up,
    }
    assert truths[route.reason]


@settings(max_examples=200)
@given(pictures, requests)
def test_the_short_path_chooses_like_the_general_one(topology: Topology, requirements: dict[str, Any]) -> None:
    # A failed server that does not exist disables the short path, and only changes the reason.
    requirements = {**requirements, "is_pinned": False, "is_strong": False, "behind": frozenset[str]()}
    short = choose(topology, READ, now=NOW, **requirements)
    long = choose(topology, READ, now=NOW, **{**requirements, "behind": frozenset({"nobody"})})
    assert (short is None) == (long is None)
    if short is not None and long is not None:
        assert (short.node, short.reason, short.role) == (long.node, long.reason, long.role)


# Health.


def test_reads_take_the_replicas_in_turn() -> None:
    assert [answer(choose(up(3), READ, turn=turn))[0] for turn in range(6)] == ["r1", "r2", "r3"] * 2


def test_a_replica_that_is_down_draining_or_foreign_is_skipped() -> None:
    for flaw in ({"health": DOWN}, {"health": Health.HALF_OPEN}, {"is_draining": True}, {"is_foreign": True}):
        topology = seen(replica("r1"), replica("r2", **flaw), replica("r3"))
        assert set(taken(topology)) == {("r1", Reason.BALANCED), ("r3", Reason.BALANCED)}


def test_the_sticky_replica_is_kept_while_it_is_up() -> None:
    assert set(taken(up(2), sticky="r2")) == {("r2", Reason.STICKY)}
    assert set(taken(seen(replica("r1"), replica("r2", health=DOWN)), sticky="r2")) == {("r1", Reason.BALANCED)}


def test_without_replicas_the_primary_answers_reads() -> None:
    assert answer(choose(up(0), READ)) == ("primary", Reason.NO_REPLICAS)


def test_the_primary_answers_when_no_replica_is_up() -> None:
    topology = seen(replica("r1", health=DOWN), replica("r2", health=DOWN))
    assert answer(choose(topology, READ)) == ("primary", Reason.UNHEALTHY)


def test_with_no_replica_fail_the_primary_gets_no_reads() -> None:
    topology = seen(replica("r1", health=DOWN), no_replica=NoReplica.FAIL)
    assert choose(topology, READ) is None
    assert answer(choose(topology, WRITE)) == ("primary", Reason.WRITE)
    assert choose(up(1, no_replica=NoReplica.FAIL), READ, failed=frozenset({"r1"})) is None


def test_with_no_replica_fail_the_primary_answers_what_the_replicas_are_behind_for() -> None:
    topology = seen(replica("r1", position=Position(1, 5), lag_s=5.0), no_replica=NoReplica.FAIL)
    wanted = {"now": NOW, "after": Position(1, 9)}
    assert answer(choose(topology, READ, **wanted)) == ("primary", Reason.BEHIND)
    one_failed = seen(replica("r1", position=Position(1, 5), lag_s=5.0), replica("r2"), no_replica=NoReplica.FAIL)
    assert answer(choose(one_failed, READ, **wanted, failed=frozenset({"r2"}))) == ("primary", Reason.BEHIND)
    near = seen(replica("r1", position=Position(1, 5), lag_s=0.1), no_replica=NoReplica.FAIL)
    assert answer(choose(near, READ, **wanted, patience_s=0.1)) == ("r1", Reason.PROVED)
    assert answer(choose(near, READ, **wanted, patience_s=0.1, behind=frozenset({"r1"}))) == ("primary", Reason.BEHIND)


def test_a_replica_that_has_not_proved_a_position_is_not_asked_again_where_all_else_has_failed() -> None:
    topology = seen(replica("r1", position=Position(1, 5), lag_s=0.0), primary=DOWN)
    behind = {"now": NOW, "after": Position(1, 9), "behind": frozenset({"r1"})}
    assert answer(choose(topology, READ, **behind)) == ("primary", Reason.UNHEALTHY)
    assert choose(topology, READ, **behind, failed=frozenset({"primary"})) is None


def test_after_a_failed_connect_the_next_server_is_chosen_with_reason_failover() -> None:
    assert answer(choose(up(2), READ, failed=frozenset({"r1"}))) == ("r2", Reason.FAILOVER)
    assert answer(choose(up(2), READ, failed=frozenset({"r1", "r2"}))) == ("primary", Reason.FAILOVER)


def test_when_all_breakers_are_open_a_server_is_tried_anyway() -> None:
    topology = seen(replica("r1", health=DOWN), replica("r2", health=DOWN), primary=DOWN)
    assert answer(choose(topology, READ)) == ("primary", Reason.UNHEALTHY)
    assert answer(choose(topology, READ, failed=frozenset({"primary"}))) == ("r1", Reason.FAILOVER)


# Shares.


def test_weighted_shares_are_proportional_and_interleaved() -> None:
    topology = seen(replica("r1", weight=3), replica("r2", weight=1), replica("r3", weight=2), balance=Balance.WEIGHTED)
    order = [answer(choose(topology, READ, turn=turn))[0] for turn in range(12)]
    assert Counter(order) == {"r1": 6, "r2": 2, "r3": 4}
    assert order[:6] == order[6:]
    assert not any(first == second == third for first, second, third in zip(order, order[1:], order[2:], strict=False))


def test_round_robin_ignores_weights() -> None:
    topology = seen(replica("r1", weight=3), replica("r2", weight=1))
    assert set(taken(topology, 10).values()) == {5}


def test_the_least_busy_replica_is_chosen_and_equals_take_turns() -> None:
    topology = up(3, balance=Balance.LEAST_BUSY)
    assert set(taken(topology, load={"r1": 2.0, "r2": 0.5, "r3": 1.0})) == {("r2", Reason.BALANCED)}
    assert taken(topology, load={"r1": 2.0, "r2": 1.0, "r3": 1.0}) == {
        ("r2", Reason.BALANCED): 30,
        ("r3", Reason.BALANCED): 30,
    }


def test_the_nearest_replicas_take_turns() -> None:
    topology = seen(
        replica("r1", rtt_s=0.0100), replica("r2", rtt_s=0.0010), replica("r3", rtt_s=0.0012), balance=Balance.NEAREST
    )
    assert taken(topology) == {("r2", Reason.BALANCED): 30, ("r3", Reason.BALANCED): 30}


def test_without_round_trip_times_all_replicas_are_equally_near() -> None:
    assert len(taken(up(3, balance=Balance.NEAREST))) == 3


def test_replicas_in_the_own_zone_come_first_and_others_replace_them() -> None:
    near, far = replica("r1"), replica("r2", tier=1)
    assert set(taken(seen(near, far))) == {("r1", Reason.BALANCED)}
    assert set(taken(seen(dataclasses.replace(near, health=DOWN), far))) == {("r2", Reason.BALANCED)}
    assert set(taken(seen(near, far), failed=frozenset({"r1"}))) == {("r2", Reason.FAILOVER)}


def test_a_recovered_server_regains_its_share_gradually() -> None:
    def share(age_s: float) -> int:
        topology = seen(replica("r1"), replica("r2", up_since=NOW - age_s), warmup_s=10.0)
        nodes = [
            answer(choose(topology, READ, now=NOW, turn=turn, dice=dice / 10))[0]
            for turn in (0, 1)
            for dice in range(10)
        ]
        return nodes.count("r2")

    assert [share(age) for age in (0.0, 2.0, 5.0, 9.5, 10.0, 60.0)] == [1, 3, 6, 10, 10, 10]


def test_when_all_servers_have_just_recovered_they_share_the_reads() -> None:
    topology = seen(replica("r1", up_since=NOW), replica("r2", up_since=NOW), warmup_s=10.0)
    assert len(taken(topology, dice=0.9)) == 2
