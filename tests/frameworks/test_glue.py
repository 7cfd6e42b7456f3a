"""What the glue of Litestar and Quart does by itself: responses to errors, hooks, lifespan, order of middlewares."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.di import NamedDependency
from litestar.middleware import DefineMiddleware
from litestar.params import FromQuery
from quart import Quart
from quart import request as quart_request

from asgi_datasource import ConfigError, DataError, DataSession, DataSourceRegistry, current_session
from asgi_datasource.litestar import DataSourcePlugin
from asgi_datasource.quart import DataSourceExtension
from tests.asgi_call import Call
from tests.world import World

PROBLEM = b"application/problem+json"


@post("/tea")
async def place(db: NamedDependency[DataSession]) -> None:
    await db.execute("insert into orders (item) values ('tea')")


@post("/orphan")
async def orphan(db: NamedDependency[DataSession]) -> None:
    await db.execute("insert into children (parent) values (99)")


@post("/wrong")
async def wrong(db: NamedDependency[DataSession]) -> None:
    await db.execute("insert into nothing values (1)")


@post("/hook")
async def fails_before_commit(db: NamedDependency[DataSession]) -> None:
    def check() -> None:
        raise ValueError("not today")

    db.before_commit(check)
    await db.execute("insert into orders (item) values ('milk')")


def in_litestar(registry: DataSourceRegistry, **options: Any) -> Any:
    handlers = [place, orphan, wrong, fails_before_commit]
    return Litestar(handlers, plugins=[DataSourcePlugin(registry=registry)], logging_config=None, **options)


def in_quart(registry: DataSourceRegistry) -> Quart:
    app = Quart("quart_app")
    DataSourceExtension(app, registry=registry)
    for handler in (place, orphan, wrong, fails_before_commit):
        path = next(iter(handler.paths))
        app.add_url_rule(path, path, _view(handler.fn), methods=["POST"])
    return app


def _view(function: Any) -> Any:
    async def view() -> Any:
        await function(current_session())
        return "", 201

    return view


async def answered(app: Any, path: str, tenant: bytes = b"acme") -> tuple[int, bytes, bytes]:
    call = await Call(path=path, headers=[(b"x-tenant", tenant)]).run(app)
    start = next(message for message in call.sent if message["type"] == "http.response.start")
    return call.status, dict(start["headers"])[b"content-type"], call.body


@pytest.mark.parametrize("make", [in_litestar, in_quart])
async def test_a_data_error_is_answered_by_its_kind(world: World, make: Any) -> None:
    async with world.registry() as registry:
        app = make(registry)
        assert (await answered(app, "/tea"))[0] == 201
        for path, tenant, status, kind in [
            ("/tea", b"acme", 409, "constraint"),
            ("/orphan", b"acme", 409, "constraint"),
            ("/tea", b"nobody", 404, "tenant"),
        ]:
            found, content_type, body = await answered(app, path, tenant)
            assert (found, content_type, json.loads(body)["kind"]) == (status, PROBLEM, kind)
        # Defects are the framework's own.
        for path in ("/wrong", "/hook"):
            found, content_type, body = await answered(app, path)
            assert (found, b"kind" in body) == (500, False)
    assert await world.items() == ["tea"]


@pytest.mark.parametrize("make", [in_litestar, in_quart])
async def test_errors_of_the_frameworks_go_to_the_function_of_the_configuration(world: World, make: Any) -> None:
    async with world.registry(errors={"handler": "tests.asgi.test_problems:render_later"}) as registry:
        app = make(registry)
        assert (await answered(app, "/orphan"))[::2] == (409, b"<h1>children_parent_fkey</h1>")
        await answered(app, "/tea")
        assert (await answered(app, "/tea"))[::2] == (409, b"<h1>orders_item_key</h1>")


async def test_a_handler_of_a_litestar_route_replaces_the_plugins(world: World) -> None:
    def own(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
        return Response(f"own: {type(error).__name__}", status_code=409)

    @post("/own", exception_handlers={DataError: own, ValueError: own})
    async def fails(db: NamedDependency[DataSession], hook: FromQuery[bool] = False) -> None:
        await (fails_before_commit if hook else orphan).fn(db)

    async with world.registry() as registry:
        app = Litestar([fails], plugins=[DataSourcePlugin(registry=registry)])
        for path, tenant in [("/own", b"acme"), ("/own", b"nobody")]:
            assert (await answered(app, path, tenant))[::2] == (409, b"own: DataError")
        call = Call(path="/own", headers=[(b"x-tenant", b"acme")], query_string=b"hook=1")
        assert (await call.run(app)).body == b"own: ValueError"


class Authenticate:
    """A middleware that names the tenant."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app({**scope, "user": "acme"}, receive, send)


async def test_the_plugin_keeps_the_registry_open_and_its_middleware_where_it_is_listed(world: World) -> None:
    @get("/")
    async def count(orders: NamedDependency[DataSession]) -> int:
        value: int = await orders.fetch_value("select count(*) from orders")
        return value

    @websocket("/talk")
    async def talk(socket: WebSocket[Any, Any, Any], orders: NamedDependency[DataSession]) -> None:
        await socket.accept()
        await socket.send_json(await orders.fetch_value("select 1"))
        await socket.close()

    plugin = DataSourcePlugin(world.config(tenancy={"resolve": [{"scope": "user"}]}), dependency="orders")
    middleware = [DefineMiddleware(Authenticate), plugin.middleware]
    app = Litestar([count, talk], plugins=[plugin], middleware=middleware)
    assert app.middleware == middleware
    async with app.lifespan():
        assert plugin.registry.open_in is asyncio.get_running_loop()
        call = await Call("GET", headers=[]).run(app)
        assert (call.status, call.body) == (200, b"0")
        socket = Call("GET", "/talk", headers=[], type="websocket", subprotocols=[])
        del socket.scope["method"]
        socket._messages.get_nowait()
        socket._messages.put_nowait({"type": "websocket.connect"})
        await socket.run(app)
        assert [message["type"] for message in socket.sent] == [
            "websocket.accept",
            "websocket.send",
            "websocket.close",
        ]
    assert plugin.registry.open_in is not asyncio.get_running_loop()
    for wrong in ({"version": 1}, None):
        with pytest.raises(ConfigError):
            DataSourcePlugin(wrong)


async def test_a_refusal_passes_the_hooks_of_quart(world: World) -> None:
    app = Quart("quart_app")
    seen: list[str] = []

    async def own(error: DataError) -> tuple[str, int]:
        return f"own: {error.kind}", 418

    @app.before_request
    async def note() -> None:
        seen.append(quart_request.path)

    @app.after_request
    async def add(response: Any) -> Any:
        response.headers["X-After"] = "1"
        return response

    @app.post("/orphan")
    async def fails() -> str:
        await orphan.fn(current_session())
        return ""

    app.register_error_handler(DataError, own)
    DataSourceExtension(registry=(registry := world.registry())).init_app(app)
    async with registry:
        for path, tenant, kind in [("/nowhere", b"nobody", b"tenant"), ("/orphan", b"acme", b"constraint")]:
            call = await Call(path=path, headers=[(b"x-tenant", tenant)]).run(app)
            assert (call.status, call.body) == (418, b"own: " + kind)
            assert dict(call.sent[0]["headers"])[b"x-after"] == b"1"
    # Once, by the request that has reached the application.
    assert seen == ["/orphan"]
