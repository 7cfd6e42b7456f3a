"""Cost of a request in round trips, counted by a proxy: exact on any machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import session, transactional
from asgi_datasource.testing import FaultProxy
from tests.apps import client
from tests.drivers.polling import until
from tests.faults.servers import proxy_of, through
from tests.pools import until_at_rest
from tests.world import World

TENANTS = ["acme", "initech"]
"""One tenant by schema, one by row security."""

REPEATS = 4
"""Statements are prepared on their second execution: covers the first request, the preparing one, and later ones."""


async def no_sql(request: Request) -> Response:
    return JSONResponse({"tenant": session(request).tenant.name})


async def read(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_all("select item from orders where id > %s", [0]))


async def read_three_times(request: Request) -> Response:
    for _ in range(3):
        await session(request).fetch_value("select count(*) from orders")
    return Response()


async def write(request: Request) -> Response:
    db = session(request)
    row = await db.fetch_one("insert into orders (item) values (gen_random_uuid()) returning id")
    return JSONResponse(row, status_code=201)


async def write_and_fail(request: Request) -> Response:
    await write(request)
    raise HTTPException(409)


async def write_many(request: Request) -> Response:
    db = session(request)
    for _ in range(request.path_params["count"]):
        await db.execute("insert into orders (item) values (gen_random_uuid())")
    return Response(status_code=201)


async def write_and_read(request: Request) -> Response:
    """A read with read intent inside a read-write transaction is READ ONLY at no extra cost."""
    await write(request)
    await session(request).read.fetch_all("select item from orders")
    return Response(status_code=201)


async def write_in_blocks(request: Request) -> Response:
    """SAVEPOINT and RELEASE travel with the statements."""
    db = session(request)
    async with db.transaction():
        await db.execute("insert into orders (item) values (gen_random_uuid())")
        async with db.transaction():
            await db.execute("insert into orders (item) values (gen_random_uuid())")
    async with db.transaction():
        pass
    return Response(status_code=201)


async def write_at_once(request: Request) -> Response:
    numbers = [[number] for number in range(50)]
    await session(request).executemany("insert into orders (item) values (gen_random_uuid() || ' ' || %s)", numbers)
    return Response(status_code=201)


async def write_two_transactions(request: Request) -> Response:
    db = session(request)
    await write(request)
    await db.commit()
    await write(request)
    return Response(status_code=201)


@transactional(read_only=True)
async def snapshot(request: Request) -> Response:
    for _ in range(3):
        await session(request).fetch_value("select count(*) from orders")
    return Response()


ROUTES = [
    Route("/no-sql", no_sql),
    Route("/read", read),
    Route("/read-three-times", read_three_times),
    Route("/snapshot", snapshot),
    Route("/write", write, methods=["POST"]),
    Route("/write-and-fail", write_and_fail, methods=["POST"]),
    Route("/write-many/{count:int}", write_many, methods=["POST"]),
    Route("/write-and-read", write_and_read, methods=["POST"]),
    Route("/write-in-blocks", write_in_blocks, methods=["POST"]),
    Route("/write-at-once", write_at_once, methods=["POST"]),
    Route("/write-two-transactions", write_two_transactions, methods=["POST"]),
]


@dataclass
class Meter:
    """The application over HTTP, with a proxy in front of each server."""

    http: httpx.AsyncClient
    proxies: dict[str, FaultProxy] = field(default_factory=dict)

    async def costs(
        self, method: str, path: str, *, status: int = 200, tenants: list[str] = TENANTS
    ) -> list[dict[str, int]]:
        """The round trips of one request by server, for each tenant, several times."""
        counted: list[dict[str, int]] = []
        for tenant in tenants * REPEATS:
            for proxy in self.proxies.values():
                proxy.reset_counters()
            response = await self.http.request(method, path, headers={"X-Tenant": tenant})
            assert response.status_code == status, response.text
            counted.append({name: proxy.round_trips for name, proxy in self.proxies.items() if proxy.round_trips})
        return counted


def always(cost: dict[str, int]) -> list[dict[str, int]]:
    """The expected cost, the same every time."""
    return [cost] * len(TENANTS) * REPEATS


def on_one_replica(counted: list[dict[str, int]], round_trips: int) -> bool:
    return all(cost in ({"r1": round_trips}, {"r2": round_trips}) for cost in counted)


@asynccontextmanager
async def open_meter(world: World, routes: Sequence[Route] = ROUTES, **config: Any) -> AsyncIterator[Meter]:
    async with AsyncExitStack() as stack:
        proxies = {
            name: await stack.enter_async_context(proxy_of(world.cluster.nodes[name]))
            for name in ("primary", "r1", "r2")
        }
        urls = {name: through(proxy, world.url(name)) for name, proxy in proxies.items()}
        # Polls of the replica monitor are not part of any request.
        routing = {"check_interval": "1h"}
        registry = world.registry(urls=urls, pool={"max_size": 1}, routing=routing, **config)
        http = await stack.enter_async_context(client(world, routes, registry=registry))
        # The pools connect in the background, and query each new connection once for the server's limits.
        await until(lambda: all(proxy.round_trips for proxy in proxies.values()))
        await until_at_rest(registry)
        yield Meter(http, proxies)


@pytest.fixture
async def meter(world: World) -> AsyncIterator[Meter]:
    async with open_meter(world) as made:
        yield made


class TestRoundTrips:
    """Tenant, READ ONLY, deadline, transaction id and WAL position are included."""

    async def test_request_without_sql_costs_none(self, meter: Meter) -> None:
        assert await meter.costs("GET", "/no-sql") == always({})

    async def test_read_costs_one_on_a_replica(self, meter: Meter) -> None:
        assert on_one_replica(await meter.costs("GET", "/read"), 1)

    async def test_three_reads_cost_three_on_one_replica(self, meter: Meter) -> None:
        assert on_one_replica(await meter.costs("GET", "/read-three-times"), 3)

    async def test_snapshot_of_three_reads_costs_four(self, meter: Meter) -> None:
        assert on_one_replica(await meter.costs("GET", "/snapshot"), 4)

    async def test_write_costs_two(self, meter: Meter) -> None:
        assert await meter.costs("POST", "/write", status=201) == always({"primary": 2})

    async def test_write_with_rollback_costs_two(self, meter: Meter) -> None:
        assert await meter.costs("POST", "/write-and-fail", status=409) == always({"primary": 2})

    async def test_transaction_of_n_statements_costs_n_plus_one(self, meter: Meter) -> None:
        for count in (2, 3, 7):
            assert await meter.costs("POST", f"/write-many/{count}", status=201) == always({"primary": count + 1})

    async def test_read_inside_the_transaction_costs_one(self, meter: Meter) -> None:
        assert await meter.costs("POST", "/write-and-read", status=201) == always({"primary": 3})

    async def test_savepoints_cost_none(self, meter: Meter) -> None:
        assert await meter.costs("POST", "/write-in-blocks", status=201) == always({"primary": 3})

    async def test_executemany_with_fifty_parameter_sets_costs_one(self, meter: Meter) -> None:
        assert await meter.costs("POST", "/write-at-once", status=201) == always({"primary": 2})

    async def test_two_transactions_in_one_request_cost_two_each(self, meter: Meter) -> None:
        assert await meter.costs("POST", "/write-two-transactions", status=201) == always({"primary": 4})


async def test_the_counted_round_trips_apply_tenant_deadline_xid_and_wal_position(world: World) -> None:
    seen: dict[str, Any] = {}

    async def look(request: Request) -> Response:
        db = session(request)
        row = await db.fetch_one(
            "insert into orders (item) values (gen_random_uuid()) returning tenant,"
            " current_setting('search_path') as path,"
            " current_setting('statement_timeout') as statement_limit,"
            " current_setting('transaction_timeout') as transaction_limit"
        )
        assert row is not None
        seen.update(row)
        db.after_commit(lambda: seen.update(lsn=db.pin.lsn))
        return Response(status_code=201)

    async with open_meter(world, [Route("/", look, methods=["POST"])]) as meter:
        before = await world.cluster.primary.wal_position()
        assert await meter.costs("POST", "/", status=201, tenants=["initech"]) == [{"primary": 2}] * REPEATS
    assert seen["path"] == '"shared"'
    assert seen["tenant"] == "41"
    assert seen["statement_limit"] not in ("0", "")
    assert seen["transaction_limit"] not in ("0", "")
    ahead = await world.sql(f"select '{seen['lsn']}'::pg_lsn > '{before}'::pg_lsn")
    assert ahead == [(True,)], "the WAL position of the commit"


async def test_statement_in_autocommit_costs_two(world: World) -> None:
    async with open_meter(world, transactions={"default": "annotated"}) as meter:
        assert await meter.costs("POST", "/write", status=201) == always({"primary": 2})
        assert await meter.costs("POST", "/write-many/3", status=201) == always({"primary": 6})


async def test_cost_is_the_same_without_deadline_and_tenant(world: World) -> None:
    await world.sql("create table public.orders (id bigint generated always as identity, item text)")
    await world.sql("grant all on public.orders to app")
    await world.cluster.caught_up()
    config = {
        "transactions": {"deadline": None},
        "tenancy": {"resolve": [{"header": "X-Other"}], "default": "orders"},
    }
    async with open_meter(world, **config) as meter:
        assert await meter.costs("POST", "/write", status=201) == always({"primary": 2})
        assert on_one_replica(await meter.costs("GET", "/read"), 1)
