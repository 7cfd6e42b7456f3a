"""An application in a separate process: `python -m tests.registry.reload_app CONFIG`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataSourceMiddleware, session

gate = asyncio.Event()


async def where(request: Request) -> Response:
    db = session(request)
    backend = await db.fetch_value("select pg_backend_pid()")
    return JSONResponse({"schema": db.tenant.settings[0][1], "process": os.getpid(), "backend": backend})


async def twice(request: Request) -> Response:
    db = session(request)
    first = await db.fetch_value("select current_schema()")
    request.app.state.is_held = True
    await gate.wait()
    return JSONResponse([first, await db.fetch_value("select current_schema()")])


async def held(request: Request) -> Response:
    return JSONResponse(getattr(request.app.state, "is_held", False))


async def go_on(request: Request) -> Response:
    gate.set()
    return Response()


app = Starlette(
    routes=[Route("/where", where), Route("/twice", twice), Route("/held", held), Route("/go-on", go_on)],
    middleware=[Middleware(DataSourceMiddleware, config=sys.argv[1])],
)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    uvicorn.run(app, host="127.0.0.1", port=0, log_level="info")
