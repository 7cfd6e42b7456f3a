"""Django's middleware for errors of the data layer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from asgiref.sync import markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from ..asgi.exception_handlers import RENDERER_KEY
from ..asgi.framework_errors import error_of, is_answered, make_problem_response
from ..errors import DataError
from ..registry.registry import DataSourceRegistry
from . import error_urls


class DataErrorMiddleware:
    """Turns a `DataError` into a response by its kind: a duplicate key is 409.

    It is the first of `MIDDLEWARE`: then `process_exception` of the others is called before its own, and may render
    the error instead. Errors that no view raises (a refused tenant, a COMMIT that fails) come this way, too: the
    request is run again with a view that raises them.
    """

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        self._get_response = get_response
        markcoroutinefunction(cast("Any", self))

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        scope = _scope_of(request)
        if error_of(scope) is not None:
            request.urlconf = error_urls.__name__
        return await self._get_response(request)

    async def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The problem document; None for a defect, and for errors of other kinds than the library's."""
        scope = _scope_of(request)
        registry: DataSourceRegistry = scope[RENDERER_KEY].registry
        if not isinstance(error, DataError) or not is_answered(error, registry):
            return None
        status, headers, body = await make_problem_response(error, registry, scope)
        response = HttpResponse(body, status=status)
        for name, value in headers:
            response[name] = value
        return response


def _scope_of(request: HttpRequest) -> MutableMapping[str, Any]:
    scope: MutableMapping[str, Any] | None = getattr(request, "scope", None)
    if scope is None or RENDERER_KEY not in scope:
        raise ImproperlyConfigured(
            "a request has not passed the DataSourceMiddleware: make the application of asgi.py with"
            " asgi_datasource.django.get_asgi_application, and serve it with an ASGI server"
        )
    return scope
