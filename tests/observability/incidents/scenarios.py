"""The incidents: each is made on real servers, observed while it goes on, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg.conninfo import make_conninfo
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from asgi_datasource import SessionClosed, session, transactional
from asgi_datasource.testing import FaultProxy
from tests.drivers.polling import until
from tests.observability.incidents.stage import Seen, Signals, Stage, staged
from tests.world import World

INSERT: Final = "insert into orders (item) values (%s)"
SELECT: Final = "select item from orders"


class Doors:
    """Where requests wait for each other.

    Attributes:
        held: Requests that hold a connection.
        is_over: Lets them go on.
    """

    def __init__(self) -> None:
        self.held = 0
        self.is_over = asyncio.Event()
        self.both_locked = asyncio.Barrier(2)
        self.attempts: dict[str, int] = {}


def routes(doors: Doors) -> list[BaseRoute]:
    """The application."""

    async def read(request: Request) -> Response:
        found = await session(request).read.fetch_all(SELECT)
        return JSONResponse([row["item"] for row in found])

    async def place(request: Request) -> Response:
        await session(request).execute(INSERT, [request.query_params.get("item", "tea")])
        return JSONResponse({}, status_code=201)

    async def show(request: Request) -> Response:
        item = await session(request).read.fetch_value(
            "select item from orders where id = %s", [int(request.query_params["id"])]
        )
        return JSONResponse({"item": item}, status_code=404 if item is None else 200)

    async def hold(request: Request) -> Response:
        await session(request).execute("select 1 from orders for update")
        doors.held += 1
        await doors.is_over.wait()
        return Response()

    async def close_the_day(request: Request) -> Response:
        await session(request).execute("insert into slow values (1), (2)")
        return Response(status_code=201)

    async def swap(request: Request) -> None:
        """Lock two rows, in the order of the request: beside another one in the opposite order, a deadlock."""
        db, order = session(request), request.query_params["order"]
        first, second = order[0], order[1]
        key = f"{request.url.path} {first}"
        doors.attempts[key] = doors.attempts.get(key, 0) + 1
        await db.execute("update parents set id = id where id = %s", [int(first)])
        if doors.attempts[key] == 1:
            await doors.both_locked.wait()
        await db.execute("update parents set id = id where id = %s", [int(second)])

    @transactional(retry=1)
    async def swap_again(request: Request) -> Response:
        await swap(request)
        return Response()

    async def leak(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT, ["mail"])

        async def send_mail() -> None:
            await doors.is_over.wait()
            with suppress(SessionClosed):
                await db.fetch_all(SELECT)

        request.app.state.mail = asyncio.create_task(send_mail())
        return Response(status_code=202)

    return [
        Route("/orders", read, methods=["GET"]),
        Route("/orders", place, methods=["POST"]),
        Route("/order", show, methods=["GET"]),
        Route("/stock", hold, methods=["POST"]),
        Route("/day", close_the_day, methods=["POST"]),
        Route("/transfers", swap_again, methods=["POST"]),
        Route("/mails", leak, methods=["POST"]),
    ]


Act = Callable[[Stage, Doors, Any], Awaitable[None]]


@dataclass(frozen=True)
class Incident:
    """One incident.

    Attributes:
        name: Its name on the page.
        act: Makes it; gets the stage, the doors, and the proxy in front of the replica if there is one.
        roots: Names of the requests whose traces are shown.
        metrics: Names of the metrics that are shown.
        config: Changes of the configuration, as of `World.config`.
        is_proxied: The replica is behind a proxy.
        is_destructive: It needs a cluster of its own.
        is_quick: It belongs to each run of the tests, not only to those with `--whole`.
    """

    name: str
    act: Act
    roots: tuple[str, ...]
    metrics: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_proxied: bool = False
    is_destructive: bool = False
    is_quick: bool = False


async def replica_behind(stage: Stage, doors: Doors, proxy: Any) -> None:
    """A replica no longer replays, and the primary goes on."""
    replica = stage.world.cluster.replicas["r1"]
    await replica.pause_replay()
    try:
        await stage.http.post("/orders")

        async def is_avoided() -> bool:
            return await _reads_from(stage) == "primary"

        await until(is_avoided)
        await stage.http.get("/orders")
        await stage.look()
    finally:
        await replica.resume_replay()


async def _reads_from(stage: Stage) -> str:
    async with stage.registry.session("acme") as db:
        await db.read.fetch_all(SELECT)
        assert db.last_route is not None
        return db.last_route.node


async def replica_dead(stage: Stage, doors: Doors, proxy: FaultProxy) -> None:
    """A replica dies while it answers a read."""
    await stage.http.get("/orders")
    stage.begin()
    proxy.hold(at=SELECT.encode())
    reading = asyncio.create_task(stage.http.get("/orders"))
    await proxy.until_held()
    await proxy.stop()
    assert (await reading).status_code == 200
    await stage.look()


async def pool_exhausted(stage: Stage, doors: Doors, proxy: Any) -> None:
    """Requests hold all connections, and the next one gets none in time."""
    holding = [asyncio.create_task(stage.http.post("/stock")) for _ in range(2)]
    await until(lambda: doors.held == 2)
    waiting = asyncio.create_task(stage.http.post("/orders"))
    await until(lambda: stage.primary.waiting > 0)
    await stage.look()
    assert (await waiting).status_code == 503
    doors.is_over.set()
    await asyncio.gather(*holding)


async def _waits(stage: Stage, condition: str) -> bool:
    """Whether a transaction of some age waits: the console asks servers for those of 200 ms and more."""
    found = await stage.world.sql(
        "select 1 from pg_stat_activity where datname = current_database()"
        f" and xact_start < now() - interval '300 ms' and {condition}"
    )
    return bool(found)


async def slow_commit(stage: Stage, doors: Doors, proxy: Any) -> None:
    """COMMIT takes long: deferred triggers run in it, as a slow disk or a synchronous replica would hold it up."""
    committing = asyncio.create_task(stage.http.post("/day"))
    await until(lambda: _waits(stage, "wait_event = 'PgSleep'"))
    await stage.look()
    assert (await committing).status_code == 201


async def deadlock_storm(stage: Stage, doors: Doors, proxy: Any) -> None:
    """Two requests lock the same rows in opposite orders: PostgreSQL ends one of them, which runs again."""
    await stage.world.sql("insert into parents values (1), (2)")
    both = [asyncio.create_task(stage.http.post(f"/transfers?order={order}")) for order in ("12", "21")]
    await until(lambda: _waits(stage, "wait_event_type = 'Lock'"))
    await stage.look()
    assert [answer.status_code for answer in await asyncio.gather(*both)] == [200, 200]


async def wrong_tenant(stage: Stage, doors: Doors, proxy: Any) -> None:
    """A client names another tenant than it should, and then one that does not exist."""
    await stage.http.post("/orders")
    [[number]] = await stage.world.sql("select id from orders")
    await stage.world.cluster.caught_up()
    stage.begin()
    assert (await stage.http.get(f"/order?id={number}", headers={"X-Tenant": "globex"})).status_code == 404
    assert (await stage.http.get("/orders", headers={"X-Tenant": "acmee"})).status_code == 404
    await stage.look()


async def leaked_handle(stage: Stage, doors: Doors, proxy: Any) -> None:
    """A task that outlives its request goes on to use its session."""
    assert (await stage.http.post("/mails")).status_code == 202
    doors.is_over.set()
    await until(lambda: "was used after its end" in "\n".join(stage.lines))
    await stage.look()


async def failover(stage: Stage, doors: Doors, proxy: Any) -> None:
    """The primary dies, and a replica is promoted."""
    cluster = stage.world.cluster
    await stage.http.post("/orders?item=before")
    stage.begin()
    await cluster.primary.kill()
    assert (await stage.http.post("/orders?item=during")).status_code == 503
    await stage.ended("POST /orders")
    await stage.look()
    await cluster.nodes["r1"].promote()

    async def is_written() -> bool:
        return (await stage.http.post("/orders?item=after")).status_code == 201

    await until(is_written)


INCIDENTS: Final = (
    Incident(
        "Replica behind",
        replica_behind,
        ("GET /orders",),
        ("asgi_datasource.route.decisions", "asgi_datasource.replica.lag"),
        {"routing": {"max_lag": "300ms", "check_interval": "50ms"}},
    ),
    Incident(
        "Replica dead",
        replica_dead,
        ("GET /orders",),
        ("asgi_datasource.servers.up", "asgi_datasource.route.decisions", "db.client.operation.duration"),
        is_proxied=True,
    ),
    Incident(
        "Pool exhausted",
        pool_exhausted,
        ("POST /orders",),
        ("db.client.connection.pending_requests", "db.client.connection.count", "db.client.connection.timeouts"),
        {"pool": {"max_size": 2, "acquire_timeout": "600ms"}},
        is_quick=True,
    ),
    Incident("Slow COMMIT", slow_commit, ("POST /day",), ("db.client.operation.duration",)),
    Incident(
        "Deadlock storm",
        deadlock_storm,
        ("POST /transfers", "POST /transfers"),
        ("db.client.operation.duration", "asgi_datasource.transaction.outcomes"),
    ),
    Incident("Wrong tenant", wrong_tenant, ("GET /order", "GET /orders"), ("asgi_datasource.route.decisions",)),
    Incident("Leaked handle", leaked_handle, ("POST /mails",), ("asgi_datasource.session.closed_use",), is_quick=True),
    Incident(
        "Failover",
        failover,
        ("POST /orders", "POST /orders"),
        ("asgi_datasource.servers.up", "db.client.operation.duration", "asgi_datasource.transaction.outcomes"),
        is_destructive=True,
    ),
)


async def run(incident: Incident, world: World, signals: Signals) -> Seen:
    """Make an incident, and return what was seen of it.

    Args:
        incident: The incident.
        world: A database, for a destructive incident on a cluster of its own.
        signals: The readers of telemetry.
    """
    doors = Doors()
    async with AsyncExitStack() as stack:
        urls: dict[str, str] = {}
        proxy = None
        if incident.is_proxied:
            replica = world.cluster.replicas["r1"]
            proxy = await stack.enter_async_context(FaultProxy(replica.host, replica.port))
            urls["r1"] = proxy.through(world.url("r1"))
        if incident.is_destructive:
            ports = ",".join(str(world.cluster.nodes[name].port) for name in ("primary", "r1"))
            urls["primary"] = make_conninfo(world.url(), host="127.0.0.1,127.0.0.1", port=ports)
        config = world.config(replicas=("r1",), urls=urls, **incident.config)
        stage = await stack.enter_async_context(staged(world, routes(doors), signals, config))
        try:
            await incident.act(stage, doors, proxy)
            await stage.ended(*incident.roots)
        finally:
            doors.is_over.set()
        return stage.seen(incident.roots, incident.metrics)
