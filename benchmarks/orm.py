"""Wall-clock time of ORM requests, one at a time, on two networks.

A read loads one object. A write is one ORM UPDATE that returns the object. A flush loads an object, changes it, and
flushes the change: two statements.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.children import child
from benchmarks.drive import call, started
from benchmarks.latency import DELAY_S, WARM_UP, one_round
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved
from benchmarks.server import Server
from benchmarks.sides import ORM_ASYNCPG, ORM_OURS, ORM_PSYCOPG, build

NAME: Final = "orm"
SIDES: Final = (ORM_OURS, ORM_ASYNCPG, ORM_PSYCOPG)
KINDS: Final = (
    ("one read", "GET", "/items/{}"),
    ("one write", "POST", "/batch/1"),
    ("one flush", "POST", "/items/{}"),
)
TARGETS: Final = {
    "one read, loopback": Target("<=", 0.65),
    "one write, loopback": Target("<=", 0.9),
    "one flush, loopback": Target("<=", 0.9),
    "one read, 2 ms": Target("<=", 0.35),
    "one write, 2 ms": Target("<=", 0.6),
    "one flush, 2 ms": Target("<=", 0.6),
}
"""Targets against the ORM on asyncpg."""


async def run(report: Report, server: Server, *, quick: bool) -> None:
    rounds, calls = (3, 10) if quick else (20, 50)
    await _network(report, "loopback", server.url(), rounds, calls)
    rounds, calls = (2, 5) if quick else (12, 25)
    async with child("benchmarks.proxy", server.host, str(server.port), str(DELAY_S)) as (_, proxy):
        await _network(report, "2 ms", server.url(proxy["port"]), rounds, calls)


async def _network(report: Report, network: str, url: str, rounds: int, calls: int) -> None:
    async with AsyncExitStack() as stack:
        apps = {side: await stack.enter_async_context(started(build(side, url, 1))) for side in SIDES}
        for kind, method, path in KINDS:
            case = f"{kind}, {network}"
            for app in apps.values():
                for _ in range(WARM_UP):
                    await call(app, method, path.format(1))
            wall_us: defaultdict[str, list[float]] = defaultdict(list)
            for side in interleaved(SIDES, rounds):
                wall_us[side].append((await one_round(apps[side], method, calls, path))[0])
            for side in SIDES:
                report.measured(NAME, case, side, "wall", "us", wall_us[side])
            report.compare(NAME, case, "wall", ORM_OURS, ORM_ASYNCPG, TARGETS[case])
            report.compare(NAME, case, "wall", ORM_OURS, ORM_PSYCOPG, None)
