"""An unusable database does not prevent the start, and every response gives the reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, session
from tests.apps import client
from tests.drivers.polling import until
from tests.patience import now
from tests.world import World

ACQUIRE_TIMEOUT_S = 3
SLACK_S = 1.5


async def read(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_one("select 1 as one"))


async def write(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_one("select 1 as one"))


@dataclass
class Obstacle:
    """A fault of the database, and its fix."""

    url: str
    reason: str
    fix: Callable[[], Awaitable[None]]


@asynccontextmanager
async def refused(world: World) -> AsyncIterator[Obstacle]:
    primary = world.cluster.primary
    await primary.stop()
    yield Obstacle(world.url(), "Connection refused", primary.start)


@asynccontextmanager
async def shutting_down(world: World) -> AsyncIterator[Obstacle]:
    primary = world.cluster.primary
    async with await psycopg.AsyncConnection.connect(primary.url(), autocommit=True):
        await primary.stop("smart", wait=False)
        await until(lambda: "received smart shutdown request" in primary.log)

        async def restart() -> None:
            await primary.restart("immediate")

        yield Obstacle(world.url(), "the database system is shutting down", restart)


@asynccontextmanager
async def wrong_password(world: World) -> AsyncIterator[Obstacle]:
    await world.cluster.create_role("changed")
    url = world.cluster.primary.url(world.dbname, "changed", password="not-the-password")

    async def set_it() -> None:
        await world.sql("alter role changed password 'not-the-password'")

    try:
        yield Obstacle(url, "password authentication failed for user", set_it)
    finally:
        await world.sql("drop owned by changed; drop role changed")


@asynccontextmanager
async def unknown_database(world: World) -> AsyncIterator[Obstacle]:
    name = f"{world.dbname}_later"

    async def create_it() -> None:
        await world.cluster.create_database(name)

    try:
        yield Obstacle(world.cluster.primary.url(name), f'database "{name}" does not exist', create_it)
    finally:
        await world.cluster.drop_database(name)


@asynccontextmanager
async def role_at_its_limit(world: World) -> AsyncIterator[Obstacle]:
    await world.cluster.create_role("limited", options="connection limit 1")
    url = world.cluster.primary.url(world.dbname, "limited")
    held = await psycopg.AsyncConnection.connect(url)
    try:
        yield Obstacle(url, "too many connections for role", held.close)
    finally:
        await held.close()
        await world.sql("drop role limited")


@asynccontextmanager
async def server_full(world: World) -> AsyncIterator[Obstacle]:
    limit = (await world.sql("select setting::int from pg_settings where name = 'max_connections'"))[0][0]
    held: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
    with pytest.raises(psycopg.OperationalError):
        for _ in range(limit + 1):
            held.append(await psycopg.AsyncConnection.connect(world.url()))

    async def leave() -> None:
        for connection in held:
            await connection.close()

    try:
        yield Obstacle(world.url(), "remaining connection slots are reserved", leave)
    finally:
        await leave()


OBSTACLES = [refused, shutting_down, wrong_password, unknown_database, role_at_its_limit, server_full]


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.__name__)
async def test_the_application_starts_reports_the_fault_and_recovers(
    world: World, obstacle: Callable[[World], AbstractAsyncContextManager[Obstacle]], caplog: pytest.LogCaptureFixture
) -> None:
    async with obstacle(world) as wrong:
        registry = world.registry(
            replicas=(),
            urls={"primary": wrong.url},
            pool={"min_size": 1, "max_size": 1, "acquire_timeout": f"{ACQUIRE_TIMEOUT_S}s"},
            errors={"debug": True},
            tenancy={"resolve": [{"header": "X-Absent"}], "default": "orders"},
        )
        started = now()
        routes = [Route("/", read), Route("/", write, methods=["POST"])]
        async with client(world, routes, registry=registry) as http:
            assert now() - started < SLACK_S
            for method in ("GET", "POST"):
                started = now()
                response = await http.request(method, "/")
                assert now() - started < ACQUIRE_TIMEOUT_S + SLACK_S
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                problem = response.json()
                assert problem["kind"] == "connection"
                assert wrong.reason in problem["detail"]
            with pytest.raises(DataError, match=wrong.reason) as caught:
                async with registry.session() as db:
                    await db.fetch_value("select 1")
            assert isinstance(caught.value.__cause__, psycopg.Error)
            logged = [record.getMessage() for record in caplog.records if record.name == "asgi_datasource.server"]
            assert any("is down" in text and wrong.reason in text for text in logged)

            await wrong.fix()

            async def works() -> bool:
                return {(await http.request(method, "/")).status_code for method in ("GET", "POST")} == {200}

            await until(works)
    assert "not-the-password" not in caplog.text
    assert world.cluster.primary.blocking.password("app") not in caplog.text
