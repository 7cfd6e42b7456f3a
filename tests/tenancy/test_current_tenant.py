"""`tenant_context`: which tenant a job works for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from asgi_datasource import (
    DataError,
    DataSession,
    DataSourceMiddleware,
    compile,
    current_session,
    current_tenant,
    session,
    tenant_context,
)
from asgi_datasource.testing import serve
from tests.apps import application, client
from tests.asgi_call import Call
from tests.world import World


async def test_a_session_without_a_name_is_the_contexts(world: World) -> None:
    async with world.registry() as registry:

        async def place() -> None:
            async with registry.session() as db:
                await db.execute("insert into orders (item) values (%s)", (f"of {current_tenant()}",))

        assert current_tenant() is None
        with tenant_context("acme"):
            await place()
            with tenant_context("globex"):
                await asyncio.gather(place_in_task := asyncio.ensure_future(place()))
                assert place_in_task.done()
            assert current_tenant() == "acme"
            async with registry.session("globex") as db:
                assert db.tenant.name == "globex"
        assert current_tenant() is None
        with pytest.raises(DataError, match="this session has no tenant: give it one"):
            async with registry.session():
                raise AssertionError("it was opened")
    assert await world.items("acme") == ["of acme"]
    assert await world.items("globex") == ["of globex"]


async def test_a_thread_works_for_the_tenant_too(world: World) -> None:
    with tenant_context("acme"):
        assert await asyncio.to_thread(current_tenant) == "acme"


async def test_an_unknown_tenant_is_noticed_when_a_session_is_opened(world: World) -> None:
    async with world.registry() as registry:
        with tenant_context("nobody"), pytest.raises(DataError, match="no such tenant"):
            async with registry.session():
                raise AssertionError("it was opened")


# -- inside of requests


async def test_a_request_its_hooks_and_its_tasks_work_for_its_tenant(world: World) -> None:
    seen: dict[str, object] = {}

    def note(where: str) -> None:
        seen[where] = current_tenant()

    async def route(request: Request) -> Response:
        note("before the session")
        db = session(request)
        await db.execute("insert into orders (item) values ('tea')")
        db.before_commit(lambda: note("before the commit"))
        db.after_commit(lambda: note("after the commit"))
        await asyncio.create_task(asyncio.to_thread(note, "in a thread of a task"))
        with tenant_context("globex"):
            note("in a block")
        note("behind it")
        return JSONResponse({}, background=BackgroundTask(note, "in the background"))

    async def undone(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('coffee')")
        db.after_rollback(lambda: note("after a rollback"))
        return Response(status_code=409)

    async def without(request: Request) -> Response:
        return JSONResponse(current_tenant())

    routes = [
        Route("/", route, methods=["POST"]),
        Route("/undone", undone, methods=["POST"]),
        Route("/without", without),
    ]
    async with client(world, routes) as http:
        await http.post("/")
        await http.post("/undone")
        assert (await http.get("/without", headers={"X-Tenant": "globex"})).json() == "globex"
    assert seen.pop("in a block") == "globex"
    assert len(seen) == 7, seen
    assert set(seen.values()) == {"acme"}


async def test_a_job_that_a_request_starts_is_its_tenants(world: World) -> None:
    """With a default datasource it would run without a tenant."""
    config = world.config(replicas=())
    config["tenancy"]["default"] = "orders"
    registry = compile(config)
    jobs: list[asyncio.Task[str | None]] = []

    async def job() -> str | None:
        async with registry.session() as db:
            await db.execute("insert into orders (item) values ('of the job')")
            return db.tenant.name

    async def route(request: Request) -> Response:
        await session(request).execute("select 1")
        session(request).after_commit(lambda: jobs.append(asyncio.create_task(job())))
        return Response()

    async with client(world, [Route("/", route, methods=["POST"])], registry=registry) as http:
        await http.post("/")
        assert await jobs[0] == "acme"
    assert await world.items("acme") == ["of the job"]


async def test_a_session_is_nearer_than_the_block_around_it(world: World) -> None:
    async with world.registry() as registry:
        with tenant_context("acme"):
            async with registry.session("globex"):
                assert current_tenant() == "globex"
                with tenant_context("initech"):
                    assert current_tenant() == "initech"
            assert current_tenant() == "acme"

            async def who(scope: Any, receive: Any, send: Any) -> None:
                await JSONResponse(current_tenant())(scope, receive, send)

            call = Call("GET", headers=[(b"x-tenant", b"globex")])
            assert (await call.run(DataSourceMiddleware(who, registry=registry))).body == b'"globex"'


async def test_a_request_that_names_none_is_nobodys(world: World) -> None:
    async def who(request: Request) -> Response:
        return JSONResponse(current_tenant())

    config = world.config(replicas=())
    config["tenancy"]["default"] = "orders"
    with tenant_context("acme"):
        async with client(world, [Route("/", who)], tenant="", registry=compile(config)) as http:
            assert (await http.get("/")).json() is None


async def test_a_websocket_works_for_its_tenant(world: World) -> None:
    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(current_tenant()))
        await websocket.close()

    async with serve(application(world.registry(), [WebSocketRoute("/ws", tell)])) as server:
        url = server.url.replace("http", "ws") + "/ws"
        async with connect(url, additional_headers={"X-Tenant": "globex"}) as socket:
            assert await socket.recv() == "globex"


# -- entered in one context, left in another


def sync() -> Iterator[str | None]:
    with tenant_context("globex"):
        yield current_tenant()


async def in_the_request() -> AsyncIterator[str | None]:
    with tenant_context("globex"):
        yield current_tenant()


async def test_a_block_around_a_dependency_does_not_break_the_request(world: World) -> None:
    """FastAPI runs each half of one that is not async in a thread, with a copy of the context each."""

    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, registry=world.registry())

    @app.get("/sync")
    async def of_sync(tenant: Annotated[str | None, Depends(sync)]) -> list[str | None]:
        return [tenant, current_tenant()]

    @app.get("/async")
    async def of_async(tenant: Annotated[str | None, Depends(in_the_request)]) -> list[str | None]:
        return [tenant, current_tenant()]

    async with serve(app) as server, httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http:
        # In the thread it holds there alone.
        assert (await http.get("/sync")).json() == ["globex", "acme"]
        assert (await http.get("/async")).json() == ["globex", "globex"]
        assert (await http.get("/sync")).json() == ["globex", "acme"]


def test_a_block_that_is_left_in_a_copy_of_its_context_is_left() -> None:
    def work() -> Iterator[None]:
        with tenant_context("acme"), tenant_context("globex"):
            yield

    def enter_and_leave() -> None:
        generator = work()
        next(generator)
        assert current_tenant() == "globex"
        copy = copy_context()
        copy.run(lambda: next(generator, None))
        assert copy.run(current_tenant) is None
        # The context in which it was entered keeps it.
        assert current_tenant() == "globex"

    copy_context().run(enter_and_leave)


async def test_a_session_may_end_in_another_context_than_it_began_in(world: World) -> None:
    """As in a fixture, whose halves run in tasks of their own."""
    async with world.registry() as registry:

        @asynccontextmanager
        async def fixture() -> AsyncIterator[DataSession]:
            async with registry.session("acme") as db:
                await db.execute("insert into orders (item) values ('tea')")
                yield db

        made = fixture()
        db = await asyncio.create_task(made.__aenter__())
        hooks: list[str] = []
        db.after_commit(lambda: hooks.append("ran"))
        await asyncio.create_task(made.__aexit__(None, None, None))
        assert hooks == ["ran"]
        with pytest.raises(DataError):
            current_session()
    assert await world.items("acme") == ["tea"]
