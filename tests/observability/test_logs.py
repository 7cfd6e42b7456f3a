"""One log line for a notable decision, with the ids of its trace; none above INFO for what is normal."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import asgi_datasource
from asgi_datasource import DataError, SessionClosed, session, transactional
from asgi_datasource.observability import decision_log
from tests.apps import application, client
from tests.asgi_call import Call
from tests.docs.samples import samples
from tests.world import World

EVENT = "asgi_datasource.event"
_AUDIT = {"asgi_datasource.tenancy"}
"""Findings about the tables of the tests."""

_SLEEPS = "select 1 from pg_stat_activity where query like '%pg_sleep(20)%' and pid <> pg_backend_pid()"


@pytest.fixture(autouse=True)
def nothing_was_logged(caplog: pytest.LogCaptureFixture) -> None:
    decision_log._repeated.clear()
    caplog.set_level(logging.INFO)


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    """The records of an event that are not DEBUG."""
    return [one for one in caplog.records if one.levelno > logging.DEBUG and getattr(one, EVENT, None) == name]


def conflicting(request: Request) -> Any:
    return session(request).write.execute("do $$ begin raise exception using errcode = '40001'; end $$")


async def write(request: Request) -> Response:
    await session(request).execute("insert into orders (item) values (gen_random_uuid())")
    return Response()


async def conflict(request: Request) -> Response:
    await conflicting(request)
    return Response()


@transactional(propagation="requires_new", retry=1)
async def conflict_in_a_function(request: Request) -> None:
    await conflicting(request)


async def conflict_below(request: Request) -> Response:
    await conflict_in_a_function(request)
    return Response()


ROUTES = [
    Route("/", write, methods=["POST"]),
    Route("/conflict", conflict, methods=["POST"]),
    Route("/below", conflict_below, methods=["POST"]),
]


async def test_a_server_that_is_away_is_one_line_and_not_one_for_each_request(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    urls = {"primary": re.sub(r":\d+/", f":{port}/", world.url())}
    registry = world.registry(replicas=(), urls=urls, pool={"acquire_timeout": "200ms"})
    async with client(world, ROUTES, registry=registry) as http:
        answers = await asyncio.gather(*(http.post("/") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {503}
    [down] = events(caplog, "server_down")
    assert (down.levelno, vars(down)["asgi_datasource.node"]) == (logging.WARNING, "primary")
    [failed] = events(caplog, "request_failed")
    shown = vars(failed)
    assert (failed.levelno, shown["http.response.status_code"]) == (logging.ERROR, 503)
    assert (shown["error.type"], shown["asgi_datasource.error.kind"]) == ("connection", "connection")
    assert shown["asgi_datasource.problem.reference"] in {answer.json()["reference"] for answer in answers}
    # The next one says how many there were.
    for repeated in decision_log._repeated.values():
        repeated.logged_at -= decision_log.INTERVAL_S
    async with client(world, ROUTES, registry=registry) as http:
        assert (await http.post("/")).status_code == 503
    assert "(and 19 more like it since the last such line)" in caplog.text
    connects = [one for one in caplog.records if one.name == "psycopg.pool" and one.levelno >= logging.WARNING]
    assert len({one.msg for one in connects}) == len(connects)


@pytest.mark.parametrize("path", ["/conflict", "/below"])
async def test_retries_that_are_used_up_are_a_line(world: World, caplog: pytest.LogCaptureFixture, path: str) -> None:
    transactions = {"retry": 1} if path == "/conflict" else {}
    async with client(world, ROUTES, registry=world.registry(transactions=transactions)) as http:
        for _ in range(3):
            assert (await http.post(path)).status_code == 409
    [record] = events(caplog, "retry_exhausted")
    assert "has failed 2 times with a conflict: 40001" in record.getMessage()
    assert vars(record)["asgi_datasource.retry.attempt"] == 2
    assert vars(record)["db.response.status_code"] == "40001"


async def test_a_late_use_names_its_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with world.registry() as registry:
        async with registry.session("acme") as db:
            await db.read.fetch_value("select 1")
        for _ in range(3):
            with pytest.raises(SessionClosed):
                await db.execute("select 1")
    [record] = events(caplog, "session_used_late")
    line = vars(record)["asgi_datasource.code.line"]
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ in {test_a_late_use_names_its_line.__name__}", line)
    assert line in record.getMessage()


async def test_records_lead_to_their_trace(
    world: World, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    LoggingInstrumentor().instrument(set_logging_format=True)
    try:
        with trace.get_tracer("test").start_as_current_span("request") as span:
            async with client(world, ROUTES) as http:
                assert (await http.post("/")).status_code == 200
            logging.getLogger("asgi_datasource.problems").info("inside")
    finally:
        LoggingInstrumentor().uninstrument()
    record = next(one for one in caplog.records if one.getMessage() == "inside")
    context = span.get_span_context()
    expected = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    assert (record.trace_id, record.span_id) == expected  # type: ignore[attr-defined]
    assert (record.otelTraceID, record.otelSpanID) == expected  # type: ignore[attr-defined]


def test_each_logger_of_the_library_is_known() -> None:
    root = Path(asgi_datasource.__file__).parent
    named = re.compile(r"getLogger\(\"asgi_datasource\.([\w.]+)\"\)")
    found = {name for file in root.rglob("*.py") for name in named.findall(file.read_text(encoding="utf-8"))}
    assert found == set(decision_log.AREAS)


async def test_an_ordinary_end_and_a_client_that_leaves_are_no_warnings(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait(request: Request) -> Response:
        await session(request).read.execute("select pg_sleep(20)")
        return Response()

    async with world.registry(replicas=()) as registry:
        call = Call("GET", path="/wait")
        running = asyncio.ensure_future(call.run(application(registry, [Route("/wait", wait)])))
        async with asyncio.timeout(10):
            while not await world.sql(_SLEEPS):
                await asyncio.sleep(0.02)
        call.leave()
        await running
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # Its pool still connects when the registry is closed.
        urls = {"r1": re.sub(r":\d+/", f":{silent.getsockname()[1]}/", world.url("r1"))}
        async with world.registry(replicas=("r1",), urls=urls):
            pass
    assert "client left" in caplog.text
    assert [
        one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING and one.name not in _AUDIT
    ] == []


async def test_the_structlog_recipe_of_the_page(world: World, spans: InMemorySpanExporter) -> None:
    [sample] = [one for one in samples("python", "docs/telemetry.md") if "structlog" in one.text]
    names: dict[str, Any] = {}
    exec(compile(sample.text, str(sample), "exec"), names)
    handler: logging.StreamHandler[Any] = names["handler"]
    stream = StringIO()
    handler.setStream(stream)
    try:
        async with world.registry() as registry:
            async with registry.session("acme") as db:
                await db.read.fetch_value("select 1")
            with trace.get_tracer("test").start_as_current_span("job") as span, pytest.raises(DataError):
                await db.execute("select 1")
    finally:
        logging.getLogger("asgi_datasource").removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    [line] = [one for one in lines if one.get(EVENT) == "session_used_late"]
    assert line["level"] == "warning"
    assert line["logger"] == "asgi_datasource.session"
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert line["asgi_datasource.datasource"] == "orders"
    assert "was used after its end, at " in line["event"]
