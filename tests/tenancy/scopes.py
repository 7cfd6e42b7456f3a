"""Requests as a server would describe them, and what resolvers say to them."""

from __future__ import annotations

import inspect
from typing import Any

from asgi_datasource import Resolution
from asgi_datasource.tenancy import TenantResolver


def scope(
    path: str = "/",
    *headers: tuple[str, str],
    host: str | None = None,
    client: tuple[str, int] | None = ("192.0.2.1", 4711),
    query: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The scope of a GET request."""
    pairs = [(name.lower().encode(), value.encode("utf-8")) for name, value in headers]
    if host is not None:
        pairs.insert(0, (b"host", host.encode("utf-8")))
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "root_path": "",
        "query_string": query.encode("latin-1"),
        "headers": pairs,
        "client": client,
        **more,
    }


async def ask(resolver: TenantResolver, request: dict[str, Any]) -> str | None:
    """The name that a resolver answers with, waited for where it has to be."""
    answer = resolver(request)
    if inspect.isawaitable(answer):
        answer = await answer
    return answer.name if isinstance(answer, Resolution) else answer
