"""Tenants on one pool: limits of their own, fair turns, and 503 only for a tenant that exceeds its limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource import AccessIntent, DataError, DataErrorKind, DataSourceRegistry, compile, session
from tests.apps import client
from tests.pools import assert_whole, until
from tests.world import World


def registry(world: World, *, limits: dict[str, int] | None = None, **pool: Any) -> DataSourceRegistry:
    config = world.config(replicas=(), pool={"max_size": 2, **pool})
    for name, most in (limits or {}).items():
        config["tenants"][name]["limits"] = {"max_connections": most}
    return compile(config)


class Holder:
    """Holds connections of a tenant until they are released."""

    def __init__(self, made: DataSourceRegistry, tenant: str, count: int) -> None:
        self._release = asyncio.Event()
        self._held = 0
        self.tasks = [asyncio.ensure_future(self._hold(made, tenant)) for _ in range(count)]

    async def _hold(self, made: DataSourceRegistry, tenant: str) -> None:
        async with made.session(tenant) as db, db.connection(AccessIntent.WRITE):
            self._held += 1
            await self._release.wait()

    async def holds(self, count: int) -> None:
        await until(lambda: self._held >= count, f"{self._held} of {count} connections are held")

    async def end(self) -> list[Any]:
        self._release.set()
        return await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_a_tenant_has_no_more_connections_than_its_limit(world: World) -> None:
    async with registry(world, limits={"acme": 1}, acquire_timeout="200ms") as made:
        holder = Holder(made, "acme", 1)
        await holder.holds(1)
        with pytest.raises(DataError, match="1 of 1 connections in use") as caught:
            async with made.session("acme") as db:
                await db.execute("select 1")
        assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.RESOURCE, 503)
        # Another connection of the pool stays available to other tenants.
        async with made.session("globex") as db:
            assert await db.fetch_value("select 1") == 1
        await holder.end()
        async with made.session("acme") as db:
            assert await db.fetch_value("select 1") == 1
        await assert_whole(made, world)


@pytest.mark.parametrize("limits", [{}, {"acme": 1}])
async def test_a_tenant_that_wants_much_waits_behind_itself(world: World, limits: dict[str, int]) -> None:
    async with registry(world, limits=limits, fair=True, acquire_timeout="20s") as made:
        noisy = Holder(made, "acme", 2)
        await noisy.holds(1 if limits else 2)
        more = [asyncio.ensure_future(touch(made, "acme", Counter())) for _ in range(30)]
        order: Counter[str] = Counter()
        quiet = [asyncio.ensure_future(touch(made, name, order)) for name in ("globex", "initech", "umbrella")]
        await asyncio.sleep(0)
        await noisy.end()
        await asyncio.gather(*quiet)
        # Each of the others got its turn before the noisy one's line was through.
        assert not all(task.done() for task in more)
        await asyncio.gather(*more)
        await assert_whole(made, world)


async def touch(made: DataSourceRegistry, tenant: str, order: Counter[str]) -> None:
    async with made.session(tenant) as db:
        await db.execute("select 1")
        order[tenant] += 1


async def test_only_the_noisy_tenant_is_answered_with_503(world: World) -> None:
    async def read(request: Request) -> Response:
        await session(request).execute("select pg_sleep(0.02)")
        return Response("done")

    made = registry(world, fair=True, max_waiting=20, acquire_timeout="20s")
    async with client(world, [Route("/", read, methods=["POST"])], registry=made) as http:

        async def ask(tenant: str) -> tuple[str, int, bool]:
            answer = await http.post("/", headers={"X-Tenant": tenant})
            return tenant, answer.status_code, "retry-after" in answer.headers

        asking = [asyncio.ensure_future(ask("acme")) for _ in range(60)]
        others = [asyncio.ensure_future(ask(name)) for name in ("globex", "initech", "umbrella") for _ in range(3)]
        answers = await asyncio.gather(*asking, *others)
    statuses = Counter((tenant == "acme", status) for tenant, status, _ in answers)
    assert statuses[False, 200] == len(others)
    assert statuses[True, 503] > 0
    assert statuses[True, 200] > 0
    assert {retry for _, status, retry in answers if status == 503} == {True}


async def test_who_gives_up_while_waiting_leaves_the_pool_whole(world: World) -> None:
    async with registry(world, limits={"acme": 1}, fair=True, acquire_timeout="10s") as made:
        holder = Holder(made, "acme", 1)
        await holder.holds(1)
        waiting = [asyncio.ensure_future(touch(made, "acme", Counter())) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in waiting[:3]:
            task.cancel()
        await holder.end()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == ["CancelledError"] * 3 + ["NoneType"] * 2
        await assert_whole(made, world)


async def test_a_tenant_without_limits_passes_no_queue(world: World) -> None:
    async with registry(world, limits={"acme": 1}) as made:
        async with made.session("globex") as db:
            await db.execute("select 1")
        primary = made.datasources["orders"].servers["primary"]
        assert primary.pool._limits is None
        assert primary.pool._turns is None
