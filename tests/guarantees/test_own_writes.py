"""Promise 6 across requests: a client reads its own writes, on whichever server its next request runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_datasource import DataSourceRegistry, compile, session
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from asgi_datasource.routing import Position
from asgi_datasource.routing.consistency.token import Mark, Token, TokenSigner, scope_of
from asgi_datasource.testing import EmbeddedCluster, Node, serve
from asgi_datasource.testing.ports import reserve_port
from tests.apps import application, client
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of, proxy_of
from tests.world import World

SECRET = "a secret that only the service knows"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(2) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


async def items(request: Request) -> Response:
    db = session(request)
    found = [row["item"] for row in await db.fetch_all("select item from orders order by id")]
    return answer(request, found)


async def twice(request: Request) -> Response:
    db = session(request)
    await db.fetch_all("select item from orders")
    return await items(request)


async def snapshot(request: Request) -> Response:
    async with session(request).transaction(read_only=True) as db:
        found = [row["item"] for row in await db.fetch_all("select item from orders order by id")]
        return answer(request, found)


async def new_table(request: Request) -> Response:
    return answer(request, await session(request).fetch_value("select count(*) from made_just_now"))


async def place(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (%s)", [request.query_params["item"]])
    return answer(request, [], status=int(request.query_params.get("status", 201)))


async def make_table(request: Request) -> Response:
    await session(request).execute("create table made_just_now (id int)")
    return answer(request, [], status=201)


async def nothing(request: Request) -> Response:
    return JSONResponse({})


async def look(request: Request) -> Response:
    """A read with write intent."""
    return answer(request, await session(request).write.fetch_value("select count(*) from orders"))


class Steps:
    """A handler that pauses once, until the test resumes it."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def wait(self) -> None:
        self.has_begun.set()
        await self.may_go_on.wait()


async def peek(request: Request) -> Response:
    """Read other clients' commits inside a transaction that is rolled back."""
    db, steps = session(request), request.app.state.steps
    await db.execute("insert into orders (item) values ('not to stay')")
    await steps.wait()
    ask = "select item from orders where item <> 'not to stay' order by id"
    if "lent" in request.query_params:
        async with db.connection() as connection:
            rows = await (await connection.execute(ask)).fetchall()
            return answer(request, [row[0] for row in rows], status=409)
    return answer(request, [row["item"] for row in await db.fetch_all(ask)], status=409)


async def watch(request: Request) -> Response:
    """Read again in a READ ONLY transaction at READ COMMITTED, where each statement has its own snapshot."""
    db, steps = session(request), request.app.state.steps
    await db.fetch_value("select 1")
    await steps.wait()
    return await items(request)


async def export(request: Request) -> Response:
    """Start the response before the first read."""
    db = session(request)

    async def rows() -> AsyncIterator[str]:
        async for row in db.stream("select item from orders order by id"):
            yield row["item"] + "\n"

    return StreamingResponse(rows())


def answer(request: Request, found: Any, *, status: int = 200) -> Response:
    route = session(request).last_route
    assert route is not None
    return JSONResponse({"found": found, "node": route.node, "reason": route.reason}, status_code=status)


ROUTES = [
    Route("/items", items),
    Route("/eventual", items),
    Route("/strong", items),
    Route("/twice", twice),
    Route("/snapshot", snapshot),
    Route("/new-table", new_table),
    Route("/place", place, methods=["POST"]),
    Route("/make-table", make_table, methods=["POST"]),
    Route("/nothing", nothing),
    Route("/look", look, methods=["POST"]),
    Route("/peek", peek, methods=["POST"]),
    Route("/watch", watch),
    Route("/export", export),
]


class Shop:
    """An application with tokens, and a client with a cookie jar."""

    def __init__(self, world: World, registry: DataSourceRegistry, http: httpx.AsyncClient, steps: Steps) -> None:
        self.steps = steps
        self.world = world
        self.registry = registry
        self.http = http

    @property
    def orders(self) -> ReplicatedDataSource:
        found = self.registry.datasources["orders"]
        assert isinstance(found, ReplicatedDataSource)
        return found

    async def place(self, item: str, **query: Any) -> httpx.Response:
        return await self.http.post("/place", params={"item": item, **query})

    async def read(self, path: str = "/items", **headers: str) -> tuple[Any, str, str]:
        response = await self.http.get(path, headers=headers)
        assert response.status_code == 200, response.text
        said = response.json()
        return said["found"], said["node"], said["reason"]

    async def knows(self, **nodes: bool) -> None:
        """Wait until the monitor has polled all replicas, and those passed as False are known to lag."""

        def is_so() -> bool:
            return all(
                node.position is not None and (nodes.get(node.name, True) or bool(node.lag_bytes))
                for node in self.orders.topology.replicas
            )

        await until(is_so)


@asynccontextmanager
async def shop_of(world: World, *, urls: dict[str, str] | None = None, **consistency: Any) -> AsyncIterator[Shop]:
    config = world.config(
        urls=urls or {},
        consistency={"token": "cookie", "secret": SECRET, "wait": "200ms", **consistency},
        routes=[
            {"match": "/eventual", "consistency": "eventual"},
            {"match": "/strong", "consistency": "strong"},
            {"match": "/watch", "read_only": True, "isolation": "read committed"},
            {"match": "/export", "read_only": True, "stream": True},
        ],
    )
    config["datasources"]["orders"]["routing"] = {"check_interval": "50ms"}
    registry = compile(config)
    app = application(registry, ROUTES)
    app.state.steps = Steps()
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20.0) as http,
    ):
        await http.get("/nothing")
        shop = Shop(world, registry, http, app.state.steps)
        await shop.knows()
        yield shop


@asynccontextmanager
async def paused(*nodes: Node) -> AsyncIterator[None]:
    for node in nodes:
        await node.pause_replay()
    try:
        yield
    finally:
        for node in nodes:
            await node.resume_replay()


async def test_the_primary_answers_only_the_client_whose_write_no_replica_has(
    world: World,
) -> None:
    async with shop_of(world) as shop, paused(*world.cluster.replicas.values()):
        assert (await shop.place("tea")).status_code == 201
        assert await shop.read() == (["tea"], "primary", "behind")
        assert await shop.read("/twice") == (["tea"], "primary", "behind")
        shop.http.cookies.clear()
        found, node, reason = await shop.read()
        assert (found, reason) == ([], "balanced")
        assert node in ("r1", "r2")


async def test_reads_are_proved_with_spans_enabled(world: World, spans: InMemorySpanExporter) -> None:
    async with shop_of(world) as shop, paused(*world.cluster.replicas.values()):
        assert (await shop.place("tea")).status_code == 201
        assert await shop.read() == (["tea"], "primary", "behind")
        assert await shop.read("/twice") == (["tea"], "primary", "behind")
    assert spans.get_finished_spans()


async def test_replicas_that_keep_up_answer_right_after_a_write(world: World) -> None:
    async with shop_of(world, wait="20s") as shop:
        for number in range(20):
            await shop.place(f"item {number}")
            found, node, reason = await shop.read()
            assert found[-1] == f"item {number}"
            assert (node in ("r1", "r2"), reason) == (True, "proved")


async def test_a_read_waits_for_a_lagging_replica_and_then_moves_to_the_next(world: World) -> None:
    async with shop_of(world) as shop, paused(world.cluster.replicas["r1"]):
        await shop.place("tea")
        await until(lambda: seen_by(world, "r2", 1))
        for _ in range(4):
            assert await shop.read() == (["tea"], "r2", "proved")


async def test_the_primary_answers_when_wait_is_over_for_all_replicas(world: World) -> None:
    async with shop_of(world, wait="300ms") as shop:
        # The monitor's last poll saw both up to date.
        shop.orders._monitor.stop()
        async with paused(*world.cluster.replicas.values()):
            await shop.place("tea")
            began_at = time.monotonic()
            assert await shop.read() == (["tea"], "primary", "behind")
            assert time.monotonic() - began_at >= 0.3


async def test_a_replica_that_catches_up_within_wait_answers(world: World) -> None:
    r1, r2 = world.cluster.replicas.values()
    async with shop_of(world, wait="5s") as shop, paused(r2):
        await shop.place("first")
        await shop.knows(r2=False)
        async with paused(r1):
            await shop.place("second")
            # The monitor's last poll saw it up to date.
            shop.orders._monitor.stop()
            reading = asyncio.create_task(shop.read())
            await asyncio.sleep(0.1)
            assert not reading.done()
        assert await asyncio.wait_for(reading, 4.0) == (["first", "second"], "r1", "proved")


async def test_an_error_caused_by_a_lagging_replica_is_not_reported(world: World) -> None:
    async with shop_of(world) as shop, paused(world.cluster.replicas["r1"]):
        assert (await shop.http.post("/make-table")).status_code == 201
        for _ in range(4):
            assert (await shop.read("/new-table"))[:2] == (0, "r2")


async def test_a_snapshot_sees_the_clients_write(world: World) -> None:
    async with shop_of(world, wait="20s") as shop:
        await shop.place("tea")
        found, node, reason = await shop.read("/snapshot")
        assert (found, node in ("r1", "r2"), reason) == (["tea"], True, "proved")
    async with shop_of(world) as shop, paused(*world.cluster.replicas.values()):
        await shop.place("milk")
        assert await shop.read("/snapshot") == (["tea", "milk"], "primary", "behind")


async def test_the_proof_costs_no_round_trip(world: World) -> None:
    r1 = world.cluster.replicas["r1"]
    async with proxy_of(r1) as proxy, shop_of(world, urls={"r1": proxy.through(world.url("r1"))}) as shop:
        shop.orders.drain("r2")
        for number in range(3):
            await shop.place(f"item {number}")
            await world.cluster.caught_up()
            await shop.knows()
            shop.orders._monitor.stop()
            await asyncio.sleep(0.05)
            proxy.reset_counters()
            assert (await shop.read())[1:] == ("r1", "proved")
            assert proxy.round_trips == 1
            shop.orders._monitor.start()


async def test_routes_may_require_less_or_more(world: World) -> None:
    async with shop_of(world) as shop, paused(*world.cluster.replicas.values()):
        await shop.place("tea")
        assert (await shop.read("/eventual"))[::2] == ([], "balanced")
        assert await shop.read("/strong") == (["tea"], "primary", "strong")


@pytest.mark.parametrize("status", [400, 409, 503])
async def test_only_commits_that_wrote_give_a_token(world: World, status: int) -> None:
    async with shop_of(world) as shop:
        for path in ("/items", "/snapshot", "/nothing"):
            assert "set-cookie" not in (await shop.http.get(path)).headers
        assert "set-cookie" not in (await shop.http.post("/look")).headers, "it committed without a write"
        assert "set-cookie" not in (await shop.place("tea", status=status)).headers
        given = (await shop.place("tea")).headers["set-cookie"]
        assert given.startswith("ads_token=")
        assert given.endswith("; Path=/; Max-Age=30; HttpOnly; SameSite=Lax")
        assert len(given.partition(";")[0]) < 200


async def test_responses_have_cache_headers(world: World) -> None:
    async with shop_of(world) as shop:
        written, read, without = await shop.place("tea"), await shop.http.get("/items"), await shop.http.get("/nothing")
        assert (written.headers["cache-control"], written.headers["vary"]) == ("private", "Cookie")
        assert (read.headers.get("cache-control"), read.headers["vary"]) == (None, "Cookie, X-Tenant")
        # Nothing was read for it: the tenant alone makes a difference.
        assert without.headers["vary"] == "X-Tenant"


def sign(lsn: int, *, secret: str = SECRET, tenant: str = "acme", datasource: str = "orders", age_s: int = 0) -> str:
    position = Position(1, lsn)
    mark = Mark(scope_of(tenant, datasource), position, int(time.time()) - age_s)
    return TokenSigner([secret], ttl_s=30).sign(Token((mark,)))


FAR = 2**50
"""A position that no server has: reads with it go to the primary."""


async def test_only_valid_tokens_for_this_tenant_and_datasource_count(world: World) -> None:
    async with shop_of(world) as shop:

        async def reason(token: str) -> str:
            return (await shop.read(Cookie=f"ads_token={token}"))[2]

        assert await reason(sign(FAR)) == "behind"
        assert await reason(sign(1)) == "proved"
        for token in (
            sign(FAR, secret="the secret of another client"),
            sign(FAR)[:20] + ("A" if sign(FAR)[20] != "A" else "B") + sign(FAR)[21:],
            sign(FAR, tenant="globex"),
            sign(FAR, datasource="billing"),
            sign(FAR, age_s=31),
            "junk",
            "",
        ):
            assert await reason(token) == "balanced", token


async def test_tokens_stay_valid_while_the_secret_is_rotated(world: World) -> None:
    async with shop_of(world) as shop, paused(*world.cluster.replicas.values()):
        await shop.place("tea")
        config = world.config(
            consistency={"token": "cookie", "secret": "a new secret, longer than 16", "old_secrets": [SECRET]}
        )
        config["datasources"]["orders"]["routing"] = {"check_interval": "50ms"}
        await shop.registry.reload(config)
        assert await shop.read() == (["tea"], "primary", "behind")


async def test_api_clients_use_a_header_and_workers_pass_the_token(world: World) -> None:
    async with shop_of(world, token="header") as shop, paused(*world.cluster.replicas.values()):
        token = (await shop.place("tea")).headers["x-datasource-token"]
        assert (await shop.read())[::2] == ([], "balanced")
        assert await shop.read(**{"X-Datasource-Token": token}) == (["tea"], "primary", "behind")
        assert (await shop.read(**{"X-Datasource-Token": f"{sign(1)}, {token}"}))[2] == "behind"
        async with shop.registry.session(tenant="acme", token=token) as db:
            assert await db.read.fetch_value("select count(*) from orders") == 1
            await db.execute("insert into orders (item) values ('milk')")
        async with shop.registry.session(tenant="acme", token=db.token) as later:
            assert await later.read.fetch_value("select count(*) from orders") == 2
        async with shop.registry.session(tenant="acme") as other:
            assert await other.read.fetch_value("select count(*) from orders") == 0


async def test_monotonic_reads_never_show_an_older_state(world: World) -> None:
    r1 = world.cluster.replicas["r1"]
    async with shop_of(world, monotonic=True, wait="20ms") as shop:
        await shop.read()
        async with paused(r1):
            async with shop.registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values ('of another client')")
            await until(lambda: seen_by(world, "r2", 1))
            shop.orders.drain("r1")
            assert (await shop.read())[:2] == (["of another client"], "r2")
            shop.orders.undrain("r1")
            shop.orders.drain("r2")
            found, node, reason = await shop.read()
            assert (found, node, reason) == (["of another client"], "primary", "behind")
            shop.http.cookies.clear()
            assert (await shop.read())[:2] == ([], "r1")


async def test_until_a_synchronous_standby_answers_only_standbys_show_a_commit(world: World) -> None:
    """The limit of monotonic reads that docs/consistency.md names."""
    primary = world.cluster.primary
    async with shop_of(world, monotonic=True, wait="20ms") as shop:
        await primary.configure(synchronous_standby_names="absent")
        try:
            writing = asyncio.create_task(world.sql("insert into orders (item) values ('tea')", schema="acme"))
            await until(lambda: seen_by(world, "r1", 1))
            assert (await shop.read())[0] == ["tea"]
            for name in ("r1", "r2"):
                shop.orders.drain(name)
            assert (await shop.read())[:2] == ([], "primary")
            assert not writing.done()
        finally:
            await primary.configure(synchronous_standby_names=None)
        await writing
        assert (await shop.read())[:2] == (["tea"], "primary")


async def test_monotonic_reads_include_a_commit_that_a_standby_shows_before_it_reports_its_position(
    world: World,
) -> None:
    """A standby advances its replay position after a commit has become visible: the next record may have been seen."""
    r1, r2 = world.cluster.replicas.values()
    async with shop_of(world, monotonic=True, wait="20ms") as shop:
        await world.cluster.caught_up()
        async with paused_together(r1, r2):
            await write_as_another_client(world)
            # Both have received the commit and report the same position. Which of them shows it is unknown.
            await until(lambda: has_received_more(r1) and has_received_more(r2))
            shop.orders.drain("r2")
            assert (await shop.read())[1] == "r1"
            shop.orders.undrain("r2")
            shop.orders.drain("r1")
            assert (await shop.read())[:2] == (["of another client"], "primary")
        # Without anything left to replay, the position is exact, and the other replica answers too, unless a record of
        # the server itself comes in between.
        await world.cluster.caught_up()

        async def both_answer() -> bool:
            shop.http.cookies.clear()
            nodes = []
            for name, other in (("r2", "r1"), ("r1", "r2")):
                shop.orders.undrain(name)
                shop.orders.drain(other)
                found, node, _ = await shop.read()
                assert found == ["of another client"]
                nodes.append(node)
            return nodes == ["r2", "r1"]

        await until(both_answer)


@asynccontextmanager
async def paused_together(*nodes: Node) -> AsyncIterator[None]:
    """Pause the replay of several replicas at the same position: no record came between the pauses."""
    while True:
        async with paused(*nodes):
            if len({await position_of(node) for node in nodes}) == 1:
                yield
                return


async def position_of(node: Node) -> str:
    return str(await node.value("select pg_last_wal_replay_lsn()"))


def has_received_more(node: Node) -> bool:
    return bool(node.blocking.value("select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"))


@asynccontextmanager
async def stepping(shop: Shop, method: str, path: str) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A started request; it resumes at the end of the block."""
    running = asyncio.create_task(shop.http.request(method, path))
    await asyncio.wait_for(shop.steps.has_begun.wait(), 20)
    yield running
    shop.steps.may_go_on.set()
    await running


async def write_as_another_client(world: World, item: str = "of another client") -> None:
    async with world.registry(replicas=()) as registry, registry.session(tenant="acme") as db:
        await db.execute("insert into orders (item) values (%s)", [item])


@pytest.mark.parametrize("path", ["/peek", "/peek?lent=yes"])
async def test_monotonic_reads_include_what_a_rolled_back_transaction_has_read(world: World, path: str) -> None:
    async with shop_of(world, monotonic=True, wait="20ms") as shop:
        async with stepping(shop, "POST", path) as peeking:
            # The replicas have the state at the start of the transaction, but not what it reads later. Uncommitted
            # changes
            # reach them together with committed ones.
            await write_as_another_client(world, "before")
            await world.cluster.caught_up()
            await shop.knows()
            for node in world.cluster.replicas.values():
                await node.pause_replay()
            await write_as_another_client(world)
        try:
            seen = ["before", "of another client"]
            assert (peeking.result().status_code, peeking.result().json()["found"]) == (409, seen)
            assert (await shop.read())[:2] == (seen, "primary")
        finally:
            for node in world.cluster.replicas.values():
                await node.resume_replay()


async def test_monotonic_reads_include_each_statement_of_a_read_only_transaction(world: World) -> None:
    r2 = world.cluster.replicas["r2"]
    async with shop_of(world, monotonic=True, wait="20ms") as shop:
        shop.orders.drain("r2")
        async with paused(r2):
            async with stepping(shop, "GET", "/watch") as watching:
                await write_as_another_client(world)
                await until(lambda: seen_by(world, "r1", 1))
            assert watching.result().json()["found"] == ["of another client"]
            shop.orders.undrain("r2")
            shop.orders.drain("r1")
            assert (await shop.read())[:2] == (["of another client"], "primary")


async def test_monotonic_reads_include_a_body_streamed_after_the_response_start(world: World) -> None:
    r2 = world.cluster.replicas["r2"]
    async with shop_of(world, monotonic=True, wait="20ms") as shop, paused(r2):
        await write_as_another_client(world)
        await until(lambda: seen_by(world, "r1", 1))
        shop.orders.drain("r2")
        exported = await shop.http.get("/export")
        assert (exported.text, "set-cookie" in exported.headers) == ("of another client\n", True)
        shop.orders.undrain("r2")
        shop.orders.drain("r1")
        assert (await shop.read())[:2] == (["of another client"], "primary")


async def test_a_stream_without_an_available_server_is_refused_before_the_response_starts(world: World) -> None:
    port, reservation = reserve_port()
    with reservation:
        url = f"postgresql://app@127.0.0.1:{port}/{world.dbname}"
        config = world.config(
            urls=dict.fromkeys(("primary", "r1", "r2"), url) | {"r1": url + "1", "r2": url + "2"},
            consistency={"token": "cookie", "secret": SECRET, "monotonic": True},
            routes=[{"match": "/export", "read_only": True, "stream": True}],
        )
        async with client(world, ROUTES, registry=compile(config)) as http:
            refused = await http.get("/export")
    assert (refused.status_code, refused.json()["kind"]) == (503, "connection")


async def test_with_monotonic_reads_a_lagging_replica_serves_the_clients_that_read_from_it(world: World) -> None:
    r1 = world.cluster.replicas["r1"]
    async with shop_of(world, monotonic=True, wait="1ms") as shop:
        shop.orders.drain("r2")
        async with paused(r1):
            await write_as_another_client(world)
            await shop.knows(r1=False)
            # From here on, the last poll says that it lags.
            shop.orders._monitor.stop()
        await until(lambda: seen_by(world, "r1", 1))
        for _ in range(3):
            assert (await shop.read("/twice"))[:2] == (["of another client"], "r1")


async def test_cookie_and_header_together(world: World) -> None:
    async with shop_of(world, token="both") as shop, paused(*world.cluster.replicas.values()):
        written = await shop.place("tea")
        assert written.headers["set-cookie"].startswith(f"ads_token={written.headers['x-datasource-token']};")
        assert written.headers["vary"] == "Cookie, X-Datasource-Token"
        assert (await shop.read())[1] == "primary"
        shop.http.cookies.clear()
        assert (await shop.read(**{"X-Datasource-Token": written.headers["x-datasource-token"]}))[1] == "primary"


async def test_a_client_of_several_services_keeps_the_marks_of_each(world: World) -> None:
    async with shop_of(world) as shop, paused(*world.cluster.replicas.values()):
        other = world.config(consistency={"token": "cookie", "secret": SECRET})
        other["datasources"]["billing"] = other["datasources"].pop("orders")
        for tenant in other["tenants"].values():
            tenant["datasource"] = "billing"
        async with client(world, ROUTES, registry=compile(other)) as billing:
            await shop.place("tea")
            # The other service keeps foreign marks and adds its own.
            headers = {"Cookie": f"ads_token={shop.http.cookies['ads_token']}"}
            given = await billing.post("/place", params={"item": "milk"}, headers=headers)
        token = given.cookies["ads_token"]
        assert len(token) < 200
        marks = TokenSigner([SECRET], ttl_s=30).read([token], now=time.time()).marks
        assert {mark.scope for mark in marks} == {scope_of("acme", "orders"), scope_of("acme", "billing")}
        assert (await shop.read(Cookie=f"ads_token={token}"))[::2] == (["tea", "milk"], "behind")


async def test_reads_before_the_first_poll_do_not_exclude_replicas(world: World) -> None:
    async with shop_of(world, monotonic=True) as shop:
        shop.orders._monitor.stop()
        for name in ("r1", "r2"):
            shop.orders._monitor.forget(name)
        shop.orders._refresh_topology()
        assert (await shop.read())[1] in ("r1", "r2")
        shop.orders._monitor.start()
        await shop.knows()
        assert (await shop.read())[2] == "proved"


async def seen_by(world: World, node: str, count: int) -> bool:
    return (await world.sql("select count(*) from acme.orders", node=node))[0][0] == count


async def test_without_tokens_there_is_no_cookie_and_no_vary_header(world: World) -> None:
    async with client(world, ROUTES) as http:
        response = await http.post("/place", params={"item": "tea"})
        assert "set-cookie" not in response.headers
        assert "vary" not in response.headers
