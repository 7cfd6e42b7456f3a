"""Requests per second and latency at saturation: a real uvicorn, a pool of 5, 32 clients.

All servers run during the whole phase, each in its own process; the load alternates between them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Literal

from benchmarks.children import child
from benchmarks.latency import DELAY_S
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved
from benchmarks.server import Server
from benchmarks.sides import (
    ASYNCPG,
    FASTAPI_DEPENDS,
    FASTAPI_OURS,
    OURS,
    PSYCOPG,
    SQLALCHEMY_ASYNCPG,
    SQLALCHEMY_PSYCOPG,
)
from benchmarks.sides.asgi import ITEMS, TENANT

NAME: Final = "load"
SIDES: Final = (OURS, PSYCOPG, ASYNCPG, SQLALCHEMY_ASYNCPG, SQLALCHEMY_PSYCOPG, FASTAPI_OURS, FASTAPI_DEPENDS)
POOL_SIZE: Final = 5
CLIENTS: Final = 32
TARGETS: Final = {
    ("one read", SQLALCHEMY_ASYNCPG): Target(">=", 5.0),
    ("one write", SQLALCHEMY_ASYNCPG): Target(">=", 3.0),
    ("one read", ASYNCPG): Target(">=", 2.0),
    ("one write", ASYNCPG): Target(">=", 1.5),
}
Generator = Literal["wrk", "builtin"]


def generator(wanted: str) -> Generator:
    """Choose the load generator; `auto` is wrk if installed (Debian: `apt-get install wrk`), else `load_client`."""
    if wanted == "builtin" or (wanted == "auto" and shutil.which("wrk") is None):
        return "builtin"
    return "wrk"


async def run(
    report: Report, server: Server, *, quick: bool, loop: str, client: Generator, rounds: int = 8, seconds: int = 2
) -> None:
    """Load every side on both networks.

    Args:
        report: Takes the figures.
        server: The database server.
        quick: One round of a second.
        loop: `asyncio` or `uvloop`.
        client: The load generator.
        rounds: Rounds of each case.
        seconds: Load of each side in a round.
    """
    if quick:
        rounds, seconds = 1, 1
    report.environment["load"] = {"client": client, "pool_size": POOL_SIZE, "clients": CLIENTS}
    await _network(report, "loopback", server.url(), rounds, seconds, loop, client)
    async with child("benchmarks.proxy", server.host, str(server.port), str(DELAY_S)) as (_, proxy):
        await _network(report, "2 ms", server.url(proxy["port"]), rounds, seconds, loop, client)


async def _network(
    report: Report, network: str, url: str, rounds: int, seconds: int, loop: str, client: Generator
) -> None:
    async with AsyncExitStack() as stack:
        servers = {
            side: await stack.enter_async_context(child("benchmarks.serve", side, url, str(POOL_SIZE), loop))
            for side in SIDES
        }
        for kind, method in (("one read", "GET"), ("one write", "POST")):
            case = f"{kind}, {network}, {loop}"
            for _, ready in servers.values():
                await put_under_load(client, ready["port"], method, 1)
            taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
            for side in interleaved(SIDES, rounds):
                pid, ready = servers[side]
                cpu = _cpu_seconds(pid)
                result = await put_under_load(client, ready["port"], method, seconds)
                if result["errors"] or not result["requests"]:
                    raise RuntimeError(
                        f"{side}, {case}: {result['requests']:.0f} answers, {result['errors']:.0f} of them not 200"
                    )
                taken[side, "requests per second"].append(result["requests"] / result["seconds"])
                taken[side, "latency p50"].append(result["p50_ms"])
                taken[side, "latency p99"].append(result["p99_ms"])
                if cpu is not None:
                    spent = (_cpu_seconds(pid) or cpu) - cpu
                    taken[side, "server CPU per request"].append(spent / result["requests"] * 1e6)
            for (side, metric), values in taken.items():
                unit = {"requests per second": "1/s", "server CPU per request": "us"}.get(metric, "ms")
                report.measured(NAME, case, side, metric, unit, values)
            _compare(report, case, kind)


def _compare(report: Report, case: str, kind: str) -> None:
    pairs = [(OURS, against) for against in SIDES if against not in (OURS, FASTAPI_OURS, FASTAPI_DEPENDS)]
    for side, against in [*pairs, (FASTAPI_OURS, FASTAPI_DEPENDS)]:
        report.compare(NAME, case, "requests per second", side, against, TARGETS.get((kind, against)))
    # The kernel counts CPU, so this figure depends least on other processes.
    for metric in ("server CPU per request", "latency p99"):
        for side, against in [*pairs, (FASTAPI_OURS, FASTAPI_DEPENDS)]:
            if (NAME, case, side, metric) in report:
                report.compare(NAME, case, metric, side, against)


async def put_under_load(client: Generator, port: int, method: str, seconds: int) -> dict[str, float]:
    """Load one server; returns `requests`, `seconds`, `p50_ms`, `p99_ms` and `errors`."""
    if client == "wrk":
        output = await _output(
            *("wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency", "-H", f"X-Tenant: {TENANT}"),
            *("-s", str(Path(__file__).with_name("load.lua")), f"http://127.0.0.1:{port}/", "--", method),
        )
        return parse_wrk(output)
    arguments = ("127.0.0.1", str(port), method, str(CLIENTS), str(seconds), TENANT, str(ITEMS))
    result: dict[str, float] = json.loads(await _output(sys.executable, "-m", "benchmarks.load_client", *arguments))
    return result


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "BENCH_ITEMS": str(ITEMS)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output.decode()[:500]}")
    return output.decode()


def parse_wrk(output: str) -> dict[str, float]:
    """Parse wrk's report, whose durations look like 950.00us, 2.86ms and 1.01s."""

    def milliseconds(percentile: str) -> float:
        found = re.search(rf"^ +{percentile}% +([\d.]+)(us|ms|s|m) *$", output, re.MULTILINE)
        if found is None:
            raise ValueError(f"no {percentile}% in wrk's report:\n{output}")
        a_millisecond = {"us": 1000.0, "ms": 1.0, "s": 0.001, "m": 1 / 60_000}
        return float(found[1]) / a_millisecond[found[2]]

    counted = re.search(r"(\d+) requests in ([\d.]+)s", output)
    if counted is None:
        raise ValueError(f"no count of requests in wrk's report:\n{output}")
    errors = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    for line in re.findall(r"Socket errors: (.*)", output):
        errors += sum(int(number) for number in re.findall(r"\d+", line))
    return {
        "requests": int(counted[1]),
        "seconds": float(counted[2]),
        "p50_ms": milliseconds("50"),
        "p99_ms": milliseconds("99"),
        "errors": errors,
    }


def _cpu_seconds(pid: int) -> float | None:
    """CPU seconds that the process has used; None without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
