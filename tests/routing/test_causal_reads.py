"""Proofs of freshness at their edges: deadlines, poolers, patience across servers, and lost connections."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry
from asgi_datasource.datasource.router import find_route
from asgi_datasource.drivers.psycopg import PsycopgServer
from asgi_datasource.routing import Position, Route, choose
from asgi_datasource.routing.consistency.token import Mark, Token, TokenSigner, scope_of
from tests.pools import assert_whole, until_at_rest
from tests.world import World

SECRET = "known to the service alone"
FAR_AHEAD = 1 << 40


def ahead() -> str:
    """The token of a client that has seen what no replica gets to."""
    mark = Mark(scope_of("acme", "orders"), Position(1, FAR_AHEAD), int(time.time()))
    return TokenSigner([SECRET], ttl_s=60).sign(Token((mark,)))


def registry_of(world: World, *, wait: str, **config: Any) -> DataSourceRegistry:
    return world.registry(
        routing={"check_interval": "1h"},
        consistency={"token": "header", "secret": SECRET, "wait": wait},
        **config,
    )


@pytest.mark.parametrize(
    ("statement", "says"),
    [("select pg_sleep(20)", "ran out of time|was stopped"), ("select 1", "before a connection was asked for")],
)
async def test_a_deadline_ends_the_wait_for_a_replica(world: World, statement: str, says: str) -> None:
    await world.cluster.caught_up()
    async with registry_of(world, wait="20s", replicas=("r1",)) as registry:
        await until_at_rest(registry)
        began_at = time.monotonic()
        with pytest.raises(DataError, match=says) as caught:
            async with registry.session("acme", token=ahead(), timeout=0.8) as db:
                await db.read.fetch_value(statement)
        assert caught.value.kind is DataErrorKind.TIMEOUT
        assert time.monotonic() - began_at < 10
        await assert_whole(registry, world)


async def test_all_replicas_share_the_patience(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[float] = []

    def noting(*arguments: Any, **options: Any) -> Route | None:
        left.append(options["patience_s"])
        return choose(*arguments, **options)

    monkeypatch.setitem(cast("Any", find_route).__kwdefaults__, "choice", noting)
    await world.cluster.caught_up()
    async with registry_of(world, wait="30ms") as registry:
        await until_at_rest(registry)
        async with registry.session("acme", token=ahead()) as db:
            assert await db.read.fetch_value("select 1") == 1
            assert str(db.last_route) == "orders → primary (behind)"
    assert left[0] == 0.03
    assert left[-1] <= 0


@pytest.mark.parametrize("pooler", [None, "transaction"])
async def test_a_position_is_kept_for_a_connection_that_always_leads_to_one_server(
    world: World, pooler: str | None
) -> None:
    pool = {} if pooler is None else {"pooler": pooler}
    async with registry_of(world, wait="20s", replicas=("r1",), pool=pool) as registry:
        await until_at_rest(registry)
        async with registry.session("acme") as db:
            await db.execute("insert into orders (item) values ('tea')")
        async with registry.session("acme", token=db.token) as later:
            assert await later.read.fetch_value("select item from orders") == "tea"
            assert str(later.last_route) == "orders → r1 (proved)"
        replica = cast("PsycopgServer", registry.datasources["orders"].servers["r1"])
        connection = await replica.acquire(deadline=None)
        assert (connection.held is None) is (pooler is not None)
        replica.release(connection)


async def test_after_a_loss_the_next_connection_is_checked_before_it_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.registry(replicas=()) as registry:
        await until_at_rest(registry)
        primary = registry.datasources["orders"].servers["primary"]
        acquire, asked = primary.acquire, list[bool]()

        async def asking(*, must_be_alive: bool, **options: Any) -> Any:
            asked.append(must_be_alive)
            return await acquire(must_be_alive=must_be_alive, **options)

        monkeypatch.setattr(primary, "acquire", asking)
        [(pid, _)] = await world.backends()
        async with registry.session("acme") as db, asyncio.timeout(20):
            await db.read.execute("select pg_terminate_backend(pg_backend_pid()) where pg_backend_pid() = %s", [pid])
    assert asked[-1] is True
