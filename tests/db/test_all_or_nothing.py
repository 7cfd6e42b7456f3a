"""One route writes by raw SQL, by the ORM and by blocking code, and fails at each place in turn: all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from litestar import Litestar
from litestar import Request as LitestarRequest
from litestar import post as litestar_post
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource import DataSession, DataSourceMiddleware, DataSourceRegistry, session
from asgi_datasource.testing import serve
from tests.db.models import Order
from tests.pools import borrowed
from tests.world import World

PLACES = ("raw", "orm", "blocking", "last flush", "before commit", "commit", "handler")
"""Where it fails; `None` does nowhere."""

ITEMS = ["raw", "orm", "blocking", "last flush"]

ran: list[str] = []


async def write(db: DataSession, fails_at: str) -> None:
    """Write one row by each way; the one that is to fail breaks a constraint."""

    def item(place: str) -> str:
        return "forbidden" if place == fails_at else place

    def block(db: DataSession) -> None:
        db.blocking.execute("insert into orders (item) values (%s)", [item("blocking")])

    def before_commit() -> None:
        if fails_at == "before commit":
            raise RuntimeError("a hook has failed")

    def after_commit() -> None:
        ran.append("after commit")
        if fails_at == "after commit":
            raise RuntimeError("a hook has failed")

    db.after_commit(after_commit)
    db.before_commit(before_commit)
    await db.execute("insert into orders (item) values (%s)", [item("raw")])
    db.sqlalchemy.add(Order(item=item("orm")))
    await db.sqlalchemy.flush()
    await run_in_threadpool(block, db)
    if fails_at == "commit":
        # A foreign key that is checked at COMMIT.
        await db.execute("insert into children (parent) values (0)")
    db.sqlalchemy.add(Order(item=item("last flush")))
    if fails_at == "handler":
        raise RuntimeError("the handler has failed")


def starlette(registry: DataSourceRegistry) -> Any:
    async def endpoint(request: Request) -> Response:
        await write(session(request), request.query_params["fails_at"])
        return Response(status_code=201)

    return Starlette(
        routes=[Route("/", endpoint, methods=["POST"])],
        middleware=[Middleware(DataSourceMiddleware, registry=registry)],
    )


def fastapi(registry: DataSourceRegistry) -> Any:
    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, registry=registry)

    @app.post("/", status_code=201)
    async def endpoint(fails_at: str, db: Annotated[DataSession, Depends(session)]) -> None:
        await write(db, fails_at)

    return app


def litestar(registry: DataSourceRegistry) -> Any:
    @litestar_post("/", status_code=201)
    async def endpoint(request: LitestarRequest[Any, Any, Any]) -> None:
        await write(session(request), request.query_params["fails_at"])  # type: ignore[arg-type]

    return Litestar([endpoint], middleware=[DefineMiddleware(DataSourceMiddleware, registry=registry)])


@pytest.mark.parametrize("framework", [starlette, fastapi, litestar])
async def test_all_or_nothing(world: World, framework: Callable[[DataSourceRegistry], Any]) -> None:
    registry = world.registry()

    async def post(fails_at: str) -> httpx.Response:
        return await http.post("/", params={"fails_at": fails_at})

    async with (
        serve(framework(registry)) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20.0) as http,
    ):
        ran.clear()
        for place in PLACES:
            assert (await post(place)).status_code >= 400, place
            assert await world.items() == [], place
        assert ran == []
        assert (await post("nowhere")).status_code == 201
        assert await world.items() == ITEMS
        assert ran == ["after commit"]
        # A hook behind the commit changes nothing any more: all of it stays, and was answered.
        await world.sql("delete from orders")
        assert (await post("after commit")).status_code == 201
        assert await world.items() == ITEMS
        assert ran == ["after commit"] * 2
        assert borrowed(registry) == 0
