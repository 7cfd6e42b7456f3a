"""What an application and a server may expect of each other stays true with the middleware in between."""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asgi_datasource import DataSession, DataSourceMiddleware, session
from asgi_datasource.asgi.current_session import SCOPE_KEY
from asgi_datasource.asgi.response_guard import GuardState
from tests.asgi_call import Call
from tests.drivers.polling import until
from tests.world import World

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x", "more_body": False}
INSERT = "insert into orders (item) values ('tea')"
WATCHED = "select pg_sleep(0.3)"
"""Lasts until the watcher reads ahead, which it does after 0.1 s."""


class Server:
    """`receive` of a server that answers `http.disconnect` once the response is complete, as uvicorn does."""

    def __init__(self) -> None:
        self.received = 0
        self._is_complete = asyncio.Event()
        self._has_given_body = False

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        if not self._has_given_body and not self._is_complete.is_set():
            self._has_given_body = True
            return {"type": "http.request", "body": b"unread", "more_body": False}
        await self._is_complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message is BODY:
            self._is_complete.set()


async def test_the_body_that_a_client_holds_back_is_not_asked_for(world: World) -> None:
    server = Server()
    counts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).read.fetch_value(WATCHED)
        counts.append(server.received)
        assert (await receive())["body"] == b"unread"
        await session(scope).read.fetch_value(WATCHED)
        counts.append(server.received)
        await send(START)
        await send(BODY)

    async with world.registry() as registry:
        scope = Call(headers=[(b"x-tenant", b"acme"), (b"expect", b"100-Continue")]).scope
        await DataSourceMiddleware(app, registry=registry)(scope, server.receive, server.send)
    # After the body, the watcher reads.
    assert counts == [0, 2]


async def test_after_the_response_receive_returns_what_the_server_says(world: World) -> None:
    server = Server()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).execute(INSERT)
        await session(scope).read.fetch_value(WATCHED)
        assert server.received == 2
        await send(START)
        await send(BODY)
        assert await receive() == {"type": "http.disconnect"}

    async with world.registry() as registry:
        await DataSourceMiddleware(app, registry=registry)(Call().scope, server.receive, server.send)
    assert await world.items() == ["tea"]


async def test_a_client_that_has_left_is_no_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    call = Call()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).execute(INSERT)
        call.leave()
        # Busy with something else, so that no statement is interrupted.
        await until(lambda: scope[SCOPE_KEY].state is GuardState.DOOMED)
        await send(START)
        await send(BODY)

    async with world.registry() as registry:
        with caplog.at_level(logging.INFO, "asgi_datasource"):
            await call.run(DataSourceMiddleware(app, registry=registry))
    assert call.sent == []
    logged = [(record.levelname, record.message) for record in caplog.records if "client" in record.message]
    assert logged == [("INFO", "the client left; its transaction was rolled back")]
    assert await world.items() == []


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("has_sql", [True, False])
async def test_what_an_application_raises_is_not_lost_to_a_cancellation(world: World, kind: str, has_sql: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if has_sql:
            await session(scope).execute(INSERT)
        asyncio.get_running_loop().call_soon(task.cancel)
        raise ValueError("the application's own")

    async with world.registry() as registry:
        call = Call(type=kind)
        task = asyncio.ensure_future(call.run(DataSourceMiddleware(app, registry=registry)))
        with pytest.raises(ValueError, match="the application's own"):
            await task
    # A statement of a websocket is a transaction of its own.
    assert await world.items() == (["tea"] if has_sql and kind == "websocket" else [])


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_scope_can_be_copied_deeply(world: World, kind: str) -> None:
    sessions: list[DataSession] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        copied = copy.deepcopy(scope)
        sessions.extend([session(copied), session(scope)])
        assert copied["headers"] is not scope["headers"]
        assert copy.deepcopy(sessions[0]) is sessions[0]

    async with world.registry() as registry:
        await Call(type=kind).run(DataSourceMiddleware(app, registry=registry))
    assert sessions[0] is sessions[1]


async def test_a_preflight_reaches_the_application_without_a_tenant(world: World) -> None:
    async def items(request: Request) -> Response:
        return PlainTextResponse(str(await session(request).fetch_value("select 1")))

    cors = Middleware(CORSMiddleware, allow_origins=["https://shop.example"], allow_headers=["X-Tenant"])
    app = Starlette(routes=[Route("/", items)], middleware=[cors])
    origin, method = (b"origin", b"https://shop.example"), (b"access-control-request-method", b"GET")
    asked = (b"access-control-request-headers", b"x-tenant")
    async with world.registry() as registry:
        middleware = DataSourceMiddleware(app, registry=registry)
        preflight = await Call("OPTIONS", headers=[origin, method, asked]).run(middleware)
        assert (preflight.status, preflight.body) == (200, b"OK")
        # Neither is a preflight.
        for call in (Call("OPTIONS", headers=[origin]), Call("GET", headers=[origin, method])):
            assert (await call.run(middleware)).status == 400


async def test_the_pages_of_fastapi_need_no_tenant(world: World) -> None:
    tenancy = {"resolve": [{"header": "X-Tenant"}], "exempt": {"preset": "fastapi", "paths": ["/healthz"]}}
    statuses: dict[str, int] = {}
    async with world.registry(tenancy=tenancy) as registry:
        middleware = DataSourceMiddleware(FastAPI(), registry=registry)
        for path in ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/healthz/live", "/docs/acme"):
            statuses[path] = (await Call("GET", path, headers=[]).run(middleware)).status
    assert list(statuses.values()) == [200, 200, 200, 200, 404, 400]


@pytest.mark.parametrize("status", [200, 409])
async def test_hooks_do_not_wait_for_the_body_and_background_tasks(world: World, status: int) -> None:
    ran = asyncio.Event()
    order: list[str] = []

    async def hook() -> None:
        order.append("hook")
        ran.set()

    async def later() -> None:
        await asyncio.wait_for(ran.wait(), 5.0)
        order.append("background")

    async def place(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT)
        db.after_commit(hook)
        db.after_rollback(hook)
        return PlainTextResponse("done", status_code=status, background=BackgroundTask(later))

    async with world.registry() as registry:
        app = Starlette(routes=[Route("/", place, methods=["POST"])])
        call = Call(on_send=lambda message: order.append(message["type"]))
        await call.run(DataSourceMiddleware(app, registry=registry))
    assert order.index("http.response.start") < order.index("hook") < order.index("background")
