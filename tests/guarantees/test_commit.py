"""Promise 1: 2xx or 3xx means committed; a failed COMMIT never produces one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import BackgroundTasks as FastAPIBackgroundTasks
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_datasource import DataError, DataSession, DataSourceMiddleware, session
from asgi_datasource.testing import serve
from tests.apps import client
from tests.pools import assert_whole, until
from tests.wire import Wire, ask_twice
from tests.world import SLOW_COMMIT_S, World

Respond = Callable[[], Response]
Db = Annotated[DataSession, Depends(session)]


async def slow_commit(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values ('tea')")
    await db.execute("insert into slow values (1)")
    return JSONResponse({"placed": True}, status_code=201)


async def alive(request: Request) -> Response:
    return PlainTextResponse("alive")


ALIVE = Route("/alive", alive)


async def write_what_commit_refuses(db: DataSession) -> None:
    """Every statement succeeds and COMMIT fails, because the foreign key is deferred."""
    await db.execute("insert into orders (item) values ('tea')")
    await db.execute("insert into children (parent) values (99)")


def refused(respond: Respond, path: str = "/") -> Route:
    """A route with this response, and a COMMIT that fails."""

    async def endpoint(request: Request) -> Response:
        await write_what_commit_refuses(session(request))
        return respond()

    return Route(path, endpoint, methods=["POST"])


async def two_pieces() -> AsyncIterator[bytes]:
    yield b"first piece, "
    yield b"second piece"


def plain() -> Response:
    return JSONResponse({"placed": True}, status_code=201)


def streaming() -> Response:
    return StreamingResponse(two_pieces(), status_code=200)


def redirect() -> Response:
    return RedirectResponse("/orders/1", status_code=303)


def empty() -> Response:
    return Response(status_code=204)


def file() -> Response:
    return FileResponse(Path(__file__))


RESPONSES = [plain, streaming, redirect, empty, file]


def errors_of_the_server(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of uvicorn: a message after the end of a response, an exception that leaves the application."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("uvicorn", "asyncio")) and record.levelno >= logging.WARNING
    ]


async def test_row_is_visible_to_other_sessions_when_the_status_line_arrives(world: World) -> None:
    async with client(world, [Route("/", slow_commit, methods=["POST"])]) as http:
        started = time.monotonic()
        async with http.stream("POST", "/") as response:
            waited = time.monotonic() - started
            assert response.status_code == 201
            assert await world.items() == ["tea"]
        assert waited >= SLOW_COMMIT_S


async def test_row_is_visible_when_the_first_byte_of_a_stream_arrives(world: World) -> None:
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first, "
        await go_on.wait()
        yield b"last"

    async def endpoint(request: Request) -> Response:
        await slow_commit(request)
        return StreamingResponse(body(), status_code=201)

    async with (
        client(world, [Route("/", endpoint, methods=["POST"])]) as http,
        Wire.connect(int(http.base_url.port or 0)) as wire,
    ):
        await wire.send("POST", "/")
        assert await wire.status_line() == b"HTTP/1.1 201 Created\r\n"
        assert await world.items() == ["tea"]
        go_on.set()


@pytest.mark.parametrize("respond", RESPONSES)
async def test_a_failed_commit_is_never_a_success(
    world: World, respond: Respond, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(world, [refused(respond), ALIVE]) as http:
        answer, following = await ask_twice(int(http.base_url.port or 0), "POST", "/")

    assert answer.status == 409
    assert answer.header("content-type") == "application/problem+json"
    document = json.loads(answer.body)
    assert document["kind"] == "constraint"
    assert document["status"] == 409
    assert document["constraint"] == "children_parent_fkey"
    # One complete response: nothing of the route's own response is on the wire, before or after it.
    assert answer.header("content-length") == str(len(answer.body))
    assert [value for key, value in answer.headers if key == "location"] == []
    assert following.body == b"alive"
    assert errors_of_the_server(caplog) == []
    assert await world.items() == []


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_the_client_gets_one_response_with_every_http_implementation(
    world: World, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Starlette(
        routes=[refused(streaming), ALIVE], middleware=[Middleware(DataSourceMiddleware, config=world.config())]
    )
    async with serve(app, http=http) as server:
        answer, following = await ask_twice(server.port, "POST", "/")
    assert (answer.status, following.body) == (409, b"alive")
    assert errors_of_the_server(caplog) == []


async def test_commit_of_a_failed_transaction_is_never_a_success(world: World) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with the tag ROLLBACK and without an error."""

    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('tea')")
        with contextlib.suppress(DataError):
            await db.execute("insert into orders (item) values ('tea')")
        return plain()

    async with client(world, [Route("/", endpoint, methods=["POST"])]) as http:
        answer = await http.post("/")
    assert answer.status_code == 500
    assert answer.json()["kind"] == "other"
    assert await world.items() == []


async def test_serialization_failure_at_commit_is_a_retryable_conflict(world: World) -> None:
    """SQLSTATE 40001 at COMMIT."""
    both_have_read = asyncio.Barrier(2)

    async def endpoint(request: Request) -> Response:
        db = session(request)
        async with db.transaction(isolation="serializable"):
            count = await db.fetch_value("select count(*) from orders")
            await both_have_read.wait()
            await db.execute("insert into orders (item) values (%s)", [f"{request.query_params['item']} {count}"])
            await both_have_read.wait()
        return plain()

    async with client(world, [Route("/", endpoint, methods=["POST"])]) as http:
        answers = await asyncio.gather(http.post("/?item=tea"), http.post("/?item=rum"))
    assert sorted(answer.status_code for answer in answers) == [201, 409]
    lost = next(answer for answer in answers if answer.status_code == 409)
    assert (lost.json()["kind"], lost.json()["retryable"]) == ("conflict", True)
    assert len(await world.items()) == 1


# -- the application's own exception handlers


def conflict(request: Request, error: Exception) -> Response:
    return JSONResponse({"own": type(error).__name__}, status_code=409)


async def conflict_async(request: Request, error: Exception) -> Response:
    return conflict(request, error)


class ConflictPage:
    """A handler that is a callable object."""

    async def __call__(self, request: Request, error: Exception) -> Response:
        return conflict(request, error)


@pytest.mark.parametrize(
    ("key", "handler", "name"),
    [
        (DataError, conflict, "DataError"),
        (DataError, conflict_async, "DataError"),
        (DataError, functools.partial(conflict_async), "DataError"),
        (DataError, ConflictPage(), "DataError"),
        (psycopg.errors.ForeignKeyViolation, conflict_async, "ForeignKeyViolation"),
        (psycopg.IntegrityError, conflict, "ForeignKeyViolation"),
        (409, conflict, "HTTPException"),
    ],
)
@pytest.mark.parametrize("respond", [plain, streaming])
async def test_the_applications_exception_handler_answers(
    world: World, respond: Respond, key: Any, handler: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(world, [refused(respond), ALIVE], exception_handlers={key: handler}) as http:
        answer, following = await ask_twice(int(http.base_url.port or 0), "POST", "/")
    assert answer.status == 409
    assert json.loads(answer.body) == {"own": name}
    assert following.body == b"alive"
    assert errors_of_the_server(caplog) == []


async def test_handler_of_the_error_precedes_handlers_of_its_cause_and_of_the_status(world: World) -> None:
    def named(name: str) -> Callable[[Request, Exception], Response]:
        return lambda request, error: PlainTextResponse(name, status_code=409)

    handlers = {409: named("status"), psycopg.Error: named("cause"), DataError: named("error")}
    async with client(world, [refused(plain)], exception_handlers=handlers) as http:
        assert (await http.post("/")).text == "error"
    del handlers[DataError]
    async with client(world, [refused(plain)], exception_handlers=handlers) as http:
        assert (await http.post("/")).text == "cause"


async def test_status_handler_gets_an_exception_with_status_code_and_detail(world: World) -> None:
    """Handlers for a status are written for `HTTPException`."""
    seen: list[Exception] = []

    async def handler(request: Request, error: HTTPException) -> Response:
        seen.append(error)
        return PlainTextResponse(f"sorry: {error.detail}", status_code=error.status_code)

    async with client(world, [refused(plain)], exception_handlers={409: handler}) as http:
        answer = await http.post("/")
    assert (answer.status_code, answer.text) == (409, "sorry: The data breaks a rule; nothing was changed")
    assert isinstance(seen[0].__cause__, DataError)


async def test_the_handlers_response_may_be_a_stream_with_a_background_task(world: World) -> None:
    ran = asyncio.Event()

    async def handler(request: Request, error: DataError) -> Response:
        async def note() -> None:
            ran.set()

        return StreamingResponse(two_pieces(), status_code=409, background=BackgroundTask(note))

    async with client(world, [refused(plain), ALIVE], exception_handlers={DataError: handler}) as http:
        answer, _ = await ask_twice(int(http.base_url.port or 0), "POST", "/")
        await asyncio.wait_for(ran.wait(), 5)
    assert (answer.status, answer.body) == (409, b"first piece, second piece")


async def test_a_handler_may_read_the_request(world: World) -> None:
    async def handler(request: Request, error: DataError) -> Response:
        assert request.url.path == "/"
        return PlainTextResponse(f"{request.method} {request.state.user}", status_code=409)

    async def endpoint(request: Request) -> Response:
        request.state.user = "ada"
        await write_what_commit_refuses(session(request))
        return plain()

    routes = [Route("/", endpoint, methods=["POST"])]
    async with client(world, routes, exception_handlers={DataError: handler}) as http:
        assert (await http.post("/")).text == "POST ada"


@pytest.mark.parametrize("is_sync", [True, False])
async def test_problem_document_replaces_a_handler_that_fails(
    world: World, is_sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(request: Request, error: Exception) -> Response:
        raise ValueError("template not found")

    async def fails_async(request: Request, error: Exception) -> Response:
        return fails(request, error)

    handler = fails if is_sync else fails_async
    async with client(world, [refused(streaming), ALIVE], exception_handlers={DataError: handler}) as http:
        answer, following = await ask_twice(int(http.base_url.port or 0), "POST", "/")
    assert (answer.status, answer.header("content-type")) == (409, "application/problem+json")
    assert following.body == b"alive"
    assert "template not found" in caplog.text
    assert errors_of_the_server(caplog) == []


async def test_problem_document_replaces_a_handler_that_uses_the_closed_session(world: World) -> None:
    async def handler(request: Request, error: DataError) -> Response:
        await session(request).execute("insert into orders (item) values ('late')")
        return PlainTextResponse("never", status_code=409)

    async with client(world, [refused(plain)], exception_handlers={DataError: handler}) as http:
        answer = await http.post("/")
    assert answer.headers["content-type"] == "application/problem+json"
    assert await world.items() == []


async def test_handler_of_exception_is_left_to_the_frameworks_error_page(
    world: World,
) -> None:
    """Starlette calls it from its outermost middleware for unhandled exceptions, and re-raises."""
    async with client(world, [refused(plain)], exception_handlers={Exception: conflict}) as http:
        answer = await http.post("/")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_commit_fails_under_the_response_of_an_exception_handler(world: World) -> None:
    """The response that commits need not come from the route: here it is a redirect from an exception handler."""

    class NotLoggedIn(Exception):
        pass

    def to_login(request: Request, error: Exception) -> Response:
        return RedirectResponse("/login", status_code=303)

    async def endpoint(request: Request) -> Response:
        await write_what_commit_refuses(session(request))
        raise NotLoggedIn

    routes = [Route("/", endpoint, methods=["POST"]), ALIVE]
    async with client(world, routes, exception_handlers={NotLoggedIn: to_login}) as http:
        answer, _ = await ask_twice(int(http.base_url.port or 0), "POST", "/")
    assert (answer.status, answer.header("location")) == (409, None)


class CopiesTheScope:
    """A common kind of middleware: the application below sees a copy of the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(dict(scope), receive, send)


async def test_handlers_are_found_below_a_middleware_that_copies_the_scope(world: World) -> None:
    async with client(
        world, [refused(plain)], inside=[Middleware(CopiesTheScope)], exception_handlers={DataError: conflict}
    ) as http:
        assert (await http.post("/")).json() == {"own": "DataError"}


async def test_a_mounted_applications_handlers_answer_for_its_routes(world: World) -> None:
    def shop_conflict(request: Request, error: Exception) -> Response:
        return PlainTextResponse("the shop is sorry", status_code=409)

    shop = Starlette(routes=[refused(streaming)], exception_handlers={DataError: shop_conflict})
    routes = [refused(plain), Mount("/shop", shop), ALIVE]
    async with client(world, routes, exception_handlers={DataError: conflict}) as http:
        assert (await http.post("/")).json() == {"own": "DataError"}
        answer, _ = await ask_twice(int(http.base_url.port or 0), "POST", "/shop/")
        assert (answer.status, answer.body) == (409, b"the shop is sorry")


# -- middleware around the route


async def test_error_response_has_cors_headers(world: World) -> None:
    cors = Middleware(CORSMiddleware, allow_origins=["https://shop.example"])
    for handlers in ({}, {DataError: conflict}):
        async with client(world, [refused(streaming)], outside=[cors], exception_handlers=handlers) as http:
            answer = await http.post("/", headers={"Origin": "https://shop.example"})
        assert answer.status_code == 409
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"


class Rebuilds(BaseHTTPMiddleware):
    """Starlette's `BaseHTTPMiddleware`: it runs the application in a separate task and rebuilds the response."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Seen"] = "yes"
        return response


@pytest.mark.parametrize("inside", [[], [Middleware(Rebuilds)]])
@pytest.mark.parametrize("outside", [[], [Middleware(Rebuilds)]])
@pytest.mark.parametrize("respond", [plain, streaming])
async def test_background_tasks_do_not_run_when_the_commit_fails(
    world: World,
    respond: Respond,
    inside: list[Middleware],
    outside: list[Middleware],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[str] = []

    async def send_mail() -> None:
        sent.append("your order is placed")

    async def endpoint(request: Request) -> Response:
        db = session(request)
        db.after_commit(lambda: sent.append("after commit"))
        db.after_rollback(lambda: sent.append("after rollback"))
        if "fail" in request.query_params:
            await write_what_commit_refuses(db)
        response = respond()
        response.background = BackgroundTask(send_mail)
        return response

    routes = [Route("/", endpoint, methods=["POST"]), ALIVE]
    async with client(world, routes, inside=inside, outside=outside) as http:
        answer, _ = await ask_twice(int(http.base_url.port or 0), "POST", "/?fail")
        assert answer.status == 409
        await until(lambda: sent != [], "no hook has run")
        assert sent == ["after rollback"]
        sent.clear()
        assert (await http.post("/")).status_code in (200, 201)
        await until(lambda: len(sent) == 2, "the mail and the hook")
        assert sorted(sent) == ["after commit", "your order is placed"]
    assert errors_of_the_server(caplog) == []


async def test_fastapi(world: World, caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, config=world.config())

    @app.exception_handler(psycopg.IntegrityError)
    async def on_conflict(request: Request, error: psycopg.IntegrityError) -> Response:
        return JSONResponse({"own": error.sqlstate}, status_code=409)

    async def resource() -> AsyncIterator[str]:
        try:
            yield "resource"
            events.append("went on behind the yield")
        except Exception:
            events.append("took it for an error")
            raise
        finally:
            events.append("cleaned up")

    @app.post("/plain", status_code=201, dependencies=[Depends(resource)])
    async def place(tasks: FastAPIBackgroundTasks, db: Db) -> dict[str, bool]:
        tasks.add_task(events.append, "mail")
        await write_what_commit_refuses(db)
        return {"placed": True}

    @app.post("/stream", dependencies=[Depends(resource)])
    async def stream(db: Db) -> StreamingResponse:
        await write_what_commit_refuses(db)
        return StreamingResponse(two_pieces(), background=BackgroundTask(events.append, "mail"))

    app.router.routes.append(ALIVE)
    async with serve(app) as server:
        for path in ("/plain", "/stream"):
            answer, following = await ask_twice(server.port, "POST", path)
            assert (answer.status, json.loads(answer.body)) == (409, {"own": "23503"})
            assert following.body == b"alive"
            assert events == ["cleaned up"]
            events.clear()
    assert errors_of_the_server(caplog) == []
    assert await world.items() == []


async def test_messages_sent_after_a_failed_commit_are_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/alive":
            await PlainTextResponse("alive")(scope, receive, send)
            return
        await write_what_commit_refuses(session(scope))
        for message in (
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"it worked", "more_body": False},
            {"type": "http.response.start", "status": 500, "headers": []},
        ):
            try:
                await send(message)
            except BaseException as error:
                heard.append(type(error).__name__)

    async with serve(DataSourceMiddleware(app, config=world.config())) as server:
        answer, following = await ask_twice(server.port, "POST", "/")
    assert (answer.status, following.body) == (409, b"alive")
    assert heard == ["ResponseReplaced"] * 3
    assert errors_of_the_server(caplog) == []


async def test_failed_commits_cost_no_connection(world: World) -> None:
    registry = world.registry(replicas=(), pool={"max_size": 1})
    async with client(world, [refused(plain), refused(streaming, "/stream")], registry=registry) as http:
        for _ in range(10):
            assert (await http.post("/")).status_code == 409
            assert (await http.post("/stream")).status_code == 409
        await assert_whole(registry, world)
        assert len(await world.backends()) == 1


# -- COMMIT whose caller was cancelled


def gives_up(after_s: float, status: int) -> type:
    """A middleware that answers by itself when the application exceeds a time limit."""

    class GivesUp:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                async with asyncio.timeout(after_s if scope["type"] == "http" else None):
                    await self.app(scope, receive, send)
            except TimeoutError:
                await PlainTextResponse("took too long", status_code=status)(scope, receive, send)

    return GivesUp


async def test_a_timeout_response_cannot_overtake_the_commit(world: World) -> None:
    """A middleware that times out during COMMIT and answers 200 must not report a false outcome."""

    async def fails_slowly(request: Request) -> Response:
        await write_what_commit_refuses(session(request))
        return await slow_commit_again(request)

    async def slow_commit_again(request: Request) -> Response:
        await session(request).execute("insert into slow values (1)")
        return plain()

    routes = [
        Route("/ok", slow_commit_again, methods=["POST"]),
        Route("/fails", fails_slowly, methods=["POST"]),
        ALIVE,
    ]
    inside = [Middleware(gives_up(SLOW_COMMIT_S / 3, 200))]
    async with client(world, routes, inside=inside) as http:
        port = int(http.base_url.port or 0)
        async with Wire.connect(port) as wire:
            await wire.send("POST", "/ok")
            assert await wire.status_line() == b"HTTP/1.1 200 OK\r\n"
            assert await world.sql("select count(*) from slow") == [(1,)]
        answer, following = await ask_twice(port, "POST", "/fails")
        assert answer.status == 409
        assert following.body == b"alive"
