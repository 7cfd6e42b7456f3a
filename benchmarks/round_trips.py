"""Round trips of a request, counted by a proxy; the figures are exact on every machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from asgi_datasource.testing import FaultProxy
from benchmarks.drive import call, started
from benchmarks.report import Report, Target
from benchmarks.server import Server
from benchmarks.sides import ASYNCPG, OURS, PSYCOPG, SQLALCHEMY_ASYNCPG, SQLALCHEMY_PSYCOPG, build

NAME: Final = "round_trips"
SIDES: Final = (OURS, PSYCOPG, ASYNCPG, SQLALCHEMY_ASYNCPG, SQLALCHEMY_PSYCOPG)
WARM_UP: Final = 12
"""Requests before the count, above every driver's threshold for preparing a statement (psycopg: the sixth)."""


def cases(quick: bool) -> Iterable[tuple[str, str, str, float]]:
    """Name, method, path, and the target for asgi-datasource."""
    yield "request without SQL", "GET", "/plain", 0
    yield "one read", "GET", "/items/1", 1
    yield "one write", "POST", "/items/1", 2
    for statements in (3,) if quick else (2, 3, 10):
        yield f"transaction of {statements} statements", "POST", f"/batch/{statements}", statements + 1


async def run(report: Report, server: Server, *, quick: bool) -> None:
    requests = 3 if quick else 20
    for side in SIDES:
        async with (
            FaultProxy(server.host, server.port) as proxy,
            started(build(side, server.url(proxy.port), 1)) as app,
        ):
            for case, method, path, _ in cases(quick):
                for _ in range(WARM_UP):
                    await call(app, method, path)
                counts = []
                for _ in range(requests):
                    proxy.reset_counters()
                    await call(app, method, path)
                    counts.append(float(proxy.round_trips))
                report.measured(NAME, case, side, "round trips", "count", counts)
    for case, _, _, at_most in cases(quick):
        for side in SIDES:
            report.state(NAME, case, "round trips", side, Target("<=", at_most) if side == OURS else None)
