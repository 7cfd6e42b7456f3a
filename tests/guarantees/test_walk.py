"""Cost of a request in Python: calls of the library's functions, and objects of the library's classes.

These figures are exact on any machine. A rise fails; lower a limit here after a drop.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from starlette.types import Receive, Scope, Send

import asgi_datasource
from asgi_datasource import DataSourceMiddleware, DataSourceRegistry, session
from asgi_datasource.routing import parse_lsn
from asgi_datasource.sessions.core import SessionCore
from asgi_datasource.sessions.decorator import retrying
from asgi_datasource.sessions.unit_of_work import UnitOfWork
from tests.asgi_call import Call
from tests.drivers.polling import until
from tests.pools import until_at_rest
from tests.world import World

PACKAGE = str(Path(asgi_datasource.__file__).parent)

READ, WRITE = "GET", "POST"
CALLS = {READ: 50, WRITE: 80}
OBJECTS = {READ: 5, WRITE: 10}
"""Upper limit for one request with one statement."""

MORE = 15
"""Calls that each of metrics, an unsampled trace and tokens may add."""


@pytest.fixture(autouse=True)
def no_retry_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore `retry` annotations of other tests: with one in the process, every request is kept for a retry."""
    monkeypatch.setattr(retrying, "is_asked_for", False)


class Walk:
    """Counts calls of the package's functions (a resumed coroutine counts again), and objects."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.objects: Counter[str] = Counter()
        self._made: list[object] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        self.calls[f"{code.co_filename[len(PACKAGE) + 1 :]}:{code.co_name}"] += 1
        if code.co_name == "__init__":
            made = frame.f_locals[code.co_varnames[0]]
            if not any(made is other for other in self._made):
                self._made.append(made)
                self.objects[type(made).__name__] += 1

    def __str__(self) -> str:
        lines = [f"{count:4} {name}" for name, count in self.calls.items()]
        return "\n".join([f"{self.calls.total()} calls, {self.objects.total()} objects {dict(self.objects)}", *lines])


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    db = session(scope)
    if scope["method"] == READ:
        await db.fetch_one("select item from orders where id > %s", [0])
    else:
        await db.fetch_one("insert into orders (item) values (gen_random_uuid()) returning id")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def walk(registry: DataSourceRegistry, method: str, *headers: tuple[bytes, bytes]) -> Walk:
    """The lowest of several requests: a timer that fires during one does not count."""
    middleware = DataSourceMiddleware(app, registry=registry)

    async def once(profile: Walk | None = None) -> None:
        call = Call(method, headers=((b"x-tenant", b"initech"), *headers))
        sys.setprofile(profile)
        try:
            await middleware(call.scope, call.receive, call.send)
        finally:
            sys.setprofile(None)
        assert call.status == 200

    for _ in range(12):
        await once()
    await until_at_rest(registry)
    walks = [Walk() for _ in range(15)]
    for one in walks:
        await once(one)
    return min(walks, key=lambda one: one.calls.total())


QUIET = {"routing": {"check_interval": "1h"}}
"""Nothing else runs during the request."""


@pytest.mark.parametrize("method", [READ, WRITE])
async def test_calls_and_objects_for_one_statement_are_bounded(world: World, method: str) -> None:
    async with world.registry(**QUIET, telemetry={"spans": False}) as registry:
        found = await walk(registry, method)
    assert found.calls.total() <= CALLS[method], str(found)
    assert found.objects.total() <= OBJECTS[method], str(found)


@pytest.mark.parametrize("method", [READ, WRITE])
async def test_metrics_add_few_calls(world: World, metric_reader: InMemoryMetricReader, method: str) -> None:
    async with world.registry(**QUIET, telemetry={"spans": False, "metrics": True}) as registry:
        found = await walk(registry, method)
    assert found.calls.total() <= CALLS[method] + MORE, str(found)


@pytest.mark.parametrize("method", [READ, WRITE])
async def test_a_console_adds_few_calls(world: World, method: str) -> None:
    async with world.registry(**QUIET, telemetry={"spans": False}) as registry:
        activity = registry.observe()
        found = await walk(registry, method)
        counted = sum(activity.decisions(60).values())
    assert counted >= 27, counted
    assert found.calls.total() <= CALLS[method] + MORE, str(found)


@pytest.mark.parametrize("method", [READ, WRITE])
async def test_an_unsampled_trace_adds_few_calls(world: World, spans: InMemorySpanExporter, method: str) -> None:
    context = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0))
    async with world.registry(**QUIET) as registry:
        with trace.use_span(NonRecordingSpan(context)):
            found = await walk(registry, method)
    assert found.calls.total() <= CALLS[method] + MORE, str(found)
    assert spans.get_finished_spans() == ()


RECORDED = 30
"""Calls that the two spans of a recorded read may add."""


async def test_a_recorded_read_adds_few_calls(world: World, spans: InMemorySpanExporter) -> None:
    async with world.registry(**QUIET) as registry:
        with trace.get_tracer("tests").start_as_current_span("GET /orders"):
            found = await walk(registry, READ)
    assert found.calls.total() <= CALLS[READ] + RECORDED, str(found)
    assert len(spans.get_finished_spans()) > 2


SECRET = "a secret of more than thirty-two characters"
TOKEN = b"x-ads-token"


CONSISTENCY: dict[str, Any] = {"token": "header", "header": TOKEN.decode(), "secret": SECRET}


@pytest.mark.parametrize("method", [READ, WRITE])
async def test_tokens_add_few_calls(world: World, method: str) -> None:
    async with world.registry(**QUIET, consistency=CONSISTENCY, telemetry={"spans": False}) as registry:
        found = await walk(registry, method)
    assert found.calls.total() <= CALLS[method] + MORE, str(found)


async def test_a_token_carried_by_the_client_adds_few_calls(world: World) -> None:
    options = {"routing": {"check_interval": "100ms"}, "telemetry": {"spans": False}}
    async with world.registry(consistency=CONSISTENCY, **options) as registry:
        async with registry.session(tenant="initech") as db:
            await db.execute("insert into orders (item) values (gen_random_uuid())")
        token, lsn = db.token, db.pin.lsn
        assert token is not None
        assert lsn is not None
        # Its replicas are known to have replayed this position.
        datasource = registry.datasources["orders"]
        await until(lambda: datasource.topology.held_lsn >= parse_lsn(lsn))
        found = await walk(registry, READ, (TOKEN, token.encode()))
    assert found.calls.total() <= CALLS[READ] + MORE, str(found)


@pytest.mark.parametrize("method", [READ, WRITE])
async def test_the_first_statement_of_a_fresh_pool_takes_the_short_way(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.registry(**QUIET, telemetry={"spans": False}) as registry:
        await until_at_rest(registry)
        ran: list[str] = []
        monkeypatch.setattr(SessionCore, "run", lambda *_: ran.append("run"))
        monkeypatch.setattr(UnitOfWork, "finish", lambda *_, **__: ran.append("finish"))
        call = Call(method, headers=((b"x-tenant", b"initech"),))
        await DataSourceMiddleware(app, registry=registry)(call.scope, call.receive, call.send)
        assert (call.status, ran) == (200, [])
        monkeypatch.undo()
