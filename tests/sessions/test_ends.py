"""How transactions end in unusual situations: after a failover, in doubt, behind a cancelled commit, inside blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from asgi_datasource import (
    CommitUnknown,
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    session,
    transactional,
)
from asgi_datasource.routing.consistency.client_history import NOWHERE
from asgi_datasource.routing.consistency.token import TokenSigner
from asgi_datasource.transaction import transaction as transactions
from asgi_datasource.transaction.commit_outcome import Fate
from tests.asgi_call import Call
from tests.faults.servers import proxy_of
from tests.pools import assert_whole
from tests.world import World

SECRET = "known to the service alone"
INSERT = "insert into orders (item) values (%s)"
LOSE = "do $$ begin raise exception using errcode = '40001'; end $$"
START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.mark.parametrize("how", ["at the response", "midway"])
async def test_nothing_is_committed_on_a_primary_that_a_failover_has_left_behind(world: World, how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.execute(INSERT, ["tea"])
        # Another process has met the new primary, and this connection was not cut yet.
        registry.datasources["orders"].servers["primary"].timeline += 1
        if how == "midway":
            await db.commit()
        await JSONResponse({})(scope, receive, send)

    async with world.registry(replicas=()) as registry:
        call = await Call().run(DataSourceMiddleware(app, registry=registry))
        await assert_whole(registry, world)
    assert (call.status, b'"kind": "connection"' in call.body) == (503, True)
    assert await world.items() == []


async def test_a_commit_whose_outcome_is_unknown_counts_as_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_nothing(*_: object, **__: object) -> Fate:
        return Fate.UNKNOWN

    monkeypatch.setattr(transactions, "find_fate", find_nothing)
    attempts = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal attempts
        attempts += 1
        db = session(scope)
        await db.execute(INSERT, [f"tea {attempts}"])
        with pytest.raises(CommitUnknown):
            await db.commit()
        proxy.release()
        await db.execute(LOSE)

    async with proxy_of(world.cluster.primary) as proxy:
        config = {
            "urls": {"primary": proxy.through(world.url())},
            "transactions": {"retry": 2},
            "consistency": {"token": "header", "secret": SECRET},
        }
        async with world.registry(replicas=(), **config) as registry:
            call = Call()
            proxy.hold_back(at=b"COMMIT")
            running = asyncio.ensure_future(call.run(DataSourceMiddleware(app, registry=registry)))
            await proxy.until_held()
            proxy.cut(only_held=True)
            await running
    # It may have been committed: it is not run again, and the client's reads go to the primary.
    assert (call.status, attempts) == (409, 1)
    [token] = [value for name, value in call.sent[0]["headers"] if name == b"x-datasource-token"]
    told = TokenSigner([SECRET], ttl_s=60).describe(token.decode())
    assert told is not None
    assert [mark["timeline"] for mark in told["marks"]] == [NOWHERE.timeline]


async def test_the_failure_of_a_commit_whose_caller_was_cancelled_is_told_once(world: World) -> None:
    async with world.registry(replicas=()) as registry:
        async with registry.session("acme") as db:
            await db.execute("insert into children (parent) values (1)")
            first = asyncio.ensure_future(db.commit())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait({first})
            assert first.cancelled()
            await db.execute(INSERT, ["milk"])
            with pytest.raises(DataError) as caught:
                await db.commit()
            assert caught.value.kind is DataErrorKind.CONSTRAINT
            await db.execute(INSERT, ["tea"])
        await assert_whole(registry, world)
    assert await world.items() == ["tea"]


async def test_a_commit_of_nothing_does_not_keep_a_request_from_running_again(world: World) -> None:
    attempts = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal attempts
        attempts += 1
        db = session(scope)
        await db.fetch_value("select 1")
        await db.commit()
        if attempts == 1:
            await db.execute(LOSE)
        await JSONResponse(attempts)(scope, receive, send)

    async with world.registry(replicas=(), transactions={"retry": 2}) as registry:
        call = await Call().run(DataSourceMiddleware(app, registry=registry))
    assert (call.status, call.body) == (200, b"2")


@transactional(propagation="requires_new")
async def answer_in_a_transaction_of_its_own(db: DataSession, send: Send) -> None:
    await db.execute(INSERT, ["milk"])
    await send(START)


async def inside_another_transaction(db: DataSession, send: Send) -> None:
    await db.execute(INSERT, ["tea"])
    await answer_in_a_transaction_of_its_own(db, send)


async def beside_a_stream(db: DataSession, send: Send) -> None:
    rows = db.read.stream("select generate_series(1, 9)", size=2)
    await anext(rows)
    try:
        await answer_in_a_transaction_of_its_own(db, send)
    finally:
        streams.append(rows)


streams: list[object] = []
"""Kept, so that nothing else ends them."""


@pytest.mark.parametrize("handle", [inside_another_transaction, beside_a_stream])
async def test_a_response_inside_a_block_gives_all_connections_back(
    world: World, handle: Callable[[DataSession, Send], Awaitable[None]]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await handle(session(scope), send)

    async with world.registry(replicas=()) as registry:
        call = Call()
        with suppress(DataError):
            await call.run(DataSourceMiddleware(app, registry=registry))
        await registry.background.drain(5.0)
        await assert_whole(registry, world)
    streams.clear()
    assert await world.items() == []
    assert not call.sent or call.status == 500


async def test_a_block_decides_again_once_it_is_its_turn(world: World) -> None:
    async with world.registry(replicas=()) as registry:
        async with registry.session("acme") as db:
            # While it waits, another task opens the transaction in which it is a savepoint.
            opening = asyncio.ensure_future(db.execute(INSERT, ["tea"]))
            await asyncio.sleep(0)
            with pytest.raises(DataError):
                async with db.transaction():
                    await db.execute(INSERT, ["tea"])
            await opening
            await db.execute(INSERT, ["milk"])
        await assert_whole(registry, world)
    assert await world.items() == ["tea", "milk"]


@pytest.mark.parametrize("read_only", [False, True])
async def test_the_isolation_of_a_block_precedes_that_of_its_route(world: World, read_only: bool) -> None:
    found: list[str] = []

    @transactional(propagation="supports", isolation="serializable", read_only=read_only)
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        async with db.transaction(isolation="repeatable read"):
            found.append(await db.fetch_value("show transaction_isolation"))
        async with db.transaction():
            found.append(await db.fetch_value("show transaction_isolation"))
        await JSONResponse({})(scope, receive, send)

    async with world.registry(replicas=()) as registry:
        await Call(endpoint=app).run(DataSourceMiddleware(app, registry=registry))
    assert found == ["repeatable read", "serializable"]


async def test_a_block_whose_turn_comes_after_its_surroundings_have_ended_is_refused(world: World) -> None:
    @transactional(propagation="requires_new")
    async def place_apart(db: DataSession) -> None:
        await db.execute(INSERT, ["never"])

    async def inside(db: DataSession) -> None:
        async with db.transaction():
            others.append(asyncio.ensure_future(db.fetch_value("select pg_sleep(0.2)")))
            await asyncio.sleep(0)
            others.append(asyncio.ensure_future(place_apart(db)))
            await asyncio.Event().wait()

    async def around(db: DataSession) -> None:
        async with db.transaction():
            others.append(asyncio.ensure_future(inside(db)))
            while len(others) < 3:
                await asyncio.sleep(0)
            others.append(asyncio.ensure_future(asyncio.sleep(0)))

    others: list[asyncio.Future[object]] = []
    async with world.registry(replicas=()) as registry:
        async with registry.session("acme") as db:
            await db.execute(INSERT, ["tea"])
            outermost = asyncio.ensure_future(around(db))
            while len(others) < 4:
                await asyncio.sleep(0)
            # It waits for the block inside it.
            outermost.cancel()
            await asyncio.wait({outermost})
            with pytest.raises(DataError, match="the block around this one was cancelled"):
                await others[2]
            others[0].cancel()
            await asyncio.wait({others[0], others[1]})
            await db.rollback()
            await db.execute(INSERT, ["milk"])
        await assert_whole(registry, world)
    assert await world.items() == ["milk"]


async def test_a_stream_starts_without_waiting_for_a_statement_on_its_snapshot(world: World) -> None:
    @transactional(read_only=True, stream=True)
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.fetch_value("select 1")
        running = asyncio.ensure_future(db.fetch_value("select pg_sleep(0.2)"))
        await asyncio.sleep(0)
        await send(START)
        was_running.append(not running.done())
        await running
        await send({"type": "http.response.body", "body": b""})

    was_running: list[bool] = []
    monotonic = {"token": "header", "secret": SECRET, "monotonic": True}
    async with world.registry(replicas=(), consistency=monotonic) as registry:
        call = await Call("GET", endpoint=app).run(DataSourceMiddleware(app, registry=registry))
    assert (call.status, was_running) == (200, [True])
