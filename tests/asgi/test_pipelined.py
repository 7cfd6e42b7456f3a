"""Pipelined requests of a client: a request inherits no state from the previous one.

A server may start a request in the context of the previous one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from asgi_datasource import (
    DataError,
    DataSourceMiddleware,
    current_session,
    current_tenant,
    session,
    tenant_context,
    transactional,
)
from asgi_datasource.testing import serve
from tests.world import World


async def pipelined(url: str, *requests: tuple[str, str, str]) -> list[str]:
    """The bodies of the responses to requests (method, path, tenant) that are all sent at once."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for number, (method, path, tenant) in enumerate(requests, 1):
        closes = "close" if number == len(requests) else "keep-alive"
        head = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Length: 0", f"Connection: {closes}"]
        writer.write("\r\n".join([*head, f"X-Tenant: {tenant}", "", ""]).encode())
    answered = (await asyncio.wait_for(reader.read(), 20)).decode()
    writer.close()
    await writer.wait_closed()
    return [part.partition("\r\n\r\n")[2] for part in answered.split("HTTP/1.1 ")[1:]]


def seen() -> str:
    """The tenant of the running code, from each function that returns it."""
    try:
        of_session = str(current_session().tenant.name)
    except DataError:
        of_session = "no session"
    return f"{of_session}, {current_tenant()}"


async def app(scope: Any, receive: Any, send: Any) -> None:
    async def answer(body: object) -> None:
        await JSONResponse(body)(scope, receive, send)

    @transactional(propagation="supports", read_only=True)
    async def in_a_frame() -> None:
        await answer(seen())

    path = scope["path"]
    if path == "/in-a-frame":
        with tenant_context("initech"):
            await in_a_frame()
    elif path == "/write":
        await session(scope).execute("insert into orders (item) values ('tea')")
        await answer(seen())
    elif path == "/itself":
        async with session(scope).transaction(read_only=True) as db:
            await db.read.fetch_value("select 1")
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(scope["outermost"]), base_url="http://x"
            ) as http:
                inner = await http.post("/write", headers={"X-Tenant": "globex"})
            with pytest.raises(DataError, match=r"read.only|read intent"):
                await db.write.execute("insert into orders (item) values ('tea')")
        await answer([inner.json(), seen()])
    else:
        await answer(seen())


def application(world: World) -> Any:
    tenancy = {"resolve": [{"header": "X-Tenant"}], "exempt": ["/healthz"]}
    middleware = DataSourceMiddleware(app, registry=world.registry(replicas=(), tenancy=tenancy))

    async def outermost(scope: Any, receive: Any, send: Any) -> None:
        scope["outermost"] = outermost
        await middleware(scope, receive, send)

    return outermost


async def test_an_exempt_path_has_no_session_after_a_request_with_one(world: World) -> None:
    async with serve(application(world)) as server:
        requests = [
            ("GET", "/x", "acme"),
            ("GET", "/healthz", "acme"),
            ("GET", "/x", "globex"),
            ("GET", "/healthz", ""),
        ]
        assert await pipelined(server.url, *requests) == [
            '"acme, acme"',
            '"no session, None"',
            '"globex, globex"',
            '"no session, None"',
        ]


async def test_a_request_inherits_no_scope_from_the_previous_one(world: World) -> None:
    async with serve(application(world)) as server:
        requests = [("GET", "/in-a-frame", "acme"), ("POST", "/write", "globex"), ("GET", "/healthz", "acme")]
        assert await pipelined(server.url, *requests) == [
            '"acme, initech"',
            '"globex, globex"',
            '"no session, None"',
        ]
    assert await world.items("globex") == ["tea"]


async def test_after_an_inner_call_of_the_application_the_outer_context_is_restored(world: World) -> None:
    async with serve(application(world)) as server, httpx.AsyncClient(base_url=server.url) as http:
        found = await http.get("/itself", headers={"X-Tenant": "acme"})
        assert found.json() == ["globex, globex", "acme, acme"]
    assert await world.items("globex") == ["tea"]
