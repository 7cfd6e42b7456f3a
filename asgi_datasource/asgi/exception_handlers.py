"""The application's exception handlers, for errors raised after its response has started.

Starlette and FastAPI publish them in the scope, as `starlette.exception_handlers`.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Send

from ..errors import DataError
from .problem_details import ProblemDetails

logger = logging.getLogger("asgi_datasource.middleware")


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
        """Send the handler's response; False if it returns none, or fails."""
        request = Request(scope, receive)
        try:
            if _is_async(self.function):
                response = await self.function(request, self.error)
            else:
                response = await run_in_threadpool(self.function, request, self.error)
        except Exception:
            logger.exception("the application's exception handler failed on %r", self.error)
            return False
        if response is None:
            return False
        await response(scope, receive, send)
        return True


def find_handler(
    error: BaseException, problems: ProblemDetails, *scopes: MutableMapping[str, Any] | None
) -> FoundHandler | None:
    """The handler for an error or its cause: by class, then by status.

    Args:
        error: The error.
        problems: Maps errors to statuses, for handlers of a status.
        scopes: Scopes that may contain the handlers, innermost first.
    """
    published = (None if scope is None else scope.get("starlette.exception_handlers") for scope in scopes)
    found = next((handlers for handlers in published if handlers is not None), None)
    if found is None:
        return None
    by_class, by_status = cast("tuple[Mapping[Any, Any], Mapping[int, Any]]", found)
    for candidate in (error, error.__cause__):
        if candidate is None:
            continue
        for cls in type(candidate).__mro__:
            handler = by_class.get(cls) if cls not in (Exception, BaseException, object) else None
            if handler is not None:
                return FoundHandler(handler, candidate)
    if not isinstance(error, DataError):
        return None
    status = problems.status_of(error)
    handler = by_status.get(status)
    if handler is None:
        return None
    # Handlers of a status expect this class: they read its `detail`.
    answered = HTTPException(status, problems.title_of(error))
    answered.__cause__ = error
    return FoundHandler(handler, answered)


def _is_async(handler: Any) -> bool:
    """Whether a handler is a coroutine function, or an object whose call is one."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
