"""A connection is held only while a statement or a transaction needs it: never for a stream or a background task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks as FastAPIBackgroundTasks
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from asgi_datasource import AccessIntent, DataSession, DataSourceMiddleware, DataSourceRegistry, session
from asgi_datasource.testing import serve
from tests.apps import application
from tests.pools import borrowed, lent, until
from tests.world import World

POOL = 5

Db = Annotated[DataSession, Depends(session)]


class Doors:
    """Blocks requests until the test opens the doors, and records in order which have ended."""

    def __init__(self) -> None:
        self.inside = 0
        self.ended: list[str] = []
        self._open = asyncio.Event()

    async def wait(self) -> None:
        """Block until the doors are opened."""
        self.inside += 1
        await self._open.wait()
        self.ended.append("one of the five")

    def open(self) -> None:
        """Unblock all requests."""
        self._open.set()


async def count(request: Request) -> Response:
    """One query."""
    return JSONResponse(await session(request).fetch_one("select count(*) from orders"))


async def place(request: Request) -> None:
    """What each of the five requests does before its response: a read, a write, another read."""
    db = session(request)
    await db.fetch_all("select * from orders")
    await db.execute("insert into orders (item) values (%s)", [request.query_params["item"]])
    await db.fetch_all("select * from orders")


def streams(doors: Doors) -> ASGIApp:
    async def body() -> AsyncIterator[bytes]:
        yield b"first, "
        await doors.wait()
        yield b"last"

    async def endpoint(request: Request) -> Response:
        await place(request)
        return StreamingResponse(body())

    return application_with(endpoint)


def background_tasks(doors: Doors) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        await place(request)
        return PlainTextResponse("first, last", background=BackgroundTask(doors.wait))

    return application_with(endpoint)


def fastapi_background_tasks(doors: Doors) -> ASGIApp:
    app = FastAPI()

    @app.post("/place")
    async def endpoint(request: Request, tasks: FastAPIBackgroundTasks, _: Db) -> str:
        await place(request)
        tasks.add_task(doors.wait)
        return "first, last"

    app.router.routes.append(Route("/count", count))
    return app


def a_dependency_that_ends_late(doors: Doors) -> ASGIApp:
    """FastAPI runs the exit code of dependencies with `yield` after the response."""

    async def resource() -> AsyncIterator[None]:
        yield
        await doors.wait()

    app = FastAPI()

    @app.post("/place", dependencies=[Depends(resource)])
    async def endpoint(request: Request) -> str:
        await place(request)
        return "first, last"

    app.router.routes.append(Route("/count", count))
    return app


def application_with(endpoint: Any) -> ASGIApp:
    return Starlette(routes=[Route("/place", endpoint, methods=["POST"]), Route("/count", count)])


async def assert_sixth_request_does_not_wait(
    world: World, app: ASGIApp, doors: Doors, registry: DataSourceRegistry
) -> None:
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20) as http,
    ):
        five = [asyncio.create_task(http.post(f"/place?item={number}")) for number in range(POOL)]
        await until(lambda: doors.inside == POOL, "five are in flight")
        assert borrowed(registry) == 0
        # All five are committed before the client sees their status.
        assert sorted(await world.items()) == ["0", "1", "2", "3", "4"]
        sixth = await http.get("/count")
        assert sixth.json() == {"count": 5}
        assert doors.ended == []
        doors.open()
        assert {(await answer).status_code for answer in five} == {200}
        await until(lambda: len(doors.ended) == POOL, "all have ended")


@pytest.mark.parametrize("kind", [streams, background_tasks, fastapi_background_tasks, a_dependency_that_ends_late])
async def test_a_sixth_request_does_not_wait(world: World, kind: Callable[[Doors], ASGIApp]) -> None:
    doors = Doors()
    # Without replicas, reads and writes share one pool.
    registry = world.registry(replicas=(), pool={"max_size": POOL})
    app = DataSourceMiddleware(kind(doors), registry=registry)
    await assert_sixth_request_does_not_wait(world, app, doors, registry)


class Rebuilds(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


@pytest.mark.parametrize("place_of_it", ["inside", "outside"])
@pytest.mark.parametrize("middleware", [Middleware(Rebuilds), Middleware(GZipMiddleware, minimum_size=1)])
async def test_a_sixth_request_does_not_wait_under_a_middleware_that_rebuilds_the_response(
    world: World, place_of_it: str, middleware: Middleware
) -> None:
    doors = Doors()

    async def body() -> AsyncIterator[bytes]:
        yield b"first, "
        await doors.wait()
        yield b"last"

    async def endpoint(request: Request) -> Response:
        await place(request)
        return StreamingResponse(body())

    registry = world.registry(replicas=(), pool={"max_size": POOL})
    routes = [Route("/place", endpoint, methods=["POST"]), Route("/count", count)]
    app = application(registry, routes, **{place_of_it: [middleware]})
    await assert_sixth_request_does_not_wait(world, app, doors, registry)


async def test_no_connection_is_held_between_two_reads(world: World) -> None:
    """Any number of handlers may wait for a payment provider without holding a connection."""
    doors = Doors()

    async def pay(request: Request) -> Response:
        db = session(request)
        before = await db.fetch_value("select count(*) from orders")
        await doors.wait()
        return JSONResponse([before, await db.fetch_value("select count(*) from orders")])

    registry = world.registry(replicas=(), pool={"max_size": 1})
    app = application(registry, [Route("/pay", pay), Route("/count", count)])
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20) as http,
    ):
        waiting = [asyncio.create_task(http.get("/pay")) for _ in range(POOL)]
        await until(lambda: doors.inside == POOL, "five are waiting")
        assert borrowed(registry) == 0
        assert (await http.get("/count")).json() == {"count": 0}
        assert doors.ended == []
        doors.open()
        assert [(await answer).json() for answer in waiting] == [[0, 0]] * POOL


async def no_sql(request: Request) -> Response:
    db = session(request)
    return PlainTextResponse(f"{db.tenant.name} on {db.datasource.name}")


async def no_sql_but_a_hook(request: Request) -> Response:
    db = session(request)
    db.after_commit(lambda: None)
    db.set_rollback_only("nothing to undo")
    return PlainTextResponse("ok")


async def an_empty_block(request: Request) -> Response:
    db = session(request)
    async with db.transaction():
        pass
    async with db.transaction(read_only=True):
        pass
    await db.executemany("insert into orders (item) values (%s)", [])
    await db.commit()
    await db.rollback()
    return PlainTextResponse("ok")


async def never_asks(request: Request) -> Response:
    return PlainTextResponse("ok")


async def fails(request: Request) -> Response:
    session(request)
    return PlainTextResponse("no", status_code=500)


@pytest.mark.parametrize("endpoint", [no_sql, no_sql_but_a_hook, an_empty_block, never_asks, fails])
async def test_a_route_without_sql_borrows_no_connection(world: World, endpoint: Any) -> None:
    registry = world.registry()
    app = application(registry, [Route("/", endpoint, methods=["GET", "POST"]), Route("/count", count)])
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20) as http,
    ):
        for method in ("GET", "POST", "HEAD"):
            await http.request(method, "/")
        assert lent(registry) == 0
        # The counter itself works.
        await http.get("/count")
        assert lent(registry) == 1


async def test_a_request_holds_at_most_one_connection(world: World) -> None:
    """With reads, then a write, then reads: the replica's connection is returned before BEGIN."""
    held: list[int] = []
    registry = world.registry()

    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.fetch_all("select * from orders")
        held.append(borrowed(registry))
        await db.write.execute("insert into orders (item) values ('tea')")
        held.append(borrowed(registry))
        await db.read.fetch_all("select * from orders")
        held.append(borrowed(registry))
        async with db.connection(AccessIntent.READ):
            held.append(borrowed(registry))
        await db.commit()
        # The pool resets it first, because the user had it.
        await until(lambda: borrowed(registry) == 0, "the connection was not returned")
        held.append(borrowed(registry))
        await db.read.fetch_all("select * from orders")
        held.append(borrowed(registry))
        return PlainTextResponse("ok")

    app = application(registry, [Route("/", endpoint)])
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20) as http,
    ):
        assert (await http.get("/")).status_code == 200
    assert held == [0, 1, 1, 1, 0, 0]
