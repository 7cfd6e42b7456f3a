"""Promise 1: a 2xx or 3xx means committed, and a COMMIT that fails is never one."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import session
from tests.apps import client
from tests.world import SLOW_COMMIT_S, World


async def slow_commit(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values ('tea')")
    await db.execute("insert into slow values (1)")
    return JSONResponse({"placed": True}, status_code=201)


async def test_the_row_is_visible_to_others_when_the_client_has_its_status_line(world: World) -> None:
    async with client(world, [Route("/", slow_commit, methods=["POST"])]) as http:
        started = time.monotonic()
        async with http.stream("POST", "/") as response:
            waited = time.monotonic() - started
            assert response.status_code == 201
            assert await world.items() == ["tea"]
        assert waited >= SLOW_COMMIT_S
