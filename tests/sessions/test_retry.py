"""Retry of requests and functions after a serialization failure or a deadlock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.sse import EventSourceResponse
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_datasource import (
    DataError,
    DataSession,
    DataSourceMiddleware,
    current_session,
    session,
    transactional,
)
from asgi_datasource.sessions.policy import RouteRule, SessionPolicy, make_lane
from asgi_datasource.testing import serve
from asgi_datasource.transaction import TransactionOptions, retry
from tests.apps import client
from tests.asgi_call import Call
from tests.pools import assert_whole, until, until_at_rest
from tests.sessions.every_await import Canceller, cancel_at
from tests.sessions.requests import request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"
LOSE = "do $$ begin raise exception using errcode = '{}'; end $$"


async def lose(db: DataSession, sqlstate: str = "40001") -> None:
    """A statement that fails like a lost conflict."""
    await db.write.execute(LOSE.format(sqlstate))


def at_commit(sqlstate: str = "40001") -> str:
    """A trigger that makes COMMIT fail for every row in `slow`."""
    return (
        f"create or replace function acme.wait_at_commit() returns trigger language plpgsql as $$"
        f" begin if currval('acme.numbers') < 3 then raise exception using errcode = '{sqlstate}'; end if;"
        f" return null; end $$"
    )


class Attempts:
    """Counts the attempts of a route, and makes the first ones fail."""

    def __init__(self, losing: int, lose: Callable[[DataSession], Awaitable[Any]] = lose) -> None:
        self.count = 0
        self._losing = losing
        self._lose = lose

    async def next(self, db: DataSession) -> int:
        """Return the number of this attempt; raise in the attempts that fail."""
        self.count += 1
        if self.count <= self._losing:
            await self._lose(db)
        return self.count


# -- the whole route


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_route_is_retried_after_a_conflict_in_a_statement(world: World, sqlstate: str) -> None:
    attempts = Attempts(2, lambda db: lose(db, sqlstate))
    ran: list[str] = []

    @transactional(retry=2)
    async def place(request: Request) -> Response:
        db = session(request)
        body = await request.json()
        await db.execute(INSERT, [body["item"]])
        db.after_commit(lambda: ran.append(f"committed {attempts.count}"))
        db.after_rollback(lambda: ran.append(f"rolled back {attempts.count}"))
        number = await attempts.next(db)
        return JSONResponse(number, status_code=201, background=BackgroundTask(ran.append, "background"))

    registry = world.registry()
    async with client(world, [Route("/", place, methods=["POST"])], registry=registry) as http:
        response = await http.post("/", json={"item": "tea"})
        assert (response.status_code, response.json()) == (201, 3)
        await assert_whole(registry, world)
    assert await world.items() == ["tea"]
    assert sorted(ran) == ["background", "committed 3"]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_route_is_retried_after_a_conflict_at_commit(world: World, sqlstate: str) -> None:
    await world.sql(at_commit(sqlstate))

    @transactional(retry=2)
    async def place(request: Request) -> Response:
        db = session(request)
        number = await db.fetch_value("select nextval('numbers')")
        await db.execute(INSERT, [(await request.body()).decode()])
        await db.execute("insert into slow values (1)")
        return JSONResponse(number, status_code=201)

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        response = await http.post("/", content=b"tea")
        assert (response.status_code, response.json()) == (201, 3)
    assert await world.items() == ["tea"]


async def test_retry_in_a_rule_and_in_the_default_of_the_configuration(world: World) -> None:
    attempts = Attempts(1)

    async def place(request: Request) -> Response:
        return JSONResponse(await attempts.next(session(request)))

    for config in (
        {"routes": [{"match": "POST /", "retry": 1}]},
        {"transactions": {"retry": 1}},
        {"transactions": {"retry": 1}, "routes": [{"match": "/", "timeout": "5s"}]},
    ):
        attempts.count = 0
        async with client(world, [Route("/", place, methods=["POST"])], registry=world.registry(**config)) as http:
            assert (await http.post("/")).json() == 2
    attempts.count = 0
    off = world.registry(transactions={"retry": 3}, routes=[{"match": "/", "retry": 0}])
    async with client(world, [Route("/", place, methods=["POST"])], registry=off) as http:
        assert (await http.post("/")).status_code == 409
    assert attempts.count == 1


@pytest.mark.parametrize(
    "how", ["a write that commits by itself", "a read", "a read where others commit by themselves"]
)
async def test_a_conflict_in_autocommit_retries_the_request(world: World, how: str) -> None:
    async def read(db: DataSession) -> None:
        await db.read.execute(LOSE.format("40001"))

    attempts = Attempts(1, lose if how == "a write that commits by itself" else read)

    async def place(request: Request) -> Response:
        return JSONResponse(await attempts.next(session(request)))

    default = "request" if how == "a read" else "annotated"
    registry = world.registry(transactions={"retry": 1, "default": default})
    async with client(world, [Route("/", place, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).json() == 2
        await assert_whole(registry, world)


async def test_a_conflict_in_requires_new_retries_the_request(world: World) -> None:
    attempts = Attempts(1)
    part = transactional(propagation="requires_new")(attempts.next)

    @transactional(retry=1)
    async def place(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT, ["tea"])
        return JSONResponse(await part(db))

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).json() == 2
    assert await world.items() == ["tea"]


async def test_the_conflict_is_the_response_when_all_attempts_are_used(world: World) -> None:
    attempts = Attempts(100)

    @transactional(retry=2)
    async def place(request: Request) -> Response:
        return JSONResponse(await attempts.next(session(request)))

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        response = await http.post("/")
    assert (response.status_code, response.json()["kind"]) == (409, "conflict")
    assert attempts.count == 3


@pytest.mark.parametrize("kind", ["a handler of the app", "caught by the route", "a middleware of the app", "fastapi"])
async def test_a_conflict_that_the_application_handles_is_retried(world: World, kind: str) -> None:
    attempts = Attempts(2)

    async def place(request: Request) -> Response:
        db = session(request)
        try:
            await db.execute(INSERT, ["tea"])
            return JSONResponse(await attempts.next(db), status_code=201)
        except DataError as error:
            if kind == "caught by the route":
                return JSONResponse({"sorry": error.kind}, status_code=503)
            raise

    async def answer(request: Request, error: Exception) -> Response:
        return JSONResponse({"sorry": True}, status_code=503)

    class Catches(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            try:
                return await call_next(request)
            except DataError as error:
                return JSONResponse({"sorry": error.kind}, status_code=503)

    route = transactional(retry=2)(place)
    if kind == "fastapi":
        app = FastAPI()

        @app.post("/", status_code=201)
        @transactional(retry=2)
        async def in_fastapi(db: DataSession = Depends(session)) -> int:  # noqa: B008
            await db.execute(INSERT, ["tea"])
            return await attempts.next(db)

        app.add_exception_handler(DataError, answer)
        app.add_middleware(DataSourceMiddleware, registry=world.registry())
        async with (
            serve(app) as server,
            httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http,
        ):
            response = await http.post("/")
    else:
        async with client(
            world,
            [Route("/", route, methods=["POST"])],
            exception_handlers={DataError: answer} if kind == "a handler of the app" else {},
            inside=[Middleware(Catches)] if kind == "a middleware of the app" else [],
        ) as http:
            response = await http.post("/")
    assert (response.status_code, response.json()) == (201, 3)
    assert await world.items() == ["tea"]


async def test_a_swallowed_conflict_is_not_a_success(world: World) -> None:
    """The route returns 201, but COMMIT of a failed transaction would fail: the request is retried."""
    attempts = Attempts(1)

    @transactional(retry=1)
    async def place(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT, ["tea"])
        try:
            await attempts.next(db)
        except DataError:
            return JSONResponse("all is well", status_code=201)
        return JSONResponse("this time", status_code=201)

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        response = await http.post("/")
        assert (response.status_code, response.json()) == (201, "this time")
    assert await world.items() == ["tea"]


async def test_server_sent_events_of_fastapi_run_again(world: World) -> None:
    """Their two tasks end in an exception group, with more in it than the interruption of the replaced response."""
    attempts = Attempts(1)

    async def place(request: Request) -> None:
        db = session(request)
        await db.write.execute(INSERT, ["tea"])
        with suppress(DataError):
            await attempts.next(db)

    app = FastAPI()

    @app.post("/", response_class=EventSourceResponse, dependencies=[Depends(place)])
    async def events() -> AsyncIterator[dict[str, int]]:
        for number in range(3):
            yield {"n": number}

    app.add_middleware(DataSourceMiddleware, registry=world.registry(transactions={"retry": 3}))
    async with serve(app) as server, httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http:
        response = await http.post("/")
    assert response.status_code == 200
    assert [line for line in response.text.splitlines() if line] == [f'data: {{"n":{n}}}' for n in range(3)]
    assert attempts.count == 2
    assert await world.items() == ["tea"]


class _Beside(Exception):
    """What an application raises of its own beside, or in place of, the interruption."""


@pytest.mark.parametrize("kind", ["a group with ours in it", "in place of ours"])
@pytest.mark.parametrize("loses", [True, False])
async def test_what_an_application_makes_of_the_end_of_its_response_changes_nothing(
    world: World, kind: str, *, loses: bool
) -> None:
    attempts = Attempts(1 if loses else 0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.write.execute(INSERT, ["tea"])
        try:
            await attempts.next(db)
        except DataError:
            pass
        else:
            if not loses:
                # Its COMMIT fails: another response is sent in place of this one.
                await db.write.execute("insert into children (parent) values (7)")
        try:
            await JSONResponse("done", status_code=201)(scope, receive, send)
        except BaseException as error:
            if kind == "in place of ours":
                raise _Beside from error
            raise BaseExceptionGroup("two tasks", [_Beside(), BaseExceptionGroup("one", [error])]) from None

    async with world.registry(transactions={"retry": 2}) as registry:
        call = Call()
        middleware = DataSourceMiddleware(app, registry=registry)
        if loses or kind != "in place of ours":
            await call.run(middleware)
        else:
            # The client has its answer, and the server is told what the application did then.
            with pytest.raises(_Beside):
                await call.run(middleware)
        assert call.sent[0]["status"] == (201 if loses else 409)
        assert attempts.count == (2 if loses else 1)


async def make_lose(world: World) -> None:
    await world.sql(f"create function acme.lose() returns int language plpgsql as $f$ {LOSE[5:-3]} $f$".format("40001"))


async def lose_reading(db: DataSession) -> None:
    await db.read.fetch_value("select acme.lose()")


@pytest.mark.parametrize("how", ["a read", "a commit", "a rollback"])
async def test_a_response_to_a_conflict_is_replaced_unless_the_handler_has_rolled_back(world: World, how: str) -> None:
    attempts = Attempts(1)

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        db, status = session(scope), 200
        try:
            await attempts.next(db)
        except DataError:
            # No transaction is left that would show the conflict.
            status = 409
            if how == "a commit":
                with suppress(DataError):
                    await db.commit()
            elif how == "a rollback":
                await db.rollback()
        await JSONResponse(attempts.count, status)(scope, receive, send)

    if how == "a read":
        await make_lose(world)
        attempts = Attempts(1, lose_reading)
    async with world.registry(replicas=(), transactions={"retry": 2}) as registry:
        call = await Call("GET" if how == "a read" else "POST").run(DataSourceMiddleware(endpoint, registry=registry))
        await assert_whole(registry, world)
    assert (call.status, call.body) == ((409, b"1") if how == "a rollback" else (200, b"2"))


@pytest.mark.parametrize("who", ["outer", "inner"])
async def test_commits_still_count_after_the_inner_response(world: World, who: str) -> None:
    await make_lose(world)
    attempts = Attempts(1, lose_reading)

    async def write(db: DataSession) -> None:
        await db.execute(INSERT, [f"tea {attempts.count}"])
        await db.commit()

    async def inner_app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        if who == "inner":
            await write(db)
        await db.read.fetch_value("select 1")
        await JSONResponse(1)(scope, receive, send)

    async def discard(message: Message) -> None:
        return None

    @transactional(retry=2)
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        if who == "outer":
            await write(db)
        await inside(scope, receive, discard)
        await attempts.next(db)

    async with world.registry() as outer, world.registry() as inner:
        inside = DataSourceMiddleware(inner_app, registry=inner)
        call = await Call(endpoint=application).run(DataSourceMiddleware(application, registry=outer))
    assert (call.status, attempts.count) == (409, 1)
    assert await world.items() == ["tea 0"]


def test_an_annotations_retry_precedes_that_of_the_rule() -> None:
    rule = RouteRule(options=TransactionOptions(retry=3))
    assert make_lane(SessionPolicy(), rule, "POST", TransactionOptions(retry=1)).retries == 1
    assert make_lane(SessionPolicy(), rule, "POST", TransactionOptions()).retries == 3


async def test_a_conflict_contained_by_a_savepoint_is_not_retried(world: World) -> None:
    attempts = Attempts(1, lambda db: lose(db, "40P01"))

    @transactional(retry=3)
    async def place(request: Request) -> Response:
        db = session(request)
        try:
            async with db.transaction():
                await attempts.next(db)
        except DataError:
            return JSONResponse("no", status_code=422)
        return JSONResponse("yes")

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 422
    assert attempts.count == 1


async def test_each_attempt_has_a_fresh_scope_session_and_body(world: World) -> None:
    attempts = Attempts(2)
    seen: list[tuple[Any, ...]] = []
    sessions: set[DataSession] = set()

    class Outside:
        """Like a session middleware: it keeps a reference to a dictionary in the scope and reads it at the end."""

        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["session"] = held = {"user": "anna"}
            scope["marks"] = []
            await self.app(scope, receive, send)
            seen.append(tuple(sorted(held)))

    @transactional(retry=2)
    async def place(request: Request) -> Response:
        db = session(request)
        sessions.add(db)
        chunks = [chunk async for chunk in request.stream() if chunk]
        marks = [hasattr(request.state, "mark"), "mark" in request.scope, *request.scope["marks"]]
        seen.append((sorted(request.session), marks, b"".join(chunks)))
        request.session[f"attempt {attempts.count + 1}"] = True
        request.state.mark = True
        request.scope["mark"] = True
        request.scope["marks"].append(True)
        return JSONResponse(await attempts.next(db))

    async def upload() -> Any:
        for part in (b"one ", b"two ", b"three"):
            yield part

    async with client(world, [Route("/", place, methods=["POST"])], outside=[Middleware(Outside)]) as http:
        assert (await http.post("/", content=upload())).json() == 3
    assert seen[:3] == [(["user"], [False, False], b"one two three")] * 3
    assert seen[3] == ("attempt 3", "user")
    assert len(sessions) == 3


async def test_body_messages_left_unread_by_an_attempt_are_replayed(world: World) -> None:
    messages = [
        {"type": "http.request", "body": b"one ", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
    ]
    got: list[bytes] = []

    @transactional(retry=1)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((await receive())["body"])
        if len(got) == 1:
            await lose(session(scope))
        got.append((await receive())["body"])
        await JSONResponse({})(scope, receive, send)

    async def receive() -> Any:
        return messages.pop(0)

    call = Call(endpoint=endpoint)
    async with world.registry() as registry:
        await DataSourceMiddleware(endpoint, registry=registry)(call.scope, receive, call.send)
    assert got == [b"one ", b"one ", b"two"]
    assert call.status == 200


async def test_a_request_with_a_body_beyond_the_limit_is_not_retried_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = Attempts(1)

    @transactional(retry=1)
    async def place(request: Request) -> Response:
        await request.body()
        return JSONResponse(await attempts.next(session(request)))

    registry = world.registry(transactions={"retry_body_limit": "1KiB"})
    async with client(world, [Route("/", place, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/", content=b"x" * 1025)).status_code == 409
        assert "is not retried after a conflict: its body is longer than transactions.retry_body_limit" in caplog.text
        attempts.count = 0
        assert (await http.post("/", content=b"x" * 1024)).json() == 2


@pytest.mark.parametrize("how", ["db.commit()", "requires_new", "not_supported"])
async def test_a_request_with_a_partial_commit_is_not_retried(
    world: World, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    attempts = Attempts(1)

    @transactional(propagation="required" if how == "db.commit()" else how)
    async def part() -> None:
        await current_session().execute(INSERT, ["part"])

    @transactional(retry=1)
    async def place(request: Request) -> Response:
        db = session(request)
        await part()
        if how == "db.commit()":
            await db.commit()
        return JSONResponse(await attempts.next(db))

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 409
    assert "is not retried after a conflict: a part of it has been committed already" in caplog.text
    assert attempts.count == 1
    assert await world.items() == ["part"]


async def test_other_failures_are_not_retried(world: World) -> None:
    count = 0

    @transactional(retry=5)
    async def place(request: Request) -> Response:
        nonlocal count
        count += 1
        db = session(request)
        await db.execute(INSERT, ["tea"])
        await db.execute(INSERT, ["tea"])
        return JSONResponse({})

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 409
    assert count == 1


LEFT = "select extract(epoch from current_setting('statement_timeout')::interval)::float8"
"""The server's statement timeout in seconds: the time that was left when the transaction began."""


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than every time limit and every test."""
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 3600.0)
    monkeypatch.setattr(retry, "LAST_DELAY_S", 3600.0)


@pytest.mark.usefixtures("long_pauses")
async def test_no_attempt_is_scheduled_after_the_deadline(world: World, caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(100)

    @transactional(retry=20, timeout=60)
    async def place(request: Request) -> Response:
        return JSONResponse(await attempts.next(session(request)))

    @transactional(retry=20, timeout=60, propagation="requires_new")
    async def function() -> None:
        await attempts.next(current_session())

    @transactional(retry=20, propagation="requires_new")
    async def inside() -> None:
        # The request's remaining time applies to a function without a timeout.
        await attempts.next(current_session())

    async def call(request: Request) -> Response:
        for once_only in (function, inside):
            with pytest.raises(DataError) as caught:
                await once_only()
            assert caught.value.sqlstate == "40001"
        return JSONResponse({})

    routes = [Route("/", place, methods=["POST"]), Route("/call", call, methods=["POST"])]
    async with client(world, routes) as http:
        assert (await http.post("/")).status_code == 409
        assert "is not retried after a conflict: its deadline is too near" in caplog.text
        assert (await http.post("/call")).status_code == 200
    assert attempts.count == 3


async def test_all_attempts_share_one_time_limit(world: World) -> None:
    attempts = Attempts(1)
    spent = 0.3

    async def attempt(db: DataSession) -> float:
        if attempts.count == 0:
            await asyncio.sleep(spent)
        await attempts.next(db)
        return float(await db.write.fetch_value(LEFT))

    # Below two seconds, the server's timeout is the exact remaining time.
    @transactional(retry=1, timeout=2)
    async def place(request: Request) -> Response:
        return JSONResponse(await attempt(session(request)))

    @transactional(retry=1, timeout=1.9, propagation="requires_new")
    async def function() -> float:
        return await attempt(current_session())

    async def call(request: Request) -> Response:
        return JSONResponse(await function())

    routes = [Route("/", place, methods=["POST"]), Route("/call", call, methods=["POST"])]
    async with client(world, routes) as http:
        assert 0 < (await http.post("/")).json() <= 2 - spent
        attempts.count = 0
        assert 0 < (await http.post("/call")).json() <= 1.9 - spent


async def test_a_streaming_response_is_retried_only_while_its_start_is_held(world: World) -> None:
    attempts = Attempts(1)

    @transactional(retry=1)
    async def before(request: Request) -> Response:
        number = await attempts.next(session(request))

        async def body() -> Any:
            yield f"attempt {number}"

        return StreamingResponse(body())

    @transactional(retry=1, read_only=True, stream=True)
    async def within(request: Request) -> Response:
        db = session(request)
        attempts.count += 1

        async def body() -> Any:
            yield "begun, "
            await db.read.execute(LOSE.format("40001"))

        return StreamingResponse(body())

    async with client(world, [Route("/before", before), Route("/within", within)]) as http:
        assert (await http.get("/before")).text == "attempt 2"
        attempts.count = 0
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/within")
        assert attempts.count == 1


async def test_a_request_whose_client_disconnected_is_not_retried(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = Attempts(100)

    @transactional(retry=20)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await attempts.next(session(scope))

    call = Call(endpoint=endpoint)
    call.leave()
    async with world.registry() as registry:
        await call.run(DataSourceMiddleware(endpoint, registry=registry))
        await assert_whole(registry, world)
    assert attempts.count == 1
    assert "is not retried after a conflict: its client has left" in caplog.text


async def test_a_request_is_not_retried_after_statements_in_an_outer_middlewares_session(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Two middlewares with separate registries: only the inner part could be rolled back."""
    attempts = Attempts(1)

    @transactional(retry=5)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse(await attempts.next(session(scope)))(scope, receive, send)

    async with world.registry() as outer, world.registry() as inner:
        inside = DataSourceMiddleware(endpoint, registry=inner)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/used":
                await session(scope).read.fetch_value("select 1")
            await inside(scope, receive, send)

        for path, status, count in (("/used", 409, 1), ("/unused", 200, 2)):
            attempts.count = 0
            call = Call(path=path, endpoint=endpoint)
            await call.run(DataSourceMiddleware(application, registry=outer))
            assert (call.status, attempts.count) == (status, count)
    assert "is not retried after a conflict: a part of it has been committed already" in caplog.text


@pytest.mark.usefixtures("long_pauses")
async def test_a_request_cancelled_between_attempts_leaves_no_connection_and_no_task(world: World) -> None:
    attempts = Attempts(100)

    @transactional(retry=20)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.execute(INSERT, ["tea"])
        # Long enough for disconnect detection to start, which reads ahead.
        await asyncio.sleep(0.2)
        await attempts.next(db)

    async with world.registry(transactions={"deadline": None}) as registry:
        await until_at_rest(registry)
        before = asyncio.all_tasks()
        call = Call(endpoint=endpoint)
        task = asyncio.create_task(call.run(DataSourceMiddleware(endpoint, registry=registry)))
        await until(lambda: attempts.count == 1, "no attempt was made")
        await assert_whole(registry, world)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: asyncio.all_tasks() <= before, "a task is left behind")
        assert attempts.count == 1
    assert call.sent == []


async def test_a_cancelled_request_is_not_retried(world: World) -> None:
    attempts = Attempts(100)
    lost = asyncio.Event()

    @transactional(retry=20)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        if attempts.count == 3:
            lost.set()
            await asyncio.Event().wait()
        await attempts.next(session(scope))

    call = Call(endpoint=endpoint)
    async with world.registry() as registry:
        task = asyncio.create_task(call.run(DataSourceMiddleware(endpoint, registry=registry)))
        async with asyncio.timeout(10):
            await lost.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_whole(registry, world)
    assert call.sent == []


@pytest.mark.parametrize("canceller", list(Canceller))
async def test_a_retried_request_cancelled_at_any_suspension_point(world: World, canceller: Canceller) -> None:
    ran: list[str] = []
    attempts = Attempts(1)

    @transactional(retry=1)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await receive()
        await db.execute(INSERT, ["tea"])
        db.after_commit(lambda: ran.append("committed"))
        db.after_rollback(lambda: ran.append("rolled back"))
        await JSONResponse(await attempts.next(db), status_code=201)(scope, receive, send)

    async def work() -> None:
        nonlocal call
        attempts.count = 0
        call = Call(endpoint=endpoint, body=b"a body")
        await call.run(DataSourceMiddleware(endpoint, registry=registry))

    call = Call()
    async with world.registry(replicas=(), pool={"min_size": 1, "max_size": 1}) as registry:
        number = 0
        was_reached = True
        while was_reached:
            number += 1
            ran.clear()
            was_reached = await cancel_at(number, canceller, work)
            where = f"{canceller} at wait {number}"
            assert await registry.background.drain(5.0) == 0, where
            await assert_whole(registry, world)
            items = await world.items()
            assert ran in ([], ["committed"], ["rolled back"]), where
            assert (items == ["tea"]) == (ran == ["committed"]), where
            # A success status in the response is true, whatever happened after it.
            assert items or not call.sent or call.status != 201, where
            await world.sql("truncate orders")
    assert call.status == 201
    assert number > 5


# -- a service function


async def test_a_function_with_its_own_transaction_is_retried(world: World) -> None:
    attempts = Attempts(2)
    ran: list[str] = []

    @transactional(retry=2)
    async def place(item: str) -> int:
        db = current_session()
        await db.execute(INSERT, [item])
        db.after_commit(lambda: ran.append("committed"))
        db.after_rollback(lambda: ran.append("rolled back"))
        return await attempts.next(db)

    async def outside(db: DataSession) -> int:
        return await place("tea")

    async def inside(db: DataSession) -> None:
        # It has joined: only the owner of the transaction can retry it.
        attempts.count = 0
        await place("milk")

    async with world.registry(transactions={"default": "annotated"}) as registry:
        call = await request(registry, outside)
        assert (call.status, call.body) == (201, b"3")
        assert ran == ["committed"]
        await assert_whole(registry, world)
        async with registry.session("acme"):
            attempts.count = 0
            assert await transactional(propagation="requires_new", retry=2)(place)("cocoa") == 3
    async with world.registry() as registry:
        assert (await request(registry, inside)).status == 409
    assert attempts.count == 1
    assert await world.items() == ["tea", "cocoa"]


async def test_a_function_that_wraps_the_conflict_is_retried(world: World) -> None:
    attempts = Attempts(1)

    class OutOfStock(Exception):
        pass

    @transactional(retry=1)
    async def place() -> int:
        try:
            return await attempts.next(current_session())
        except DataError as error:
            raise OutOfStock from error

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, lambda db: place())).body == b"2"


async def test_a_conflict_handled_inside_is_not_retried(world: World) -> None:
    attempts = Attempts(1)
    count = 0

    @transactional(retry=3)
    async def outer() -> None:
        nonlocal count
        count += 1
        db = current_session()
        with pytest.raises(DataError):
            async with db.transaction():
                await attempts.next(db)
        attempts.count = 0
        with pytest.raises(DataError):
            await transactional(propagation="requires_new")(attempts.next)(db)
        raise LookupError

    async def body(db: DataSession) -> None:
        with pytest.raises(LookupError):
            await outer()

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
    assert count == 1


async def test_a_function_with_a_partial_commit_is_not_retried(world: World, caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(1)

    @transactional(propagation="requires_new")
    async def part() -> None:
        await current_session().execute(INSERT, ["part"])

    @transactional(retry=3)
    async def place() -> None:
        await part()
        await attempts.next(current_session())

    async def body(db: DataSession) -> None:
        with pytest.raises(DataError) as caught:
            await place()
        assert caught.value.sqlstate == "40001"

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
    assert "not retried after a conflict: a part of it had been committed already" in caplog.text
    assert attempts.count == 1
    assert await world.items() == ["part"]


async def test_a_functions_attempts_are_bounded_and_share_its_timeout(world: World) -> None:
    attempts = Attempts(100)

    @transactional(retry=3)
    async def bounded() -> None:
        await attempts.next(current_session())

    @transactional(retry=20, timeout=0.3)
    async def timed() -> None:
        await attempts.next(current_session())

    async def body(db: DataSession) -> None:
        with pytest.raises(DataError) as caught:
            await bounded()
        assert caught.value.sqlstate == "40001"
        assert attempts.count == 4
        attempts.count = 0
        with pytest.raises(DataError) as caught:
            await timed()
        assert attempts.count < 21

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)


# -- use case


async def test_fifty_serializable_transfers_keep_the_invariant_without_a_visible_conflict(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Write skew: each transfer reads both accounts and debits one; their sum must not become negative.

    REPEATABLE READ misses it: two transfers that read the same sum write different rows. SERIALIZABLE detects it.
    """
    await world.sql("create table accounts (owner text primary key, balance int); alter table accounts owner to app")
    await world.sql("insert into accounts values ('anna', 100), ('ben', 100)")
    attempts = 0

    @transactional(isolation="serializable", retry=20)
    async def withdraw(request: Request) -> Response:
        nonlocal attempts
        attempts += 1
        db = session(request)
        owner = request.path_params["owner"]
        total = await db.fetch_value("select sum(balance) from accounts")
        if total < 10:
            return JSONResponse("not enough", status_code=422)
        await db.execute("update accounts set balance = balance - 10 where owner = %s", [owner])
        return JSONResponse("done")

    registry = world.registry(pool={"min_size": 8, "max_size": 8, "acquire_timeout": "20s"})
    async with client(world, [Route("/{owner}", withdraw, methods=["POST"])], registry=registry) as http:
        responses = await asyncio.gather(*(http.post(f"/{'anna' if n % 2 else 'ben'}") for n in range(50)))
        await assert_whole(registry, world)
    statuses = [response.status_code for response in responses]
    assert sorted(statuses) == [200] * 20 + [422] * 30
    assert await world.sql("select sum(balance) from accounts") == [(0,)]
    # Conflicts did happen.
    assert attempts > 50


async def test_attempts_delays_and_outcome_are_on_the_span(world: World, spans: InMemorySpanExporter) -> None:
    attempts = Attempts(2)

    @transactional(retry=2)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse(await attempts.next(session(scope)))(scope, receive, send)

    async with world.registry() as registry:
        for outcome in ("settled", "given_up"):
            with get_tracer("test").start_as_current_span("server"):
                call = await Call(endpoint=endpoint).run(DataSourceMiddleware(endpoint, registry=registry))
            [span] = [span for span in spans.get_finished_spans() if span.name == "server"]
            waits = [dict(one.attributes or {}) for one in spans.get_finished_spans() if one.name == "retry"]
            spans.clear()
            for number, wait in enumerate(waits, 1):
                assert wait["asgi_datasource.retry.attempt"] == number
                assert wait["db.response.status_code"] == "40001"
                assert float(wait["asgi_datasource.retry.delay_ms"]) > 0
            assert len(waits) == 2
            attributes = dict(span.attributes or {})
            assert attributes["asgi_datasource.retry.attempt"] == 3
            assert attributes["asgi_datasource.retry.outcome"] == outcome
            assert call.status == (200 if outcome == "settled" else 409)
            attempts.count = -3
