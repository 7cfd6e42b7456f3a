"""The application's exception handlers, for errors that its framework does not see: before it is called, and after its
response has started.

Starlette and FastAPI publish them in the scope, as `starlette.exception_handlers`. The glue of other frameworks
publishes a renderer, as `asgi_datasource.error_renderer`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, cast

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Send

from ..errors import DataError
from .problem_details import ProblemDetails, check_failure

logger = logging.getLogger("asgi_datasource.middleware")

RENDERER_KEY: Final = "asgi_datasource.error_renderer"
"""In the scope: how a framework other than Starlette renders an error that its own code does not see: a coroutine
function of the error, the scope, `receive` and `send`, which returns whether it has sent a response."""

_MOST_MIDDLEWARES: Final = 64

Renderer = Callable[[BaseException, MutableMapping[str, Any], Receive, Send], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class ErrorRenderer:
    """A framework's own way to render an error, and the error.

    Attributes:
        render: See `RENDERER_KEY`.
        error: The exception.
    """

    render: Renderer
    error: BaseException

    async def answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> bool:
        """Send the framework's response; False if it has none, or none of a failure, or fails before it starts."""

        async def answer(send: Send) -> bool:
            return await self.render(self.error, scope, receive, send)

        return await _answer_failure(self.error, answer, send)


@dataclass(frozen=True, slots=True)
class FoundHandler:
    """An exception handler of the application, and the exception to call it with.

    Attributes:
        function: Takes a request and the exception, and returns a response; sync or async.
        error: The exception.
    """

    function: Any
    error: BaseException

    async def answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> bool:
        """Send the handler's response; False if it returns none, or none of a failure, or fails before it starts."""
        request = Request(scope, receive)

        async def answer(send: Send) -> bool:
            if _is_async(self.function):
                response = await self.function(request, self.error)
            else:
                response = await run_in_threadpool(self.function, request, self.error)
            if response is None:
                return False
            await response(scope, receive, send)
            return True

        return await _answer_failure(self.error, answer, send)


async def _answer_failure(error: BaseException, answer: Callable[[Send], Awaitable[bool]], send: Send) -> bool:
    """Let a handler answer, but not as if the request had succeeded: nothing was committed."""
    has_started = False

    async def send_failure(message: Message) -> None:
        nonlocal has_started
        if message["type"] == "http.response.start":
            check_failure(message["status"], error if isinstance(error, DataError) else error.__cause__)
            has_started = True
        await send(message)

    try:
        return await answer(send_failure)
    except Exception:
        if has_started:
            raise
        logger.exception("the application's exception handler failed on %r", error)
        return False


def find_handler(
    error: BaseException,
    problems: ProblemDetails,
    *scopes: MutableMapping[str, Any] | None,
    app: object = None,
    has_passed: bool = False,
) -> FoundHandler | ErrorRenderer | None:
    """The handler for an error or its cause: the framework's renderer, else by class, then by status.

    Args:
        error: The error.
        problems: Maps errors to statuses, for handlers of a status.
        scopes: Scopes that may contain the handlers, innermost first.
        app: The application, for a request that has not reached it, so that the scope has no handlers yet.
        has_passed: The error has left the application: its framework has tried the handlers of the class.
    """
    for scope in scopes:
        renderer = None if scope is None or has_passed else scope.get(RENDERER_KEY)
        if renderer is not None:
            return ErrorRenderer(renderer, error)
    published = (None if scope is None else scope.get("starlette.exception_handlers") for scope in scopes)
    found = next((handlers for handlers in published if handlers is not None), None) or _handlers_of(app)
    if found is None:
        return None
    by_class, by_status = cast("tuple[Mapping[Any, Any], Mapping[int, Any]]", found)
    for candidate in () if has_passed else (error, error.__cause__):
        if candidate is None:
            continue
        for cls in type(candidate).__mro__:
            handler = by_class.get(cls) if cls not in (Exception, BaseException, object) else None
            if handler is not None:
                return FoundHandler(handler, candidate)
    if not isinstance(error, DataError):
        return None
    problem = problems.make(error)
    handler = by_status.get(problem.status)
    if handler is None:
        return None
    # Handlers of a status expect this class: they read its `detail`.
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in problem.headers}
    answered = HTTPException(problem.status, problem.title, headers)
    answered.__cause__ = error
    return FoundHandler(handler, answered)


def find_application(scope: MutableMapping[str, Any], app: object) -> Any:
    """The application of Starlette or FastAPI around or behind the middleware; None if there is none.

    Args:
        scope: The scope; an application has put itself into it before it calls its own middlewares.
        app: What the middleware calls: the application, or further middlewares, each with the next one as `app`.
    """
    # An application that is there has imported this.
    module = sys.modules.get("starlette.applications")
    if module is None:
        return None
    candidate: Any = scope.get("app")
    if isinstance(candidate, module.Starlette):
        return candidate
    candidate = app
    for _ in range(_MOST_MIDDLEWARES):
        if isinstance(candidate, module.Starlette):
            return candidate
        candidate = getattr(candidate, "app", None)
    return None


def _handlers_of(app: Any) -> tuple[Mapping[Any, Any], Mapping[int, Any]] | None:
    """The handlers of an application by class and by status, as Starlette publishes them in the scope."""
    if app is None:
        return None
    # Starlette keeps these two for what no other handler takes.
    handlers = {key: handler for key, handler in app.exception_handlers.items() if key not in (500, Exception)}
    by_status = {key: handler for key, handler in handlers.items() if isinstance(key, int)}
    return {key: handler for key, handler in handlers.items() if key not in by_status}, by_status


def _is_async(handler: Any) -> bool:
    """Whether a handler is a coroutine function, or an object whose call is one."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
