"""What it costs that a connection's session is cleared between two tenants.

One request at a time through the middleware, on a pool of one: by one tenant, which has the connection for itself, and
by two that take turns, so that every single request begins with a reset. One tenant is compared with `reset: never`.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from itertools import cycle
from time import perf_counter, process_time
from typing import Any, Final

from benchmarks.drive import HEADERS, receive_nothing, request_scope, send_nowhere, started
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved
from benchmarks.server import Server
from benchmarks.sides import ours
from benchmarks.sides.asgi import ITEMS, TENANT, TENANT_HEADER, TENANT_SETTING, ASGIApp

NAME: Final = "session_reset"
ONE: Final = "one tenant"
TURNS: Final = "two tenants in turns"
NEVER: Final = "one tenant, reset: never"
OTHER: Final = "other"
WARM_UP: Final = 60
TARGETS: Final = {ONE: Target("<=", 1.03), TURNS: Target("<=", 1.25)}


def _app(url: str, reset: str) -> ASGIApp:
    from asgi_datasource import DataSourceMiddleware

    document: dict[str, Any] = ours.config(url, 1)
    document["datasources"]["main"]["pool"]["reset"] = reset
    # Both read the same rows, so that both do equal work.
    for side, tenant in enumerate((TENANT, OTHER)):
        row_security = {TENANT_SETTING: TENANT, "app.side": str(side)}
        document["tenants"][tenant] = {"datasource": "main", "row_security": row_security}
    return DataSourceMiddleware(ours.application(), config=document)


async def run(report: Report, server: Server, *, quick: bool) -> None:
    rounds, calls = (3, 20) if quick else (60, 100)
    async with AsyncExitStack() as stack:
        clearing, never = [
            await stack.enter_async_context(started(_app(server.url(), reset)))
            for reset in ("on_tenant_change", "never")
        ]
        sides = {ONE: (clearing, (TENANT,)), TURNS: (clearing, (TENANT, OTHER)), NEVER: (never, (TENANT,))}
        for case, method in (("one read", "GET"), ("one write", "POST")):
            taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
            for app, tenants in sides.values():
                await _round(app, method, tenants, WARM_UP)
            for side in interleaved(list(sides), rounds):
                app, tenants = sides[side]
                # The first one alone clears up after the side before.
                await _round(app, method, tenants, 1)
                wall, cpu = await _round(app, method, tenants, calls)
                taken[side, "wall"].append(wall)
                taken[side, "client CPU"].append(cpu)
            for metric in ("wall", "client CPU"):
                for side in sides:
                    report.measured(NAME, case, side, metric, "us", taken[side, metric])
                target = TARGETS if metric == "wall" else {}
                report.compare(NAME, case, metric, ONE, NEVER, target.get(ONE))
                report.compare(NAME, case, metric, TURNS, ONE, target.get(TURNS))


async def _round(app: ASGIApp, method: str, tenants: tuple[str, ...], calls: int) -> tuple[float, float]:
    scopes = []
    for number, tenant in zip(range(calls), cycle(reversed(tenants)), strict=False):
        scope = request_scope(method, f"/items/{1 + number % ITEMS}")
        headers = [(name, tenant.encode() if name == TENANT_HEADER else value) for name, value in HEADERS]
        scopes.append({**scope, "headers": headers})
    wall, cpu = perf_counter(), process_time()
    for scope in scopes:
        await app(scope, receive_nothing, send_nowhere)
    return (perf_counter() - wall) / calls * 1e6, (process_time() - cpu) / calls * 1e6
