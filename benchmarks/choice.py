"""The cost of choosing a server: `choose()` alone, for a datasource with a primary and two replicas.

Covers every balance, and reads without requirements, with a bound on the lag, with a position, and with a sticky
replica.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from time import process_time
from typing import Final

from asgi_datasource.routing import AccessIntent, Balance, Health, Node, Position, Role, RoutingPolicy, Topology, choose
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved

NAME: Final = "choice"
SIDE: Final = "choose()"
TARGET: Final = Target("<=", 1.0)
HAVE: Final = Position(1, 1000)
BUSY: Final = {"r1": 2.0, "r2": 3.0}


def topology(balance: Balance) -> Topology:
    """A primary and two replicas without lag."""
    attributes = {"fresh_at": 100.0, "lag_s": 0.0, "position": Position(1, 2000)}
    replicas = tuple(
        Node(name, Role.REPLICA, rtt_s=rtt_s, **attributes) for name, rtt_s in (("r1", 0.001), ("r2", 0.0011))
    )  # type: ignore[arg-type]
    return Topology("orders", Node("primary", Role.PRIMARY), replicas, RoutingPolicy(balance=balance))


def cases() -> dict[str, Callable[[int], object]]:
    """The measured calls by name; each takes the counter of turns."""
    read, write = AccessIntent.READ, AccessIntent.WRITE
    seen = {balance: topology(balance) for balance in Balance}
    turns = seen[Balance.ROUND_ROBIN]
    weighted, busy, near = seen[Balance.WEIGHTED], seen[Balance.LEAST_BUSY], seen[Balance.NEAREST]
    one_down = replace(turns, replicas=(replace(turns.replicas[0], health=Health.OPEN), turns.replicas[1]))
    one_lags = replace(turns, replicas=(replace(turns.replicas[0], fresh_at=90.0), turns.replicas[1]))
    return {
        "a read": lambda turn: choose(turns, read, now=100.0, turn=turn),
        "a read, weighted": lambda turn: choose(weighted, read, now=100.0, turn=turn),
        "a read, least_busy": lambda turn: choose(busy, read, now=100.0, turn=turn, load=BUSY),
        "a read, nearest": lambda turn: choose(near, read, now=100.0, turn=turn),
        "a read with max_lag": lambda turn: choose(turns, read, now=100.0, turn=turn, max_lag_s=5.0),
        "a read with a token": lambda turn: choose(turns, read, now=100.0, turn=turn, after=HAVE, patience_s=0.05),
        "a read that stays": lambda turn: choose(turns, read, now=100.0, turn=turn, sticky="r1"),
        "a pinned read": lambda turn: choose(turns, read, now=100.0, turn=turn, is_pinned=True),
        "a read, one replica down": lambda turn: choose(one_down, read, now=100.0, turn=turn),
        "a read, one replica lags": lambda turn: choose(one_lags, read, now=100.0, turn=turn, max_lag_s=5.0),
        "a write": lambda turn: choose(turns, write, now=100.0, turn=turn),
    }


def run(report: Report, *, quick: bool) -> None:
    """Measure all calls, in alternating rounds."""
    rounds, calls = (3, 2000) if quick else (40, 20_000)
    calls_by_name = cases()
    cost_us: defaultdict[str, list[float]] = defaultdict(list)
    for case in interleaved(list(calls_by_name), rounds):
        cost_us[case].append(_cost_us(calls_by_name[case], calls))
    for case, rounds_us in cost_us.items():
        report.measured(NAME, case, SIDE, "cost", "us", rounds_us)
        report.state(NAME, case, "cost", SIDE, TARGET)


def _cost_us(ask: Callable[[int], object], calls: int) -> float:
    started = process_time()
    for turn in range(calls):
        ask(turn)
    return (process_time() - started) / calls * 1e6
