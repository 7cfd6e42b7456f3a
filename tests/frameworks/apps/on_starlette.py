"""The application on Starlette."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataSourceMiddleware, session
from tests.frameworks.apps import CONFIG, INSERT, ORIGIN, ORPHAN, items, kept, roles, text_of, use_late


async def place(request: Request) -> Response:
    await session(request).execute(INSERT, [request.query_params["item"]])
    return Response(status_code=201)


async def list_orders(request: Request) -> Response:
    return JSONResponse(await items(session(request)))


async def orphan(request: Request) -> Response:
    await session(request).execute(ORPHAN)
    return Response(status_code=201)


async def pin(request: Request) -> Response:
    return JSONResponse(await roles(session(request), request.query_params["item"]))


def place_sync(request: Request) -> Response:
    session(request).blocking.execute(INSERT, [request.query_params["item"]])
    return Response(status_code=201)


async def keep(request: Request) -> Response:
    kept.append(session(request))
    return Response()


async def late(request: Request) -> Response:
    return PlainTextResponse(await use_late())


async def data_error(request: Request, error: DataError) -> Response:
    return PlainTextResponse(text_of(error), error.http_status)


app = Starlette(
    routes=[
        Route("/orders", place, methods=["POST"]),
        Route("/orders", list_orders),
        Route("/orphans", orphan, methods=["POST"]),
        Route("/pin", pin, methods=["POST"]),
        Route("/sync", place_sync, methods=["POST"]),
        Route("/keep", keep, methods=["POST"]),
        Route("/late", late),
    ],
    middleware=[
        Middleware(DataSourceMiddleware, config=CONFIG),
        Middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["POST"], allow_headers=["X-Tenant"]),
    ],
    exception_handlers={DataError: data_error},
)
