"""The health checks of a process as an ASGI application: `/live` and `/ready`."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from starlette.types import Receive, Scope, Send

from ..registry.health import Health

_METHODS: Final = ("GET", "HEAD")


class HasHealth(Protocol):
    """The registry."""

    def health(self) -> Health:
        """The health of this process."""
        ...


class HealthApp:
    """Answers `/live` and `/ready`, wherever it is mounted: `Mount("/health", HealthApp(registry))`.

    `/live` is 200 as long as the event loop runs. `/ready` is 200 or 503, by the rule `health.ready`. The path of the
    mount is `health.path` of the configuration, so that no tenant is needed.

    Args:
        registry: The registry of the middleware.
        details: `/ready` answers with the document of `schemas/health/v1.json`; otherwise with its status only. It
            names servers, their addresses and the cause of a failure, but no login.
    """

    def __init__(self, registry: HasHealth, *, details: bool = True) -> None:
        self._registry = registry
        self._details = details

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"HealthApp answers http requests only, not {scope['type']}: mount it in an application")
        name = scope["path"].rstrip("/").rpartition("/")[2]
        if scope["method"] not in _METHODS:
            await _answer(send, scope, 405, {"status": "method not allowed"}, (b"allow", b"GET, HEAD"))
        elif name == "live":
            await _answer(send, scope, 200, {"status": "live"})
        elif name == "ready":
            health = self._registry.health()
            document = health.document if self._details else {"version": 1, "status": health.document["status"]}
            await _answer(send, scope, 200 if health.is_ready else 503, document)
        else:
            await _answer(send, scope, 404, {"status": "not found"})


async def _answer(send: Send, scope: Scope, status: int, document: Any, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(document).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
