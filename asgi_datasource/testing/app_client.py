"""A client of an ASGI application in the event loop of a test: its lifespan runs, and requests name their tenant."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final, Self

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import Config, TenantConfig
from .live import ServeError

_BASE: Final = "http://testserver"


class AppClient:
    """Requests to an application, in the event loop that the first request is sent in.

    Args:
        app: The application.
        config: Its configuration, for `tenant=`.
        tenant: The tenant of requests that name none.

    Attributes:
        http: The `httpx.AsyncClient`; its cookies, headers and the base URL may be changed.
    """

    def __init__(self, app: ASGIApp, config: Config, *, tenant: str | None = None) -> None:
        self._lifespan = AppLifespan(app)
        self._config = config
        self._tenant = tenant
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._lifespan.app, raise_app_exceptions=True), base_url=_BASE
        )

    async def __aenter__(self) -> Self:
        await self._lifespan.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Shut the application down."""
        await self.http.aclose()
        await self._lifespan.stop()

    async def request(self, method: str, url: str, *, tenant: str | None = None, **options: Any) -> httpx.Response:
        """Send a request.

        Args:
            method: GET and the like.
            url: The path, with its query.
            tenant: The tenant, named as the first resolver of the configuration reads it.
            options: As `httpx.AsyncClient.request`: `json`, `headers`, `params`.

        Raises:
            ServeError: The application did not start.
            ValueError: No resolver of the configuration can be given a tenant by its name.
        """
        await self._lifespan.start()
        name = tenant or self._tenant
        if name is not None:
            url = name_tenant(self._config, name, url, options)
        return await self.http.request(method, url, **options)

    async def get(self, url: str, *, tenant: str | None = None, **options: Any) -> httpx.Response:
        """Send a GET request."""
        return await self.request("GET", url, tenant=tenant, **options)

    async def post(self, url: str, *, tenant: str | None = None, **options: Any) -> httpx.Response:
        """Send a POST request."""
        return await self.request("POST", url, tenant=tenant, **options)

    async def put(self, url: str, *, tenant: str | None = None, **options: Any) -> httpx.Response:
        """Send a PUT request."""
        return await self.request("PUT", url, tenant=tenant, **options)

    async def patch(self, url: str, *, tenant: str | None = None, **options: Any) -> httpx.Response:
        """Send a PATCH request."""
        return await self.request("PATCH", url, tenant=tenant, **options)

    async def delete(self, url: str, *, tenant: str | None = None, **options: Any) -> httpx.Response:
        """Send a DELETE request."""
        return await self.request("DELETE", url, tenant=tenant, **options)


def name_tenant(config: Config, tenant: str, url: str, options: dict[str, Any]) -> str:
    """Name the tenant of a request in the way of the first resolver that reads a name.

    Args:
        config: The configuration.
        tenant: The tenant's name.
        url: The request's path.
        options: The options of the request, which are changed.

    Returns:
        The path, with the prefix of the tenant where the resolver reads one.

    Raises:
        ValueError: No resolver can be given a name.
    """

    def add(key: str, name: str, value: str) -> str:
        options[key] = {**dict(options.get(key) or {}), name: value}
        return url

    for way in config.tenancy.resolve:
        if way.header is not None:
            return add("headers", way.header, tenant)
        if way.query is not None:
            return add("params", way.query, tenant)
        if way.cookie is not None:
            cookies = dict(options.get("headers") or {}).get("cookie")
            return add("headers", "cookie", "; ".join(filter(None, (cookies, f"{way.cookie}={tenant}"))))
        if way.subdomain_of is not None:
            return add("headers", "host", f"{tenant}.{way.subdomain_of}")
        if way.path_prefix is not None:
            return f"{way.path_prefix.rstrip('/')}/{tenant}/{url.lstrip('/')}"
        known = config.tenants.get(tenant)
        if way.domain is not None and isinstance(known, TenantConfig) and known.domains:
            return add("headers", "host", known.domains[0])
        if way.fixed == tenant:
            return url
    raise ValueError(
        f"tenant={tenant!r}: no resolver of tenancy.resolve reads a name from a request: give the request what your own"
        " resolver or the token needs"
    )


class AppLifespan:
    """Runs the lifespan of an application in a task of the running event loop.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state: MutableMapping[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._failure: str | None = None

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with the state of its lifespan in each request."""
        await self._app({**scope, "state": dict(self._state)}, receive, send)

    async def start(self) -> None:
        """Start the application, once.

        Raises:
            ServeError: It refused to start; the message has the reason.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        is_up = asyncio.Event()
        self._task = asyncio.create_task(self._run(is_up))
        await is_up.wait()
        if self._failure is not None:
            await asyncio.wait({self._task})
            raise ServeError(f"the application did not start: {self._failure}")

    async def stop(self) -> None:
        """Shut it down, and wait for that."""
        task, self._task = self._task, None
        if task is not None:
            self._leave.set()
            await asyncio.wait({task})
            if self._failure is None:
                task.result()

    async def _run(self, is_up: asyncio.Event) -> None:
        messages = iter(("lifespan.startup", "lifespan.shutdown"))

        async def receive() -> Message:
            kind = next(messages, "lifespan.shutdown")
            if kind == "lifespan.shutdown":
                await self._leave.wait()
            return {"type": kind}

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._failure = message.get("message") or "lifespan.startup.failed"
            is_up.set()

        try:
            await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": self._state}, receive, send)
        except Exception:
            # Before an answer, as servers take it: the application has no lifespan.
            if is_up.is_set() and self._failure is None:
                raise
        finally:
            is_up.set()
