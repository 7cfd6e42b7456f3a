"""One write with its COMMIT in one round trip: the same results, hooks and truth as in two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from asgi_datasource import CommitUnknown, DataError, DataErrorKind, DataSession, DataSourceRegistry
from asgi_datasource.testing import FaultProxy
from tests.asgi_call import Call
from tests.faults.servers import proxy_of, through
from tests.pools import assert_whole, until_at_rest
from tests.sessions.requests import request
from tests.world import SLOW_COMMIT_S, World

INSERT = "insert into orders (item) values (%s)"
QUIET: dict[str, Any] = {
    "replicas": (),
    "telemetry": {"spans": False},
    "pool": {"min_size": 1, "max_size": 1},
    "routing": {"check_interval": "1h"},
}


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[FaultProxy]:
    async with proxy_of(world.cluster.primary) as running:
        yield running


@pytest.fixture
async def registry(world: World, proxy: FaultProxy) -> AsyncIterator[DataSourceRegistry]:
    """A registry with one connection, through the proxy, on which the statement is prepared."""
    async with world.registry(urls={"primary": through(proxy, world.url())}, **QUIET) as made:
        await until_at_rest(made)
        for number in range(6):
            async with made.session("acme") as db:
                await db.execute_and_commit(INSERT, [f"warm {number}"])
        yield made


async def test_one_round_trip_does_all(
    world: World, registry: DataSourceRegistry, proxy: FaultProxy, *, is_short_way: bool
) -> None:
    committed: list[str] = []

    async def body(db: DataSession) -> dict[str, int]:
        db.after_commit(lambda: committed.append("hook"))
        proxy.reset_counters()
        count = await db.execute_and_commit(INSERT, ["tea"])
        assert proxy.round_trips == (1 if is_short_way else 2)
        assert (db.pin.is_set, db.pin.lsn is not None, committed) == (True, True, ["hook"])
        return {"count": count}

    # An error response does not take it back.
    call = await request(registry, body, status=409)
    assert (call.status, call.body) == (409, b'{"count":1}')
    assert proxy.round_trips == (1 if is_short_way else 2)
    assert "tea" in await world.items()
    await assert_whole(registry, world)


async def test_it_joins_what_was_written_before(world: World, registry: DataSourceRegistry) -> None:
    order: list[str] = []

    async def body(db: DataSession) -> None:
        await db.execute(INSERT, ["first"])
        db.before_commit(lambda: order.append("before"))
        await db.execute_and_commit(INSERT, ["second"])
        order.append("after")
        await db.execute(INSERT, ["third"])

    await request(registry, body, status=409)
    assert [item for item in await world.items() if not item.startswith("warm")] == ["first", "second"]
    assert order == ["before", "after"]
    await assert_whole(registry, world)


async def test_hooks_before_commit_run_in_between(world: World, registry: DataSourceRegistry) -> None:
    async with registry.session("acme") as db:

        async def write_more() -> None:
            await db.execute(INSERT, ["by the hook"])

        db.before_commit(write_more)
        await db.execute_and_commit(INSERT, ["tea"])
    assert {"tea", "by the hook"} <= set(await world.items())


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("insert into orders (item) values ('forbidden')", DataErrorKind.CONSTRAINT),
        ("insert into children (parent) values (1)", DataErrorKind.CONSTRAINT),
        ("insert into nowhere values (1)", DataErrorKind.QUERY),
        ("commit", DataErrorKind.QUERY),
    ],
    ids=["statement", "at COMMIT", "no table", "command"],
)
async def test_a_failure_leaves_nothing_behind(
    world: World, registry: DataSourceRegistry, statement: str, kind: DataErrorKind
) -> None:
    rolled_back: list[str] = []
    async with registry.session("acme") as db:
        db.after_rollback(lambda: rolled_back.append("hook"))
        for _ in range(2):
            with pytest.raises(DataError) as error:
                await db.execute_and_commit(statement)
            assert error.value.kind is kind
            await db.rollback()
        await db.execute_and_commit(INSERT, ["after the failure"])
    assert rolled_back == ["hook"]
    assert not await world.sql("select * from children")
    assert "after the failure" in await world.items()
    await assert_whole(registry, world)


async def test_a_block_around_it_is_refused(registry: DataSourceRegistry) -> None:
    async with registry.session("acme") as db, db.transaction():
        with pytest.raises(DataError, match="leave the transaction"):
            await db.execute_and_commit(INSERT, ["tea"])


async def lose_the_answer(proxy: FaultProxy) -> None:
    proxy.hold_back()
    await proxy.until_held()
    proxy.cut()


async def lose_the_answer_to_commit(proxy: FaultProxy) -> None:
    """The transaction's id arrives, and the answer to COMMIT does not."""
    await asyncio.sleep(SLOW_COMMIT_S / 3)
    proxy.cut()


async def lose_the_request(proxy: FaultProxy) -> None:
    proxy.hold()
    await proxy.until_held()
    proxy.cut()


@pytest.mark.parametrize(
    ("table", "fault", "outcome"),
    [
        ("slow (id) values (1)", lose_the_answer_to_commit, None),
        ("orders (item) values ('tea')", lose_the_answer, CommitUnknown),
        ("orders (item) values ('tea')", lose_the_request, CommitUnknown),
    ],
    ids=["COMMIT", "all answers", "request"],
)
async def test_a_lost_connection_tells_the_truth(
    world: World,
    registry: DataSourceRegistry,
    proxy: FaultProxy,
    table: str,
    fault: Callable[[FaultProxy], Awaitable[None]],
    outcome: type[DataError] | None,
    *,
    is_short_way: bool,
) -> None:
    """With the id the outcome is looked up, and without it the error says that it is unknown: nothing is repeated."""
    async with registry.session("acme") as db:
        for _ in range(2):
            await db.execute_and_commit(f"insert into {table} on conflict do nothing")
        await world.sql("delete from slow; delete from orders where item = 'tea'")
        before = db.commits
        async with asyncio.TaskGroup() as group:
            breaking = group.create_task(fault(proxy))
            await asyncio.sleep(0)
            writing = asyncio.ensure_future(db.execute_and_commit(f"insert into {table} on conflict do nothing"))
            await asyncio.wait({writing, breaking})
        error = writing.exception()
        if outcome is None:
            assert error is None
            assert len(await world.sql("select * from slow")) == 1
            assert db.pin.is_set
        elif is_short_way:
            assert isinstance(error, outcome)
            assert db.commits == before + 1, "the request is not retried"


async def test_later_reads_of_the_client_see_what_may_have_been_committed(world: World, proxy: FaultProxy) -> None:
    """Without the id nothing is known of its outcome: the token leads to the primary."""
    tokens = {"token": "header", "secret": "a secret of more than thirty-two characters", "monotonic": False}
    urls = {"primary": through(proxy, world.url())}
    async with world.registry(urls=urls, consistency=tokens, **QUIET) as registry:
        await until_at_rest(registry)
        async with registry.session("acme") as db:
            writing = asyncio.ensure_future(db.execute_and_commit(INSERT, ["tea"]))
            await lose_the_answer(proxy)
            await asyncio.wait({writing})
            error = writing.exception()
        if isinstance(error, CommitUnknown):
            assert db.token is not None


async def test_a_cancelled_caller_does_not_stop_it(world: World, registry: DataSourceRegistry) -> None:
    outcomes: list[str] = []
    async with registry.session("acme") as db:
        await db.execute_and_commit("insert into slow values (1)")
        db.after_commit(lambda: outcomes.append("committed"))
        writing = asyncio.ensure_future(db.execute_and_commit("insert into slow values (2)"))
        await asyncio.sleep(SLOW_COMMIT_S / 3)
        writing.cancel()
        await asyncio.wait({writing})
        assert writing.cancelled()
    assert outcomes == ["committed"]
    assert len(await world.sql("select * from slow")) == 2
    await assert_whole(registry, world)


async def test_the_response_waits_for_its_outcome(world: World, registry: DataSourceRegistry) -> None:
    """A write that another task of the request has left in progress."""

    async def body(db: DataSession) -> None:
        writing = asyncio.ensure_future(db.execute_and_commit("insert into slow values (3)"))
        await asyncio.sleep(SLOW_COMMIT_S / 3)
        writing.cancel()
        await asyncio.wait({writing})

    call: Call = await request(registry, body)
    assert call.status == 201
    assert [row[0] for row in await world.sql("select id from slow")] == [3]
