"""The spans of a request: server, reason and outcome, without literals; no span is built unless it is recorded."""

from __future__ import annotations

import re
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, session
from tests.apps import client
from tests.world import World


async def place(request: Request) -> Response:
    db = session(request)
    await db.read.fetch_all("select * from orders where item = 'secret literal'")
    await db.execute("insert into orders (item) values (%s)", ["tea"])
    await db.read.fetch_value("select count(*) from orders")
    if "fail" in request.query_params:
        await db.execute("insert into children (parent) values (99)")
    return JSONResponse({}, status_code=int(request.query_params.get("status", "201")))


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_the_spans_of_a_request_have_server_reason_and_outcome(world: World, spans: InMemorySpanExporter) -> None:
    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 201
    found = named(spans)
    assert [span.name for span in sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0)] == [
        "session orders",
        "orders → r1 (balanced)",
        "SELECT orders",
        "transaction orders.primary",
        "orders → primary (write)",
        "INSERT orders",
        "SELECT orders",
        "COMMIT",
    ]
    route = attributes(found["orders → r1 (balanced)"])
    assert route.pop("asgi_datasource.pool.wait_ms") >= 0
    assert route.pop("asgi_datasource.pool.queue_ms") >= 0
    for optional in ("pool.connect_ms", "lag_ms", "lag_age_ms"):
        assert route.pop(f"asgi_datasource.{optional}", 0) >= 0
    candidates = " ".join(route.pop("asgi_datasource.candidates"))
    assert re.fullmatch(r"r1 (up|lag \d+ ms) r2 (up|lag \d+ ms) primary up", candidates), candidates
    assert route == {
        "asgi_datasource.datasource": "orders",
        "asgi_datasource.intent": "read",
        "asgi_datasource.node": "r1",
        "asgi_datasource.role": "replica",
        "asgi_datasource.reason": "balanced",
        "asgi_datasource.tenant.strategy": "schema",
    }
    assert found["INSERT orders"].kind is SpanKind.CLIENT
    assert attributes(found["COMMIT"])["asgi_datasource.transaction.outcome"] == "committed"
    assert "secret literal" not in repr([(span.name, attributes(span)) for span in spans.get_finished_spans()])


async def test_a_failed_commit_is_an_error_with_its_sqlstate(world: World, spans: InMemorySpanExporter) -> None:
    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/?fail=1")).status_code == 409
    commit = named(spans)["COMMIT"]
    assert commit.status.status_code is StatusCode.ERROR
    assert attributes(commit)["db.response.status_code"] == "23503"
    assert attributes(commit)["asgi_datasource.error.kind"] == "constraint"
    assert attributes(commit)["asgi_datasource.transaction.outcome"] == "rolled_back"


async def test_a_rollback_has_its_reason(world: World, spans: InMemorySpanExporter) -> None:
    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        await http.post("/?status=409")
    rollback = attributes(named(spans)["ROLLBACK"])
    assert rollback["asgi_datasource.transaction.outcome"] == "rolled_back"
    assert rollback["asgi_datasource.transaction.rollback_reason"] == "status 409"


async def test_the_span_of_a_failed_statement_is_an_error(world: World, spans: InMemorySpanExporter) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        with pytest.raises(DataError):
            async with db.transaction():
                await db.execute("insert into orders (item) values ('forbidden')")
    insert = named(spans)["INSERT orders"]
    assert insert.status.status_code is StatusCode.ERROR
    assert attributes(insert)["db.response.status_code"] == "23514"


@pytest.mark.parametrize("shown", [True, False])
async def test_the_tenants_name_is_opt_in(world: World, spans: InMemorySpanExporter, shown: bool) -> None:
    registry = world.registry(telemetry={"tenant_attribute": shown})
    async with registry, registry.session(tenant="acme") as db:
        await db.read.fetch_value("select 1")
    route = next(span for span in spans.get_finished_spans() if "→" in span.name)
    assert attributes(route).get("asgi_datasource.tenant.id") == ("acme" if shown else None)


async def test_statements_and_spans_can_be_turned_off(world: World, spans: InMemorySpanExporter) -> None:
    for telemetry, expected in (
        (
            {"statements": "off"},
            ["orders → primary (write)", "COMMIT", "transaction orders.primary", "session orders"],
        ),
        ({"spans": False}, []),
    ):
        spans.clear()
        async with world.registry(telemetry=telemetry) as registry, registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values (%s)", [str(telemetry)])
        assert [span.name for span in spans.get_finished_spans()] == expected


async def test_the_text_of_statements_can_be_turned_off(world: World, spans: InMemorySpanExporter) -> None:
    async with world.registry(telemetry={"statements": "summary"}) as registry, registry.session("acme") as db:
        await db.read.fetch_value("select %s::int", [1])
    assert "db.query.text" not in attributes(named(spans)["SELECT"])


async def test_without_a_recorded_parent_no_span_is_built(world: World, spans: InMemorySpanExporter) -> None:
    unsampled = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))
    async with world.registry() as registry:
        with trace.use_span(unsampled):
            async with registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values ('tea')")
    assert spans.get_finished_spans() == ()
