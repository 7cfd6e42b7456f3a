"""The verdict on each server is true: a server that was only not chosen is chosen when the others are excluded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource.routing import (
    MEANINGS,
    Asked,
    Balance,
    Health,
    NoReplica,
    Position,
    Reason,
    Role,
    Topology,
    Verdict,
    choose,
    judge,
)
from asgi_datasource.routing.explain_choice import COULD_ANSWER
from tests.routing.test_choose import DOWN, NOW, READ, WRITE, pictures, replica, requests, seen, some_names


def judged(topology: Topology, **requirements: Any) -> dict[str, tuple[Verdict, str]]:
    asked = Asked(**{"intent": READ, "now": NOW, **requirements})
    arguments = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    route = choose(topology, arguments.pop("intent"), **arguments)
    return {judgement.node.name: (judgement.verdict, judgement.why) for judgement in judge(topology, asked, route)}


@settings(max_examples=400)
@given(pictures, some_names, requests, st.sampled_from([READ, WRITE]))
def test_verdicts_agree_with_the_choice(
    topology: Topology, failed: frozenset[str], requirements: dict[str, Any], intent: Any
) -> None:
    asked = Asked(intent=intent, now=NOW, failed=failed, **requirements)
    route = choose(topology, intent, now=NOW, failed=failed, **requirements)
    verdicts = {judgement.node.name: judgement for judgement in judge(topology, asked, route)}
    assert list(verdicts) == [*(node.name for node in topology.replicas), "primary"]
    assert [name for name, judgement in verdicts.items() if judgement.verdict is Verdict.CHOSEN] == (
        [] if route is None else [route.node]
    )
    for name, judgement in verdicts.items():
        assert judgement.why
        if judgement.node.role is Role.PRIMARY or judgement.verdict is Verdict.CHOSEN:
            continue
        # The same server alone with a primary that is up and answers if the server may not.
        primary = dataclasses.replace(topology.primary, health=Health.CLOSED)
        alone = dataclasses.replace(topology, primary=primary, replicas=(judgement.node,))
        answer = choose(alone, intent, now=NOW, failed=failed - {"primary"}, **requirements)
        assert (answer is not None and answer.node == name) == (judgement.verdict in COULD_ANSWER)


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Reason)


AT_3 = {"position": Position(1, 3000), "lag_s": 0.2}

CASES = [
    # a replica r1 next to a current one, the requirements, the verdict on r1, and words of the explanation
    ({}, {"intent": WRITE}, Verdict.TAKES_NO_WRITES, "takes no writes"),
    ({}, {"is_pinned": True}, Verdict.PINNED, "the request has written"),
    ({}, {"is_strong": True}, Verdict.STRONG, "the primary was asked for"),
    ({}, {"failed": frozenset({"r1"})}, Verdict.UNREACHABLE, "could not reach it"),
    ({"health": DOWN}, {}, Verdict.DOWN, "it is down"),
    ({"health": Health.HALF_OPEN}, {}, Verdict.DOWN, "one connection tries whether it is back"),
    ({"is_foreign": True}, {}, Verdict.FOREIGN, "no replica of this primary"),
    ({"is_draining": True}, {}, Verdict.DRAINING, "gets no new reads"),
    ({"fresh_at": NOW - 7.5}, {"max_lag_s": 5.0}, Verdict.LAGGING, "may be 7.5 s old, and 5 s are allowed"),
    ({}, {"max_lag_s": 5.0}, Verdict.LAGGING, "how old its data is, is not known"),
    (AT_3, {"after": Position(1, 5000)}, Verdict.BEHIND,
     "it is at 1:0/BB8, 2000 bytes before what the client has seen, with a lag of 200 ms, and reads do not wait"),
    (AT_3, {"after": Position(1, 5000), "patience_s": 0.05}, Verdict.BEHIND, "longer than the 50 ms that a read waits"),
    ({}, {"after": Position(1, 5000)}, Verdict.BEHIND, "where it is, is not known, and the client has seen 1:0/1388"),
    ({"position": Position(2, 9000)}, {"after": Position(1, 5000)}, Verdict.BEHIND, "not known to share"),
    ({"position": Position(1, 9000)}, {"after": Position(1, 5000), "behind": frozenset({"r1"})}, Verdict.NOT_PROVED,
     "could not prove"),
    ({}, {"sticky": "r2"}, Verdict.OTHER_REPLICA, "has read from r2 before"),
    ({"tier": 1}, {}, Verdict.OTHER_ZONE, "outside of the zone eu"),
    ({"up_since": NOW - 2.5}, {"dice": 0.9}, Verdict.WARMING_UP, "(2.5 s of 10.0 s)"),
    ({}, {"turn": 1}, Verdict.NOT_ITS_TURN, "another one's turn"),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "requirements", "verdict", "words"), CASES)
def test_the_reason_why_a_replica_was_not_chosen(
    attributes: dict[str, Any], requirements: dict[str, Any], verdict: Verdict, words: str
) -> None:
    current = {"fresh_at": NOW, "position": Position(1, 9000), "lag_s": 0.0}
    topology = seen(replica("r1", **attributes), replica("r2", **current), warmup_s=10.0, zone="eu")
    found, why = judged(topology, **requirements)["r1"]
    assert (found, words in why) == (verdict, True), why


def test_the_reason_why_a_farther_or_busier_replica_was_not_chosen() -> None:
    near = seen(replica("r1", rtt_s=0.02), replica("r2", rtt_s=0.001), replica("r3"), balance=Balance.NEAREST)
    assert judged(near)["r1"] == (Verdict.FARTHER, "its answers take longer (20.0 ms)")
    assert judged(near)["r3"] == (Verdict.FARTHER, "its answers take longer (not timed yet)")
    busy = seen(replica("r1"), replica("r2"), balance=Balance.LEAST_BUSY)
    assert judged(busy, load={"r1": 3.0, "r2": 1.5})["r1"] == (
        Verdict.BUSIER, "it is busier (3 borrowed for its weight)",
    )  # fmt: skip
    # Without figures, they are as busy as each other.
    assert {verdict for verdict, _ in judged(busy).values()} == {
        Verdict.CHOSEN, Verdict.NOT_ITS_TURN, Verdict.SPARED,
    }  # fmt: skip


def test_the_reason_why_the_primary_was_not_chosen() -> None:
    assert judged(seen(replica("r1")))["primary"][0] is Verdict.SPARED
    spared = seen(replica("r1", health=DOWN), no_replica=NoReplica.FAIL)
    assert judged(spared)["primary"] == (
        Verdict.SPARED, "it is spared, although no replica may answer (no_replica: fail)",
    )  # fmt: skip
    stale = seen(replica("r1"), no_replica=NoReplica.STALE, primary=DOWN)
    assert judged(stale, max_lag_s=1.0)["primary"][0] is Verdict.DOWN
    assert judged(stale, max_lag_s=1.0)["r1"][0] is Verdict.CHOSEN
    assert judged(seen(replica("r1", health=DOWN)), failed=frozenset({"primary"}))["primary"][0] is Verdict.UNREACHABLE
    everything_down = judged(seen(replica("r1", health=DOWN), primary=DOWN))
    assert everything_down["primary"][0] is Verdict.CHOSEN
    assert "tried all the same" in everything_down["primary"][1]
