"""Many tenants from a table, and one tenant with fifty times the load of the others.

`catalog`: the cost of 100,000 tenants at start-up, from the table and from its snapshot, and for a look-up.
`noisy`: four quiet tenants on a pool of four, alternately alone and with a tenant at fifty times the load of each. The
pool is fair with a limit for each tenant, or only fair, or neither. In a pool that is only fair, a request of a quiet
tenant waits until one of the four connections is returned: at worst, for the duration of a statement.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from asgi_datasource import DataError
from asgi_datasource.registry.registry import DataSourceRegistry, compile
from benchmarks.report import Report, Target
from benchmarks.server import Server

NAME: Final = "tenants"
SIDE: Final = "asgi-datasource"
TENANTS: Final = 100_000

QUIET: Final = ("q1", "q2", "q3", "q4")
QUIET_RATE: Final = 2.0
"""Requests per second of each quiet tenant."""
TIMES: Final = 50
WORK_S: Final = 0.05
"""How long a request holds its connection."""
POOL: Final = 4


async def run(report: Report, server: Server, *, quick: bool) -> None:
    await _catalog(report, server, quick=quick)
    await _noisy(report, server, quick=quick)


async def _catalog(report: Report, server: Server, *, quick: bool) -> None:
    rounds, tenants = (1, 2_000) if quick else (3, TENANTS)
    taken: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for metric, value in (await _start(tenants, server.url(), Path(folder) / "tenants.snapshot")).items():
                taken[metric].append(value)
    for source in ("table", "snapshot"):
        case = f"{tenants:,} tenants, {source}"
        for metric, name, unit, target in (
            ("seconds", "added time", "s", Target("<=", 1.0)),
            ("cpu_seconds", "added CPU time", "s", None),
            ("memory_mb", "added memory", "MB", Target("<=", 60.0)),
            ("peak_mb", "added peak memory", "MB", None),
        ):
            report.measured(NAME, case, SIDE, name, unit, taken[f"{source}_{metric}"])
            report.state(NAME, case, name, SIDE, target)
    case = f"look-up among {tenants:,}"
    report.measured(NAME, case, SIDE, "time", "ns", taken["look_up_ns"])
    report.measured(NAME, case, "10 tenants", "time", "ns", taken["look_up_few_ns"])
    report.compare(NAME, case, "time", SIDE, "10 tenants", Target("<=", 1.2))


async def _start(tenants: int, url: str, snapshot: Path) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.tenants_child", str(tenants), url, str(snapshot)),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the start with {tenants} tenants ended with {process.returncode} (its error is above)")
    result: dict[str, float] = json.loads(output)
    return result


def _document(url: str, *, fair: bool, limit: int | None) -> dict[str, Any]:
    pool = {"min_size": POOL, "max_size": POOL, "fair": fair, "max_waiting": 50, "acquire_timeout": "5s"}
    return {
        "version": 1,
        "datasources": {"shop": {"primary": {"url": url}, "pool": pool, "audit": {"on_start": "off"}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {
            name: {
                "datasource": "shop",
                "row_security": {"app.tenant": name},
                **({} if limit is None else {"limits": {"max_connections": limit}}),
            }
            for name in (*QUIET, "noisy")
        },
    }


async def _noisy(report: Report, server: Server, *, quick: bool) -> None:
    rounds, seconds = (1, 1.0) if quick else (5, 8.0)
    for case, fair, limit in (
        (f"a fair pool, {POOL - 1} of {POOL} for each at most", True, POOL - 1),
        ("a pool that is only fair", True, None),
        ("a pool that is not", False, None),
    ):
        alone: list[float] = []
        beside: list[float] = []
        refused: list[float] = []
        async with compile(_document(server.url(), fair=fair, limit=limit)) as registry:
            await _phase(registry, 0.5, noise=False)
            for _ in range(rounds):
                alone.append((await _phase(registry, seconds, noise=False))[0])
                latency, lost = await _phase(registry, seconds, noise=True)
                beside.append(latency)
                refused.append(lost)
        report.measured(NAME, case, "quiet tenants alone", "p99", "ms", alone)
        report.measured(NAME, case, "beside a noisy one", "p99", "ms", beside)
        report.measured(NAME, case, "beside a noisy one", "refused requests of quiet tenants", "", refused)
        target = Target("<=", 2.0) if limit is not None else None
        report.compare(NAME, case, "p99", "beside a noisy one", "quiet tenants alone", target)
        report.state(
            NAME, case, "refused requests of quiet tenants", "beside a noisy one", Target("==", 0) if fair else None
        )


async def _phase(registry: DataSourceRegistry, seconds: float, *, noise: bool) -> tuple[float, float]:
    """Return the 99th percentile latency of the quiet tenants in ms, and the number of their refused requests."""
    latencies: list[float] = []
    refused = 0

    async def request(tenant: str, due: float) -> None:
        nonlocal refused
        try:
            async with registry.session(tenant) as db:
                await db.read.execute("select pg_sleep(%s)", (WORK_S,))
        except DataError:
            refused += tenant != "noisy"
        else:
            if tenant != "noisy":
                latencies.append((perf_counter() - due) * 1000)

    async def tenant(name: str, rate: float) -> None:
        # Open loop: a late request does not delay the next one.
        began = perf_counter()
        number = 0
        while (due := began + number / rate) < began + seconds:
            number += 1
            await asyncio.sleep(max(0.0, due - perf_counter()))
            tasks.append(asyncio.ensure_future(request(name, due)))

    tasks: list[asyncio.Task[None]] = []
    rates = dict.fromkeys(QUIET, QUIET_RATE) | ({"noisy": QUIET_RATE * TIMES} if noise else {})
    await asyncio.gather(*(tenant(name, rate) for name, rate in rates.items()))
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks), timeout=30.0)
    latencies.sort()
    return latencies[min(len(latencies) - 1, round(len(latencies) * 0.99))], float(refused)
