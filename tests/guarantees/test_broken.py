"""Servers that stop and restart: reads continue, writes fail fast, and no restart of the application is needed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataSession, session
from asgi_datasource.testing import EmbeddedCluster, Node
from tests.apps import client
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of
from tests.faults.traffic import traffic
from tests.patience import now
from tests.world import World

ACQUIRE_TIMEOUT_S = 1
SLACK_S = 1.0
"""Allowance for a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(2) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


def answer(db: DataSession, status: int = 200, **body: str) -> Response:
    route = db.last_route
    assert route is not None
    return JSONResponse(body, status_code=status, headers={"X-Node": route.node})


async def read(request: Request) -> Response:
    db = session(request)
    await db.fetch_all("select item from orders")
    return answer(db)


async def read_twice(request: Request) -> Response:
    db = session(request)
    await db.fetch_all("select item from orders")
    await asyncio.sleep(0)
    await db.fetch_all("select count(*) from orders")
    return answer(db)


async def write(request: Request) -> Response:
    db = session(request)
    item = await db.fetch_value("insert into orders (item) values (gen_random_uuid()) returning item")
    return answer(db, 201, item=item)


ROUTES = [Route("/read", read), Route("/read-twice", read_twice), Route("/write", write, methods=["POST"])]


@asynccontextmanager
async def application(world: World, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    pool = {"max_size": 4, "acquire_timeout": f"{ACQUIRE_TIMEOUT_S}s", "connect_timeout": "2s"}
    async with client(world, ROUTES, registry=world.registry(**{"pool": pool, **config})) as http:
        yield http


async def end(node: Node, how: str) -> None:
    if how == "killed":
        await node.kill()
    else:
        await node.stop("fast" if how == "stopped" else "immediate")


endings = pytest.mark.parametrize("how", ["stopped", "stopped at once", "killed"])


@endings
@pytest.mark.parametrize("path", ["/read", "/read-twice"])
async def test_replica_outage_under_load_costs_no_errors_and_replica_is_used_again(
    world: World, how: str, path: str
) -> None:
    async with application(world) as http, traffic(http, path) as readers:
        await readers.reaches("r1", "r2")
        await end(world.cluster.replicas["r1"], how)
        await readers.reaches("r2")
        await world.cluster.replicas["r1"].start()
        await readers.reaches("r1", "r2")
        assert readers.failures == []


@endings
async def test_primary_answers_reads_when_all_replicas_are_down(world: World, how: str) -> None:
    async with application(world) as http, traffic(http, "/read") as readers:
        await readers.reaches("r1", "r2")
        for replica in world.cluster.replicas.values():
            await end(replica, how)
        await readers.reaches("primary")
        for replica in world.cluster.replicas.values():
            await replica.start()
        await readers.reaches("r1", "r2")
        assert readers.failures == []


@endings
async def test_reads_continue_and_writes_fail_fast_while_the_primary_is_down(
    world: World, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    primary = world.cluster.primary
    async with application(world) as http, traffic(http, "/read") as readers:
        assert (await http.post("/write")).status_code == 201
        await end(primary, how)
        for _ in range(5):
            started = now()
            response = await http.post("/write")
            took = now() - started
            assert (response.status_code, response.json()["kind"]) == (503, "connection")
            assert response.headers["retry-after"] == "1"
            assert took < ACQUIRE_TIMEOUT_S + SLACK_S
        await readers.goes_on()
        await primary.start()

        async def is_written() -> bool:
            return (await http.post("/write")).status_code == 201

        await until(is_written)
        assert readers.failures == []
    refused = [record.getMessage() for record in caplog.records if record.name == "asgi_datasource.problems"]
    assert any("onnection refused" in text for text in refused), refused


async def test_writes_under_load_fail_fast_while_the_primary_is_down(world: World) -> None:
    async with application(world) as http, traffic(http, "/write", method="POST", clients=12) as writers:
        await writers.goes_on()
        await world.cluster.primary.kill()
        started = now()
        refused = await writers.goes_on(240)
        # Twelve clients, twenty requests each: no request waits longer than acquire_timeout.
        assert now() - started < 21 * (ACQUIRE_TIMEOUT_S + SLACK_S)
        kinds = [(answer.status, json.loads(answer.body)["kind"]) for answer in refused[-120:]]
        # A COMMIT in flight, at most one per connection, has an unknown outcome while the server is down.
        in_doubt = kinds.count((500, "commit_unknown"))
        assert in_doubt <= 4
        assert kinds.count((503, "connection")) == len(kinds) - in_doubt, "the queue must not be full"
        await world.cluster.primary.start()
        start = len(writers.answers)
        await until(lambda: any(a.status == 201 for a in writers.answers[start:]))
    written = set(await world.items())
    for one in writers.answers:
        if one.status == 201:
            assert json.loads(one.body)["item"] in written
        else:
            # A COMMIT in flight when the server was killed may be unknown; every other write was rolled back.
            assert one.status == 503 or json.loads(one.body)["kind"] == "commit_unknown"
    in_doubt = [one for one in writers.answers if one.status == 500]
    acknowledged = writers.statuses[201]
    assert acknowledged <= len(written) <= acknowledged + len(in_doubt)


async def test_an_outage_is_logged_once_at_its_start_and_once_at_its_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="asgi_datasource")
    async with application(world) as http, traffic(http, "/read") as readers:
        await readers.reaches("r1", "r2")
        await world.cluster.replicas["r1"].kill()
        await readers.reaches("r2")
        await world.cluster.replicas["r1"].start()
        await readers.reaches("r1", "r2")
    logged = [record.getMessage() for record in caplog.records if record.name == "asgi_datasource.server"]
    assert [text for text in logged if " is down" in text][1:] == []
    assert [text for text in logged if " is up again" in text][1:] == []
    assert len([text for text in logged if "orders.r1" in text and (" is down" in text or " is up" in text)]) == 2
