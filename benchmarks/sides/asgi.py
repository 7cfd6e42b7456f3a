"""The common web part of all sides, without a framework: routes, the tenant's header, the JSON response.

A framework would add the same cost to every side and hide the difference. The FastAPI sides, whose recipe needs the
framework, are compared with each other.

    GET  /items/{id}    one read
    POST /items/{id}    one write
    GET  /reads/{n}     n reads
    POST /change/{id}   a row is read, locked and changed: two statements
    POST /batch/{n}     a transaction of n writes
    GET  /report        an aggregate of the rows of the tenant
    GET  /plain         no SQL
    websocket           one read, then idle
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TENANT: Final = "acme"
TENANT_HEADER: Final = b"x-tenant"
TENANT_SETTING: Final = "app.tenant"
ITEMS: Final = 1000
"""Rows of the tenant; enough that 32 clients rarely write the same row at the same time."""

Row = Mapping[str, Any]


class Side(Protocol):
    """The part of a side: its pool, and the handlers."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self, scope: Scope, item: int) -> Row: ...

    async def write(self, scope: Scope, item: int) -> Row: ...

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row: ...

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row: ...

    async def change(self, scope: Scope, item: int) -> Row: ...

    async def report(self, scope: Scope) -> Row: ...


def tenant_of(scope: Scope) -> str:
    """Look up the tenant's header, as in hand-written code."""
    for name, value in scope["headers"]:
        if name == TENANT_HEADER:
            tenant: str = value.decode("latin-1")
            return tenant
    raise LookupError("no X-Tenant header")


def service(side: Side) -> ASGIApp:
    """Build the application: the routes above with the handlers of `side`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(side, receive, send)
            return
        if scope["type"] == "websocket":
            await _websocket(side, scope, receive, send)
            return
        route, _, argument = scope["path"][1:].partition("/")
        row: Row
        if route == "items":
            row = await (side.read if scope["method"] == "GET" else side.write)(scope, int(argument))
        elif route == "batch":
            row = await side.batch(scope, range(1, int(argument) + 1))
        elif route == "reads":
            row = await side.reads(scope, range(1, int(argument) + 1))
        elif route == "change":
            row = await side.change(scope, int(argument))
        elif route == "report":
            row = await side.report(scope)
        else:
            row = {"ok": True}
        body = json.dumps(dict(row)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode("ascii")),
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    return app


async def _websocket(side: Side, scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps(dict(await side.read(scope, 1)))})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def _lifespan(side: Side, receive: Receive, send: Send) -> None:
    await receive()
    await side.open()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await side.close()
    await send({"type": "lifespan.shutdown.complete"})
