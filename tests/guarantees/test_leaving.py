"""Promise 2 for clients that disconnect: rolled back, the connection is kept, no transaction stays open."""

from __future__ import annotations

import asyncio

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import session
from tests.apps import client
from tests.drivers.polling import until
from tests.world import World

INSERT = "insert into orders (item) values ('tea')"


async def backend_of_pool(world: World) -> list[int]:
    return [pid for pid, _ in await world.backends()]


async def until_quiet(world: World) -> None:
    """Wait until no backend of this database is active or idle in a transaction."""

    async def is_quiet() -> bool:
        return all(state == "idle" for _, state in await world.backends())

    await until(is_quiet)


def is_running(world: World, fragment: str):  # type: ignore[no-untyped-def]
    async def check() -> bool:
        rows = await world.sql(
            "select 1 from pg_stat_activity where datname = current_database() and state = 'active'"
            f" and query like '%{fragment}%' and pid <> pg_backend_pid()"
        )
        return bool(rows)

    return check


async def test_a_client_that_disconnects_during_a_query_changes_nothing(world: World) -> None:
    outcomes: list[str] = []

    async def place(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT)
        try:
            await db.execute("select pg_sleep(30)")
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise
        return JSONResponse({})

    async def ping(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select 1"))

    registry = world.registry(replicas=(), pool={"min_size": 1, "max_size": 1})
    async with client(world, [Route("/", place, methods=["POST"]), Route("/", ping)], registry=registry) as http:
        await http.get("/")
        before = await backend_of_pool(world)
        leaving = asyncio.create_task(http.post("/"))
        await until(is_running(world, "pg_sleep"))
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await until_quiet(world)
        assert (await http.get("/")).json() == 1
        assert await backend_of_pool(world) == before
    assert outcomes == ["ClientDisconnected"]
    assert await world.items() == []


@pytest.mark.parametrize("canceller", ["asyncio.timeout", "anyio scope", "task.cancel twice"])
async def test_a_cancelled_handler_keeps_its_connection_and_leaves_no_row(world: World, canceller: str) -> None:
    async def place(request: Request) -> Response:
        db = session(request)

        async def work() -> None:
            await db.execute(INSERT)
            await db.execute("select pg_sleep(30)")

        if canceller == "asyncio.timeout":
            async with asyncio.timeout(0.3):
                await work()
        elif canceller == "anyio scope":
            with anyio.fail_after(0.3):
                await work()
        else:
            task = asyncio.create_task(work())
            await until(is_running(world, "pg_sleep"))
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await task
        raise AssertionError("it was not cancelled")

    async def ping(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select 1"))

    registry = world.registry(replicas=(), pool={"min_size": 1, "max_size": 1})
    async with client(world, [Route("/", place, methods=["POST"]), Route("/", ping)], registry=registry) as http:
        await http.get("/")
        before = await backend_of_pool(world)
        try:
            answer = await http.post("/")
        except httpx.RemoteProtocolError:
            # The cancellation propagated to the server, which sends no response for it.
            answer = None
        assert answer is None or answer.status_code == 500
        await until_quiet(world)
        assert (await http.get("/")).json() == 1
        assert await backend_of_pool(world) == before
    assert await world.items() == []


async def test_a_handler_that_awaits_something_else_runs_on_and_is_rolled_back(world: World) -> None:
    left = asyncio.Event()
    done = asyncio.Event()

    async def place(request: Request) -> Response:
        await session(request).execute(INSERT)
        async with asyncio.timeout(10):
            await left.wait()
        done.set()
        return JSONResponse({}, status_code=201)

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        leaving = asyncio.create_task(http.post("/"))

        async def has_begun() -> bool:
            return any(state == "idle in transaction" for _, state in await world.backends())

        await until(has_begun)
        # Disconnect detection starts 0.1 s into the first statement, and must have seen the disconnect.
        await asyncio.sleep(0.3)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.sleep(0.3)
        left.set()
        await done.wait()
        await until_quiet(world)
    assert await world.items() == []
