"""Calls an ASGI application without a server, to measure the application without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from benchmarks.sides.asgi import TENANT, TENANT_HEADER, ASGIApp, Message, Scope

# The headers of a browser or API client, in their order: the cost of a look-up depends on the position.
HEADERS: Final = [
    (b"host", b"app.example.com"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0"),
    (b"accept", b"application/json"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (TENANT_HEADER, TENANT.encode("ascii")),
    (b"connection", b"keep-alive"),
    (b"cookie", b"theme=dark"),
]


def request_scope(method: str, path: str) -> Scope:
    """The scope of a request of the tenant, as created by uvicorn."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": b"",
        "headers": HEADERS,
        "state": {},
        "extensions": {},
    }


async def receive_nothing() -> Message:
    """An empty body, from a client that stays connected."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send_nowhere(message: Message) -> None:
    """A `send` that does nothing."""


async def call(app: ASGIApp, method: str, path: str) -> bytes:
    """Send one request, whose status must be 200; returns the body."""
    status = 0
    body = b""

    async def send(message: Message) -> None:
        nonlocal status, body
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            body += message.get("body", b"")

    await app(request_scope(method, path), receive_nothing, send)
    if status != 200:
        raise RuntimeError(f"{method} {path} was answered {status}: {body[:500]!r}")
    return body


@asynccontextmanager
async def started(app: ASGIApp) -> AsyncIterator[ASGIApp]:
    """Run the block between the start-up and the shutdown of the application's lifespan."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    running = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put))

    async def step(event: str) -> None:
        await to_app.put({"type": f"lifespan.{event}"})
        answer = asyncio.ensure_future(from_app.get())
        await asyncio.wait({answer, running}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            running.result()
            raise RuntimeError(f"the application's lifespan ended before {event} was complete")
        if answer.result()["type"] != f"lifespan.{event}.complete":
            raise RuntimeError(f"{event} failed: {answer.result()}")

    await step("startup")
    try:
        yield app
    finally:
        await step("shutdown")
        await running
