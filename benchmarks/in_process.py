"""CPU that the middleware adds to a request without SQL, compared with other middlewares.

The floor is the minimum for a middleware of this kind: one header look-up and a wrapper of `send`.
"""

from __future__ import annotations

from collections import defaultdict
from time import process_time
from typing import Final

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.drive import receive_nothing, request_scope, send_nowhere, started
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved
from benchmarks.sides import OURS
from benchmarks.sides.asgi import TENANT_HEADER, ASGIApp, Message, Receive, Scope, Send

NAME: Final = "in_process"
CASE: Final = "request without SQL"
BARE: Final = "bare app"
NO_OP: Final = "no-op middleware"
FLOOR: Final = "header look-up + send wrapper"
BASE_HTTP: Final = "BaseHTTPMiddleware"
TARGET: Final = Target("<=", 2.0)


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """The application: it only sends two messages."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class NoOp:
    """A middleware that only calls the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class SendWrapper:
    """The floor: stores the tenant's header in the scope, and checks the type of each sent message."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == TENANT_HEADER:
                scope["tenant"] = value.decode("latin-1")
                break

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["status"] = message["status"]
            await send(message)

        await self.app(scope, receive, watching)


class PassThrough(BaseHTTPMiddleware):
    """Starlette's `BaseHTTPMiddleware` with a dispatch function that does nothing."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def without_server() -> ASGIApp:
    """`DataSourceMiddleware`, with a datasource that no request uses."""
    from asgi_datasource import DataSourceMiddleware
    from benchmarks.sides.ours import config

    document = config("postgresql://nobody@127.0.0.1:1/none", 1)
    document["datasources"]["main"]["pool"]["min_size"] = 0
    return DataSourceMiddleware(bare, config=document)


async def run(report: Report, *, quick: bool) -> None:
    rounds, calls = (5, 2000) if quick else (60, 5000)
    sides: dict[str, ASGIApp] = {BARE: bare, NO_OP: NoOp(bare), FLOOR: SendWrapper(bare)}
    async with started(without_server()) as ours:
        sides[OURS] = ours
        sides[BASE_HTTP] = PassThrough(bare)  # type: ignore[arg-type] # Starlette has its own types for these messages
        cost_us: defaultdict[str, list[float]] = defaultdict(list)
        # A hundred times slower than the others, so fewer calls are as precise.
        calls_of = {side: calls // 10 if side == BASE_HTTP else calls for side in sides}
        for side, app in sides.items():
            await _cost_us(app, calls_of[side])
        for side in interleaved(list(sides), rounds):
            cost_us[side].append(await _cost_us(sides[side], calls_of[side]))
    report.measured(NAME, CASE, BARE, "cost", "us", cost_us[BARE])
    for side in sides:
        if side != BARE:
            added = [with_it - without for with_it, without in zip(cost_us[side], cost_us[BARE], strict=True)]
            report.measured(NAME, CASE, side, "added cost", "us", added)
            report.state(NAME, CASE, "added cost", side)
    report.compare(NAME, CASE, "added cost", OURS, FLOOR, TARGET)
    report.compare(NAME, CASE, "added cost", OURS, BASE_HTTP)


async def _cost_us(app: ASGIApp, calls: int) -> float:
    template = request_scope("GET", "/plain")
    before = process_time()
    for _ in range(calls):
        await app(dict(template), receive_nothing, send_nowhere)
    return (process_time() - before) / calls * 1e6
