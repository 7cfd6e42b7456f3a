"""A small application with another driver: the SQLite example, through the middleware."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import (
    ConfigError,
    DataError,
    DataSourceRegistry,
    compile,
    session,
    transactional,
)
from asgi_datasource.drivers.plain import RowsResult
from asgi_datasource.drivers.statements import Control, ControlKind, Statement
from asgi_datasource.testing import serve
from tests.apps import application
from tests.drivers.sqlite_driver import SqliteConnection

DRIVER = "tests.drivers.sqlite_driver:DRIVER"


def document(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "datasources": {
            name: {"driver": DRIVER, "primary": {"url": f"sqlite://{folder}/{name}.db"}, "pool": {"max_size": 3}}
            for name in ("acme", "globex")
        },
        "tenancy": {"resolve": [{"header": "x-tenant"}]},
        "tenants": {"acme": {"datasource": "acme"}, "globex": {"datasource": "globex"}},
        **more,
    }


async def create(request: Request) -> Response:
    await session(request).execute("create table notes (id integer primary key, text varchar not null unique)")
    return Response(status_code=204)


async def add(request: Request) -> Response:
    text = (await request.json())["text"]
    found = await session(request).fetch_one("insert into notes (text) values (%s) returning id", [text])
    return JSONResponse(found, status_code=int(request.query_params.get("status", "201")))


async def listed(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_all("select text from notes order by id"))


async def sneak(request: Request) -> Response:
    """Writes in a GET."""
    await session(request).execute("insert into notes (text) values ('sneaked')")
    return Response()


async def partly(request: Request) -> Response:
    """A failure in a savepoint only rolls back the savepoint."""
    db = session(request)
    await db.execute("insert into notes (text) values ('kept')")
    try:
        async with db.transaction():
            await db.execute("insert into notes (text) values ('undone')")
            await db.execute("insert into notes (text) values ('kept')")
    except DataError as error:
        return JSONResponse({"kind": error.kind.value}, status_code=201)
    return Response(status_code=500)


@transactional(read_only=True)
async def snapshot(request: Request) -> Response:
    first = await session(request).fetch_value("select count(*) from notes")
    second = await session(request).fetch_value("select count(*) from notes")
    return JSONResponse([first, second])


async def borrowed(request: Request) -> Response:
    db = session(request)
    async with db.connection() as connection:
        cursor = await connection.execute("insert into notes (text) values ('by hand')")
    return JSONResponse({"rows": cursor.rowcount}, status_code=201)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[DataSourceRegistry]:
    async with compile(document(tmp_path)) as registry:
        yield registry


@pytest.fixture
async def http(registry: DataSourceRegistry) -> AsyncIterator[httpx.AsyncClient]:
    routes = [
        Route("/create", create, methods=["POST"]),
        Route("/notes", listed),
        Route("/notes", add, methods=["POST"]),
        Route("/sneak", sneak),
        Route("/partly", partly, methods=["POST"]),
        Route("/snapshot", snapshot),
        Route("/borrowed", borrowed, methods=["POST"]),
    ]
    async with (
        serve(application(registry, routes)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=20.0) as http,
    ):
        for tenant in ("acme", "globex"):
            assert (await http.post("/create", headers={"x-tenant": tenant})).status_code == 204
        http.headers["x-tenant"] = "acme"
        yield http


async def texts(http: httpx.AsyncClient, tenant: str = "acme") -> list[str]:
    response = await http.get("/notes", headers={"x-tenant": tenant})
    return [row["text"] for row in response.json()]


async def test_a_request_is_a_transaction(http: httpx.AsyncClient) -> None:
    assert (await http.post("/notes", json={"text": "first"})).json() == {"id": 1}
    assert (await http.post("/notes?status=409", json={"text": "refused"})).status_code == 409
    assert await texts(http) == ["first"]
    assert await texts(http, "globex") == []


async def test_reads_cannot_write(http: httpx.AsyncClient) -> None:
    response = await http.get("/sneak")
    assert response.status_code == 500
    assert await texts(http) == []
    assert (await http.get("/snapshot")).json() == [0, 0]


async def test_blocks_are_savepoints(http: httpx.AsyncClient) -> None:
    assert (await http.post("/partly")).json() == {"kind": "constraint"}
    assert await texts(http) == ["kept"]


async def test_a_borrowed_connection_is_in_the_transaction(http: httpx.AsyncClient) -> None:
    assert (await http.post("/borrowed")).json() == {"rows": 1}
    assert await texts(http) == ["by hand"]


async def test_errors_have_the_same_responses_as_with_the_default_driver(http: httpx.AsyncClient) -> None:
    await http.post("/notes", json={"text": "one"})
    again = await http.post("/notes", json={"text": "one"})
    assert again.status_code == 409
    assert "constraint" in again.json()["type"]


async def test_all_connections_are_returned(registry: DataSourceRegistry, http: httpx.AsyncClient) -> None:
    for _ in range(10):
        await http.post("/notes", json={"text": "same"})
        await texts(http)
    servers = [server for datasource in registry for server in datasource.servers.values()]
    assert [server.borrowed for server in servers] == [0, 0]


async def test_a_commit_without_a_response_raises_commit_unknown(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SqliteConnection.run

    async def lose_commit(self: SqliteConnection, statement: Statement) -> RowsResult:
        if isinstance(statement, Control) and statement.kind is ControlKind.COMMIT:
            self.cut("the test cuts it")
            raise sqlite3.OperationalError("the connection is gone")
        return await run(self, statement)

    monkeypatch.setattr(SqliteConnection, "run", lose_commit)
    response = await http.post("/notes", json={"text": "lost"})
    assert response.status_code == 500
    assert "commit_unknown" in response.text


def test_tenants_that_the_driver_cannot_isolate_are_refused(tmp_path: Path) -> None:
    tenants = {"acme": {"datasource": "acme", "row_security": {"app.tenant": "acme"}}}
    with pytest.raises(ConfigError, match=r"tenants\.acme: the driver .* cannot keep tenants apart by schema"):
        compile(document(tmp_path, tenants=tenants))


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        ("tests.nowhere:DRIVER", r"datasources\.acme\.driver: .* cannot be imported: there is no module"),
        ("tests.drivers.sqlite_driver:NOTHING", "sqlite_driver has no 'NOTHING'"),
        ("tests.drivers.sqlite_driver:SqliteConnection", "is no driver: it has no make_server"),
    ],
)
def test_an_object_that_is_not_a_driver_is_refused(tmp_path: Path, driver: str, message: str) -> None:
    wrong = document(tmp_path)
    wrong["datasources"]["acme"]["driver"] = driver
    with pytest.raises(ConfigError, match=message):
        compile(wrong)


def test_without_a_driver_urls_of_other_databases_are_refused(tmp_path: Path) -> None:
    wrong = document(tmp_path)
    del wrong["datasources"]["acme"]["driver"]
    with pytest.raises(ConfigError, match="this is not a URL of PostgreSQL"):
        compile(wrong)


def test_the_table_of_tenants_is_read_from_postgresql_only(tmp_path: Path) -> None:
    wrong = document(tmp_path, tenants_from={"datasource": "acme", "defaults": {"datasource": "globex"}})
    with pytest.raises(ConfigError, match="the table of tenants is read from PostgreSQL"):
        compile(wrong)
