"""The application: `uvicorn starlette_app.app:app --app-dir examples`, or with its servers `scripts/demo`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_datasource import DataSourceMiddleware, compile
from asgi_datasource.console import Console
from examples.starlette_app import changes, control, desk, live, tracing
from examples.starlette_app.dataset import subset
from examples.starlette_app.load import places

HERE: Final = Path(__file__).parent

registry: Final = compile(HERE / "datasource.yaml", needs_resolver=True)
feed: Final = live.Feed(registry.state)
servers: Final = control.ControlClient(os.environ[control.SOCKET]) if control.SOCKET in os.environ else None
board: Final = changes.Changes(os.environ[changes.SECRET]) if changes.SECRET in os.environ else None


def is_here(scope: Scope) -> bool:
    """The guard of the console: the client is on this machine, and asks for it by its own name."""
    host = dict(scope["headers"]).get(b"host", b"").rpartition(b":")[0]
    return scope["client"] is not None and scope["client"][0] == "127.0.0.1" and host in (b"127.0.0.1", b"localhost")


async def page(request: Request) -> FileResponse:
    """The page."""
    return FileResponse(HERE / "static" / "index.html")


async def airlines(request: Request) -> JSONResponse:
    """The tenants, for the page."""
    names = {row["carrier"]: row["name"] for row in subset().rows("airlines.csv")}
    return JSONResponse(
        [
            {
                "tenant": place.carrier.lower(),
                "name": names[place.carrier],
                "isolation": place.isolation,
                "datasource": place.datasource,
                "schema": place.schema,
            }
            for place in places()
        ]
    )


async def requests(request: Request) -> JSONResponse:
    """The last requests after the number in `?after=`, and the state of the servers, if known."""
    try:
        after, limit = int(request.query_params.get("after", 0)), int(request.query_params.get("limit", live.KEPT))
    except ValueError:
        raise HTTPException(400, "after and limit are numbers") from None
    state: dict[str, Any] = {}
    if servers is not None:
        state = await servers.ask({"action": "state", "server": ""})
    found = {"servers": state.get("servers"), "relays": state.get("relays")}
    return JSONResponse({"last": feed.number, "requests": feed.since(after, limit), **found})


ui: Final = [
    Route("/", page),
    Route("/airlines", airlines),
    Route("/requests", requests),
    Route("/requests/{number:int}", live.Detail(feed, registry).show),
    Mount("/static", StaticFiles(directory=HERE / "static")),
    Mount("/ops", Console(registry, guard=is_here)),
]
if board is not None:
    ui += [Route("/changes", board.receive, methods=["POST"]), Route("/changes", board.show)]
if servers is not None:
    ui.append(Route("/control", servers.handle, methods=["POST"]))


class FrontDoor:
    """ASGI middleware: redirects requests for `/`, which have no tenant, to the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Redirect `/`; pass other requests on."""
        if scope["type"] == "http" and scope["path"] == "/":
            await RedirectResponse("/ui/")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Trace from the start; `SendLastSpans` ends it after the registry has closed."""
    tracing.set_up(feed)
    yield


app: Final = Starlette(
    routes=[Mount("/ui", routes=ui), *desk.routes],
    middleware=[
        Middleware(tracing.SendLastSpans),
        Middleware(FrontDoor),
        Middleware(live.Watch, feed=feed),
        Middleware(DataSourceMiddleware, registry=registry),
        Middleware(live.NameSpan),
    ],
    exception_handlers={HTTPException: desk.explain_refusal},
    lifespan=lifespan,
)
