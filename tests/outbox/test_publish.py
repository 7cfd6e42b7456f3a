"""`db.outbox.publish`: an event is there exactly when its transaction is."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, session, transactional
from asgi_datasource.outbox.entry import new_id
from asgi_datasource.sessions.unit_of_work import UnitOfWork
from tests.apps import client
from tests.faults.servers import proxy_of
from tests.guarantees.test_cost import always, open_meter
from tests.outbox.tables import events
from tests.world import World

OUTBOX = {"outbox": {"relay": "off"}}


class Placed(BaseModel):
    number: int
    note: str = "ö"


async def place(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (gen_random_uuid())")
    await db.outbox.publish("orders.placed", key="7", payload={"number": 7})
    return Response(status_code=201)


async def place_several(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (gen_random_uuid())")
    for number in range(5):
        await db.outbox.publish("orders.placed", key=str(number), payload=[number])
    await db.outbox.publish("orders.image", payload=b"\x00\xff")
    await db.outbox.publish("orders.done")
    return Response(status_code=201)


async def only_publish(request: Request) -> Response:
    await session(request).outbox.publish("orders.seen")
    return Response(status_code=201)


async def refuse(request: Request) -> Response:
    await place(request)
    return Response(status_code=int(request.path_params["status"]))


async def fail(request: Request) -> Response:
    await place(request)
    raise RuntimeError("after the event")


async def fail_at_commit(request: Request) -> Response:
    await place(request)
    await session(request).execute("insert into children (parent) values (404)")
    return Response(status_code=201)


async def undo_a_block(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (gen_random_uuid())")
    await db.outbox.publish("before")
    try:
        async with db.transaction():
            await db.execute("insert into orders (item) values (gen_random_uuid())")
            await db.outbox.publish("inside")
            async with db.transaction():
                await db.outbox.publish("innermost")
            raise LookupError
    except LookupError:
        pass
    async with db.transaction():
        await db.outbox.publish("kept")
    await db.outbox.publish("after")
    return Response(status_code=201)


async def in_two(request: Request) -> Response:
    db = session(request)
    await place(request)
    await db.commit()
    await place(request)
    await db.rollback()
    await db.outbox.publish("last")
    return Response(status_code=201)


async def in_a_hook(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (gen_random_uuid())")

    async def publish() -> None:
        await db.outbox.publish("from a hook")

    db.before_commit(publish)
    return Response(status_code=201)


@transactional(propagation="requires_new")
async def apart(request: Request) -> None:
    db = session(request)
    await db.execute("insert into orders (item) values (gen_random_uuid())")
    await db.outbox.publish("apart")


async def around_apart(request: Request) -> Response:
    await place(request)
    await apart(request)
    return Response(status_code=409)


ROUTES = [
    Route("/place", place, methods=["POST"]),
    Route("/several", place_several, methods=["POST"]),
    Route("/only", only_publish, methods=["POST"]),
    Route("/refuse/{status}", refuse, methods=["POST"]),
    Route("/fail", fail, methods=["POST"]),
    Route("/fail-at-commit", fail_at_commit, methods=["POST"]),
    Route("/undo", undo_a_block, methods=["POST"]),
    Route("/two", in_two, methods=["POST"]),
    Route("/hook", in_a_hook, methods=["POST"]),
    Route("/apart", around_apart, methods=["POST"]),
]


class TestRoundTrips:
    """An event travels in COMMIT's own round trip: N statements and their events are N + 1."""

    async def test_a_write_with_an_event_is_two(self, world: World) -> None:
        async with open_meter(world, ROUTES, **OUTBOX) as meter:
            assert await meter.costs("POST", "/place", status=201) == always({"primary": 2})
            assert await meter.costs("POST", "/several", status=201) == always({"primary": 2})

    @pytest.mark.parametrize("path", ["/place", "/several"])
    async def test_a_commit_with_events_takes_the_short_way(
        self, world: World, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            monkeypatch.setattr(UnitOfWork, "finish", None)
            assert (await http.post(path)).status_code == 201
            monkeypatch.undo()
        assert len(await events(world)) == (1 if path == "/place" else 7)

    async def test_an_event_alone_is_two(self, world: World) -> None:
        async with open_meter(world, ROUTES, **OUTBOX) as meter:
            assert await meter.costs("POST", "/only", status=201) == always({"primary": 2})


class TestRollback:
    """Acceptance 1: no row after any kind of rollback."""

    @pytest.mark.parametrize("path", ["/refuse/404", "/refuse/500", "/fail", "/fail-at-commit"])
    async def test_nothing_is_there_after_a_rollback(self, world: World, path: str) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            response = await http.post(path)
            assert response.status_code >= 400
            assert await events(world) == []
            assert (await http.post("/place")).status_code == 201
        assert await events(world) == ["orders.placed"]

    async def test_a_savepoint_takes_its_own_with_it(self, world: World) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            assert (await http.post("/undo")).status_code == 201
        assert await events(world) == ["before", "kept", "after"]

    async def test_each_transaction_of_a_request_has_its_own(self, world: World) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            assert (await http.post("/two")).status_code == 201
        assert await events(world) == ["orders.placed", "last"]

    async def test_a_transaction_of_its_own_keeps_its_own(self, world: World) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            assert (await http.post("/apart")).status_code == 409
        assert await events(world) == ["apart"]

    async def test_a_hook_before_the_commit_may_publish(self, world: World) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            assert (await http.post("/hook")).status_code == 201
        assert await events(world) == ["from a hook"]

    async def test_a_cancelled_block_leaves_none(self, world: World) -> None:
        async with world.registry(**OUTBOX) as registry:
            reached = asyncio.Event()

            async def work() -> None:
                async with registry.session(tenant="acme") as db:
                    await db.execute("insert into orders (item) values ('x')")
                    await db.outbox.publish("never")
                    reached.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await reached.wait()
            task.cancel()
            await asyncio.wait({task})
            assert await events(world) == []


class TestCommit:
    async def test_an_event_is_there_when_its_commit_has_lost_the_connection(self, world: World) -> None:
        """COMMIT takes effect, and its answer is lost: the id of the transaction tells the outcome."""
        async with proxy_of(world.cluster.primary) as proxy:
            urls = {"primary": proxy.through(world.url())}
            registry = world.registry(replicas=(), urls=urls, **OUTBOX)
            async with registry, registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values ('x')")
                await db.outbox.publish("t")
                proxy.hold_back(at=b"COMMIT")
                ending = asyncio.ensure_future(db.commit())
                await proxy.until_held()
                proxy.cut(only_held=True)
                proxy.release()
                await ending
                assert db.commits == 1
        assert await events(world) == ["t"]

    async def test_an_event_leaves_with_a_commit_whose_caller_was_cancelled(self, world: World) -> None:
        async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('x')")
            await db.outbox.publish("first")
            ending = asyncio.ensure_future(db.commit())
            await asyncio.sleep(0)
            ending.cancel()
            await asyncio.wait({ending})
            assert ending.cancelled()
            await db.execute("insert into orders (item) values ('y')")
            await db.outbox.publish("second")
        assert await events(world) == ["first", "second"]


class TestContents:
    async def test_what_an_event_carries(self, world: World, spans: InMemorySpanExporter) -> None:
        known = uuid4()
        async with world.registry(**OUTBOX) as registry:
            with trace.get_tracer("test").start_as_current_span("request") as span:
                async with registry.session(tenant="initech") as db:
                    await db.execute("insert into orders (item) values ('x')")
                    made = await db.outbox.publish("orders.placed", key="7", payload=Placed(number=7))
                    same = await db.outbox.publish("orders.placed", payload=b"\x01", headers={"Kind": "x"}, id=known)
        first, second = await events(world, "event_id, tenant, topic, key, data::text, data_bin, headers")
        trace_id = f"{span.get_span_context().trace_id:032x}"
        assert same == known
        assert (made.version, made.variant) == (7, "specified in RFC 4122")
        assert first[:6] == (made, "initech", "orders.placed", "7", '{"number":7,"note":"ö"}', None)
        assert second[:6] == (known, "initech", "orders.placed", str(known), None, b"\x01")
        assert trace_id in first[6]["traceparent"]
        assert second[6]["kind"] == "x"

    async def test_every_kind_of_payload(self, world: World) -> None:
        payloads: list[Any] = [None, 1, "text", [1, {"a": None}], {"when": UUID(int=1)}, {"nul": "\x00"}]
        async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme") as db:
            for payload in payloads:
                await db.outbox.publish("t", payload=payload)
        found = [json.loads(text) for text in await events(world, "data::text")]
        assert found == [None, 1, "text", [1, {"a": None}], {"when": str(UUID(int=1))}, {"nul": "\x00"}]

    async def test_events_of_one_transaction_keep_their_order(self, world: World) -> None:
        async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme") as db:
            for number in range(1000):
                await db.outbox.publish("t", key=str(number % 7), payload=number)
        assert await events(world, "data::text::int") == list(range(1000))

    def test_ids_grow_with_time(self) -> None:
        ids = [new_id(now_ms=stamp) for stamp in (1, 2, 3, 1_700_000_000_000)]
        assert ids == sorted(ids)
        assert len({new_id() for _ in range(1000)}) == 1000


class TestRefusals:
    @pytest.mark.parametrize(
        ("published", "words"),
        [
            ({"topic": "t", "payload": "x" * 2000}, "2002 bytes, and outbox.max_payload allows 1024"),
            ({"topic": "t", "payload": b"x" * 1025}, "1025 bytes"),
            ({"topic": "t", "payload": object()}, "cannot be written as JSON"),
            ({"topic": "", "payload": 1}, "the topic of an event"),
            ({"topic": "a\x00b", "payload": 1}, "the topic of an event"),
            ({"topic": "t", "key": "a\ud800"}, "the key of an event"),
            ({"topic": "t", "headers": {"a": "b\n"}}, "the header 'a'"),
            ({"topic": "t", "id": "seven"}, "the id of an event is a UUID"),
            ({"topic": "t", "ordered": True}, "give it a key"),
        ],
    )
    async def test_what_cannot_be_published_is_refused_at_once(
        self, world: World, published: dict[str, Any], words: str
    ) -> None:
        registry = world.registry(outbox={"max_payload": "1KiB"})
        async with registry, registry.session(tenant="acme") as db:
            with pytest.raises(DataError, match=words) as caught:
                await db.outbox.publish(**published)
            assert caught.value.kind is DataErrorKind.QUERY
            await db.execute("insert into orders (item) values ('goes on')")
        assert await world.items() == ["goes on"]
        assert await events(world) == []

    async def test_without_a_section_it_says_so(self, world: World) -> None:
        async with world.registry() as registry, registry.session(tenant="acme") as db:
            with pytest.raises(DataError, match="needs the section outbox") as caught:
                await db.outbox.publish("t")
        assert caught.value.kind is DataErrorKind.CONFIG

    async def test_nothing_is_published_in_what_only_reads(self, world: World) -> None:
        async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme", read_only=True) as db:
            with pytest.raises(DataError) as caught:
                await db.outbox.publish("t")
        assert caught.value.kind is DataErrorKind.READ_ONLY

    async def test_without_a_transaction_it_says_so(self, world: World) -> None:
        async def route(request: Request) -> Response:
            try:
                await session(request).outbox.publish("t")
            except DataError as error:
                return JSONResponse(error.message)
            return Response()

        registry = world.registry(**OUTBOX, transactions={"default": "annotated"})
        async with client(world, [Route("/", route, methods=["POST"])], registry=registry) as http:
            assert "there is none here" in (await http.post("/")).json()

    async def test_missing_tables_are_named(self, world: World) -> None:
        await world.sql("drop schema asgi_datasource cascade")
        async with world.registry(**OUTBOX) as registry:
            with pytest.raises(DataError, match="migrate apply") as caught:
                async with registry.session(tenant="acme") as db:
                    await db.execute("insert into orders (item) values ('x')")
                    await db.outbox.publish("t")
        assert caught.value.kind is DataErrorKind.CONFIG
        assert await world.items() == []


async def test_ordered_events_of_a_key_wait_for_each_other(world: World) -> None:
    async with world.registry(**OUTBOX) as registry:
        first_has_it, first_may_end = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with registry.session(tenant="acme") as db:
                await db.outbox.publish("t", key="k", payload=1, ordered=True)
                first_has_it.set()
                await first_may_end.wait()

        async def second() -> None:
            await first_has_it.wait()
            async with registry.session(tenant="acme") as db:
                asyncio.get_running_loop().call_later(0.1, first_may_end.set)
                await db.outbox.publish("t", key="k", payload=2, ordered=True)
                assert first_may_end.is_set()

        async with asyncio.TaskGroup() as group:
            group.create_task(first())
            group.create_task(second())
    assert await events(world, "data::text::int") == [1, 2]


async def test_an_event_is_processed_once(world: World) -> None:
    event = new_id()
    async with world.registry() as registry:
        async with registry.session(tenant="acme") as db:
            assert await db.inbox.once("mailer", event) is True
            assert await db.inbox.once("mailer", str(event)) is False
            assert await db.inbox.once("indexer", event) is True
        async with registry.session(tenant="acme") as db:
            assert await db.inbox.once("mailer", event) is False
        with pytest.raises(LookupError):
            async with registry.session(tenant="acme") as db:
                other = new_id()
                assert await db.inbox.once("mailer", other) is True
                raise LookupError
        async with registry.session(tenant="acme") as db:
            assert await db.inbox.once("mailer", other) is True
