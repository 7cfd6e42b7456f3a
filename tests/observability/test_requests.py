"""The traces of requests behind OpenTelemetry's own ASGI middleware, which ends the request's span with the body."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataSession, DataSourceMiddleware, compile, session, transactional
from asgi_datasource.observability import session_trace
from asgi_datasource.testing import FaultProxy
from tests.asgi_call import Call
from tests.observability.traces import P, Trace, attributes, complete, traced
from tests.pools import until_at_rest
from tests.world import World

INSERT = "insert into orders (item) values (%s)"
CONFLICT = "do $$ begin raise exception using errcode = '40001'; end $$"


async def test_hooks_and_background_sessions_are_in_the_trace_after_the_response(
    world: World, spans: InMemorySpanExporter
) -> None:
    async def place(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT, ["tea"])

        async def mail() -> None:
            async with db.registry.session(tenant="acme") as later:
                await later.execute(INSERT, ["mail"])

        async def background() -> None:
            async with db.registry.session(tenant="acme") as later:
                await later.execute("update orders set item = item || '!'")

        db.before_commit(lambda: db.execute(INSERT, ["last"]))
        db.after_commit(mail)
        db.after_commit(lambda: 1 / 0)
        return JSONResponse({}, background=BackgroundTask(background))

    async with traced(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 200
        found = await complete(spans, "after_commit", "after_commit", "UPDATE orders", "COMMIT", "COMMIT", "COMMIT")
    transaction = ["  orders → primary (write)", "  INSERT orders"]
    assert found.outline == [
        "POST /",
        "  transaction orders.primary",
        *["  " + line for line in transaction],
        "    before_commit",
        "      INSERT orders",
        "    COMMIT",
        "    after_commit",
        "      transaction orders.primary",
        *["      " + line for line in transaction],
        "        COMMIT",
        "    after_commit",
        "  transaction orders.primary",
        "    orders → primary (write)",
        "    UPDATE orders",
        "    COMMIT",
    ]
    assert found.count == 1
    failed = [span for span in found.spans if span.name == "after_commit"][1]
    assert failed.status.status_code is StatusCode.ERROR


async def test_a_sampled_remote_parent_has_children(world: World, spans: InMemorySpanExporter) -> None:
    remote = propagate.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    token = context.attach(remote)
    try:
        async with world.registry() as registry, registry.session(tenant="acme") as db:
            await db.execute(INSERT, ["tea"])
    finally:
        context.detach(token)
    found = Trace(spans)
    assert found.outline[0] == "transaction orders.primary"
    assert {f"{span.context.trace_id:032x}" for span in found.spans if span.context} == {
        "4bf92f3577b34da6a3ce929d0e0e4736"
    }


async def test_a_session_without_a_parent_is_one_trace(world: World, spans: InMemorySpanExporter) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.read.fetch_all("select 1")
        await db.execute(INSERT, ["tea"])
        await db.read.fetch_all("select item from orders")
    found = Trace(spans)
    assert found.outline == [
        "session orders",
        "  orders → r1 (balanced)",
        "  SELECT",
        "  transaction orders.primary",
        "    orders → primary (write)",
        "    INSERT orders",
        "    SELECT orders",
        "    COMMIT",
    ]
    assert found.count == 1
    assert found.of("session orders")["nodes"] == ("r1", "primary")
    assert found.of("SELECT orders")["reason"] == "pinned"


async def test_attempts_are_rows_and_on_the_requests_span(world: World, spans: InMemorySpanExporter) -> None:
    attempts = 0

    @transactional(retry=2)
    async def again(request: Request) -> Response:
        nonlocal attempts
        attempts += 1
        db = session(request)
        await db.execute(INSERT, [f"tea {request.query_params['lost']}"])
        if attempts <= int(request.query_params["lost"]):
            await db.execute(CONFLICT)
        return JSONResponse({})

    async with traced(world, [Route("/", again, methods=["POST"])]) as http:
        assert (await http.post("/?lost=1")).status_code == 200
        found = await complete(spans, "COMMIT")
        assert [line for line in found.outline if line.startswith("  ") and line[2] != " "] == [
            "  transaction orders.primary",
            "  retry",
            "  transaction orders.primary",
        ]
        request = attributes(found.request)
        assert (request["retry.attempt"], request["retry.outcome"]) == (2, "settled")
        assert request["transaction.outcome"] == "committed"
        lost, won = [attributes(span) for span in found.spans if span.name.startswith("transaction")]
        assert (lost["transaction.attempt"], won["transaction.attempt"]) == (1, 2)
        assert lost["transaction.outcome"] == "rolled_back"
        waited = found.of("retry")
        assert (waited["retry.attempt"], waited["db.response.status_code"]) == (1, "40001")
        assert waited["retry.delay_ms"] > 0

        spans.clear()
        attempts = 0
        assert (await http.post("/?lost=3")).status_code == 409
        found = await complete(spans, "POST /", "ROLLBACK", "retry", "retry")
        request = attributes(found.request)
        assert (request["retry.attempt"], request["retry.outcome"]) == (3, "given_up")
        assert request["error.kind"] == "conflict"


@transactional(timeout=0.3)
async def slow_statement(request: Request) -> Response:
    db = session(request)
    await db.execute(INSERT, ["tea"])
    await db.execute("select pg_sleep(30)")
    return Response()


@transactional(timeout=0.3)
async def slow_code(request: Request) -> Response:
    await session(request).execute(INSERT, ["tea"])
    await asyncio.sleep(30)
    return Response()


@transactional
async def abandoned(request: Request) -> Response:
    db = session(request)
    await db.execute(INSERT, ["tea"])
    await db.execute("select pg_sleep(30)")
    return Response()


async def test_what_a_deadline_or_a_disconnect_interrupts_names_the_cause(
    world: World, spans: InMemorySpanExporter
) -> None:
    routes = [
        Route("/statement", slow_statement, methods=["POST"]),
        Route("/code", slow_code, methods=["POST"]),
        Route("/abandoned", abandoned, methods=["POST"]),
    ]
    async with traced(world, routes) as http:
        for path, cause, reason in (
            ("/statement", "deadline", "the deadline has passed"),
            ("/code", "deadline", "the deadline has passed"),
            ("/abandoned", "client_disconnected", "the client has disconnected"),
        ):
            spans.clear()
            if path == "/abandoned":
                with pytest.raises(httpx.TimeoutException):
                    await http.post(path, timeout=0.4)
            else:
                response = await http.post(path)
                assert response.status_code == 504
            found = await complete(spans, "ROLLBACK", "transaction orders.primary")
            transaction = found.of("transaction orders.primary")
            assert transaction["transaction.outcome"] == "rolled_back", path
            assert transaction["transaction.rollback_reason"] == reason, path
            assert transaction["error.type"] == cause, path
            assert found.named("transaction orders.primary").status.status_code is StatusCode.ERROR
            assert found.of("ROLLBACK")["transaction.rollback_reason"] == reason, path
            if path != "/code":
                assert found.of("SELECT")["error.type"] == cause, path
                assert found.named("SELECT").status.status_code is StatusCode.ERROR
            if path != "/abandoned":
                request = attributes(found.request)
                assert request["error.kind"] == "timeout"
                assert request["problem.reference"] == response.json()["reference"]
                assert request["transaction.outcome"] == "rolled_back"


CONSISTENCY: dict[str, Any] = {
    "token": "header",
    "secret": "a secret of more than thirty-two characters",
    "wait": "50ms",
}


async def test_a_proof_is_named_once_it_is_true(world: World, spans: InMemorySpanExporter) -> None:
    replica = world.cluster.replicas["r1"]
    config = world.config(replicas=("r1",), consistency=CONSISTENCY, routing={"check_interval": "1h"})
    async with compile(config) as registry:
        # Its position is known, and is not looked up again.
        await until_at_rest(registry)
        await replica.pause_replay()
        try:
            async with registry.session(tenant="acme") as db:
                await db.execute(INSERT, ["tea"])
            spans.clear()
            async with registry.session(tenant="acme", token=db.token) as reader:
                assert await reader.read.fetch_value("select count(*) from orders") == 1
            found = Trace(spans)
        finally:
            await replica.resume_replay()
        assert found.outline == [
            "session orders",
            "  orders → r1 (not proved)",
            "  SELECT orders",
            "  orders → primary (behind)",
            "  SELECT orders",
        ]
        lost = found.of("orders → r1 (not proved)")
        assert (lost["proof"], "reason" in lost) == ("failed", False)
        assert lost["proof.wait_ms"] >= 40
        assert lost["replica.lsn"] < lost["required.lsn"]
        assert found.of("orders → primary (behind)")["required.lsn"] == lost["required.lsn"]

        spans.clear()
        await world.cluster.caught_up()
        async with registry.session(tenant="acme") as db:
            await db.execute(INSERT, ["cake"])
        wrote = Trace(spans)
        await world.cluster.caught_up()
        spans.clear()
        async with registry.session(tenant="acme", token=db.token) as reader:
            await reader.read.fetch_value("select count(*) from orders")
        [route] = [span for span in Trace(spans).spans if "→" in span.name]
        assert route.name in ("orders → r1 (proved)", "orders → r1 (balanced)")
        proved = attributes(route)
        assert proved["proof"] == "met"
        # One search finds the writing and the reading request, and the read links to the COMMIT.
        commit = wrote.named("COMMIT")
        assert attributes(commit)["commit.lsn"] == proved["required.lsn"] == attributes(commit)["required.lsn"]
        assert [link.context for link in route.links] == [commit.context]


async def test_a_transaction_holds_what_belongs_to_it(world: World, spans: InMemorySpanExporter) -> None:
    @transactional(propagation="requires_new")
    async def audit(db: DataSession) -> None:
        await db.execute(INSERT, ["audit"])

    async def place(request: Request) -> Response:
        db = session(request)
        with trace.get_tracer("test").start_as_current_span("repository"):
            await db.execute(INSERT, ["tea"])
        await audit(db)
        async with db.transaction():
            await db.execute(INSERT, ["cake"])
        with pytest.raises(DataError):
            async with db.transaction():
                await db.execute(INSERT, ["tea"])
        with trace.get_tracer("test").start_as_current_span("reader"):
            await db.read.fetch_all("select item from orders")
        await db.commit()
        await db.read.fetch_all("select item from orders")
        return JSONResponse({})

    async with traced(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 200
        found = await complete(spans, "COMMIT", "COMMIT", "orders → primary (pinned)")
    assert found.outline == [
        "POST /",
        "  repository",
        "  transaction orders.primary",
        "    orders → primary (write)",
        "    INSERT orders",
        "    savepoint ads_1",
        "      INSERT orders",
        "    savepoint ads_2",
        "      INSERT orders",
        "    SELECT orders",
        "    COMMIT",
        "  transaction orders.primary",
        "    orders → primary (write)",
        "    INSERT orders",
        "    COMMIT",
        "  reader",
        "  orders → primary (pinned)",
        "  SELECT orders",
    ]
    [first, second] = [span for span in found.spans if span.name.startswith("transaction")]
    assert attributes(first)["transaction.propagation"] == "required"
    assert attributes(second)["transaction.propagation"] == "requires_new"
    assert attributes(first)["transaction.begin"] == "begin"
    assert attributes(first)["transaction.isolation"] == "default"
    assert attributes(first)["commit.lsn"].count("/") == 1
    assert found.of("savepoint ads_1")["savepoint.outcome"] == "released"
    assert found.of("savepoint ads_2")["savepoint.outcome"] == "rolled_back"
    # A read that the pin sends to the primary links to the COMMIT of what was written, not to its own parent.
    [commit] = [s for s in found.spans if s.name == "COMMIT" and s.parent is not None and s.parent == first.context]
    pinned = found.named("orders → primary (pinned)")
    assert [link.context for link in pinned.links] == [commit.context]
    # Statements link to the application's own span around them.
    reader = found.named("reader")
    [linked] = [span for span in found.spans if span.name == "SELECT orders" and span.links]
    assert [link.context for link in linked.links] == [reader.context]
    request = attributes(found.request)
    assert request["nodes"] == ("primary",)
    assert request["transaction.outcome"] == "committed"


async def test_streams_locks_and_borrowed_connections_have_spans_of_their_own(
    world: World, spans: InMemorySpanExporter
) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.executemany(INSERT, [["a"], ["b"], ["c"]])
        await db.lock("invoices", timeout=1)
        await db.lock("invoices", timeout=0)
        async for _ in db.stream("select item from orders where item like %s", ["%"], size=1):
            pass
        async with db.connection() as connection:
            await connection.execute("select 1")
    found = Trace(spans)
    assert found.outline == [
        "session orders",
        "  transaction orders.primary",
        "    orders → primary (write)",
        "    BATCH INSERT orders",
        "    savepoint ads_1",
        "      SELECT pg_catalog.pg_advisory_xact_lock",
        "    SELECT pg_catalog.pg_try_advisory_xact_lock",
        "    SELECT orders",
        "    borrowed connection",
        "    COMMIT",
    ]
    batch = found.of("BATCH INSERT orders")
    assert (batch["db.operation.name"], batch["db.operation.batch.size"]) == ("BATCH INSERT", 3)
    stream = found.of("SELECT orders")
    assert stream["db.response.returned_rows"] == 3
    assert stream["stream.fetches"] == 4
    assert stream["db.query.text"] == "select item from orders where item like %s"


async def test_a_failure_is_on_the_span_of_what_has_failed(world: World, spans: InMemorySpanExporter) -> None:
    async with world.registry() as registry:
        with pytest.raises(DataError):
            async with registry.session(tenant="acme") as db:
                await db.executemany(INSERT, [["a"], ["a"], ["b"]])
        found = Trace(spans)
        batch = found.of("BATCH INSERT orders")
        assert (batch["batch.failed"], batch["error.type"], batch["error.constraint"]) == (
            2,
            "23505",
            "orders_item_key",
        )
        spans.clear()
        await world.sql("drop schema globex cascade")
        with pytest.raises(DataError):
            async with registry.session(tenant="globex") as db:
                await db.execute(INSERT, ["tea"])
        found = Trace(spans)
        assert "INSERT orders" not in [span.name for span in found.spans]
        opening = found.of("transaction orders.primary")
        assert (opening["transaction.failed_at"], opening["transaction.outcome"]) == ("settings", "not_opened")


async def test_a_commit_in_doubt_says_so(world: World, spans: InMemorySpanExporter) -> None:
    primary = world.cluster.primary
    async with FaultProxy(primary.host, primary.port) as proxy:
        registry = world.registry(urls={"primary": proxy.through(world.url())}, replicas=())
        async with registry:

            async def write() -> None:
                async with registry.session(tenant="acme") as db:
                    await db.execute(INSERT, ["doubt"])

            proxy.hold_back(at=b"COMMIT")
            writing = asyncio.create_task(write())
            await proxy.until_held()
            proxy.cut(only_held=True)
            await writing
    commit = Trace(spans).named("COMMIT")
    assert attributes(commit)["commit.in_doubt"] is True
    assert attributes(commit)["transaction.outcome"] == "committed"
    assert [event.name for event in commit.events] == [P + "commit.connection_lost"]


async def test_client_spans_answer_searches_by_tenant_server_and_cause(
    world: World, spans: InMemorySpanExporter
) -> None:
    async def place(request: Request) -> Response:
        db = session(request)
        await db.read.fetch_all("select item from orders where item = %s and id > 4711 /* hint */", ["secret-bind"])
        await db.execute("insert into orders (item) values ('secret-literal')")
        await db.execute("insert into orders (item) values ('secret-literal')")
        return Response()

    registry = world.registry(telemetry={"tenant_attribute": True})
    async with traced(world, [Route("/", place, methods=["POST"])], registry=registry) as http:
        answer = await http.post("/?key=secret-query", headers={"X-Key": "secret-header"})
        assert answer.status_code == 409
        found = await complete(spans, "ROLLBACK")
    select = found.of("SELECT orders")
    assert select == {
        "db.system.name": "postgresql",
        "db.namespace": f"{world.dbname}|acme",
        "db.operation.name": "SELECT",
        "db.query.summary": "SELECT orders",
        "db.query.text": "select item from orders where item = %s and id > ?",
        "db.client.connection.pool.name": "orders.r1",
        "server.address": "127.0.0.1",
        "server.port": world.cluster.replicas["r1"].port,
        "datasource": "orders",
        "node": "r1",
        "role": "replica",
        "tenant.strategy": "schema",
        "tenant.id": "acme",
    }
    clients = [span for span in found.spans if span.kind is SpanKind.CLIENT]
    assert all(attributes(span)["tenant.id"] == "acme" for span in clients)
    request = attributes(found.request)
    assert request["tenant.id"] == "acme"
    assert request["db.response.status_code"] == "23505"
    assert request["problem.reference"] == answer.json()["reference"]
    ours = [span for span in found.spans if span is not found.request]
    shown = repr([(s.name, dict(s.attributes or {}), [e.attributes for e in s.events]) for s in ours])
    assert "secret" not in shown
    route = found.of("orders → r1 (balanced)")
    assert route["pool.queue_ms"] + route.get("pool.connect_ms", 0) == pytest.approx(route["pool.wait_ms"], abs=0.01)
    scope = select_scope(found)
    assert scope == ("asgi_datasource", "https://opentelemetry.io/schemas/1.44.0")


def select_scope(found: Trace) -> tuple[str, str | None]:
    scope = found.named("SELECT orders").instrumentation_scope
    assert scope is not None
    assert scope.version
    return scope.name, scope.schema_url


async def test_a_refusal_before_any_session_is_on_the_requests_span(world: World, spans: InMemorySpanExporter) -> None:
    async with traced(world, []) as http:
        answer = await http.get("/", headers={"X-Tenant": "nobody"})
        assert answer.status_code == 404
        found = await complete(spans, "GET /")
    request = attributes(found.request)
    assert (request["error.kind"], request["problem.reference"]) == ("tenant", answer.json()["reference"])


async def test_the_wrong_order_of_middlewares_is_reported_once(
    world: World, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async def place(request: Request) -> Response:
        await session(request).execute("insert into children (parent) values (99)")
        return JSONResponse({}, status_code=201)

    session_trace._warn_of_order.cache_clear()
    inner = OpenTelemetryMiddleware(Starlette(routes=[Route("/", place, methods=["POST"])]))
    for _ in range(2):
        call = Call("POST")
        async with world.registry() as registry:
            await call.run(DataSourceMiddleware(inner, registry=registry))
        assert call.status == 409
    warnings = [record for record in caplog.records if record.name == "asgi_datasource.telemetry"]
    assert len(warnings) == 1
    assert "around DataSourceMiddleware" in warnings[0].getMessage()
