"""Promise 2: without a success response nothing is committed. A route can override the default outcomes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi import HTTPException as FastAPIHTTPException
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from asgi_datasource import DataError, DataSession, DataSourceMiddleware, current_session, session, transactional
from asgi_datasource.testing import serve
from tests.apps import client
from tests.asgi_call import Call
from tests.pools import assert_whole, until
from tests.wire import Wire
from tests.world import World

PsycopgServer = Callable[[Request], Awaitable[Response]]


class OutOfStock(Exception):
    """An exception of the application."""


class StillOutOfStock(OutOfStock):
    """A subclass of it."""


async def write(request: Request, item: str = "tea") -> None:
    await session(request).execute("insert into orders (item) values (%s)", [item])


def answers(status: int) -> PsycopgServer:
    """An endpoint that writes and returns this status."""

    async def endpoint(request: Request) -> Response:
        await write(request)
        return Response(status_code=status)

    return endpoint


def raises(error: Exception) -> PsycopgServer:
    """An endpoint that writes and raises."""

    async def endpoint(request: Request) -> Response:
        await write(request)
        raise error

    return endpoint


async def outcome(world: World, endpoint: Any, **app: Any) -> tuple[int, bool]:
    """The status that the client gets, and whether the write is committed."""
    registry = world.registry(**app.pop("config", {}))
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry, **app) as http:
        answer = await http.post("/")
        committed = await world.items() == ["tea"]
        await assert_whole(registry, world)
    return answer.status_code, committed


Db = Annotated[DataSession, Depends(session)]

COMMITTED, ROLLED_BACK = True, False

# One status of each class, and those that other libraries get wrong (303, 409, 503).
BY_STATUS = [
    (200, COMMITTED),
    (201, COMMITTED),
    (204, COMMITTED),
    (303, COMMITTED),
    (304, COMMITTED),
    (400, ROLLED_BACK),
    (409, ROLLED_BACK),
    (422, ROLLED_BACK),
    (500, ROLLED_BACK),
    (503, ROLLED_BACK),
]


@pytest.mark.parametrize(("status", "committed"), BY_STATUS)
async def test_the_status_decides(world: World, status: int, committed: bool) -> None:
    assert await outcome(world, answers(status)) == (status, committed)


async def test_http_exception_rolls_back(world: World) -> None:
    assert await outcome(world, raises(HTTPException(409))) == (409, ROLLED_BACK)


async def test_http_exception_with_a_redirect_commits_like_the_redirect(world: World) -> None:
    error = HTTPException(303, headers={"Location": "/orders"})
    assert await outcome(world, raises(error)) == (303, COMMITTED)


async def test_an_unhandled_exception_rolls_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert await outcome(world, raises(OutOfStock("no tea"))) == (500, ROLLED_BACK)
    # The exception reaches the framework's error page and the server's log unchanged.
    assert "tests.guarantees.test_outcome.OutOfStock: no tea" in caplog.text


async def test_the_frameworks_error_page_gets_the_original_exception(world: World) -> None:
    error = OutOfStock()
    seen: list[Exception] = []

    def page(request: Request, error: Exception) -> Response:
        seen.append(error)
        return PlainTextResponse("the page", status_code=500)

    assert await outcome(world, raises(error), exception_handlers={Exception: page}) == (500, ROLLED_BACK)
    assert seen == [error]


@pytest.mark.parametrize(("status", "committed"), [(200, COMMITTED), (303, COMMITTED), (409, ROLLED_BACK)])
async def test_a_handled_exception_counts_as_its_response(world: World, status: int, committed: bool) -> None:
    handlers = {OutOfStock: lambda request, error: Response(status_code=status)}
    assert await outcome(world, raises(OutOfStock()), exception_handlers=handlers) == (status, committed)


async def test_an_exception_after_the_start_of_the_response_does_not_roll_back(world: World) -> None:
    async def body() -> Any:
        yield b"first"
        raise OutOfStock

    async def endpoint(request: Request) -> Response:
        await write(request)
        return StreamingResponse(body())

    async with client(world, [Route("/", endpoint, methods=["POST"])]) as http:
        async with http.stream("POST", "/") as answer:
            assert answer.status_code == 200
        assert await world.items() == ["tea"]


async def test_an_uncaught_statement_failure_rolls_back(world: World) -> None:
    async def endpoint(request: Request) -> Response:
        await write(request)
        await write(request)
        return Response()

    assert await outcome(world, endpoint) == (409, ROLLED_BACK)


async def test_no_response_at_all_rolls_back(world: World) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await session(scope).execute("insert into orders (item) values ('tea')")

    async with (
        world.registry() as registry,
        serve(DataSourceMiddleware(app, registry=registry), lifespan="off") as server,
        Wire.connect(server.port) as wire,
    ):
        assert (await wire.ask("POST", "/")).status == 500
    assert await world.items() == []


async def test_informational_responses_do_not_commit(world: World) -> None:
    """A failure after a 1xx response still rolls back."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.execute("insert into orders (item) values ('tea')")
        await send({"type": "http.response.start", "status": 103, "headers": [(b"link", b"</a.css>")]})
        await db.execute("insert into orders (item) values ('rum')")
        await send({"type": "http.response.start", "status": 409, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with world.registry() as registry:
        call = await Call().run(DataSourceMiddleware(app, registry=registry))
    assert [message.get("status") for message in call.sent] == [103, 409, None]
    assert await world.items() == []


async def test_a_cancelled_call_rolls_back(world: World) -> None:
    reached = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await session(scope).execute("insert into orders (item) values ('tea')")
        reached.set()
        await asyncio.Event().wait()

    async with world.registry() as registry:
        call = Call()
        running = asyncio.create_task(call.run(DataSourceMiddleware(app, registry=registry)))
        await reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert call.sent == []
        assert await world.items() == []
        await assert_whole(registry, world)


# -- the code decides


async def test_set_rollback_only_rolls_back_and_keeps_the_response(world: World) -> None:
    async def endpoint(request: Request) -> Response:
        await write(request)
        session(request).set_rollback_only("a dry run")
        return PlainTextResponse("would be placed")

    assert await outcome(world, endpoint) == (200, ROLLED_BACK)


async def test_set_rollback_only_overrides_the_annotation(world: World) -> None:
    @transactional(commit_on=[200, OutOfStock])
    async def endpoint(request: Request) -> Response:
        await write(request)
        session(request).set_rollback_only("a dry run")
        return Response()

    assert await outcome(world, endpoint) == (200, ROLLED_BACK)


async def test_a_commit_inside_the_request_is_kept(world: World) -> None:
    async def endpoint(request: Request) -> Response:
        db = session(request)
        await write(request, "tea")
        await db.commit()
        await write(request, "rum")
        raise HTTPException(409)

    assert await outcome(world, endpoint) == (409, COMMITTED)


async def test_a_rollback_inside_the_request_discards_only_what_came_before(world: World) -> None:
    async def endpoint(request: Request) -> Response:
        await write(request, "rum")
        await session(request).rollback()
        await write(request, "tea")
        return Response()

    assert await outcome(world, endpoint) == (200, COMMITTED)


async def test_the_error_response_says_if_part_of_the_request_was_committed(world: World) -> None:
    """A client that retries because nothing was changed would repeat that part."""

    async def endpoint(request: Request) -> Response:
        db = session(request)
        if request.query_params["first"]:
            await write(request, "first")
            await db.commit()
        await write(request)
        if request.query_params["fails"] == "in time":
            await asyncio.Event().wait()
        await db.execute("insert into children (parent) values (99)")
        return Response()

    registry = world.registry(transactions={"deadline": "500ms"})
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry) as http:
        for fails, status in (("in time", 504), ("at commit", 409)):
            for first in ("", "yes"):
                await world.sql("truncate orders")
                response = await http.post("/", params={"first": first, "fails": fails})
                problem = response.json()
                assert response.status_code == status
                assert problem["retryable"] is (status == 504 and not first)
                end = "what it had committed before stays" if first else "nothing was changed"
                assert problem["title"].endswith(f"; {end}")
                assert await world.items() == (["first"] if first else [])


# -- the route overrides the outcome


@pytest.mark.parametrize("entry", [409, "4xx"])
@pytest.mark.parametrize("endpoint", [answers(409), raises(HTTPException(409))])
async def test_commit_on_a_status(world: World, entry: Any, endpoint: PsycopgServer) -> None:
    assert await outcome(world, transactional(commit_on=[entry])(endpoint)) == (409, COMMITTED)


@pytest.mark.parametrize("entry", [503, "5xx"])
async def test_commit_on_a_server_error(world: World, entry: Any) -> None:
    assert await outcome(world, transactional(commit_on=[entry])(answers(503))) == (503, COMMITTED)


@pytest.mark.parametrize(("status", "entry"), [(201, 201), (200, "2xx"), (303, 303), (303, "3xx")])
async def test_rollback_on_a_status(world: World, status: int, entry: Any) -> None:
    assert await outcome(world, transactional(rollback_on=[entry])(answers(status))) == (status, ROLLED_BACK)


async def test_an_unlisted_status_keeps_its_outcome(world: World) -> None:
    assert await outcome(world, transactional(commit_on=[409])(answers(400))) == (400, ROLLED_BACK)
    assert await outcome(world, transactional(rollback_on=[303])(answers(201))) == (201, COMMITTED)


@pytest.mark.parametrize("error", [OutOfStock(), StillOutOfStock()])
async def test_commit_on_an_unhandled_exception(world: World, error: Exception) -> None:
    assert await outcome(world, transactional(commit_on=[OutOfStock])(raises(error))) == (500, COMMITTED)


async def test_commit_on_an_exception_whose_commit_fails(world: World) -> None:
    """The error response of the failed COMMIT replaces the error page: the lost data is the more important news."""

    @transactional(commit_on=[OutOfStock])
    async def endpoint(request: Request) -> Response:
        await write(request)
        await session(request).execute("insert into children (parent) values (99)")
        raise OutOfStock

    assert await outcome(world, endpoint) == (409, ROLLED_BACK)


@pytest.mark.parametrize("error", [OutOfStock(), StillOutOfStock()])
async def test_commit_on_an_exception_with_a_handler(world: World, error: Exception) -> None:
    """The annotation names the exception, so the exception decides, not the status of its handler's response."""
    handlers = {OutOfStock: lambda request, error: Response(status_code=409)}
    endpoint = transactional(commit_on=[OutOfStock])(raises(error))
    assert await outcome(world, endpoint, exception_handlers=handlers) == (409, COMMITTED)


async def test_rollback_on_an_exception_with_a_handler(world: World) -> None:
    handlers = {OutOfStock: lambda request, error: Response(status_code=200)}
    endpoint = transactional(rollback_on=[OutOfStock])(raises(OutOfStock()))
    assert await outcome(world, endpoint, exception_handlers=handlers) == (200, ROLLED_BACK)


async def test_rollback_on_excludes_a_subclass_from_commit_on(world: World) -> None:
    annotate = transactional(commit_on=[OutOfStock], rollback_on=[StillOutOfStock])
    assert await outcome(world, annotate(raises(StillOutOfStock()))) == (500, ROLLED_BACK)


async def test_methods_of_an_endpoint_class(world: World) -> None:
    class Orders(HTTPEndpoint):
        @transactional(commit_on=[409])
        async def post(self, request: Request) -> Response:
            await write(request)
            return Response(status_code=409)

        async def put(self, request: Request) -> Response:
            await write(request, "rum")
            return Response(status_code=409)

    async with client(world, [Route("/", Orders)]) as http:
        await http.post("/")
        await http.put("/")
    assert await world.items() == ["tea"]


async def test_a_whole_endpoint_class(world: World) -> None:
    @transactional(rollback_on=[200])
    class Orders(HTTPEndpoint):
        async def post(self, request: Request) -> Response:
            await write(request)
            return Response()

    assert await outcome(world, Orders) == (200, ROLLED_BACK)


async def test_an_exception_named_by_the_annotation_of_an_endpoint_class(world: World) -> None:
    @transactional(commit_on=[OutOfStock])
    class Orders(HTTPEndpoint):
        async def post(self, request: Request) -> Response:
            await write(request)
            raise OutOfStock

        @transactional
        async def put(self, request: Request) -> Response:
            await write(request, "rum")
            raise OutOfStock

    handlers = {OutOfStock: lambda request, error: Response(status_code=409)}
    async with client(world, [Route("/", Orders)], exception_handlers=handlers) as http:
        assert (await http.post("/")).status_code == 409
        # The method's annotation replaces that of the class.
        assert (await http.put("/")).status_code == 409
    assert await world.items() == ["tea"]


async def test_an_annotation_under_another_decorator(world: World) -> None:
    def audited(function: PsycopgServer) -> PsycopgServer:
        @functools.wraps(function)
        async def wrapped(request: Request) -> Response:
            return await function(request)

        return wrapped

    assert await outcome(world, audited(transactional(commit_on=[409])(answers(409)))) == (409, COMMITTED)


# -- the configuration overrides the outcome


async def test_the_default_of_the_configuration(world: World) -> None:
    config = {"transactions": {"rollback_on": ["5xx", 409]}}
    assert await outcome(world, answers(400), config=config) == (400, COMMITTED)
    await world.sql("truncate orders")
    assert await outcome(world, answers(409), config=config) == (409, ROLLED_BACK)


async def test_a_rule_of_routes(world: World) -> None:
    config = {"routes": [{"match": "POST /", "commit_on": [409], "rollback_on": [200]}]}
    assert await outcome(world, answers(200), config=config) == (200, ROLLED_BACK)
    assert await outcome(world, answers(409), config=config) == (409, COMMITTED)


async def test_the_annotation_precedes_the_rule(world: World) -> None:
    config = {"routes": [{"match": "POST /", "commit_on": [409], "rollback_on": [200]}]}
    endpoint = transactional(commit_on=[200], rollback_on=[409])
    assert await outcome(world, endpoint(answers(409)), config=config) == (409, ROLLED_BACK)
    assert await outcome(world, endpoint(answers(200)), config=config) == (200, COMMITTED)


async def test_statements_in_autocommit(world: World) -> None:
    config = {"transactions": {"default": "annotated"}}
    assert await outcome(world, answers(500), config=config) == (500, COMMITTED)
    await world.sql("truncate orders")
    assert await outcome(world, transactional(answers(500)), config=config) == (500, ROLLED_BACK)


async def test_an_annotated_service_function_with_transactions_default_annotated(world: World) -> None:
    @transactional
    async def place(fails: bool) -> None:
        await current_session().execute("insert into orders (item) values ('tea')")
        if fails:
            raise OutOfStock

    async def endpoint(request: Request) -> Response:
        try:
            await place("fails" in request.query_params)
        except OutOfStock:
            return Response(status_code=200)
        return Response(status_code=500)

    registry = world.registry(transactions={"default": "annotated"})
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/?fails")).status_code == 200
        assert await world.items() == []
        assert (await http.post("/")).status_code == 500
        assert await world.items() == ["tea"]


# -- hooks follow the outcome


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (answers(201), "committed"),
        (answers(409), "rolled back"),
        (raises(HTTPException(409)), "rolled back"),
        (raises(OutOfStock()), "rolled back"),
    ],
)
async def test_hooks_run_according_to_the_outcome(world: World, endpoint: PsycopgServer, expected: str) -> None:
    heard: list[str] = []

    async def with_hooks(request: Request) -> Response:
        db = session(request)
        db.after_commit(lambda: heard.append("committed"))
        db.after_rollback(lambda: heard.append("rolled back"))
        return await endpoint(request)

    async with client(world, [Route("/", with_hooks, methods=["POST"])]) as http:
        await http.post("/")
        await until(lambda: heard != [], "no hook has run")
    assert heard == [expected]


# -- FastAPI


async def test_fastapi(world: World) -> None:
    """Dependencies write before the body is validated and end after the response: neither changes the outcome."""
    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, config=world.config())

    async def audit(db: Db) -> Any:
        await db.execute("insert into orders (item) values ('audit')")
        yield
        with pytest.raises(DataError):
            await db.execute("insert into orders (item) values ('too late')")

    @app.post("/http-exception", dependencies=[Depends(audit)])
    async def http_exception() -> None:
        raise FastAPIHTTPException(409)

    @app.post("/validation", dependencies=[Depends(audit)])
    async def validation(count: int) -> None:
        raise AssertionError("never called")

    @app.post("/placed", status_code=201, dependencies=[Depends(audit)])
    async def placed() -> dict[str, bool]:
        return {"placed": True}

    async with serve(app) as server, client(world, []) as http:
        for path, status in (("/http-exception", 409), ("/validation", 422)):
            assert (await http.post(server.url + path)).status_code == status
            assert await world.items() == []
        assert (await http.post(server.url + "/placed")).status_code == 201
        assert await world.items() == ["audit"]
