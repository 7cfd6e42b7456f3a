"""Promises 5, 6 and 7: READ ONLY with read intent, read your own writes, one replica per request."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataErrorKind, Reason, session, transactional
from asgi_datasource.errors import DataError
from tests.apps import client
from tests.world import World

WRITES = {
    "insert": "insert into orders (item) values ('tea')",
    "writing CTE": "with placed as (insert into orders (item) values ('tea') returning id) select id from placed",
    "nextval": "select nextval('numbers')",
    "writing function": "select place('tea')",
    "for update": "select * from orders for update",
    "temporary table": "create temporary table t (id int)",
    "turning it off": "select set_config('transaction_read_only', 'off', true)",
    "turning it off by SET": "set transaction read write",
}


async def test_reads_of_a_request_share_a_replica_and_requests_alternate(world: World) -> None:
    async def where(request: Request) -> Response:
        db = session(request)
        ports = [await db.fetch_value("select inet_server_port()") for _ in range(4)]
        assert db.last_route is not None
        return JSONResponse({"ports": ports, "reason": db.last_route.reason})

    async with client(world, [Route("/", where)]) as http:
        answers = [(await http.get("/")).json() for _ in range(4)]
    replicas = [node.port for node in world.cluster.replicas.values()]
    assert [set(answer["ports"]) for answer in answers] == [{replicas[0]}, {replicas[1]}] * 2
    assert {answer["reason"] for answer in answers} == {Reason.STICKY}


@pytest.mark.parametrize("replicas", [("r1", "r2"), ()], ids=["replica", "primary standing in"])
@pytest.mark.parametrize("what", WRITES)
async def test_a_write_with_read_intent_is_refused_on_every_server(
    world: World, what: str, replicas: tuple[str, ...]
) -> None:
    async with world.registry(replicas=replicas) as registry, registry.session(tenant="acme") as db:
        with pytest.raises(DataError) as caught:
            await db.read.execute(WRITES[what])
        assert caught.value.kind in (DataErrorKind.READ_ONLY, DataErrorKind.QUERY)
        if caught.value.kind is DataErrorKind.READ_ONLY:
            assert "@transactional" in caught.value.message
            assert "db.write" in caught.value.message
    assert await world.items() == []


@pytest.mark.parametrize("what", ["insert", "writing CTE", "nextval", "writing function", "turning it off"])
async def test_a_write_with_read_intent_is_refused_inside_a_read_write_transaction(world: World, what: str) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.execute("insert into orders (item) values ('coffee')")
        with pytest.raises(DataError):
            async with db.transaction():
                await db.read.execute(WRITES[what])
                await db.read.execute("insert into orders (item) values ('tea')")
        await db.execute("insert into orders (item) values ('milk')")
    assert await world.items() == ["coffee", "milk"]


async def test_the_error_for_a_get_that_writes_names_the_annotation(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def place(request: Request) -> Response:
        try:
            await session(request).execute("insert into orders (item) values ('tea')")
        except DataError as error:
            return Response(error.message, status_code=error.http_status)
        return Response("placed")

    @transactional
    async def place_annotated(request: Request) -> Response:
        return await place(request)

    @transactional(read_only=True)
    async def place_read_only(request: Request) -> Response:
        try:
            await session(request).write.execute("insert into orders (item) values ('tea')")
        except DataError as error:
            return Response(error.message, status_code=error.http_status)
        return Response("placed")

    routes = [Route("/plain", place), Route("/annotated", place_annotated), Route("/read-only", place_read_only)]
    async with client(world, routes) as http:
        read_only = (await http.get("/read-only")).text
        assert "INSERT orders writes, but runs in a read_only transaction of GET /read-only" in read_only
        assert "db.write" not in read_only
        refused = await http.get("/plain")
        assert refused.status_code == 500
        assert "INSERT orders writes, but ran with read intent of GET /plain" in refused.text
        assert "Annotate the route with @transactional" in refused.text
        assert (await http.get("/annotated")).text == "placed"
    assert await world.items() == ["tea"]


async def test_reads_after_a_write_see_it_while_replay_is_paused(world: World) -> None:
    async def place(request: Request) -> Response:
        db = session(request)
        before = await db.read.fetch_all("select item from orders")
        await db.execute("insert into orders (item) values ('tea')")
        after = await db.read.fetch_all("select item from orders")
        reason = db.last_route.reason if db.last_route else None
        await db.commit()
        later = await db.read.fetch_all("select item from orders")
        return JSONResponse([before, after, reason, later, db.last_route.reason if db.last_route else None])

    replicas = world.cluster.replicas.values()
    for node in replicas:
        await node.pause_replay()
    try:
        async with client(world, [Route("/", place, methods=["POST"])]) as http:
            seen = (await http.post("/")).json()
    finally:
        for node in replicas:
            await node.resume_replay()
    assert seen == [[], [{"item": "tea"}], "pinned", [{"item": "tea"}], "pinned"]


async def test_a_write_in_a_child_task_pins_the_whole_request(world: World) -> None:
    async def place(request: Request) -> Response:
        db = session(request)

        async def child() -> None:
            await session(request).execute("insert into orders (item) values ('tea')")

        await asyncio.create_task(child())
        items = await db.read.fetch_all("select item from orders")
        return JSONResponse([items, db.pin.is_set])

    replicas = world.cluster.replicas.values()
    for node in replicas:
        await node.pause_replay()
    try:
        async with client(world, [Route("/", place, methods=["POST"])]) as http:
            seen = (await http.post("/")).json()
    finally:
        for node in replicas:
            await node.resume_replay()
    assert seen == [[{"item": "tea"}], True]


async def test_a_read_borrows_a_connection_only_for_its_round_trip(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.read.fetch_all("select 1")
        assert [endpoint.borrowed for endpoint in db.datasource.servers.values()] == [0, 0, 0]
        await db.execute("insert into orders (item) values ('tea')")
        borrowed = {name: endpoint.borrowed for name, endpoint in db.datasource.servers.items()}
        assert borrowed == {"r1": 0, "r2": 0, "primary": 1}
        await db.read.fetch_all("select 1")
        assert {name: endpoint.borrowed for name, endpoint in db.datasource.servers.items()} == borrowed


async def test_a_strong_route_reads_from_the_primary(world: World) -> None:
    async def where(request: Request) -> Response:
        db = session(request)
        return JSONResponse([await db.fetch_value("select pg_is_in_recovery()"), str(db.last_route)])

    registry = world.registry(routes=[{"match": "GET /basket", "consistency": "strong"}])
    async with client(world, [Route("/basket", where), Route("/other", where)], registry=registry) as http:
        assert (await http.get("/basket")).json() == [False, "orders → primary (strong)"]
        assert (await http.get("/other")).json()[0] is True


async def test_a_read_only_route_is_one_snapshot_on_one_replica(world: World) -> None:
    @transactional(read_only=True)
    async def report(request: Request) -> Response:
        db = session(request)
        first = await db.fetch_value("select count(*) from orders")
        await world.sql("insert into orders (item) values ('meanwhile')")
        await world.cluster.caught_up()
        second = await db.fetch_value("select count(*) from orders")
        level = await db.fetch_value("select current_setting('transaction_isolation')")
        return JSONResponse([first, second, level, await db.fetch_value("select pg_is_in_recovery()")])

    async with client(world, [Route("/", report)]) as http:
        assert (await http.get("/")).json() == [0, 0, "repeatable read", True]
    assert await world.items() == ["meanwhile"]
