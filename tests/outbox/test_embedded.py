"""The relay in the application's own process, and the notifications to those of others."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource import ConfigError, session
from asgi_datasource.outbox import OutboxEntry, Refused
from asgi_datasource.outbox.database_relay import RelaySettings
from tests.apps import client
from tests.observability.test_metrics import read
from tests.outbox.delivery import Destination, relaying, until, until_left
from tests.registry.test_health import checked
from tests.world import World

arrived: Final[list[OutboxEntry]] = []


async def record(entry: OutboxEntry) -> None:
    """The application's own destination."""
    arrived.append(entry)


async def refuse_the_second(entry: OutboxEntry) -> None:
    """Takes the first event alone."""
    if arrived:
        raise Refused("one is enough")
    arrived.append(entry)


def record_in_a_thread(entry: OutboxEntry) -> None:
    """The same, not async."""
    arrived.append(entry)


async def place(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (gen_random_uuid())")
    await db.outbox.publish("orders.placed", key="1")
    return Response(status_code=201)


ROUTES = [Route("/", place, methods=["POST"])]


def embedded(name: str = "record", **outbox: Any) -> dict[str, Any]:
    return {"outbox": {"relay": "embedded", "publisher": {"callable": f"{__name__}:{name}"}, **outbox}}


@pytest.fixture(autouse=True)
def nothing_has_arrived() -> None:
    arrived.clear()


@pytest.mark.parametrize("name", ["record", "record_in_a_thread"])
async def test_the_application_delivers_its_own_events(world: World, name: str) -> None:
    registry = world.registry(**embedded(name))
    async with client(world, ROUTES, registry=registry) as http:
        for _ in range(5):
            assert (await http.post("/")).status_code == 201
        await until(lambda: len(arrived) == 5)
        await until_left(world, 0)
        assert registry.relay is not None
    assert registry.relay is None
    free = await world.sql("select count(*) from asgi_datasource.outbox_lane where owner is null")
    assert free == [(32,)]


async def test_a_registry_of_a_script_has_no_relay(world: World) -> None:
    async with world.registry(**embedded()) as registry:
        assert registry.relay is None


async def test_another_configuration_is_taken_up(world: World) -> None:
    async with world.registry(**embedded()) as registry:
        first = await registry.start_relay()
        await registry.reload(world.config(**embedded("record_in_a_thread")))
        assert registry.relay is not None
        assert registry.relay is not first
        await registry.reload(world.config(outbox={"relay": "off"}, transactions={"retry": 1}))
        assert registry.relay is None


async def test_a_function_that_is_not_there_is_refused(world: World) -> None:
    async with world.registry(**embedded("nothing")) as registry:
        with pytest.raises(ConfigError, match=r"outbox\.publisher\.callable: .*nothing"):
            await registry.start_relay()


async def test_notifications_are_coalesced_and_beside_the_request(world: World) -> None:
    destination = Destination()
    registry = world.registry(outbox={"notify": "coalesced"})
    async with (
        client(world, ROUTES, registry=registry) as http,
        world.registry(outbox={}) as other,
        relaying(other, destination, settings=RelaySettings(listens=True)) as relay,
    ):
        await until(lambda: relay.stats[("orders", None)].measured_at is not None)
        await asyncio.gather(*(http.post("/") for _ in range(60)))
        await destination.has(60)
        await until(lambda: any(notifier.sent for notifier in registry._outboxes._notifiers.values()))
        [notifier] = registry._outboxes._notifiers.values()
        assert notifier.sent < 40


async def test_a_relay_is_measured(world: World, metric_reader: InMemoryMetricReader) -> None:
    registry = world.registry(**embedded(), telemetry={"metrics": True})
    async with client(world, ROUTES, registry=registry) as http:
        before = read(metric_reader).get("asgi_datasource.outbox.published", [])
        assert (await http.post("/")).status_code == 201
        await until_left(world, 0)
        now = read(metric_reader)
        assert now["asgi_datasource.outbox.published"] != before
        assert [value for _, value in now["asgi_datasource.outbox.lanes"]] == [32]
        assert now["asgi_datasource.outbox.delay"]
        assert not [name for name, points in now.items() if ".outbox." in name and "acme" in str(points)]
        assert registry.relay is not None
        assert registry.relay.health().status == "ok"
        [database] = checked(registry.health())["outbox"]["databases"]
        assert (database["status"], database["lanes"], database["dead"]) == ("ok", 32, 0)
    assert "asgi_datasource.outbox.lanes" not in read(metric_reader)


async def test_sending_continues_the_trace_of_the_request(world: World, spans: InMemorySpanExporter) -> None:
    async with world.registry(**embedded("refuse_the_second")) as registry:
        await registry.start_relay()
        with trace.get_tracer("test").start_as_current_span("request") as request:
            async with registry.session(tenant="acme") as db:
                await db.outbox.publish("orders.placed", key="1", payload={"secret": "of the payload"})
                await db.outbox.publish("orders.placed", key="1")
        await until(lambda: sum(span.name == "send orders.placed" for span in spans.get_finished_spans()) == 2)
    first, second = (span for span in spans.get_finished_spans() if span.name == "send orders.placed")
    assert (first.kind, first.parent.span_id) == (SpanKind.PRODUCER, request.get_span_context().span_id)
    assert first.attributes == {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders.placed",
        "messaging.system": "callable",
        "messaging.message.id": str(arrived[0].event_id),
        "messaging.message.body.size": len(arrived[0].data),
    }
    context = first.get_span_context()
    assert arrived[0].headers["traceparent"][:53] == f"00-{context.trace_id:032x}-{context.span_id:016x}-"[:53]
    assert (second.status.status_code, second.attributes["error.type"]) == (StatusCode.ERROR, "refused")
    assert "secret" not in first.to_json() + second.to_json()
