"""Every side in every workload, in turns: throughput, latency, CPU, connections and memory.

The sides run without a web server, each in a process of its own that sends itself the requests of all its clients, so
that a figure is the side's and not the server's (`load` has uvicorn and wrk).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import psycopg

from benchmarks.children import Ask, answering, child
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved
from benchmarks.server import Server
from benchmarks.sides import (
    ASYNCPG,
    FASTAPI_DEPENDS,
    FASTAPI_OURS,
    FASTAPI_PSYCOPG,
    LITESTAR,
    ORM_ASYNCPG,
    ORM_OURS,
    ORM_PSYCOPG,
    OURS,
    OURS_WITH_REPLICA,
    PSQLPY,
    PSYCOPG,
    SQLALCHEMY_ASYNCPG,
    SQLALCHEMY_PSYCOPG,
    SQLSPEC,
)

NAME: Final = "tournament"
PLAIN: Final = (OURS, PSYCOPG, ASYNCPG, PSQLPY, SQLSPEC, SQLALCHEMY_ASYNCPG, SQLALCHEMY_PSYCOPG)
"""Sides without a web framework."""
IN_FRAMEWORK: Final = (FASTAPI_OURS, FASTAPI_DEPENDS, FASTAPI_PSYCOPG, LITESTAR)
ORM: Final = (ORM_OURS, ORM_ASYNCPG, ORM_PSYCOPG)
REPORTING: Final = (OURS_WITH_REPLICA, PSYCOPG, ASYNCPG, PSQLPY, SQLSPEC, SQLALCHEMY_ASYNCPG)
"""Sides of the report; those by hand have their whole pool on the replica."""

WORKLOADS: Final[dict[str, tuple[str, str]]] = {
    "no SQL": ("GET", "/plain"),
    "one read": ("GET", "/items/{}"),
    "three reads": ("GET", "/reads/3"),
    "one write": ("POST", "/items/{}"),
    "read-modify-write": ("POST", "/change/{}"),
    "ten-statement write": ("POST", "/batch/10"),
    "ORM read": ("GET", "/items/{}"),
    "ORM write": ("POST", "/items/{}"),
    "report on a replica": ("GET", "/report"),
}
"""Method and path by name."""

METRICS: Final = {
    "requests per second": "1/s",
    "requests per CPU second": "1/s",
    "latency p50": "ms",
    "latency p99": "ms",
    "latency p999": "ms",
}
SAMPLE_S: Final = 0.025
IN_FLIGHT: Final = 1000
SOCKETS: Final = 2000
AGAINST: Final = dict.fromkeys(IN_FRAMEWORK[1:], FASTAPI_OURS)
"""The side that others than the first one are compared with: a framework adds the same cost to both."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload at one load on one network."""

    workload: str
    clients: int
    pool: int
    delay_ms: int

    def __str__(self) -> str:
        network = f"{self.delay_ms} ms" if self.delay_ms else "loopback"
        clients = f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{self.workload}, {clients}, pool of {self.pool}, {network}"


def parse(case: str) -> Cell:
    """The cell of a case's name."""
    workload, clients, pool, network = case.rsplit(", ", 3)
    delay = 0 if network == "loopback" else int(network.removesuffix(" ms"))
    return Cell(workload, int(clients.split()[0]), int(pool.removeprefix("pool of ")), delay)


TARGETS: Final[dict[tuple[str, str, str], Target]] = {
    ("one read, 1 client, pool of 5, loopback", "requests per second", PSYCOPG): Target(">=", 1 / 0.28),
    ("one read, 1 client, pool of 5, loopback", "requests per CPU second", PSYCOPG): Target(">=", 1 / 0.25),
    ("one write, 1 client, pool of 5, loopback", "requests per second", PSYCOPG): Target(">=", 1 / 0.55),
    ("one read, 32 clients, pool of 5, loopback", "requests per second", ASYNCPG): Target(">=", 3),
    ("one write, 32 clients, pool of 5, loopback", "requests per second", ASYNCPG): Target(">=", 2),
    ("one read, 32 clients, pool of 5, 2 ms", "requests per second", ASYNCPG): Target(">=", 4),
}
"""Targets by case, metric and the other side."""


def cells(pool: int, delay_ms: int, *, quick: bool) -> Sequence[tuple[Cell, Sequence[str]]]:
    """The cells of one pool size on one network, with their sides."""
    everyone = PLAIN + IN_FRAMEWORK
    if delay_ms:
        return [(Cell(name, 32, pool, delay_ms), everyone) for name in ("one read", "one write")]
    if pool != 5:
        return [(Cell("one read", clients, pool, 0), PLAIN) for clients in ((32,) if quick else (32, 64, 512))]
    found: list[tuple[Cell, Sequence[str]]] = [(Cell(name, 1, 5, 0), PLAIN) for name in ("one read", "one write")]
    found += [(Cell(name, 32, 5, 0), everyone) for name in list(WORKLOADS)[:6]]
    found += [(Cell(name, 32, 5, 0), ORM) for name in ("ORM read", "ORM write")]
    if not quick:
        found += [(Cell("one read", clients, 5, 0), PLAIN) for clients in (64, 512)]
    return found


async def run(report: Report, server: Server, *, quick: bool, rounds: int = 5, seconds: float = 0.4) -> None:
    """Measure all cells: those of one pool size and network in one group of processes.

    Args:
        report: Takes the figures.
        server: The servers.
        quick: A short round of fewer cells.
        rounds: Rounds of each cell.
        seconds: Load of each side in a round.
    """
    if quick:
        rounds, seconds = 1, 0.05
    report.environment["tournament"] = {"rounds": rounds, "seconds": seconds}
    for pool, delay_ms in ((5, 0), (20, 0), *((5, delay) for delay in ((2,) if quick else (1, 2, 10)))):
        async with _url(server, delay_ms) as url:
            await _group(report, url, cells(pool, delay_ms, quick=quick), pool, rounds, seconds)
    if server.replica_url is not None:
        await _reports(report, server, rounds, seconds)
    await _memory(report, server, 100 if quick else IN_FLIGHT, 100 if quick else SOCKETS)


@asynccontextmanager
async def _url(server: Server, delay_ms: int) -> AsyncIterator[str]:
    if not delay_ms:
        yield server.url()
        return
    async with child("benchmarks.proxy", server.host, str(server.port), str(delay_ms / 1000)) as (_, proxy):
        yield server.url(proxy["port"])


async def _group(
    report: Report, url: str, wanted: Sequence[tuple[Cell, Sequence[str]]], pool: int, rounds: int, seconds: float
) -> None:
    names = dict.fromkeys(side for _, sides in wanted for side in sides)
    async with AsyncExitStack() as stack:
        asks = {side: await stack.enter_async_context(_side(side, url, pool)) for side in names}
        async with _Connections(url) as connections:
            for cell, sides in wanted:
                await _cell(report, cell, {side: asks[side] for side in sides}, connections, rounds, seconds)


async def _reports(report: Report, server: Server, rounds: int, seconds: float) -> None:
    assert server.replica_url is not None
    async with AsyncExitStack() as stack:
        urls = dict.fromkeys(REPORTING, server.replica_url)
        urls[OURS_WITH_REPLICA] = f"{server.url()} {server.replica_url}"
        asks = {side: await stack.enter_async_context(_side(side, url, 5)) for side, url in urls.items()}
        connections = await stack.enter_async_context(_Connections(server.replica_url))
        await _cell(report, Cell("report on a replica", 32, 5, 0), asks, connections, rounds, seconds)


def _side(side: str, url: str, pool: int) -> contextlib.AbstractAsyncContextManager[Ask]:
    return answering("benchmarks.tournament_child", side, url, str(pool))


async def _cell(
    report: Report, cell: Cell, asks: dict[str, Ask], connections: _Connections, rounds: int, seconds: float
) -> None:
    method, path = WORKLOADS[cell.workload]
    order = {"do": "load", "method": method, "path": path, "clients": cell.clients}
    taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for ask in asks.values():
        await ask(json.dumps({**order, "seconds": min(seconds, 0.2)}))
    for side in interleaved(list(asks), rounds):
        with connections.watching() as busy:
            found = await asks[side](json.dumps({**order, "seconds": seconds}))
        if found["errors"]:
            raise RuntimeError(f"{side}, {cell}: {found['errors']} answers are not 200")
        for metric in METRICS:
            taken[side, metric].append(found[metric])
        taken[side, "connections in use"].append(sum(busy) / max(1, len(busy)))
    case = str(cell)
    for (side, metric), values in taken.items():
        report.measured(NAME, case, side, metric, METRICS.get(metric, "count"), values)
    first = next(iter(asks))
    for metric in METRICS:
        for side in asks:
            ours = AGAINST.get(side, first)
            if side not in (first, FASTAPI_OURS):
                report.compare(NAME, case, metric, ours, side, TARGETS.get((case, metric, side)))


class _Connections:
    """Samples how many connections of the sides the server has in a transaction or a statement."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._into: list[int] | None = None

    async def __aenter__(self) -> _Connections:
        self._connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._connection.close()

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[int]]:
        found: list[int] = []
        self._into = found
        yield found
        self._into = None

    async def _sample(self) -> None:
        query = (
            "select count(*) from pg_stat_activity"
            " where usename = current_user and state <> 'idle' and pid <> pg_backend_pid()"
        )
        while True:
            await asyncio.sleep(SAMPLE_S)
            if (into := self._into) is not None:
                row = await (await self._connection.execute(query)).fetchone()
                into.append(row[0] if row else 0)


async def _memory(report: Report, server: Server, requests: int, sessions: int) -> None:
    for side in PLAIN + IN_FRAMEWORK:
        async with _side(side, server.url(), 5) as ask:
            found = await ask(json.dumps({"do": "memory", "requests": requests}))
            case = "memory of 1,000 requests in flight"
            report.measured(NAME, case, side, "memory", "MB", [found["kB"]])
            if side in PLAIN:
                found = await ask(json.dumps({"do": "sockets", "sessions": sessions}))
                case = "memory of 10,000 idle websocket sessions"
                report.measured(NAME, case, side, "memory", "MB", [10 * found["kB"]])
