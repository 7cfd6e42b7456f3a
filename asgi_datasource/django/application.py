"""Django's ASGI application with the middleware around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from django import conf
from django.core.asgi import get_asgi_application as get_django_application
from starlette.types import ASGIApp, Receive, Scope, Send

from ..asgi.framework_errors import WithFrameworkErrors
from ..asgi.middleware import DataSourceMiddleware
from ..config import Config, ConfigFile
from ..registry.registry import DataSourceRegistry
from ..tenancy import TenantResolver

DEFAULT_FILE = "datasource.yaml"


def get_asgi_application(
    config: str | Path | ConfigFile | Mapping[str, Any] | Config | None = None,
    *,
    registry: DataSourceRegistry | None = None,
    resolvers: tuple[TenantResolver, ...] | list[TenantResolver] = (),
) -> ASGIApp:
    """Set Django up, and make its application; every request has its tenant's session, as `current_session()`.

    Args:
        config: As for `DataSourceMiddleware`; None takes the setting `DATASOURCE`, or else `datasource.yaml`.
        registry: A compiled registry instead; the lifespan of the application opens and closes it.
        resolvers: Tenant resolvers that run before those of the configuration.
    """
    app = _WithLifespan(cast("ASGIApp", get_django_application()))
    if config is None and registry is None:
        config = configured()
    return WithFrameworkErrors(app, DataSourceMiddleware(app, config=config, registry=registry, resolvers=resolvers))


def configured() -> Any:
    """The configuration that the settings name."""
    return getattr(conf.settings, "DATASOURCE", DEFAULT_FILE)


class _WithLifespan:
    """Django with a lifespan: its own handler refuses the protocol, so that servers would never end it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Where the application returns without a word, the middleware speaks the protocol.
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
