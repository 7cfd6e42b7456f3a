"""Quart: an extension that adds the middleware, and responses to `DataError`.

app = Quart(__name__)
DataSourceExtension(app, "datasource.yaml")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from quart import Quart, Response, request
from starlette.types import ASGIApp

from .asgi.framework_errors import WithFrameworkErrors, error_of, is_answered, make_problem_response
from .asgi.middleware import DataSourceMiddleware
from .config import Config, ConfigFile
from .errors import DataError
from .registry.registry import DataSourceRegistry
from .tenancy import TenantResolver

__all__ = ["DataSourceExtension"]


class DataSourceExtension:
    """Gives every request of a Quart application its tenant's session: `current_session()` in its handlers.

    Errors that the application does not see itself (a refused tenant, a COMMIT that fails) pass its error handlers
    and its `after_request` functions too: it is called again, with the error raised before `before_request`.

    Args:
        app: The application; without it, call `init_app` later.
        config: As for `DataSourceMiddleware`. One of `config` and `registry`.
        registry: A compiled registry; the application's lifespan opens and closes it.
        resolvers: Tenant resolvers that run before those of the configuration.
    """

    def __init__(
        self,
        app: Quart | None = None,
        config: str | Path | ConfigFile | Mapping[str, Any] | Config | None = None,
        *,
        registry: DataSourceRegistry | None = None,
        resolvers: tuple[TenantResolver, ...] | list[TenantResolver] = (),
    ) -> None:
        self._config = config
        self._registry = registry
        self._resolvers = tuple(resolvers)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Add the middleware inside those that follow, the first `before_request` function, and an error handler."""
        inner = cast("ASGIApp", app.asgi_app)
        middleware = DataSourceMiddleware(
            inner, config=self._config, registry=self._registry, resolvers=self._resolvers
        )
        app.asgi_app = cast("Any", WithFrameworkErrors(inner, middleware))  # type: ignore[method-assign]
        app.before_request_funcs[None].insert(0, _raise_error)
        if DataError not in app.error_handler_spec[None][None]:

            async def respond(error: DataError) -> Response:
                registry = middleware.registry
                if not is_answered(error, registry):
                    raise error
                status, headers, body = await make_problem_response(error, registry, cast("Any", request.scope))
                return Response(body, status, cast("Any", headers))

            app.register_error_handler(DataError, respond)
        app.extensions["datasource"] = middleware


async def _raise_error() -> None:
    error = error_of(cast("Any", request.scope))
    if error is not None:
        raise error
