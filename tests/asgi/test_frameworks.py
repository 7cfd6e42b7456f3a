"""The middleware inside real frameworks and servers: FastAPI, mounted applications, websockets, HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
import websockets
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_datasource import DataError, DataSession, DataSourceMiddleware, current_session, session, transactional
from asgi_datasource.testing import serve
from tests.apps import client
from tests.world import World

INSERT = "insert into orders (item) values (%s)"

Db = Annotated[DataSession, Depends(session)]


async def audit(db: Db) -> AsyncIterator[DataSession]:
    """A dependency of the application that writes."""
    await db.execute(INSERT, ["audit"])
    yield db


async def test_fastapi_gets_the_session_as_a_dependency(world: World) -> None:
    registry = world.registry()
    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, registry=registry)

    @app.post("/orders", status_code=201)
    async def place(item: str, db: Annotated[DataSession, Depends(audit)]) -> dict[str, Any]:
        row = await db.fetch_one("insert into orders (item) values (%s) returning item", [item])
        assert row is not None
        return row

    @app.get("/orders")
    async def orders(db: Db) -> list[dict[str, Any]]:
        return await db.fetch_all("select item from orders order by id")

    @app.post("/refused")
    async def refused(db: Db) -> None:
        await db.execute(INSERT, ["refused"])
        raise HTTPException(409, "no")

    @app.post("/kept")
    @transactional(commit_on=[409])
    async def kept(item: str, db: Db) -> None:
        await db.execute(INSERT, [item])
        raise HTTPException(409, "but kept")

    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http,
    ):
        assert (await http.post("/orders?item=tea")).json() == {"item": "tea"}
        assert (await http.post("/refused")).status_code == 409
        assert (await http.post("/kept?item=coffee")).status_code == 409
        assert (await http.post("/kept")).status_code == 422
        await world.cluster.caught_up()
        assert (await http.get("/orders")).json() == [{"item": "audit"}, {"item": "tea"}, {"item": "coffee"}]
        assert "/kept" in (await http.get("/openapi.json")).json()["paths"]


async def test_class_endpoints_and_mounted_applications(world: World) -> None:
    class Orders(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            return JSONResponse(await session(request).fetch_all("select item from orders"))

        @transactional(rollback_on=["3xx"])
        async def post(self, request: Request) -> Response:
            await current_session().execute(INSERT, ["tea"])
            return Response(status_code=int(request.query_params["status"]), headers={"location": "/"})

    def handled(request: Request, error: Exception) -> Response:
        return PlainTextResponse("handled below", status_code=418)

    async def fails_at_commit(request: Request) -> Response:
        await session(request).execute("insert into children (parent) values (99)")
        return JSONResponse({}, status_code=201)

    below = Starlette(
        routes=[Route("/orders", Orders), Route("/fails", fails_at_commit, methods=["POST"])],
        exception_handlers={DataError: handled},
    )
    async with client(world, [Mount("/below", below)]) as http:
        assert (await http.post("/below/orders?status=303")).status_code == 303
        assert await world.items() == []
        assert (await http.post("/below/orders?status=201")).status_code == 201
        assert await world.items() == ["tea"]
        answer = await http.post("/below/fails")
        assert (answer.status_code, answer.text) == (418, "handled below")


async def test_a_websocket_commits_per_statement_and_per_block(world: World) -> None:
    stale: list[DataSession] = []

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        db = session(socket)
        stale.append(db)
        await db.execute(INSERT, ["said"])
        await socket.send_json(await world.items())
        try:
            async with db.transaction():
                await db.execute(INSERT, ["undone"])
                raise KeyError
        except KeyError:
            pass
        async with db.transaction():
            await db.execute(INSERT, ["block"])
        await socket.send_json([await world.items(), db.in_transaction()])
        await socket.close()

    registry = world.registry()
    app = Starlette(
        routes=[WebSocketRoute("/", talk)], middleware=[Middleware(DataSourceMiddleware, registry=registry)]
    )
    async with serve(app) as server:
        url = server.url.replace("http", "ws")
        async with websockets.connect(url, additional_headers={"X-Tenant": "acme"}) as talking:
            assert await talking.recv() == '["said"]'
            assert await talking.recv() == '[["said","block"],false]'
            with pytest.raises(websockets.ConnectionClosed):
                await talking.recv()
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(url, additional_headers={"X-Tenant": "nobody"}):
                raise AssertionError("the websocket was accepted")
        assert refused.value.response.status_code == 403

        async def is_closed() -> None:
            while stale[0].state != "closed":
                await asyncio.sleep(0.01)

        await asyncio.wait_for(is_closed(), 5)
    with pytest.raises(DataError, match="used after its response had started"):
        await stale[0].execute(INSERT, ["late"])
    assert await world.items() == ["said", "block"]


async def test_the_same_middleware_installed_twice_has_no_extra_effect(world: World) -> None:
    async def place(request: Request) -> Response:
        await session(request).execute(INSERT, ["tea"])
        return Response(status_code=201)

    registry = world.registry()
    inside = [Middleware(DataSourceMiddleware, registry=registry)]
    async with client(world, [Route("/", place, methods=["POST"])], registry=registry, inside=inside) as http:
        assert (await http.post("/")).status_code == 201
    assert await world.items() == ["tea"]


@pytest.mark.parametrize(("writers", "status"), [("refuse", 500), ("allow", 201)])
async def test_two_registries_in_one_request_allow_one_writer_unless_configured(
    world: World, writers: str, status: int
) -> None:
    transactions = {"multiple_writers": writers}
    outer, inner = world.registry(transactions=transactions), world.registry(transactions=transactions)
    outer_sessions: list[DataSession] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            outer_sessions.append(session(scope))
            await outer_sessions[-1].execute(INSERT, ["outer"])
        await below(scope, receive, send)

    async def place(request: Request) -> Response:
        db = session(request)
        assert db.registry is inner
        await db.execute(INSERT, ["inner"])
        return Response(status_code=201)

    below = Starlette(
        routes=[Route("/", place, methods=["POST"])], middleware=[Middleware(DataSourceMiddleware, registry=inner)]
    )
    async with (
        serve(DataSourceMiddleware(note, registry=outer)) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http,
    ):
        assert (await http.post("/")).status_code == status
    assert sorted(await world.items()) == (["inner", "outer"] if status == 201 else [])
