"""Helpers for tests of whole applications: a Starlette app behind the middleware, on a real uvicorn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from asgi_datasource import DataSourceMiddleware, DataSourceRegistry
from asgi_datasource.testing import serve
from tests.world import World


def application(
    registry: DataSourceRegistry,
    routes: Sequence[BaseRoute],
    *,
    outside: Sequence[Middleware] = (),
    inside: Sequence[Middleware] = (),
    exception_handlers: Mapping[Any, Any] | None = None,
) -> Starlette:
    """A Starlette application with the middleware, and further middlewares outside and inside it."""
    return Starlette(
        routes=list(routes),
        middleware=[*outside, Middleware(DataSourceMiddleware, registry=registry), *inside],
        exception_handlers=dict(exception_handlers or {}),
    )


@asynccontextmanager
async def client(
    world: World,
    routes: Sequence[BaseRoute],
    *,
    tenant: str = "acme",
    registry: DataSourceRegistry | None = None,
    **app: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real uvicorn with these routes; requests have the tenant's header by default."""
    registry = registry or world.registry()
    async with (
        serve(application(registry, routes, **app)) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": tenant}, timeout=20.0) as http,
    ):
        yield http
