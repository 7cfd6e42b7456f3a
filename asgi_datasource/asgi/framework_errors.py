"""The glue between errors and frameworks that publish no exception handlers: Quart, Django.

Such a framework renders an error as if a route had raised it: the application is called again, with the error in the
scope, and a hook of the glue raises it. So every handler, hook and header of the application applies.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError
from ..registry.registry import DataSourceRegistry
from .current_session import SCOPE_KEY
from .exception_handlers import RENDERER_KEY
from .middleware import DataSourceMiddleware
from .problem_details import ProblemDetails
from .response_guard import ResponseGuard

ERROR_KEY: Final = "asgi_datasource.error"
"""In the scope of a call that renders an error: the error."""


class FrameworkErrors:
    """Renders errors through a framework.

    Args:
        app: The framework's application, whose hook raises `error_of(scope)`.
        middleware: The middleware around it.
    """

    def __init__(self, app: ASGIApp, middleware: DataSourceMiddleware) -> None:
        self._app = app
        self._middleware = middleware

    @property
    def registry(self) -> DataSourceRegistry:
        """The registry of the middleware."""
        return self._middleware.registry

    async def __call__(
        self, error: BaseException, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> bool:
        """Call the application again to render an error, without the body of the request. See `RENDERER_KEY`."""
        body: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive_nothing() -> Message:
            return body.pop() if body else await asyncio.Future[Message]()

        await self._app({**scope, ERROR_KEY: error}, receive_nothing, send)
        return True


class WithFrameworkErrors:
    """The middleware around a framework's application, with its way to render errors in the scope."""

    def __init__(self, app: ASGIApp, middleware: DataSourceMiddleware) -> None:
        self.middleware = middleware
        self._errors = FrameworkErrors(app, middleware)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[RENDERER_KEY] = self._errors
        await self.middleware(scope, receive, send)


def error_of(scope: MutableMapping[str, Any]) -> BaseException | None:
    """The error that a call is to render; None for a request."""
    return scope.get(ERROR_KEY)


async def send_problem(
    error: DataError, registry: DataSourceRegistry, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    """Answer an error inside of a framework as the middleware answers one that leaves the application.

    Args:
        error: The error.
        registry: The registry of the middleware.
        scope: The scope of the request.
        receive, send: The framework's.
    """
    holder = scope.get(SCOPE_KEY)
    if isinstance(holder, ResponseGuard):
        await holder.send_problem(error, receive, send)
    else:
        await ProblemDetails(registry.compiled.errors).send(error, scope, receive, send)


async def make_problem_response(
    error: DataError, registry: DataSourceRegistry, scope: MutableMapping[str, Any]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """The response of `send_problem` as status, headers and body, for a framework with responses of its own."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def keep(message: Message) -> None:
        sent.append(message)

    await send_problem(error, registry, scope, receive, keep)
    headers = cast("list[tuple[bytes, bytes]]", sent[0]["headers"])
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers], body


def is_answered(error: DataError, registry: DataSourceRegistry) -> bool:
    """Whether an error gets a problem response; others are defects, for the framework's error page and reporting."""
    return ProblemDetails(registry.compiled.errors).answers(error)
