"""Query tags on a real server: its views lead back to the route and the trace, at no further round trip."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import unquote

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import session
from asgi_datasource.drivers.psycopg.read_sharing import ReadShare, ReadSharing
from asgi_datasource.observability.query_tags import MAX_APPLICATION_NAME, TagOptions, route_of
from tests.apps import client
from tests.guarantees.test_cost import always, on_one_replica, open_meter
from tests.observability.traces import traced
from tests.world import World

OWN = "select query, application_name from pg_stat_activity where pid = pg_backend_pid() and %s = 1 -- a comment"
PREPARED = "select statement from pg_prepared_statements where statement like '%pg_stat_activity%'"


async def show(request: Request) -> Response:
    """What the server shows of a read, of the first statement of a transaction, and of one inside it."""
    db = session(request)
    found = [await db.read.fetch_one(OWN, [1])]
    found += [await db.write.fetch_one(OWN, [1]), await db.write.fetch_one(OWN, [1])]
    rows = [tuple(row.values()) for row in found if row is not None]
    async for row in db.stream("select statement from pg_cursors where statement like 'declare%'"):
        rows.append((row["statement"], ""))
    prepared = await db.fetch_all(PREPARED)
    return JSONResponse({"rows": rows, "prepared": [row["statement"] for row in prepared]})


ROUTES = [Route("/orders/{id}", show)]
ROUTE = "/*route='GET%20%2Forders%2F%7Bid%7D'*/"


def config(world: World, **telemetry: Any) -> dict[str, Any]:
    return {"registry": world.registry(replicas=(), pool={"min_size": 1, "max_size": 1}, telemetry=telemetry)}


async def test_the_server_shows_the_route_of_each_statement(world: World) -> None:
    made = config(world, sqlcommenter="route", application_name=True)
    async with client(world, ROUTES, **made) as http:
        for _ in range(3):
            answer = (await http.get("/orders/7")).json()
        assert len(answer["rows"]) == 4
        for query, application in answer["rows"]:
            assert query.endswith((f"\n{ROUTE}", f" {ROUTE}")), query
            assert application in ("GET /orders/{id}", "")
        assert [application for _, application in answer["rows"][:3]] == ["GET /orders/{id}"] * 3
        # The same text for each request of the route: it stays prepared.
        assert any(ROUTE in statement for statement in answer["prepared"])
        [name] = await world.sql(
            "select application_name from pg_stat_activity where usename = 'app' and datname = current_database()"
            " and query like '%orders%2F%'"
        ) or [("",)]
        assert "GET" not in name[0]
        # Statements of the library's own, and of sessions without a request, have none.
        registry = made["registry"]
        async with registry.session("acme") as db:
            row = await db.read.fetch_one(OWN, [1])
        assert row is not None
        assert "/*" not in row["query"]
        assert "GET" not in row["application_name"]


async def test_reads_that_share_a_connection_have_the_tags_of_their_own_routes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[ReadShare] = []
    lend = ReadSharing.share

    def counting(self: ReadSharing, *arguments: Any) -> ReadShare:
        shared.append(lend(self, *arguments))
        return shared[-1]

    async def tell(request: Request) -> Response:
        return JSONResponse(await session(request).read.fetch_one(OWN, [1]))

    monkeypatch.setattr(ReadSharing, "share", counting)
    names = ("orders", "planes", "desks")
    made = config(world, sqlcommenter="route", application_name=True, spans=False)
    async with client(world, [Route(f"/{name}", tell) for name in names], **made) as http:
        for _ in range(5):
            answers = await asyncio.gather(*(http.get(f"/{name}") for name in names * 4))
            for name, answer in zip(names * 4, answers, strict=True):
                told = answer.json()
                assert told["query"].endswith(f"/*route='GET%20%2F{name}'*/"), told
                assert told["application_name"] == f"GET /{name}"
    assert shared


async def test_the_server_shows_the_trace_of_each_statement(world: World, spans: InMemorySpanExporter) -> None:
    async with traced(world, ROUTES, **config(world, sqlcommenter="traceparent", tenant_attribute=True)) as http:
        for _ in range(3):
            answer = (await http.get("/orders/7")).json()
    request = [one for one in spans.get_finished_spans() if one.kind is SpanKind.SERVER][-1]
    assert request.context is not None
    expected = f"00-{request.context.trace_id:032x}-{request.context.span_id:016x}-"
    for query, _ in answer["rows"]:
        assert f"/*route='GET%20%2Forders%2F%7Bid%7D',tenant='acme',traceparent='{expected}" in query
    # Each request has another text, so that none is prepared, and none evicts those that are.
    assert answer["prepared"] == []


@pytest.mark.parametrize("mode", ["route", "traceparent"])
async def test_tags_cost_no_round_trip(world: World, mode: str) -> None:
    async with open_meter(world, telemetry={"sqlcommenter": mode, "application_name": True}) as meter:
        assert await meter.costs("POST", "/write", status=201) == always({"primary": 2})
        assert on_one_replica(await meter.costs("GET", "/read"), 1)


def test_values_cannot_leave_the_comment() -> None:
    options = TagOptions(comments=True, tenant=True, application_name=True)
    hostile = "GET /'*/;drop table orders;--%s%(x)s\N{SNOWMAN}\n" + "x" * 100
    tag = options.tag(hostile, "o'neil*/")
    assert tag is not None
    inside = re.fullmatch(rb"/\*route='([^'*/%]|%[0-9A-F]{2})*',tenant='([^'*/%]|%[0-9A-F]{2})*'\*/", tag.comment)
    assert inside is not None
    assert unquote(tag.comment.decode()[9:].partition("'")[0]) == hostile
    [(name, value)] = options.settings(hostile)
    assert name == "application_name"
    assert len(value) == MAX_APPLICATION_NAME
    assert re.fullmatch(r"[ -~]+", value)


def test_a_route_is_a_template_and_never_a_path() -> None:
    class Template:
        path = "/orders/{id}"

    async def endpoint() -> None: ...

    assert route_of({"route": Template(), "path": "/orders/7"}, "GET") == "GET /orders/{id}"
    assert route_of({"path_template": "/orders/{id:int}", "path": "/orders/7"}, "GET") == "GET /orders/{id:int}"
    named = route_of({"endpoint": endpoint, "path": "/orders/7"}, "GET")
    assert named is not None
    assert named.startswith("GET test_a_route_is_a_template")
    assert route_of({"path": "/orders/7"}, "GET") is None
    assert route_of(None, "") is None
