"""Litestar: a plugin that adds the middleware, the dependency `db`, and responses to `DataError`.

Litestar([place_order], plugins=[DataSourcePlugin("datasource.yaml")])
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.exceptions import responses
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin
from litestar.types import Scope as LitestarScope
from starlette.types import ASGIApp, Receive, Scope, Send

from .asgi.current_session import session
from .asgi.exception_handlers import RENDERER_KEY
from .asgi.framework_errors import is_answered, send_problem
from .asgi.lifespan import serving
from .asgi.middleware import DataSourceMiddleware
from .config import Config, ConfigFile
from .errors import ConfigError, DataError
from .registry.registry import DataSourceRegistry, compile
from .sessions.session import DataSession
from .tenancy import TenantResolver

__all__ = ["DataSourcePlugin"]

logger = logging.getLogger("asgi_datasource.litestar")


class DataSourcePlugin(InitPlugin):
    """Gives every request of a Litestar application its tenant's session.

    The middleware is the outermost one, unless the application names `plugin.middleware` in its own list: behind an
    authentication whose user names the tenant, for instance. An exception handler of the application for `DataError`
    replaces the plugin's, on every layer.

    Args:
        config: As for `DataSourceMiddleware`. One of `config` and `registry`.
        registry: A compiled registry; the application's lifespan opens and closes it.
        resolvers: Tenant resolvers that run before those of the configuration.
        dependency: The name of the dependency that handlers declare to get the session.

    Attributes:
        registry: The registry.
        middleware: The middleware, for the application's own list.

    Raises:
        ConfigError: The configuration is wrong; the message lists every problem.
    """

    def __init__(
        self,
        config: str | Path | ConfigFile | Mapping[str, Any] | Config | None = None,
        *,
        registry: DataSourceRegistry | None = None,
        resolvers: tuple[TenantResolver, ...] | list[TenantResolver] = (),
        dependency: str = "db",
    ) -> None:
        if (registry is None) is (config is None):
            raise ConfigError("DataSourcePlugin takes one of config= and registry=")
        self.registry = compile(cast("Any", config), needs_resolver=not resolvers) if registry is None else registry
        self.middleware = DefineMiddleware(cast("Any", _Middleware), plugin=self, resolvers=tuple(resolvers))
        self._dependency = dependency

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add everything to the application."""
        config: Any = app_config
        if self.middleware not in config.middleware:
            config.middleware.insert(0, self.middleware)
        config.lifespan.insert(0, self._lifespan)
        config.dependencies.setdefault(self._dependency, Provide(_provide_session, sync_to_thread=False))
        config.exception_handlers.setdefault(DataError, self.data_error_response)
        config.signature_types = [*config.signature_types, DataSession]
        return app_config

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncGenerator[None, None]:
        async with serving(self.registry):
            yield

    def data_error_response(self, request: Request[Any, Any, Any], error: DataError) -> Response[Any]:
        """The exception handler: the problem document, by kind and status; Litestar's own response to a defect."""
        if is_answered(error, self.registry):
            return _ProblemResponse(error, self.registry)
        make: Any = responses
        respond = make.create_debug_response if request.app.debug else make.create_exception_response
        return cast("Response[Any]", respond(request, error))

    async def render(self, error: BaseException, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> bool:
        """Send the response of the application's exception handler, or Litestar's own.

        Returns:
            False for a `DataError` without a handler of the application.
        """
        handlers = scope["route_handler"].resolve_exception_handlers()
        handler = next((handlers[cls] for cls in type(error).__mro__ if cls in handlers), None)
        if handler == self.data_error_response:
            return False
        if handler is None:
            logger.error("a hook before COMMIT failed", exc_info=error)
            handler = handlers.get(500) or cast("Any", responses).create_exception_response
        request: Any = scope["litestar_app"].request_class(scope, receive, send)
        response: Any = handler(request, error)
        encoders = scope["route_handler"].resolve_type_encoders()
        await response.to_asgi_response(app=None, request=request, type_encoders=encoders)(scope, receive, send)
        return True


class _Middleware:
    """The middleware of one route: Litestar makes one for each."""

    def __init__(self, app: ASGIApp, plugin: DataSourcePlugin, resolvers: tuple[TenantResolver, ...]) -> None:
        self._middleware = DataSourceMiddleware(app, registry=plugin.registry, resolvers=resolvers)
        self._render = plugin.render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[RENDERER_KEY] = self._render
        await self._middleware(scope, receive, send)


class _ProblemResponse(Response[Any]):
    """The library's response to an error."""

    def __init__(self, error: DataError, registry: DataSourceRegistry) -> None:
        super().__init__(None, status_code=error.http_status)
        self._error = error
        self._registry = registry

    def to_asgi_response(self, *_: object, **__: object) -> Any:
        """An ASGI application that sends it."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await send_problem(self._error, self._registry, scope, receive, send)

        return answer


def _provide_session(scope: LitestarScope) -> DataSession:
    return session(cast("MutableMapping[str, Any]", scope))
