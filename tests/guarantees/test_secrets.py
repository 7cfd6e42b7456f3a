"""Promise 9: no password, bind value or connection string in a message, log line, span, document or repr."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource import DataError, DataSession, session
from tests.apps import client
from tests.world import World

BIND = "s3cret-bind-value"

FAILING: dict[str, tuple[str, list[Any]]] = {
    "unique": ("insert into orders (item) values (%s), (%s)", [BIND, BIND]),
    "check": ("insert into orders (item) values ('forbidden') returning %s", [BIND]),
    "foreign key": ("insert into children (parent) values (length(%s))", [BIND]),
    "syntax": ("selekt %s", [BIND]),
    "unknown table": ("select %s from nowhere", [BIND]),
    "cast": ("select cast(%s::text as int)", [BIND]),
    "raised": ("select 1 / length(replace(%s, %s, ''))", [BIND, BIND]),
    "wrong count": ("select %s", [BIND, BIND]),
    "no rows": ("set local application_name = 'x'", []),
    "commit": ("commit", []),
}


async def drive(world: World, db: DataSession, texts: list[str]) -> None:
    """Cause every kind of failure, and record everything that is reported."""
    texts += [repr(db), repr(db.registry), repr(db.tenant), repr(db.datasource), repr(db.pin)]
    for query, params in FAILING.values():
        try:
            async with db.transaction():
                await db.fetch_all(query, params)
        except Exception as error:
            texts += [repr(error), str(error), repr(error.__cause__) if isinstance(error, DataError) else ""]
    texts += [repr(endpoint) for endpoint in db.datasource.servers.values()]
    texts.append(str(db.last_route))


async def test_no_failure_reveals_a_secret(
    world: World, caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    async def fail(request: Request) -> Response:
        await drive(world, session(request), texts)
        query, params = FAILING[request.query_params.get("last", "unique")]
        await session(request).execute(query, params)
        return Response("placed")

    async with client(world, [Route("/", fail, methods=["POST"])]) as http:
        for last in FAILING:
            answer = await http.post(f"/?last={last}")
            texts.append(answer.text + str(answer.headers))

    wrong = world.url().replace("app:", "app:wr0ng-pass")
    async with client(
        world, [Route("/", fail, methods=["POST"])], registry=world.registry(urls={"primary": wrong}, replicas=())
    ) as http:
        answer = await http.post("/")
        assert answer.status_code == 503
        texts.append(answer.text)

    texts += [record.getMessage() + str(record.exc_text or "") for record in caplog.records]
    texts += [
        f"{span.name} {dict(span.attributes or {})} {[e.attributes for e in span.events]} {span.status.description}"
        for span in spans.get_finished_spans()
    ]
    assert len(texts) > 100
    password = world.url().split("://app:")[1].split("@")[0] if "://app:" in world.url() else None
    secrets = [BIND, "wr0ng-pass", world.url(), *([password] if password else [])]
    for text in texts:
        for secret in secrets:
            assert secret not in text, text


async def test_constraint_details_are_not_in_the_response(world: World) -> None:
    async def place(request: Request) -> Response:
        await session(request).execute("insert into orders (item) values (%s), (%s)", [BIND, BIND])
        return Response("placed")

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        answer = await http.post("/")
    assert answer.status_code == 409
    assert answer.json()["constraint"] == "orders_item_key"
    assert BIND not in answer.text


def test_repr_of_a_registry_shows_no_connection_string(world: World) -> None:
    registry = world.registry()
    shown = repr(registry) + repr(list(registry)) + repr([list(ds.servers.values()) for ds in registry])
    assert "password" not in shown
    assert world.url() not in shown
    with suppress(IndexError):
        assert world.url().split("password=")[1].split()[0] not in shown
    assert trace is not None
