"""The plots and tables of docs/performance.md, from the result file of a run of `scripts/bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from .drawing import Lines, Spread, bars, lines, short

RESULT: Final = Path(__file__).parents[2] / "benchmarks" / "reference" / "tournament.json"
FOLDER: Final = "docs/assets"
OURS: Final = "asgi-datasource"
MINE: Final = frozenset(
    {OURS, "ORM on asgi-datasource", "asgi-datasource in FastAPI", "asgi-datasource with a replica"}
)
CLIENTS: Final = (32, 64, 512)
DELAYS: Final = ("loopback", "1 ms", "2 ms", "10 ms")
WORKLOADS: Final = (
    "no SQL",
    "one read",
    "three reads",
    "one write",
    "read-modify-write",
    "ten-statement write",
    "ORM read",
    "ORM write",
    "report on a replica",
)


@cache
def result() -> dict[str, Any]:
    """The committed result file."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def render_plots() -> dict[str, str]:
    """The drawings by path."""
    drawings: dict[str, Callable[[], str]] = {
        "throughput": lambda: _bars("Requests per second", "requests per second", "1/s"),
        "cpu": lambda: _bars("Requests per second of CPU of the process", "requests per CPU second", "1/s"),
        "connections": lambda: _bars("Connections in use at the server", "connections in use", "mean, of 5"),
        "memory": _memory,
        "latency": _latency,
        "delay": _delay,
    }
    return {f"{FOLDER}/performance-{name}.svg": draw() for name, draw in drawings.items()}


def spreads(case: str, metric: str, benchmark: str = "tournament") -> dict[str, Spread]:
    """Median and quartiles of each side."""
    found: dict[str, Spread] = {}
    for measurement in result()["measurements"]:
        if (measurement["benchmark"], measurement["case"], measurement["metric"]) == (benchmark, case, metric):
            ordered = sorted(measurement["rounds"])
            quarter = len(ordered) // 4
            found[measurement["side"]] = Spread(ordered[quarter], measurement["median"], ordered[-1 - quarter])
    return found


def _bars(title: str, metric: str, unit: str) -> str:
    panels = {name: spreads(f"{name}, 32 clients, pool of 5, loopback", metric) for name in WORKLOADS}
    return bars(f"{title}, 32 clients, pool of 5", unit, _shown(panels), MINE)


def _memory() -> str:
    panels = {
        name: spreads(f"memory of {name}", "memory")
        for name in ("1,000 requests in flight", "10,000 idle websocket sessions")
    }
    return bars("Memory of Python objects", "MB", _shown(panels), MINE)


def _shown(panels: Mapping[str, Mapping[str, Spread]]) -> dict[str, Mapping[str, Spread]]:
    """The panels that have something to show."""
    return {name: sides for name, sides in panels.items() if any(spread.high > 0 for spread in sides.values())}


def _latency() -> str:
    panels = [
        _over(
            [(str(clients), f"one read, {clients} clients, pool of {pool}, loopback") for clients in CLIENTS],
            metric,
            title,
        )
        for pool in (5, 20)
        for metric, title in (
            ("latency p50", f"median, pool of {pool}"),
            ("latency p99", f"99th percentile, pool of {pool}"),
            ("latency p999", f"99.9th percentile, pool of {pool}"),
        )
    ]
    return lines("Latency of one read over load", "clients at once", "ms", panels)


def _delay() -> str:
    panels = [
        _over([(delay, f"{kind}, 32 clients, pool of 5, {delay}") for delay in DELAYS], "requests per second", kind)
        for kind in ("one read", "one write")
    ]
    return lines("Throughput over network delay, 32 clients, pool of 5", "added to each round trip", "1/s", panels)


def _over(cases: Iterable[tuple[str, str]], metric: str, title: str) -> Lines:
    found = {position: spreads(case, metric) for position, case in cases}
    sides = [side for side in next(iter(found.values())) if all(side in values for values in found.values())]
    kept = [side for side in sides if "FastAPI" not in side and "Litestar" not in side]
    return Lines(title, list(found), {side: [values[side].median for values in found.values()] for side in kept})


def render_figures() -> str:
    """The generated part of docs/performance.md: the machine, the plots, and the targets."""
    found = result()
    environment: dict[str, Any] = found["environment"]
    packages: dict[str, str] = environment["packages"]
    server: dict[str, str] = environment["server"]
    settings = ", ".join(f"`{name}={value}`" for name, value in server.items() if name != "server_version")
    told = [
        f"Measured {found['started_at'][:10]} on {environment['cpus']} cores "
        f"({environment['system']} {environment['machine']}), "
        f"{environment['implementation']} {environment['python']}, PostgreSQL {server['server_version']} ({settings}), "
        f"{environment['tournament']['rounds']} rounds of {environment['tournament']['seconds']} s; "
        + ", ".join(f"{name} {packages[name]}" for name in sorted(packages) if name != "asgi-datasource")
        + ".",
        "",
    ]
    for name, text in PLOTS.items():
        told += [f"![{text}](assets/performance-{name}.svg)", ""]
    told += ["| case | | against | measured (quartiles) | goal | |", "| --- | --- | --- | --- | --- | --- |"]
    for ratio in found["ratios"]:
        if ratio["target"] is not None and ratio["benchmark"] in ("tournament", "latency", "load"):
            told.append(_target(ratio))
    return "\n".join(told)


PLOTS: Final = {
    "throughput": "Requests per second of every side in every workload, with quartiles",
    "cpu": "Requests per second of CPU of every side in every workload, with quartiles",
    "latency": "Latency of one read with 32, 64 and 512 clients, on pools of 5 and 20",
    "delay": "Reads and writes per second on loopback and with 1, 2 and 10 ms",
    "connections": "Connections that the server sees in use",
    "memory": "Memory of requests in flight and of idle websocket sessions",
}


def _target(ratio: Mapping[str, Any]) -> str:
    value = f"{short(ratio['value'])}x ({short(ratio['low'])} to {short(ratio['high'])})"
    goal = f"{'at least' if ratio['target']['op'] == '>=' else 'at most'} {short(ratio['target']['value'])}x"
    state = "reached" if ratio["is_met"] else "missed"
    name = f"{ratio['case']}, uvicorn" if ratio["benchmark"] == "load" else ratio["case"]
    return f"| {name} | {ratio['metric']} | {ratio['against']} | {value} | {goal} | {state} |"


CLAIMS: Final = (
    ("latency", "one read, loopback", "wall", "psycopg by hand", "time of a tenant read, one at a time, on loopback"),
    ("latency", "one read, 2 ms", "wall", "psycopg by hand", "the same, with 2 ms of network latency"),
    ("latency", "one write, loopback", "wall", "psycopg by hand", "time of a tenant write with COMMIT, on loopback"),
    ("latency", "one write, 2 ms", "wall", "psycopg by hand", "the same, with 2 ms of network latency"),
    (
        "load",
        "one read, loopback, asyncio",
        "requests per second",
        "SQLAlchemy + asyncpg",
        "reads a second, 32 clients, uvicorn",
    ),
    (
        "load",
        "one write, loopback, asyncio",
        "requests per second",
        "SQLAlchemy + asyncpg",
        "writes a second, the same",
    ),
    (
        "load",
        "one read, loopback, asyncio",
        "latency p99",
        "SQLAlchemy + asyncpg",
        "99th percentile of reads, the same",
    ),
    (
        "load",
        "one write, loopback, asyncio",
        "latency p99",
        "SQLAlchemy + asyncpg",
        "99th percentile of writes, the same",
    ),
    (
        "in_process",
        "request without SQL",
        "added cost",
        "header look-up + send wrapper",
        "CPU added to a request without SQL",
    ),
)
"""Benchmark, case, metric, the other side, and what the README says."""


def render_claims() -> str:
    """The generated table of the README, a line of which is one ratio of the result file."""
    rows = ["| | over | ratio (quartiles) |", "| --- | --- | --- |"]
    for benchmark, case, metric, against, text in CLAIMS:
        for ratio in result()["ratios"]:
            if (ratio["benchmark"], ratio["case"], ratio["metric"]) != (benchmark, case, metric):
                continue
            if ratio["side"] == OURS and ratio["against"] == against:
                spread = f"{short(ratio['value'])}x ({short(ratio['low'])} to {short(ratio['high'])})"
                rows.append(f"| {text} | {ratio['against']} | {spread} |")
    return "\n".join(rows) + "\n"
