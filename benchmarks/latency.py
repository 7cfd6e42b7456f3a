"""Wall-clock time and client CPU of one tenant read and one tenant write, one request at a time.

Each side is called as an ASGI application in this process, with a pool of one connection. This includes the middleware
of asgi_datasource, and the header look-up of the others. The proxy that adds the delay runs in another process, so that
the CPU of this process is only the client's.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from time import perf_counter, process_time
from typing import Final

from benchmarks.children import child
from benchmarks.drive import call, receive_nothing, request_scope, send_nowhere, started
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved
from benchmarks.server import Server
from benchmarks.sides import (
    ASYNCPG,
    OURS,
    PSYCOPG,
    PSYCOPG_NO_POOL,
    SQLALCHEMY_ASYNCPG,
    SQLALCHEMY_PSYCOPG,
    build,
)
from benchmarks.sides.asgi import ITEMS, ASGIApp

NAME: Final = "latency"
SIDES: Final = (OURS, PSYCOPG, PSYCOPG_NO_POOL, ASYNCPG, SQLALCHEMY_ASYNCPG, SQLALCHEMY_PSYCOPG)
DELAY_S: Final = 0.002
WARM_UP: Final = 30
TARGETS: Final = {
    ("one read, loopback", "wall"): Target("<=", 0.32),
    ("one read, loopback", "client CPU"): Target("<=", 0.28),
    ("one write, loopback", "wall"): Target("<=", 0.62),
    ("one write, loopback", "client CPU"): Target("<=", 0.52),
    ("one read, 2 ms", "wall"): Target("<=", 0.26),
    ("one write, 2 ms", "wall"): Target("<=", 0.53),
}
"""Targets against psycopg by hand. CPU does not depend on the network, so it has a target on loopback only."""


async def run(report: Report, server: Server, *, quick: bool) -> None:
    rounds, calls = (3, 20) if quick else (40, 100)
    await _network(report, "loopback", server.url(), rounds, calls)
    rounds, calls = (2, 5) if quick else (12, 40)
    async with child("benchmarks.proxy", server.host, str(server.port), str(DELAY_S)) as (_, proxy):
        await _network(report, "2 ms", server.url(proxy["port"]), rounds, calls)


async def _network(report: Report, network: str, url: str, rounds: int, calls: int) -> None:
    async with AsyncExitStack() as stack:
        apps = {side: await stack.enter_async_context(started(build(side, url, 1))) for side in SIDES}
        for kind, method in (("one read", "GET"), ("one write", "POST")):
            case = f"{kind}, {network}"
            for app in apps.values():
                for _ in range(WARM_UP):
                    await call(app, method, "/items/1")
            wall_us: defaultdict[str, list[float]] = defaultdict(list)
            cpu_us: defaultdict[str, list[float]] = defaultdict(list)
            for side in interleaved(SIDES, rounds):
                wall, cpu = await one_round(apps[side], method, calls)
                wall_us[side].append(wall)
                cpu_us[side].append(cpu)
            for metric, taken in (("wall", wall_us), ("client CPU", cpu_us)):
                for side in SIDES:
                    report.measured(NAME, case, side, metric, "us", taken[side])
                for against in SIDES[1:]:
                    target = TARGETS.get((case, metric)) if against == PSYCOPG else None
                    report.compare(NAME, case, metric, OURS, against, target)


async def one_round(app: ASGIApp, method: str, calls: int, path: str = "/items/{}") -> tuple[float, float]:
    """Wall-clock time and CPU of this process for each of some calls, in microseconds."""
    scopes = [request_scope(method, path.format(1 + number % ITEMS)) for number in range(calls)]
    wall, cpu = perf_counter(), process_time()
    for scope in scopes:
        await app(scope, receive_nothing, send_nowhere)
    return (perf_counter() - wall) / calls * 1e6, (process_time() - cpu) / calls * 1e6
