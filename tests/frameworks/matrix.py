"""The matrix of frameworks and servers: its checks, and the file of its results, which docs/frameworks.md shows."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx

from tests.frameworks.apps import ORIGIN
from tests.world import World

FILE: Final = Path(__file__).parent / "matrix.json"

FRAMEWORKS: Final = ("starlette", "fastapi", "litestar", "quart", "django")

SERVERS: Final = {
    "uvicorn": "uvicorn {app} --port {port} --no-access-log",
    "hypercorn": "hypercorn {app} --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi {app} --port {port}",
    "gunicorn": "gunicorn {app} -k uvicorn_worker.UvicornWorker --timeout 120 -b 127.0.0.1:{port}",
}
"""How each server is started."""

DIAGONAL: Final = {
    "starlette": "gunicorn",
    "fastapi": "uvicorn",
    "litestar": "granian",
    "quart": "hypercorn",
    "django": "uvicorn",
}
"""Without `--whole`: each framework once, and each server at least once."""

Check = Callable[[httpx.AsyncClient, World], Awaitable[None]]


async def committed(http: httpx.AsyncClient, world: World) -> None:
    """The row is there for others as soon as the status is; a duplicate is 409 and rolls back."""
    answer = await http.post("/orders", params={"item": "tea"})
    assert answer.status_code == 201
    assert "tea" in await world.items()
    answer = await http.post("/orders", params={"item": "tea"})
    assert (answer.status_code, answer.text) == (409, "own: constraint")


async def failed_commit(http: httpx.AsyncClient, world: World) -> None:
    """A COMMIT that fails is the application's own error response."""
    answer = await http.post("/orphans")
    assert (answer.status_code, answer.text) == (409, "own: constraint")


async def dead_handle(http: httpx.AsyncClient, world: World) -> None:
    """A session raises after its request."""
    assert (await http.post("/keep")).status_code == 200
    assert (await http.get("/late")).text == "SessionClosed"


async def tenant(http: httpx.AsyncClient, world: World) -> None:
    """Each tenant sees its own rows; the application renders a refusal."""
    assert (await http.post("/orders", params={"item": "milk"})).status_code == 201
    await world.cluster.caught_up()
    assert "milk" in (await http.get("/orders")).json()
    assert (await http.get("/orders", headers={"X-Tenant": "globex"})).json() == []
    answer = await http.get("/orders", headers={"X-Tenant": "nobody"})
    assert (answer.status_code, answer.text) == (404, "own: tenant")


async def preflight(http: httpx.AsyncClient, world: World) -> None:
    """A CORS preflight needs no tenant."""
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-tenant",
    }
    request = http.build_request("OPTIONS", "/orders", headers=asked)
    del request.headers["X-Tenant"]
    answer = await http.send(request)
    assert answer.is_success
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


async def pin(http: httpx.AsyncClient, world: World) -> None:
    """A request reads from a replica until it writes, and from the primary afterwards."""
    assert (await http.post("/pin", params={"item": "cup"})).json() == ["replica", "primary", "primary"]


async def sync_route(http: httpx.AsyncClient, world: World) -> None:
    """A handler that is not async writes in the transaction of its request."""
    assert (await http.post("/sync", params={"item": "pot"})).status_code == 201
    assert "pot" in await world.items()


CHECKS: Final[dict[str, Check]] = {
    "2xx means committed": committed,
    "failed COMMIT": failed_commit,
    "dead handle": dead_handle,
    "tenant": tenant,
    "preflight": preflight,
    "pin": pin,
    "sync route": sync_route,
}


def read() -> dict[str, Any]:
    """The committed results."""
    document: dict[str, Any] = json.loads(FILE.read_text())
    return document


def write(framework: str, server: str, found: dict[str, bool]) -> None:
    """Replace the results of a cell, and note the versions that were run."""
    document = read() if FILE.is_file() else {"versions": {}, "results": {}}
    document["versions"] |= {name: version(name) for name in (framework, server)}
    document["results"].setdefault(framework, {})[server] = found
    FILE.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
