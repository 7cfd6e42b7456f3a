"""Unresponsive servers: every wait ends by its own deadline, the pool recovers, and shutdown is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, session
from asgi_datasource.testing import EmbeddedCluster, FaultProxy, Node, serve
from tests.apps import application
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of, proxy_of, through
from tests.patience import now
from tests.world import World

DEADLINE_S = 1
CANCEL_S = 1
"""How long the driver waits for the server to accept a cancel request, and then to cancel."""
SLACK_S = 1.5
"""Allowance for a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(1) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


@dataclass
class Line:
    """The connection to a server, which can become unresponsive in two ways."""

    node: Node
    proxy: FaultProxy
    how: str

    async def fall_silent(self) -> None:
        if self.how == "frozen server":
            await self.node.freeze()
        else:
            self.proxy.freeze()

    async def come_back(self) -> None:
        if self.how == "frozen server":
            await self.node.thaw()
        else:
            # Data in flight when the cable was unplugged is lost once TCP gives up.
            self.proxy.cut()
            self.proxy.release()


@pytest.fixture(params=["frozen server", "cut cable"])
async def lines(world: World, request: pytest.FixtureRequest) -> AsyncIterator[dict[str, Line]]:
    async with proxy_of(world.cluster.primary) as to_primary, proxy_of(world.cluster.replicas["r1"]) as to_replica:
        yield {
            "primary": Line(world.cluster.primary, to_primary, request.param),
            "r1": Line(world.cluster.replicas["r1"], to_replica, request.param),
        }
        for line in (to_primary, to_replica):
            line.release()


async def read(request: Request) -> Response:
    db = session(request)
    await db.fetch_all("select item from orders")
    return JSONResponse({"node": db.last_route.node if db.last_route else ""})


async def write(request: Request) -> Response:
    item = request.path_params["item"]
    await session(request).execute("insert into orders (item) values (%s)", [item])
    gate = getattr(request.app.state, "gate", None)
    if gate is not None:
        await gate.pause()
    if item == "refused":
        raise HTTPException(409)
    return JSONResponse({}, status_code=201)


ROUTES = [Route("/read", read), Route("/orders/{item}", write, methods=["POST"])]


class Gate:
    """Pauses a handler between its statement and its end, while a fault is injected."""

    def __init__(self) -> None:
        self.has_come = asyncio.Event()
        self.may_go = asyncio.Event()

    async def pause(self) -> None:
        self.has_come.set()
        await self.may_go.wait()


@dataclass
class Shop:
    world: World
    http: httpx.AsyncClient
    registry: DataSourceRegistry
    app: Any

    async def is_back(self) -> None:
        """Wait until reads and writes work on every server, with as many at once as the pool has connections."""

        async def works() -> bool:
            items = [f"back {now()} {number}" for number in range(3)]
            writing = [self.http.post(f"/orders/{item}") for item in items]
            reading = [self.http.get("/read") for _ in range(3)]
            answers = await asyncio.gather(*writing, *reading)
            return all(answer.status_code in (200, 201) for answer in answers) and all(
                endpoint.is_up for source in self.registry for endpoint in source.servers.values()
            )

        await until(works, timeout_s=20.0)
        for source in self.registry:
            for endpoint in source.servers.values():
                assert endpoint.borrowed == 0


def registry_of(world: World, lines: dict[str, Line], *, replicas: tuple[str, ...] = (), **config: Any) -> Any:
    urls = {name: through(line.proxy, world.url(name)) for name, line in lines.items()}
    sections = {"transactions": {"deadline": f"{DEADLINE_S}s"}, **config}
    pool = {"max_size": 3, "acquire_timeout": "2s", "connect_timeout": "2s", **sections.pop("pool", {})}
    return world.registry(replicas=replicas, urls=urls, pool=pool, **sections)


@asynccontextmanager
async def open_shop(
    world: World, lines: dict[str, Line], *, shutdown_timeout_s: int = 5, **config: Any
) -> AsyncIterator[Shop]:
    registry = registry_of(world, lines, **config)
    app = application(registry, ROUTES)
    async with (
        serve(app, shutdown_timeout_s=shutdown_timeout_s) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=30.0) as http,
    ):
        yield Shop(world, http, registry, app)


@contextmanager
def ends_within(limit_s: float) -> Iterator[None]:
    started = now()
    yield
    took = now() - started
    assert took < limit_s, f"it took {took:.2f} s"


def kind_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["kind"]


async def test_statements_end_by_the_deadline_and_the_pool_recovers(world: World, lines: dict[str, Line]) -> None:
    async with open_shop(world, lines) as shop:
        await shop.is_back()
        await lines["primary"].fall_silent()
        with ends_within(DEADLINE_S + CANCEL_S + SLACK_S):
            answers = await asyncio.gather(*(shop.http.post(f"/orders/{n}") for n in range(3)), shop.http.get("/read"))
        assert {kind_of(answer) for answer in answers} <= {(504, "timeout"), (503, "connection"), (503, "resource")}
        assert (504, "timeout") in {kind_of(answer) for answer in answers}
        with ends_within(DEADLINE_S + CANCEL_S + SLACK_S):
            again = await shop.http.post("/orders/again")
        assert again.status_code in (503, 504)
        await lines["primary"].come_back()
        await shop.is_back()
        assert not {"0", "1", "2", "again"} & set(await world.items())


async def test_an_unresponsive_replica_costs_one_read_its_deadline_and_later_reads_move_on(
    world: World, lines: dict[str, Line]
) -> None:
    async with open_shop(world, lines, replicas=("r1",)) as shop:
        await shop.is_back()
        await lines["r1"].fall_silent()
        with ends_within(DEADLINE_S + CANCEL_S + SLACK_S):
            first = await shop.http.get("/read")
        assert kind_of(first) == (504, "timeout")
        with ends_within(DEADLINE_S):
            answers = await asyncio.gather(*(shop.http.get("/read") for _ in range(3)))
        assert [answer.json() for answer in answers] == [{"node": "primary"}] * 3
        await lines["r1"].come_back()
        await shop.is_back()
        assert (await shop.http.get("/read")).json() == {"node": "r1"}


@pytest.mark.parametrize("snapshot", [False, True])
async def test_reads_that_wait_for_a_silent_replica_are_answered_by_the_primary(
    world: World, lines: dict[str, Line], *, snapshot: bool
) -> None:
    """All its connections hang, and whoever comes meanwhile waits for one of them until its time to wait is over."""
    transactions = {"deadline": "20s"}
    pool = {"acquire_timeout": "1s"}
    async with registry_of(world, lines, replicas=("r1",), transactions=transactions, pool=pool) as registry:

        async def read_once() -> str:
            async with registry.session("acme", read_only=snapshot, timeout=20) as db:
                await db.read.fetch_all("select item from orders")
                assert db.last_route is not None
                return db.last_route.node

        replica = registry.datasources["orders"].servers["r1"]
        await until(lambda: replica.is_up and replica.idle > 0)
        assert {await read_once() for _ in range(3)} == {"r1"}
        await lines["r1"].fall_silent()
        with ends_within(2 * CANCEL_S + 2 + SLACK_S):
            answered = await asyncio.gather(*(read_once() for _ in range(12)))
        assert set(answered) == {"primary"}
        await lines["r1"].come_back()


async def test_a_rollback_does_not_wait_for_an_unresponsive_server(world: World, lines: dict[str, Line]) -> None:
    async with open_shop(world, lines, transactions={"deadline": "30s"}) as shop:
        await shop.is_back()
        gate = shop.app.state.gate = Gate()
        posting = asyncio.create_task(shop.http.post("/orders/refused"))
        await gate.has_come.wait()
        await lines["primary"].fall_silent()
        gate.may_go.set()
        with ends_within(2 * CANCEL_S + SLACK_S):
            assert (await posting).status_code == 409
        await lines["primary"].come_back()
        await shop.is_back()
        assert "refused" not in await world.items()


async def test_a_commit_on_an_unresponsive_server_is_answered_with_the_true_outcome(
    world: World, lines: dict[str, Line]
) -> None:
    async with open_shop(world, lines) as shop:
        await shop.is_back()
        gate = shop.app.state.gate = Gate()
        posting = asyncio.create_task(shop.http.post("/orders/tea"))
        await gate.has_come.wait()
        await lines["primary"].fall_silent()
        gate.may_go.set()
        endpoint = shop.registry.datasources["orders"].servers["primary"]
        await until(lambda: not endpoint.is_up)
        await lines["primary"].come_back()
        answer = await posting
        del shop.app.state.gate
        assert answer.status_code in (201, 503, 504)
        await shop.is_back()
        assert ("tea" in await world.items()) is (answer.status_code == 201)


async def test_clients_that_disconnect_from_an_unresponsive_server_leak_no_connection(
    world: World, lines: dict[str, Line]
) -> None:
    async with open_shop(world, lines, transactions={"deadline": "30s"}) as shop:
        await shop.is_back()
        await lines["primary"].fall_silent()
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                await shop.http.post("/orders/left", timeout=0.5)
        endpoint = shop.registry.datasources["orders"].servers["primary"]
        await until(lambda: endpoint.borrowed == 0, timeout_s=3 * CANCEL_S + SLACK_S)
        await lines["primary"].come_back()
        await shop.is_back()
        assert "left" not in await world.items()


async def test_an_unresponsive_server_at_start_up_delays_nothing_beyond_the_configured_timeouts(
    world: World, lines: dict[str, Line]
) -> None:
    await lines["primary"].fall_silent()
    with ends_within(SLACK_S):
        shop_coming = open_shop(world, lines, transactions={"deadline": "30s"})
        shop = await shop_coming.__aenter__()
    try:
        with ends_within(2 + SLACK_S):
            answer = await shop.http.post("/orders/early")
        assert kind_of(answer) == (503, "connection")
        await lines["primary"].come_back()
        await shop.is_back()
    finally:
        await shop_coming.__aexit__(None, None, None)


async def test_closing_the_registry_is_bounded_and_leaves_no_task_and_no_connection(
    world: World, lines: dict[str, Line]
) -> None:
    before = asyncio.all_tasks()
    registry = registry_of(world, lines, transactions={"deadline": None})
    await registry.open()
    async with registry.session(tenant="acme") as db:
        await db.execute("insert into orders (item) values ('tea')")
        waiting = asyncio.create_task(hang(registry))
        await until(lambda: registry.datasources["orders"].servers["primary"].borrowed == 2)
        await lines["primary"].fall_silent()
        with ends_within(2 + 2 + SLACK_S):
            await registry.close(timeout_s=2)
        with pytest.raises(DataError) as caught:
            await db.execute("select 1")
        assert caught.value.kind is DataErrorKind.CONNECTION
        db.set_rollback_only("the server is silent")
        with ends_within(2 * CANCEL_S + SLACK_S):
            assert (await asyncio.gather(waiting, return_exceptions=True))[0].kind is DataErrorKind.CONNECTION
    await until(lambda: asyncio.all_tasks() == before)
    await lines["primary"].come_back()
    await until(lambda: lines["primary"].proxy.connections == 0)


async def hang(registry: DataSourceRegistry) -> None:
    async with registry.session(tenant="acme") as db:
        await db.execute("select pg_sleep(60)")


async def test_uvicorn_shuts_down_in_time_while_a_request_hangs(world: World, lines: dict[str, Line]) -> None:
    before = asyncio.all_tasks()
    async with open_shop(world, lines, shutdown_timeout_s=1, transactions={"deadline": "30s"}) as shop:
        await shop.is_back()
        await lines["primary"].fall_silent()
        posting = asyncio.create_task(shop.http.post("/orders/tea"))
        await until(lambda: shop.registry.datasources["orders"].servers["primary"].borrowed == 1)
        started = now()
    # One second for requests in flight, then the cleanup of the cancelled request, then the pools.
    assert now() - started < 1 + 2 * CANCEL_S + 2 + SLACK_S
    outcome = (await asyncio.gather(posting, return_exceptions=True))[0]
    assert isinstance(outcome, httpx.TransportError) or outcome.status_code >= 500
    await until(lambda: asyncio.all_tasks() == before)
    await lines["primary"].come_back()
    await until(lambda: lines["primary"].proxy.connections == 0)
    assert "tea" not in await world.items()
