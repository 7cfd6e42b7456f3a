"""Overload: high priority is admitted, and excess requests are refused at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, compile, session, transactional
from asgi_datasource.concurrency import saturation_log
from asgi_datasource.concurrency.limits import ConcurrencyLimit
from asgi_datasource.concurrency.priority_queue import Priority
from tests.apps import client
from tests.drivers.polling import until
from tests.world import World


class Shop:
    """An application whose requests wait until the test releases them."""

    def __init__(self, registry: DataSourceRegistry) -> None:
        self.registry = registry
        self.http: httpx.AsyncClient
        self.is_open = asyncio.Event()
        self.held = 0
        self.served: list[str] = []

    async def hold(self, request: Request) -> Response:
        """Wait with a borrowed connection."""
        async with session(request).connection():
            await self._wait()
        return JSONResponse({})

    async def idle(self, request: Request) -> Response:
        """Wait after a statement, without a connection."""
        await session(request).fetch_value("select 1")
        await self._wait()
        return JSONResponse({})

    async def bare(self, request: Request) -> Response:
        """Wait without any statement."""
        await self._wait()
        return JSONResponse({})

    async def read(self, request: Request) -> Response:
        await session(request).fetch_value("select 1")
        self.served.append(request.url.path)
        return JSONResponse({})

    async def _wait(self) -> None:
        self.held += 1
        await self.is_open.wait()

    async def fail(self, request: Request) -> Response:
        raise RuntimeError("on purpose")

    @transactional(retry=2)
    async def lose(self, request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values (gen_random_uuid())")
        raise DataError(DataErrorKind.CONFLICT, "lost", sqlstate="40001")

    def routes(self) -> list[Route]:
        return [
            Route("/hold", self.hold),
            Route("/hold/low", self.hold),
            Route("/idle", self.idle),
            Route("/bare", self.bare),
            Route("/bare/more", self.bare),
            Route("/fail", self.fail),
            Route("/lose", self.lose, methods=["POST"]),
            Route("/read", self.read),
            Route("/low", self.read),
            Route("/admin/jobs", self.read),
            Route("/healthz", self.read),
        ]

    def start(self, path: str, count: int = 1) -> list[asyncio.Task[httpx.Response]]:
        return [asyncio.create_task(self.http.get(path)) for _ in range(count)]

    async def status(self, path: str) -> int:
        return (await self.http.get(path)).status_code

    def limit(self, path: str) -> ConcurrencyLimit:
        found = self.registry.compiled.rules.match("GET", path).concurrency_limit
        assert found is not None
        return found


PRIORITIES = [{"match": "/admin/**", "priority": "high"}, {"match": "/low", "priority": "low"}]


@asynccontextmanager
async def serving(
    world: World, *routes: dict[str, Any], max_in_flight: int | None = None, **pool: Any
) -> AsyncIterator[Shop]:
    config = world.config(replicas=(), pool={"max_size": 1, **pool}, routes=[*routes, *PRIORITIES])
    if max_in_flight is not None:
        config["datasources"]["orders"]["max_in_flight"] = max_in_flight
    shop = Shop(compile(config))
    async with client(world, shop.routes(), registry=shop.registry) as shop.http:
        try:
            yield shop
        finally:
            shop.is_open.set()


async def test_max_in_flight_of_a_route_refuses_further_requests_at_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(world, {"match": "GET /bare", "max_in_flight": 2}) as shop:
        held = shop.start("/bare", 2)
        await until(lambda: shop.held == 2)
        refused = await shop.http.get("/bare")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["kind"] == "resource"
        assert shop.held == 2, "the application was not called"
        assert (
            "routes[0] (GET /bare) is saturated: 1 refused; 2 requests may be under way. Raise its max_in_flight"
            in caplog.text
        )
        assert await shop.status("/read") == 200
        shop.is_open.set()
        assert [response.status_code for response in await asyncio.gather(*held)] == [200, 200]
        assert await shop.status("/bare") == 200


async def test_a_request_frees_its_slot_however_it_ends(world: World) -> None:
    async with serving(world, {"match": "/**", "max_in_flight": 3}) as shop:
        limit = shop.limit("/fail")
        assert await shop.status("/fail") == 500
        assert (await shop.http.post("/lose")).status_code == 409
        assert await shop.status("/nowhere") == 404
        held = shop.start("/bare", 2) + shop.start("/hold")
        await until(lambda: shop.held == 3)
        assert limit.in_flight.count == 3
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        shop.is_open.set()
        await until(lambda: limit.in_flight.count == 0)


async def test_a_reload_counts_requests_in_flight(world: World) -> None:
    async with serving(world, {"match": "/bare", "max_in_flight": 5}, max_in_flight=5) as shop:
        held = shop.start("/bare") + shop.start("/idle")
        await until(lambda: shop.held == 2)
        config = world.config(replicas=(), pool={"max_size": 1}, routes=[{"match": "/bare", "max_in_flight": 1}])
        config["datasources"]["orders"]["max_in_flight"] = 1
        await shop.registry.reload(config)
        assert await shop.status("/bare") == 503
        assert await shop.status("/read") == 503
        shop.is_open.set()
        await asyncio.gather(*held)
        assert await shop.status("/bare") == 200
        assert await shop.status("/read") == 200


async def test_max_in_flight_of_a_datasource_admits_high_priority(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(world, max_in_flight=4) as shop:
        held = shop.start("/idle", 2)
        await until(lambda: shop.held == 2)
        assert (await shop.status("/low"), await shop.status("/read")) == (503, 200)
        held += shop.start("/idle", 2)
        await until(lambda: shop.held == 4)
        refused = await shop.http.get("/read")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert await shop.status("/admin/jobs") == 200
        assert await shop.status("/nowhere") == 404, "a request without SQL is not refused"
        assert (
            "datasource 'orders' is saturated: 1 refused; 4 requests may be under way. Raise max_in_flight"
            in caplog.text
        )
        shop.is_open.set()
        await asyncio.gather(*held)
        assert await shop.status("/read") == 200
        limit = shop.registry.datasources["orders"].concurrency_limit
        assert limit is not None
        await until(lambda: limit.in_flight.count == 0)


@pytest.mark.parametrize("fair", [False, True])
async def test_in_a_full_queue_high_priority_is_admitted_and_served_first(world: World, fair: bool) -> None:
    async with serving(world, max_waiting=3, fair=fair, acquire_timeout="20s") as shop:
        server = shop.registry.datasources["orders"].servers["primary"]
        holding = shop.start("/hold")
        await until(lambda: shop.held == 1)
        waiting: dict[str, asyncio.Task[httpx.Response]] = {}
        for count, (name, path) in enumerate((("low", "/low"), ("first", "/read"), ("second", "/read")), start=1):
            waiting[name] = shop.start(path)[0]
            await until(lambda count=count: server.waiting == count)  # type: ignore[misc]
        # The queue is full. A request of equal or lower priority is refused; one of higher priority displaces the last
        # of the lowest.
        assert await shop.status("/low") == 503
        assert not waiting["low"].done()
        high = shop.start("/admin/jobs", 2)
        assert (await waiting["low"]).status_code == 503
        refused = await waiting["second"]
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert await shop.status("/read") == 503
        assert server.waiting == 3
        shop.is_open.set()
        answers = await asyncio.gather(*holding, *high, waiting["first"])
        assert {answer.status_code for answer in answers} == {200}
        assert shop.served == ["/admin/jobs", "/admin/jobs", "/read"]
        assert (server.waiting, server.borrowed) == (0, 0)


async def test_excess_requests_are_refused_at_once_and_queues_stay_bounded(world: World) -> None:
    async with serving(world, {"match": "/bare/more", "max_in_flight": 5}, max_waiting=10, max_size=2) as shop:
        server = shop.registry.datasources["orders"].servers["primary"]
        for path in ("/read", "/bare/more"):
            flood = shop.start("/hold", 2) + shop.start(path, 150)
            await until(lambda: shop.held >= 2)
            # All requests beyond the bounds are answered while the others still hold every connection.
            async with asyncio.timeout(20):
                while sum(task.done() for task in flood) < 150 - 15:
                    await asyncio.sleep(0.02)
                    assert server.waiting <= 10
            shop.is_open.set()
            answers = await asyncio.gather(*flood)
            assert {answer.status_code for answer in answers} <= {200, 503}
            refused = [answer for answer in answers if answer.status_code == 503]
            assert len(refused) >= 150 - 15
            assert {answer.headers["retry-after"] for answer in refused} == {"1"}
            assert await shop.status("/read") == 200
            assert (server.waiting, server.borrowed) == (0, 0)
            shop.is_open.clear()
            shop.held = 0


async def test_a_waiter_displaced_while_it_is_served_or_cancelled_leaks_nothing(world: World) -> None:
    async with serving(world, max_waiting=2, acquire_timeout="20s") as shop:
        server = shop.registry.datasources["orders"].servers["primary"]
        held = await server.acquire(deadline=None)
        first, second = [asyncio.create_task(server.acquire(deadline=None)) for _ in range(2)]
        await until(lambda: server.waiting == 2)
        # In one step: one waiter is served, one displaced, and one with high priority cancelled.
        server.release(held)
        urgent = [asyncio.create_task(server.acquire(deadline=None, priority=Priority.HIGH)) for _ in range(2)]
        second.cancel()
        connection = await first
        await asyncio.sleep(0)
        urgent[0].cancel()
        server.release(connection)
        last = await urgent[1]
        server.release(last)
        await asyncio.wait({second, urgent[0]})
        assert (server.waiting, server.borrowed) == (0, 0)


async def test_saturation_is_logged_with_advice_and_at_a_limited_rate(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saturation_log, "INTERVAL_S", 0.4)

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "asgi_datasource.saturation"]

    async with serving(world, max_waiting=1, acquire_timeout="20s") as shop:
        held = shop.start("/hold")
        await until(lambda: shop.held == 1)
        waiting = shop.start("/read")
        server = shop.registry.datasources["orders"].servers["primary"]
        await until(lambda: server.waiting == 1)
        for _ in range(20):
            assert await shop.status("/read") == 503
        assert re.fullmatch(
            r"orders\.primary \(\S+\) is saturated: 1 refused; 1 of 1 connections are in use, 1 wait\. Raise"
            r" pool\.max_size where .* or bound the routes that take most with max_in_flight",
            logged()[0],
        )
        shop.is_open.set()
        await asyncio.gather(*held, *waiting)
        await until(lambda: sum(int(found.group(1)) for text in logged() if (found := refused.search(text))) == 20)
        assert len(logged()) < 10


refused = re.compile(r"(\d+) refused")


async def test_long_waits_are_logged_before_any_refusal(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(world, acquire_timeout="4s") as shop:
        held = shop.start("/hold")
        await until(lambda: shop.held == 1)
        waiting = shop.start("/read")
        server = shop.registry.datasources["orders"].servers["primary"]
        await until(lambda: server.waiting == 1)
        await asyncio.sleep(2.2)
        shop.is_open.set()
        for response in await asyncio.gather(*held, *waiting):
            assert response.status_code == 200
    assert "is saturated: 1 served after a long wait; " in caplog.text


async def test_the_advised_pool_size_follows_from_the_refusals(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saturation_log, "INTERVAL_S", 0.5)
    async with serving(world, max_waiting=1, max_size=2) as shop:

        async def work() -> None:
            for _ in range(12):
                async with shop.registry.session(tenant="acme") as db:
                    await db.execute("select pg_sleep(0.05)")

        # The first refusal is logged at once; later ones together with the number served meanwhile.
        for _ in range(2):
            outcomes = await asyncio.gather(*(work() for _ in range(5)), return_exceptions=True)
            assert any(isinstance(outcome, DataError) for outcome in outcomes)
        await until(lambda: "were lent" in caplog.text)
    assert re.search(
        r"meanwhile \d+ were lent, for \d+ ms on average\. Raise pool\.max_size to about [3-8] where", caplog.text
    )


async def test_saturation_of_a_tenants_limit_is_logged_as_such(world: World, caplog: pytest.LogCaptureFixture) -> None:
    config = world.config(replicas=(), pool={"acquire_timeout": "200ms"})
    config["tenants"]["acme"]["limits"] = {"max_connections": 1}
    async with compile(config) as registry, registry.session(tenant="acme") as db:
        await db.execute("select 1")
        async with registry.session(tenant="acme") as other:
            with pytest.raises(DataError) as caught:
                await other.execute("select 1")
            assert caught.value.kind is DataErrorKind.RESOURCE
    assert "tenants are at their limit: 1 refused. Raise limits.max_connections of those that need more" in caplog.text
