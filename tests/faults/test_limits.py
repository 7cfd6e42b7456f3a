"""The request's deadline and the server's own timeouts: the shorter one applies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import session
from asgi_datasource.testing import FaultProxy, serve
from tests.apps import application
from tests.drivers.polling import until
from tests.faults.servers import through
from tests.patience import now
from tests.world import World

LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
ASK = (
    "select "
    + ", ".join(f"extract(epoch from current_setting('{name}')::interval)::float8 as {name}" for name in LIMITS)
    + ", pg_backend_pid() as pid"
)
SLACK_S = 1.5


async def ask(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_one(ASK))


async def sleep(request: Request) -> Response:
    db = session(request)
    seconds = request.path_params["seconds"]
    await db.execute("insert into orders (item) values (%s)", [f"slept {seconds:g}"])
    await db.execute("select pg_sleep(%s)", [seconds])
    return Response(status_code=201)


async def dawdle(request: Request) -> Response:
    """Stay idle inside a transaction until the server terminates it."""
    db = session(request)
    pid = await db.fetch_value("insert into orders (item) values ('dawdled') returning pg_backend_pid()")
    await request.app.state.until_gone(pid)
    await db.execute("insert into orders (item) values ('dawdled on')")
    return Response(status_code=201)


async def commit_slowly(request: Request) -> Response:
    await session(request).execute("insert into slow values (1)")
    return Response(status_code=201)


ROUTES = [
    Route("/ask", ask, methods=["GET", "POST"]),
    Route("/sleep/{seconds:float}", sleep, methods=["POST"]),
    Route("/dawdle", dawdle, methods=["POST"]),
    Route("/commit-slowly", commit_slowly, methods=["POST"]),
]


@asynccontextmanager
async def serving(world: World, *, deadline: str | None, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    options = {"replicas": (), "pool": {"max_size": 1}, "transactions": {"deadline": deadline}, **config}
    app = application(world.registry(**options), ROUTES)
    app.state.until_gone = partial(until_gone, world)
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20.0) as http,
    ):
        yield http


async def until_gone(world: World, pid: int) -> None:
    """Wait until the server has terminated this backend."""

    async def is_gone() -> bool:
        return not await world.sql(f"select 1 from pg_stat_activity where pid = {pid}")

    await until(is_gone)


async def configure(world: World, **limits: str) -> None:
    """Settings that an administrator makes for the application's role in this database."""
    for name, value in limits.items():
        await world.sql(f"alter role app in database {world.dbname} set {name} = '{value}'")


async def limits_of(http: httpx.AsyncClient, method: str) -> tuple[float, ...]:
    answer = (await http.request(method, "/ask")).json()
    return tuple(answer[name] for name in LIMITS)


async def test_the_deadline_is_sent_to_the_server_and_ends_with_the_request(world: World) -> None:
    async with serving(world, deadline="10s") as http:
        statement, _, _ = await limits_of(http, "GET")
        assert 5 < statement <= 10
        statement, idle, transaction = await limits_of(http, "POST")
        # In the order in which they take effect: the connection is lost only as a last resort.
        assert 5 < statement <= 10 < transaction < 5 + idle
    async with serving(world, deadline=None) as http:
        assert await limits_of(http, "GET") == (0, 0, 0)
        assert await limits_of(http, "POST") == (0, 0, 0)


async def test_shorter_timeouts_of_the_server_are_kept(world: World) -> None:
    await configure(world, statement_timeout="2s", idle_in_transaction_session_timeout="3s", transaction_timeout="4s")
    async with serving(world, deadline="10s") as http:
        assert (await limits_of(http, "GET"))[0] == 2
        assert await limits_of(http, "POST") == (2, 3, 4)


async def test_longer_timeouts_of_the_server_are_shortened(world: World) -> None:
    await configure(world, statement_timeout="1h", idle_in_transaction_session_timeout="1d", transaction_timeout="2h")
    async with serving(world, deadline="10s") as http:
        statement, idle, transaction = await limits_of(http, "POST")
        assert statement <= 10
        assert max(idle, transaction) < 15


async def test_a_statement_timeout_of_the_server_is_a_504_and_rolls_back(world: World) -> None:
    await configure(world, statement_timeout="200ms")
    async with serving(world, deadline="20s") as http:
        started = now()
        response = await http.post("/sleep/10")
        assert now() - started < 0.2 + SLACK_S
        assert (response.status_code, response.json()["kind"]) == (504, "timeout")
        assert (await http.post("/sleep/0")).status_code == 201
    assert await world.items() == ["slept 0"]


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/dawdle", "idle_in_transaction_session_timeout"),
        ("/dawdle", "transaction_timeout"),
        ("/sleep/10", "transaction_timeout"),
        ("/commit-slowly", "transaction_timeout"),
    ],
)
async def test_a_transaction_terminated_by_the_server_is_a_504_and_rolls_back(
    world: World, path: str, limit: str
) -> None:
    await configure(world, **{limit: "300ms"})
    async with serving(world, deadline="20s") as http:
        started = now()
        response = await http.post(path)
        assert now() - started < 0.3 + SLACK_S
        assert (response.status_code, response.json()["kind"]) == (504, "timeout")
        # The only connection of the pool was lost with it.
        assert (await http.post("/sleep/0")).status_code == 201
    assert await world.items() == ["slept 0"]
    assert await world.sql("select id from slow") == []


async def test_an_abandoned_statement_ends_by_its_deadline(world: World, proxy: FaultProxy) -> None:
    async with serving(world, deadline="1s", urls={"primary": through(proxy, world.url())}) as http:
        sleeping = asyncio.create_task(http.post("/sleep/60"))

        async def state() -> list[tuple[Any, ...]]:
            return await world.sql(
                "select wait_event, state, backend_xid is not null,"
                " exists (select from pg_locks where pg_locks.pid = a.pid and mode = 'RowExclusiveLock')"
                " from pg_stat_activity a where usename = 'app' and datname = current_database()"
            )

        async def is_asleep() -> bool:
            return await state() == [("PgSleep", "active", True, True)]

        async def is_over() -> bool:
            return await state() == [("ClientRead", "idle in transaction (aborted)", False, False)]

        await until(is_asleep)
        # Unplugged cable: the server notices neither the disconnect nor a cancel request.
        proxy.freeze()
        started = now()
        await until(is_over)
        assert now() - started < 1 + SLACK_S
        assert (await sleeping).status_code == 504
        proxy.cut()
        proxy.release()


async def test_an_abandoned_transaction_ends_by_its_deadline(world: World, proxy: FaultProxy) -> None:
    async with serving(world, deadline="1s", urls={"primary": through(proxy, world.url())}) as http:
        dawdling = asyncio.create_task(http.post("/dawdle"))

        async def is_idle() -> bool:
            return [state for _, state in await world.backends()] == ["idle in transaction"]

        await until(is_idle)
        [(pid, _)] = await world.backends()
        proxy.freeze()
        started = now()
        await until_gone(world, pid)
        assert now() - started < 1 + 2 + SLACK_S
        assert (await dawdling).status_code == 504
        proxy.cut()
        proxy.release()
