"""COMMIT whose connection is lost: the response states the true outcome, or that it is unknown."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, session
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from asgi_datasource.transaction.commit_outcome import Fate, find_fate
from tests.apps import client
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of, proxy_of, through
from tests.world import World


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(1) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[FaultProxy]:
    async with proxy_of(world.cluster.primary) as running:
        yield running


async def place(request: Request) -> Response:
    item = request.path_params["item"]
    await session(request).execute("insert into orders (item) values (%s)", [item])
    return JSONResponse({"placed": item}, status_code=201)


ENDLESS_COMMIT = (
    "create or replace function wait_at_commit() returns trigger language plpgsql"
    " as 'begin perform pg_sleep(60); return null; end'"
)
"""Makes a COMMIT with a row in `slow` last until it is stopped."""


async def place_slowly(request: Request) -> Response:
    await session(request).execute("insert into slow values (1)")
    return await place(request)


async def place_midway(request: Request) -> Response:
    db = session(request)
    await db.execute("insert into orders (item) values (%s)", [request.path_params["item"]])
    await db.commit()
    await asyncio.Event().wait()
    raise AssertionError("the deadline did not end this request")


async def place_by_psycopg(request: Request) -> Response:
    """Statements on a borrowed connection bypass the session: it cannot see that they write."""
    async with session(request).connection() as connection:
        await connection.execute("insert into orders (item) values (%s)", [request.path_params["item"]])
    return JSONResponse({}, status_code=201)


async def place_before_an_undone_part(request: Request) -> Response:
    """A write fails inside a savepoint; then a write succeeds on the borrowed connection."""
    db = session(request)
    with pytest.raises(DataError):
        async with db.transaction():
            await db.execute("insert into orders (item) values ('forbidden')")
    return await place_by_psycopg(request)


async def bear(request: Request) -> Response:
    """The foreign key is checked at COMMIT."""
    db = session(request)
    await db.execute("insert into children (parent) values (%s)", [request.path_params["parent"]])
    return JSONResponse({}, status_code=201)


async def look(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_one("select count(*) from orders"))


ROUTES = [
    Route("/children/{parent:int}", bear, methods=["POST"]),
    Route("/look", look, methods=["POST"]),
    Route("/orders/{item}", place, methods=["POST"]),
    Route("/midway/{item}", place_midway, methods=["POST"]),
    Route("/slow/{item}", place_slowly, methods=["POST"]),
    Route("/psycopg/{item}", place_by_psycopg, methods=["POST"]),
    Route("/savepoint/{item}", place_before_an_undone_part, methods=["POST"]),
]


@dataclass
class Shop:
    """The application over HTTP, with a proxy in front of its database."""

    world: World
    http: httpx.AsyncClient
    proxy: FaultProxy

    async def post_and(self, path: str, fault: Callable[[], Awaitable[None]]) -> httpx.Response:
        """Send a request and inject a fault."""
        async with asyncio.TaskGroup() as group:
            posting = group.create_task(self.http.post(path))
            await fault()
        return posting.result()

    async def is_placed(self, item: str) -> bool:
        """Whether the row exists, once no backend is active that could still change it."""

        async def is_quiet() -> bool:
            return all(state == "idle" for _, state in await self.world.backends())

        await until(is_quiet)
        return item in await self.world.items()

    async def committing(self) -> int:
        """Wait until a backend runs COMMIT; return its pid."""
        found: list[int] = []

        async def is_there() -> bool:
            rows = await self.world.sql(
                "select pid from pg_stat_activity"
                " where usename = 'app' and state = 'active' and query ilike 'commit' and wait_event is not null"
            )
            found.extend(row[0] for row in rows)
            return bool(found)

        await until(is_there)
        return found[0]


@asynccontextmanager
async def open_shop(
    world: World, proxy: FaultProxy, *, url: str | None = None, more: Sequence[Route] = (), **config: Any
) -> AsyncIterator[Shop]:
    registry = world.registry(
        replicas=(), urls={"primary": url or through(proxy, world.url())}, **{"pool": {"max_size": 2}, **config}
    )
    async with client(world, [*ROUTES, *more], registry=registry) as http:
        yield Shop(world, http, proxy)


def assert_not_done(response: httpx.Response, *, status: int = 503, kind: str = "connection") -> None:
    assert (response.status_code, response.json()["kind"]) == (status, kind)
    assert ("retry-after" in response.headers) is (status == 503)


def assert_unknown(response: httpx.Response) -> None:
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:asgi-datasource:problem:commit-unknown"
    assert problem["retryable"] is False


pools = pytest.mark.parametrize("max_size", [1, 5])


@pools
async def test_a_commit_lost_on_its_way_to_the_server_is_answered_as_rolled_back(
    world: World, proxy: FaultProxy, max_size: int
) -> None:
    async with open_shop(world, proxy, pool={"max_size": max_size}) as shop:

        async def lose_it() -> None:
            proxy.hold(at=b"commit")
            await proxy.until_held()
            proxy.cut(only_held=True)

        assert_not_done(await shop.post_and("/orders/tea", lose_it))
        assert not await shop.is_placed("tea")
        assert (await shop.http.post("/orders/tea")).status_code == 201
        assert await shop.is_placed("tea")


@pools
async def test_a_commit_whose_answer_is_lost_is_answered_as_committed(
    world: World, proxy: FaultProxy, max_size: int
) -> None:
    async with open_shop(world, proxy, pool={"max_size": max_size}) as shop:

        async def lose_the_answer() -> None:
            proxy.hold_back(at=b"commit")
            await proxy.until_held()
            proxy.cut(only_held=True)

        response = await shop.post_and("/orders/tea", lose_the_answer)
        assert response.status_code == 201
        assert await shop.is_placed("tea")


@pools
async def test_a_commit_still_running_after_its_connection_was_cut_is_awaited(
    world: World, proxy: FaultProxy, max_size: int
) -> None:
    async with open_shop(world, proxy, pool={"max_size": max_size}) as shop:

        async def cut_it() -> None:
            await shop.committing()
            proxy.cut()

        response = await shop.post_and("/slow/tea", cut_it)
        assert response.status_code == 201
        assert await shop.is_placed("tea")


async def test_a_commit_that_hangs_after_its_connection_was_cut_is_terminated(world: World, proxy: FaultProxy) -> None:
    await world.sql(ENDLESS_COMMIT)
    async with open_shop(world, proxy) as shop:

        async def cut_it() -> None:
            await shop.committing()
            proxy.cut()

        assert_not_done(await shop.post_and("/slow/tea", cut_it))
        assert not await shop.is_placed("tea")


async def test_a_backend_terminated_inside_commit_has_committed_nothing(world: World, proxy: FaultProxy) -> None:
    async with open_shop(world, proxy) as shop:

        async def terminate_it() -> None:
            await world.sql(f"select pg_terminate_backend({await shop.committing()}, 5000)")

        assert_not_done(await shop.post_and("/slow/tea", terminate_it))
        assert not await shop.is_placed("tea")


async def test_a_server_crash_inside_commit_has_committed_nothing(world: World, proxy: FaultProxy) -> None:
    async with open_shop(world, proxy) as shop:

        async def crash() -> None:
            os.kill(await shop.committing(), signal.SIGKILL)

        assert_not_done(await shop.post_and("/slow/tea", crash))
        assert not await shop.is_placed("tea")


async def reassign_transaction_id(url: str, xid: int) -> None:
    """Commit unrelated transactions until this transaction id is assigned again."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, options="-c search_path=acme") as other:
        given = 0
        while given < xid:
            row = await (
                await other.execute(
                    "insert into orders (item) values (gen_random_uuid()) returning pg_current_xact_id()::text"
                )
            ).fetchone()
            assert row is not None
            given = int(row[0])
        row = await (await other.execute("select pg_xact_status(%s::text::xid8)", [str(xid)])).fetchone()
        assert row == ("committed",)
        assert given == xid, "the id was not reassigned: this test checks nothing"


@pytest.fixture
async def slow_wal_writer(world: World) -> AsyncIterator[None]:
    """Delay WAL writes, so that a crash loses the transaction ids that were assigned."""
    await world.cluster.primary.configure(wal_writer_delay="10s")
    yield
    await world.cluster.primary.configure(wal_writer_delay=None)


async def open_xid(world: World) -> int:
    """The id of the application's only open transaction."""
    rows = await world.sql("select backend_xid from pg_stat_activity where usename = 'app' and backend_xid is not null")
    assert len(rows) == 1
    return int(rows[0][0])


@pytest.mark.usefixtures("slow_wal_writer")
async def test_a_transaction_id_reassigned_after_a_crash_is_not_mistaken_for_ours(
    world: World, proxy: FaultProxy
) -> None:
    async with open_shop(world, proxy) as shop:

        async def crash_and_go_on_without_it() -> None:
            proxy.hold(at=b"commit")
            await proxy.until_held()
            xid = await open_xid(world)
            # The client sees no failure until another transaction has the id.
            proxy.freeze()
            await world.cluster.primary.kill()
            await world.cluster.primary.start()
            await reassign_transaction_id(world.url(), xid)
            proxy.cut()
            proxy.release()

        assert_unknown(await shop.post_and("/orders/tea", crash_and_go_on_without_it))
        assert not await shop.is_placed("tea")


@pytest.mark.usefixtures("slow_wal_writer")
async def test_a_transaction_id_lost_in_a_crash_and_not_reassigned_means_rolled_back(
    world: World, proxy: FaultProxy
) -> None:
    async with open_shop(world, proxy) as shop:

        async def crash() -> None:
            proxy.hold(at=b"commit")
            await proxy.until_held()
            await world.cluster.primary.kill()
            await world.cluster.primary.start()

        assert_not_done(await shop.post_and("/orders/tea", crash))
        assert not await shop.is_placed("tea")


async def test_a_transaction_id_reassigned_on_a_promoted_standby_is_not_mistaken_for_ours() -> None:
    # A separate cluster: both servers come from one cold copy, so their statistics are identical, too.
    with cluster_of(1) as servers:
        primary, standby = servers.primary, servers.replicas["r1"]
        async with breakable_world(servers) as world, proxy_of(primary) as proxy:
            either = make_conninfo(
                world.url(),
                host="127.0.0.1,127.0.0.1",
                port=f"{proxy.port},{standby.port}",
                target_session_attrs="read-write",
            )
            async with open_shop(world, proxy, url=either) as shop:

                async def fail_over() -> None:
                    proxy.hold(at=b"commit")
                    await proxy.until_held()
                    xid = await open_xid(world)
                    proxy.freeze()
                    await primary.kill()
                    await standby.promote()
                    await reassign_transaction_id(world.url("r1"), xid)
                    proxy.cut()
                    proxy.release()

                assert_unknown(await shop.post_and("/orders/tea", fail_over))
                assert await world.sql("select item from acme.orders where item = 'tea'", node="r1") == []
                assert (await shop.http.post("/orders/coffee")).status_code == 201, "writes go to the new primary"


async def test_an_unknown_outcome_is_reported_as_unknown_and_runs_no_hook(world: World, proxy: FaultProxy) -> None:
    ran: list[str] = []

    async def place_with_hooks(request: Request) -> Response:
        db = session(request)
        db.after_commit(lambda: ran.append("committed"))
        db.after_rollback(lambda: ran.append("rolled back"))
        return await place(request)

    async with open_shop(world, proxy, more=[Route("/hooks/{item}", place_with_hooks, methods=["POST"])]) as shop:

        async def lose_the_server() -> None:
            proxy.hold_back(at=b"commit")
            await proxy.until_held()
            await world.cluster.primary.kill()
            proxy.cut()

        assert_unknown(await shop.post_and("/hooks/tea", lose_the_server))
        await world.cluster.primary.start()
        assert await shop.is_placed("tea"), "it was committed, so rolled back would be false"
    assert ran == []


@pytest.mark.parametrize("path", ["/psycopg/tea", "/savepoint/tea"])
async def test_the_transaction_id_is_known_before_commit_even_if_no_statement_returned_it(
    world: World, proxy: FaultProxy, path: str
) -> None:
    async with open_shop(world, proxy) as shop:

        async def lose_the_answer() -> None:
            proxy.hold_back(at=b"commit")
            await proxy.until_held()
            proxy.cut(only_held=True)

        assert (await shop.post_and(path, lose_the_answer)).status_code == 201
        assert await shop.is_placed("tea")


class TestWaitingForASynchronousStandby:
    """COMMIT is durable on the primary and waits for an absent standby: the only true answer is committed."""

    @pytest.fixture
    async def world(self, cluster: EmbeddedCluster) -> AsyncIterator[World]:
        async with breakable_world(cluster) as world:
            await cluster.primary.configure(synchronous_standby_names="nobody")
            try:
                yield world
            finally:
                await cluster.primary.configure(synchronous_standby_names=None)

    async def test_a_deadline_ends_the_wait_and_the_commit_stands(self, world: World, proxy: FaultProxy) -> None:
        async with open_shop(world, proxy, transactions={"deadline": "500ms"}) as shop:
            assert (await shop.http.post("/orders/tea")).status_code == 201
            assert await shop.is_placed("tea")

    async def test_a_lost_connection_during_the_wait_does_not_undo_the_commit(
        self, world: World, proxy: FaultProxy
    ) -> None:
        async with open_shop(world, proxy) as shop:

            async def cut_it() -> None:
                await shop.committing()
                proxy.cut()

            assert (await shop.post_and("/orders/tea", cut_it)).status_code == 201
            assert await shop.is_placed("tea")


async def test_a_deadline_inside_commit_cancels_it_and_nothing_is_committed(world: World, proxy: FaultProxy) -> None:
    await world.sql(ENDLESS_COMMIT)
    async with open_shop(world, proxy, transactions={"deadline": "300ms"}) as shop:
        assert_not_done(await shop.http.post("/slow/tea"), status=504, kind="timeout")
        assert not await shop.is_placed("tea")


async def test_a_deadline_during_commit_is_answered_with_the_true_outcome(world: World, proxy: FaultProxy) -> None:
    async with open_shop(world, proxy, transactions={"deadline": "500ms"}) as shop:
        proxy.hold(at=b"commit")
        assert_not_done(await shop.http.post("/orders/tea"), status=504, kind="timeout")
        assert not await shop.is_placed("tea")
        proxy.release()
        proxy.hold_back(at=b"commit")
        assert (await shop.http.post("/orders/coffee")).status_code == 201, (
            "the response is late and states the true outcome"
        )
        assert await shop.is_placed("coffee")


async def test_a_deadline_during_commit_inside_the_request_is_answered_with_the_true_outcome(
    world: World, proxy: FaultProxy
) -> None:
    """The deadline cancels the request during `db.commit()`; the response still waits for that COMMIT."""
    async with open_shop(world, proxy, transactions={"deadline": "500ms"}) as shop:
        proxy.hold(at=b"commit")
        lost = await shop.http.post("/midway/tea")
        assert_not_done(lost, status=504, kind="timeout")
        assert lost.json()["title"].endswith("nothing was changed")
        assert not await shop.is_placed("tea")
        proxy.release()
        proxy.hold_back(at=b"commit")
        done = await shop.http.post("/midway/coffee")
        assert_not_done(done, status=504, kind="timeout")
        assert done.json()["title"].endswith("what it had committed before stays")
        assert done.json()["retryable"] is False
        assert await shop.is_placed("coffee")


async def test_the_outcome_is_resolved_although_a_request_queues_for_the_only_connection(
    world: World, proxy: FaultProxy
) -> None:
    has_come = asyncio.Event()

    async def wait_long(request: Request) -> Response:
        has_come.set()
        await session(request).execute("select pg_advisory_lock_shared(1)")
        return Response(status_code=204)

    long = Route("/long", wait_long)
    async with (
        open_shop(world, proxy, pool={"max_size": 1, "acquire_timeout": "20s"}, more=[long]) as shop,
        await psycopg.AsyncConnection.connect(world.url(), autocommit=True) as holder,
    ):
        await holder.execute("select pg_advisory_lock(1)")
        others: list[asyncio.Task[httpx.Response]] = []

        async def lose_the_answer_while_another_waits() -> None:
            proxy.hold_back(at=b"commit")
            await proxy.until_held()
            others.append(asyncio.create_task(shop.http.get("/long")))
            await has_come.wait()
            proxy.cut(only_held=True)

        response = await shop.post_and("/orders/tea", lose_the_answer_while_another_waits)
        assert response.status_code == 201
        assert not others[0].done(), "the other request never queued: this test checks nothing"
        await holder.execute("select pg_advisory_unlock(1)")
        assert (await others[0]).status_code == 204
        # The connection that the outcome was looked up on.
        await until(lambda: has_no_checks(world))


async def has_no_checks(world: World) -> bool:
    query = "select 1 from pg_stat_activity where datname = current_database() and application_name like '%check'"
    return not await world.sql(query)


async def test_what_a_server_of_an_older_timeline_says_does_not_count(world: World) -> None:
    async with world.registry(replicas=()) as registry:
        primary = registry.datasources["orders"].servers["primary"]
        async with registry.session("acme") as db:
            await db.execute("insert into orders (item) values ('tea')")
            assert db.current_transaction is not None
            identity = db.current_transaction.identity
            await db.rollback()
        assert identity is not None
        assert await find_fate(primary, identity, timeout_s=5) is Fate.ABORTED
        # Through a pooler, a transaction may have been on a server that the library has not met.
        newer = replace(identity, incarnation=f"{primary.timeline + 1:08X}{str(identity.incarnation)[8:]}")
        assert await find_fate(primary, newer, timeout_s=0.2) is Fate.UNKNOWN


@pytest.mark.parametrize("how", ["terminated", "killed", "cut"])
async def test_a_connection_lost_before_commit_is_sent_means_rolled_back(
    world: World, proxy: FaultProxy, how: str
) -> None:
    async def place_and_lose(request: Request) -> Response:
        response = await place(request)
        async with session(request).connection() as connection:
            pass
        if how == "terminated":
            await world.cluster.primary.terminate_backends(world.dbname)
        elif how == "killed":
            await world.cluster.primary.kill()
        else:
            proxy.cut()
        await until(lambda: connection.closed)
        return response

    route = Route("/lose/{item}", place_and_lose, methods=["POST"])
    async with open_shop(world, proxy, more=[route]) as shop:
        assert_not_done(await shop.http.post("/lose/tea"))
        if how == "killed":
            # No server could be queried, and none had to be.
            await world.cluster.primary.start()
        assert not await shop.is_placed("tea")


async def test_a_lost_commit_of_a_transaction_without_writes_succeeds(world: World, proxy: FaultProxy) -> None:
    async with open_shop(world, proxy) as shop:

        async def lose_the_answer() -> None:
            proxy.hold_back(at=b"commit")
            await proxy.until_held()
            proxy.cut(only_held=True)

        assert (await shop.post_and("/look", lose_the_answer)).status_code == 200


async def test_failed_commits_do_not_break_later_commits(world: World, proxy: FaultProxy) -> None:
    await world.sql("insert into parents values (1)")
    async with open_shop(world, proxy, pool={"max_size": 1}) as shop:
        # Statements pipelined after a failed COMMIT are skipped. If they counted as prepared, they would fail from then
        # on with SQLSTATE 26000.
        for _ in range(8):
            assert (await shop.http.post("/children/404")).status_code == 409
        for _ in range(8):
            assert (await shop.http.post("/children/1")).status_code == 201
        for parent in (404, 1, 404, 1):
            assert (await shop.http.post(f"/children/{parent}")).status_code == (409 if parent == 404 else 201)
    assert await world.sql("select count(*) from children") == [(10,)]
