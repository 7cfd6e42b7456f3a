"""`@transactional` on routes, classes, methods, functions, blocks and websockets."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio
import httpx
import pytest
import websockets
from fastapi import Depends, FastAPI, Query
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_datasource import (
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    UnexpectedRollback,
    current_session,
    in_transaction,
    session,
    transactional,
)
from asgi_datasource.testing import serve
from tests.apps import application, client
from tests.pools import assert_whole, until
from tests.sessions.requests import request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"
ACME = {"X-Tenant": "acme"}


async def opened(db: Annotated[DataSession, Depends(session)]) -> AsyncIterator[str]:
    # The route's annotation also applies to its dependencies.
    level = await db.fetch_value("select current_setting('transaction_isolation')")
    await db.execute(f"{INSERT} on conflict do nothing", ["from the dependency"])
    yield level


def plain(size: Annotated[int, Query(ge=1)] = 3) -> Iterator[int]:
    yield size


# -- targets of the annotation


async def test_methods_of_an_endpoint_class_have_their_own_annotations(world: World) -> None:
    class Orders(HTTPEndpoint):
        @transactional(read_only=True)
        async def get(self, request: Request) -> Response:
            db = session(request)
            level = await db.fetch_value("select current_setting('transaction_isolation')")
            return JSONResponse([level, await db.fetch_value("select pg_is_in_recovery()")])

        @transactional(isolation="serializable")
        async def post(self, request: Request) -> Response:
            db = session(request)
            await db.execute(INSERT, ["tea"])
            return JSONResponse(await db.fetch_value("select current_setting('transaction_isolation')"))

    @transactional(isolation="repeatable read")
    class Levels(HTTPEndpoint):
        async def post(self, request: Request) -> Response:
            return JSONResponse(await session(request).fetch_value("select current_setting('transaction_isolation')"))

    async with client(world, [Route("/orders", Orders), Route("/levels", Levels)]) as http:
        assert (await http.get("/orders")).json() == ["repeatable read", True]
        # Starlette answers HEAD with `get`, so the annotation of `get` applies.
        assert (await http.head("/orders")).status_code == 200
        assert (await http.post("/orders")).json() == "serializable"
        assert (await http.post("/levels")).json() == "repeatable read"
    assert await world.items() == ["tea"]


async def test_a_fastapi_route_keeps_its_signature_docs_and_dependencies(world: World) -> None:
    app = FastAPI()

    async def place(
        item: str, level: Annotated[str, Depends(opened)], size: Annotated[int, Depends(plain)], times: int = 1
    ) -> dict[str, Any]:
        """Place an order."""
        await current_session().execute(INSERT, [item])
        return {"level": level, "size": size, "times": times}

    annotated = transactional(isolation="serializable")(place)
    assert inspect.signature(annotated) == inspect.signature(place)
    assert (annotated.__name__, annotated.__doc__) == ("place", "Place an order.")
    app.post("/orders/{item}", status_code=201)(annotated)
    plain_app = FastAPI()
    plain_app.post("/orders/{item}", status_code=201)(place)
    assert app.openapi() == plain_app.openapi()

    @app.post("/sync/{item}")
    @transactional(rollback_on=[200])
    def in_a_thread(item: str, db: Annotated[DataSession, Depends(session)]) -> int:
        return anyio.from_thread.run(db.execute, INSERT, [item])

    app.add_middleware(DataSourceMiddleware, registry=(registry := world.registry()))
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers=ACME) as http,
    ):
        placed = await http.post("/orders/tea", params={"size": 5})
        assert (placed.status_code, placed.json()) == (201, {"level": "serializable", "size": 5, "times": 1})
        assert (await http.post("/orders/tea", params={"size": 0})).status_code == 422
        assert (await http.post("/sync/never")).json() == 1
        await assert_whole(registry, world)
    assert await world.items() == ["from the dependency", "tea"]


# The options that a rule of `routes` can set without a code change.
ASK = (
    "select current_setting('transaction_isolation') as isolation,"
    " current_setting('transaction_read_only') as read_only,"
    " current_setting('transaction_deferrable') as deferrable,"
    " pg_is_in_recovery() as on_replica"
)


@pytest.mark.parametrize("how", ["rule", "annotation"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"isolation": "serializable"}, ("serializable", "off", "off", False)),
        ({"read_only": True}, ("repeatable read", "on", "off", True)),
        ({"read_only": True, "isolation": "serializable", "deferrable": True}, ("serializable", "on", "on", False)),
        ({"read_only": True, "stream": True}, ("repeatable read", "on", "off", True)),
        ({"propagation": "required"}, ("read committed", "off", "off", False)),
    ],
)
async def test_a_rule_opens_the_same_transaction_as_an_annotation(
    world: World, how: str, options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    async def endpoint(request: Request) -> Response:
        db = session(request)
        rows = [await db.fetch_one(ASK) if options.get("read_only") else await ask_and_write(db, n) for n in range(2)]
        assert db.in_transaction()
        return JSONResponse(rows, status_code=request.path_params["status"])

    async def ask_and_write(db: DataSession, number: int) -> Any:
        await db.execute(INSERT, [f"{number}"])
        return await db.write.fetch_one(ASK)

    if how == "annotation":
        routes, rules = [Route("/{status:int}", transactional(**options)(endpoint), methods=["POST"])], []
    else:
        routes, rules = [Route("/{status:int}", endpoint, methods=["POST"])], [{"match": "POST /*", **options}]
    # With this default nothing else opens a transaction.
    registry = world.registry(routes=rules, transactions={"default": "annotated"})
    async with client(world, routes, registry=registry) as http:
        for status, items in ((409, []), (200, ["0", "1"])):
            response = await http.post(f"/{status}")
            assert [tuple(row.values()) for row in response.json()] == [expected] * 2
            assert await world.items() == ([] if options.get("read_only") else items)
        await assert_whole(registry, world)


async def test_a_rule_can_disable_the_transaction_limit_its_time_and_set_the_intent(world: World) -> None:
    async def write(request: Request) -> Response:
        await session(request).execute(INSERT, [request.url.path])
        return JSONResponse({}, status_code=409)

    async def sleep(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select pg_sleep(30)"))

    async def look(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select pg_is_in_recovery()"))

    rules = [
        {"match": "POST /by-statement", "propagation": "not_supported"},
        {"match": "/slow", "timeout": "300ms"},
        {"match": "POST /search", "intent": "read"},
        {"match": "GET /basket", "intent": "write"},
    ]
    routes = [
        Route("/by-statement", write, methods=["POST"]),
        Route("/together", write, methods=["POST"]),
        Route("/slow", sleep),
        Route("/search", look, methods=["POST"]),
        Route("/basket", look),
    ]
    registry = world.registry(routes=rules)
    async with client(world, routes, registry=registry) as http:
        for path in ("/by-statement", "/together"):
            assert (await http.post(path)).status_code == 409
        assert (await http.get("/slow")).status_code == 504
        assert (await http.post("/search")).json() is True
        assert (await http.get("/basket")).json() is False
        await assert_whole(registry, world)
    assert await world.items() == ["/by-statement"]


async def test_an_annotation_precedes_the_rule_and_inherits_unset_options(world: World) -> None:
    @transactional(isolation="repeatable read")
    async def strict(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select current_setting('transaction_isolation')"))

    @transactional(timeout=20)
    async def patient(request: Request) -> Response:
        query = "select array[current_setting('transaction_isolation'), current_setting('statement_timeout')]"
        return JSONResponse(await session(request).write.fetch_value(query))

    routes = [Route("/strict", strict, methods=["POST"]), Route("/patient", patient, methods=["POST"])]
    registry = world.registry(routes=[{"match": "/**", "isolation": "serializable", "timeout": "1h"}])
    async with client(world, routes, registry=registry) as http:
        assert (await http.post("/strict")).json() == "repeatable read"
        isolation, limit = (await http.post("/patient")).json()
        assert isolation == "serializable"
        assert limit in ("20s", *(f"{ms}ms" for ms in range(15_000, 20_000)))


async def in_a_block(db: Annotated[DataSession, Depends(session)]) -> AsyncIterator[DataSession]:
    async with transactional(propagation="nested", isolation="serializable") as same:
        await same.execute(INSERT, ["from the dependency"])
        yield same


@pytest.mark.parametrize("default", ["request", "annotated"])
async def test_a_fastapi_dependency_with_function_scope_may_hold_a_block(
    world: World, default: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By default, FastAPI ends dependencies after the response: too late to commit."""
    app = FastAPI()

    @app.post("/function/{item}")
    async def in_time(item: str, db: Annotated[DataSession, Depends(in_a_block, scope="function")]) -> str:
        await db.execute(INSERT, [item])
        if item == "fails":
            raise HTTPException(400)
        return str(await db.fetch_value("select current_setting('transaction_isolation')"))

    @app.post("/request/{item}")
    async def too_late(item: str, db: Annotated[DataSession, Depends(in_a_block)]) -> None:
        await db.execute(INSERT, [item])

    app.add_middleware(DataSourceMiddleware, registry=(registry := world.registry(transactions={"default": default})))
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers=ACME) as http,
    ):
        assert (await http.post("/function/fails")).status_code == 400
        assert await world.items() == []
        refused = await http.post("/request/tea")
        assert (refused.status_code, refused.json()["kind"]) == (500, "query")
        assert 'leave the block first (in a dependency of FastAPI: `Depends(..., scope="function")`)' in caplog.text
        assert await world.items() == []
        assert (await http.post("/function/tea")).json() == "serializable"
        await assert_whole(registry, world)
    assert await world.items() == ["from the dependency", "tea"]


async def test_methods_partials_and_wrapped_coroutine_functions(world: World) -> None:
    class Shop:
        @transactional
        async def place(self, item: str) -> bool:
            await current_session().execute(INSERT, [item])
            return in_transaction()

        @staticmethod
        @transactional(propagation="requires_new")
        async def audit(item: str) -> None:
            await current_session().execute(INSERT, [item])

        async def __call__(self, item: str) -> None:
            await self.place(item)

    def hide(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        # Without `__wrapped__`, the wrapper does not look like a coroutine function.
        del wrapper.__wrapped__  # type: ignore[attr-defined]
        return wrapper

    async def body(db: DataSession) -> None:
        assert await Shop().place("a method")
        await Shop.audit("a static method")
        await transactional(functools.partial(Shop().place, "a partial"))()
        await transactional(Shop())("an object")

    async def hidden(db: DataSession) -> None:
        with pytest.raises(ZeroDivisionError):
            await transactional(hide(fails))("undone")

    async def fails(item: str) -> None:
        await current_session().execute(INSERT, [item])
        raise ZeroDivisionError

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
    async with world.registry() as registry:
        assert (await request(registry, hidden)).status == 500
    assert await world.items() == ["a method", "a static method", "a partial", "an object"]


def test_unsupported_targets_are_refused() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1

    def numbers() -> Iterator[int]:
        yield 1

    class Service:
        pass

    for generator in (rows, numbers):
        with pytest.raises(TypeError, match=r"async with transactional\(\.\.\.\) as db:"):
            transactional(generator)
    with pytest.raises(TypeError, match="annotate its methods"):
        transactional(Service)
    with pytest.raises(TypeError, match="below @staticmethod"):
        transactional(staticmethod(numbers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"propagation": "sometimes"}, "propagation: 'sometimes' is none of 'required', "),
        ({"isolation": "chaos"}, "isolation: 'chaos' is none of"),
        ({"timeout": 0}, "timeout: 0 is not a positive number of seconds"),
        ({"retry": -1}, "retry: -1 is not a number of attempts between 0 and 20"),
        ({"retry": True}, "retry: True is not"),
        ({"deferrable": True}, "read-only serializable transactions alone"),
        ({"deferrable": True, "read_only": True}, "read-only serializable transactions alone"),
        ({"stream": True}, "has to end before the response starts; add read_only=True"),
        ({"commit_on": ["6xx"]}, "commit_on: '6xx'"),
    ],
)
def test_an_invalid_option_is_refused_at_the_annotation(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transactional(**options)


# -- as a block


async def test_a_block_joins_or_opens_a_transaction(world: World) -> None:
    async def inside(db: DataSession) -> None:
        async with transactional() as same:
            assert same is db
            await same.execute(INSERT, ["joined"])
        assert await world.items() == []
        with pytest.raises(ZeroDivisionError):
            async with transactional(propagation="nested") as same:
                await same.execute(INSERT, ["undone"])
                raise ZeroDivisionError

    async def outside(db: DataSession) -> None:
        async with transactional(isolation="serializable") as own:
            await own.execute(INSERT, ["own"])
            assert await own.fetch_value("select current_setting('transaction_isolation')") == "serializable"
        assert await world.items() == ["joined", "own"]
        with pytest.raises(KeyError):
            async with transactional(commit_on=[KeyError]) as own:
                await own.execute(INSERT, ["tolerated"])
                raise KeyError
        with pytest.raises(ZeroDivisionError):
            async with transactional() as own:
                await own.execute(INSERT, ["undone"])
                raise ZeroDivisionError
        async with transactional(read_only=True) as own:
            assert await own.fetch_value("show transaction_read_only") == "on"
            assert in_transaction()
        assert not in_transaction()

    async with world.registry() as registry:
        assert (await request(registry, inside)).status == 201
        await assert_whole(registry, world)
    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, outside)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["joined", "own", "tolerated"]


async def test_a_caught_failure_of_a_joined_block_fails_the_commit(world: World) -> None:
    async with world.registry() as registry:
        with pytest.raises(UnexpectedRollback):
            async with registry.session("acme") as db:
                await db.execute(INSERT, ["tea"])
                with pytest.raises(ZeroDivisionError):
                    async with transactional():
                        raise ZeroDivisionError
    assert await world.items() == []


async def test_a_block_is_not_reentrant_and_has_no_retry(world: World) -> None:
    block = transactional()
    with pytest.raises(DataError, match="no session here"):
        async with block:
            pass
    async with world.registry() as registry, registry.session("acme"):
        async with block:
            with pytest.raises(RuntimeError, match="open already"):
                async with block:
                    pass
        async with block:
            pass
        with pytest.raises(ValueError, match="annotate a function"):
            async with transactional(retry=1):
                pass


# -- functions that are not async


async def test_a_function_that_is_not_async_can_join_but_not_open_a_transaction(world: World) -> None:
    @transactional
    def joins() -> str:
        return "joined"

    @transactional
    def fails() -> None:
        raise ZeroDivisionError

    @transactional(propagation="requires_new")
    def opens() -> None: ...

    @transactional(propagation="never")
    def never() -> str:
        return "ran"

    async def inside(db: DataSession) -> None:
        await db.execute(INSERT, ["tea"])
        assert joins() == "joined"
        with pytest.raises(DataError, match="which a function that is not async cannot open"):
            opens()
        with pytest.raises(ZeroDivisionError):
            fails()

    async def outside(db: DataSession) -> None:
        with pytest.raises(DataError, match="make it async"):
            joins()
        assert never() == "ran"

    assert joins() == "joined"
    async with world.registry() as registry:
        assert (await request(registry, inside)).status == 500
    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, outside)).status == 201
    assert await world.items() == []


# -- websockets


async def test_in_a_websocket_each_block_and_each_function_is_a_transaction(world: World) -> None:
    @transactional
    async def place(item: str) -> None:
        await current_session().execute(INSERT, [item])

    @transactional(isolation="serializable")
    async def handler(socket: WebSocket) -> None:
        db = session(socket)
        await socket.accept()
        await db.execute(INSERT, ["statement"])
        await socket.send_json([db.in_transaction(), await world.items()])
        async with db.transaction():
            await db.execute(INSERT, ["block"])
            await socket.send_json(await db.fetch_value("select current_setting('transaction_isolation')"))
        await place("function")
        await socket.send_json(await world.items())
        await socket.receive_text()
        await socket.close()

    class Echo(WebSocketEndpoint):
        encoding = "text"

        @transactional
        async def on_receive(self, websocket: WebSocket, data: str) -> None:
            db = session(websocket)
            await db.execute(INSERT, [data])
            await db.execute(INSERT, [f"{data} again"])
            assert await world.items() != []
            await websocket.send_json(db.in_transaction())

    routes = [WebSocketRoute("/handler", handler), WebSocketRoute("/echo", Echo)]
    registry = world.registry()
    async with serve(application(registry, routes)) as server:
        url = server.url.replace("http", "ws")
        async with asyncio.timeout(20), websockets.connect(f"{url}/handler", additional_headers=ACME) as socket:
            assert await socket.recv() == '[false,["statement"]]'
            assert await socket.recv() == '"serializable"'
            assert await socket.recv() == '["statement","block","function"]'
            # It holds no connection while it waits for its client.
            assert [endpoint.borrowed for endpoint in registry.for_tenant("acme").servers.values()] == [0, 0, 0]
            await socket.send("bye")
        async with asyncio.timeout(20), websockets.connect(f"{url}/echo", additional_headers=ACME) as socket:
            await socket.send("tea")
            assert await socket.recv() == "true"
    assert await world.items() == ["statement", "block", "function", "tea", "tea again"]


async def test_hooks_of_a_websocket_run_after_their_transaction_or_at_its_end(world: World) -> None:
    ran: list[str] = []

    async def handler(socket: WebSocket) -> None:
        db = session(socket)
        await socket.accept()
        db.before_commit(lambda: ran.append("before the end"))
        db.after_commit(lambda: ran.append("after the end"))
        async with db.transaction():
            await db.execute(INSERT, ["tea"])
            db.before_commit(lambda: ran.append("before"))
            db.after_commit(lambda: ran.append("after"))
        await socket.send_json(ran)
        if socket.query_params["gives_up"]:
            db.set_rollback_only("there is nothing to undo")
        await socket.close()

    async with serve(application(world.registry(), [WebSocketRoute("/", handler)])) as server:
        url = server.url.replace("http", "ws")
        for gives_up in ("", "yes"):
            ran.clear()
            await world.sql("truncate orders")
            address = f"{url}/?gives_up={gives_up}"
            async with asyncio.timeout(20), websockets.connect(address, additional_headers=ACME) as socket:
                assert await socket.recv() == '["before","after"]'
            if not gives_up:
                await until(lambda: len(ran) == 4, "the hooks of the end have not run")
    assert ran == ["before", "after"]
    assert await world.items() == ["tea"]


# -- deadlines


async def test_a_functions_timeout_ends_its_statements_and_waits(world: World) -> None:
    @transactional(timeout=0.2)
    async def slow_statement() -> None:
        await current_session().fetch_value("select pg_sleep(30)")

    @transactional(timeout=0.2, propagation="requires_new")
    async def slow_wait() -> None:
        await current_session().execute(INSERT, ["undone"])
        await asyncio.Event().wait()

    @transactional(timeout=3600)
    async def patient() -> None:
        # An inner timeout can only shorten the remaining time.
        await slow_statement()

    async def body(db: DataSession) -> None:
        for function in (slow_statement, slow_wait, patient):
            with pytest.raises(DataError) as caught:
                async with db.transaction():
                    await function()
            assert caught.value.kind is DataErrorKind.TIMEOUT
        async with db.transaction():
            await db.execute(INSERT, ["kept"])

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["kept"]


async def test_a_routes_timeout_covers_the_pool_queue_and_is_sent_to_the_server(world: World) -> None:
    @transactional(timeout=0.3)
    async def queues(request: Request) -> Response:
        await session(request).execute(INSERT, ["too late"])
        return JSONResponse({})

    @transactional(timeout=20)
    async def limits(request: Request) -> Response:
        names = ["statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"]
        query = "select name, setting::int from pg_settings where name = any(%s)"
        rows = await session(request).fetch_all(query, [names])
        return JSONResponse({row["name"]: row["setting"] for row in rows})

    registry = world.registry(replicas=(), pool={"min_size": 1, "max_size": 1, "acquire_timeout": "60s"})
    routes = [Route("/queues", queues, methods=["POST"]), Route("/limits", limits, methods=["POST"])]
    async with client(world, routes, registry=registry) as http:
        async with registry.session("acme") as holder:
            await holder.execute(INSERT, ["held"])
            assert (await http.post("/queues")).status_code == 504
        applied = (await http.post("/limits")).json()
        # transaction_timeout costs the connection, so it is longer than the statement's.
        assert 0 < applied["statement_timeout"] <= 20_000
        assert applied["statement_timeout"] < applied["transaction_timeout"] <= 21_000
        assert applied["statement_timeout"] < applied["idle_in_transaction_session_timeout"] <= 22_000
    assert await world.items() == ["held"]


async def test_a_functions_timeout_covers_the_wait_for_another_tasks_block(world: World) -> None:
    inside, may_go = asyncio.Event(), asyncio.Event()

    @transactional(timeout=0.2, propagation="nested")
    async def place() -> None:
        await current_session().execute(INSERT, ["too late"])

    async def body(db: DataSession) -> None:
        async def hold() -> None:
            async with db.transaction():
                await db.execute(INSERT, ["held"])
                inside.set()
                await may_go.wait()

        holding = asyncio.create_task(hold())
        await inside.wait()
        with pytest.raises(DataError) as caught:
            await place()
        assert caught.value.kind is DataErrorKind.TIMEOUT
        may_go.set()
        await holding

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["held"]


async def test_a_deadline_inside_the_commit_of_a_function_is_answered_with_the_true_outcome(world: World) -> None:
    """The trigger of `slow` delays COMMIT beyond the deadline: it is cancelled, and nothing is committed."""

    @transactional(timeout=0.2)
    async def place() -> None:
        db = current_session()
        await db.execute(INSERT, ["undone"])
        await db.execute("insert into slow values (1)")

    async def body(db: DataSession) -> None:
        with pytest.raises(DataError) as caught:
            await place()
        assert caught.value.kind is DataErrorKind.TIMEOUT

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == []


async def test_an_inner_timeout_is_bounded_by_the_outer_one(world: World) -> None:
    @transactional(timeout=3600)
    async def inner() -> None:
        await current_session().fetch_value("select pg_sleep(30)")

    @transactional(timeout=3600, propagation="requires_new")
    async def left() -> float:
        query = "select extract(epoch from current_setting('statement_timeout')::interval)::float8"
        return float(await current_session().write.fetch_value(query))

    async with world.registry() as registry:
        async with registry.session("acme", timeout=60.0):
            assert 20 < await left() <= 60
            async with transactional(timeout=20, propagation="requires_new"):
                assert 0 < await left() <= 20
            with pytest.raises(DataError) as caught:
                async with transactional(timeout=0.2, propagation="requires_new"):
                    await inner()
            assert caught.value.kind is DataErrorKind.TIMEOUT
        await assert_whole(registry, world)
