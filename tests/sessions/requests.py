"""Run a function as a request, without a server: as the endpoint of an application behind the middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from asgi_datasource import DataSession, DataSourceMiddleware, DataSourceRegistry, session
from tests.asgi_call import Call

Body = Callable[[DataSession], Awaitable[Any]]


async def request(registry: DataSourceRegistry, body: Body, *, method: str = "POST", status: int = 201) -> Call:
    """Call `body` with the session of a request; respond with `status` and the JSON of its result.

    Raises:
        Exception: What `body` raised, unless the middleware has answered it.
    """

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        result = await body(session(scope))
        await JSONResponse(result, status_code=status)(scope, receive, send)

    return await Call(method).run(DataSourceMiddleware(endpoint, registry=registry))
