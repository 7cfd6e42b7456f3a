"""Requests that are interrupted more than once, by several at a time, or while they end."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from asgi_datasource import DataError, DataErrorKind, DataSession, DataSourceMiddleware, session, transactional
from asgi_datasource.asgi import response_guard
from tests.asgi_call import Call
from tests.drivers.polling import until
from tests.pools import assert_whole, until_at_rest
from tests.world import World

INSERT = "insert into orders (item) values ('tea')"
START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that ignores its deadline is interrupted again after 20 ms."""
    monkeypatch.setattr(response_guard, "DEADLINE_RETRY_S", 0.02)


async def ignore_one_interruption(seen: list[str]) -> None:
    """Wait until a second interruption, and record the exception that ended each wait."""
    for _ in range(2):
        try:
            async with asyncio.timeout(20):
                await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error).__name__)
            if len(seen) == 2:
                raise


@pytest.mark.usefixtures("impatient")
async def test_a_request_that_ignores_its_deadline_is_interrupted_again(world: World) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await session(scope).execute(INSERT)
        await ignore_one_interruption(interruptions)

    interruptions: list[str] = []
    async with world.registry(replicas=(), transactions={"deadline": "300ms"}) as registry:
        await until_at_rest(registry)
        call = await Call().run(DataSourceMiddleware(app, registry=registry))
        await assert_whole(registry, world)
    assert call.status == 504
    assert interruptions == ["CancelledError", "CancelledError"]
    assert await world.items() == []


@pytest.mark.usefixtures("impatient")
async def test_a_started_stream_that_ignores_its_deadline_is_broken_off_without_another_response(world: World) -> None:
    @transactional(read_only=True, stream=True)
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await session(scope).fetch_value("select 1")
        await send(START)
        await ignore_one_interruption(interruptions)

    interruptions: list[str] = []
    call = Call("GET", endpoint=app)
    async with world.registry(replicas=(), transactions={"deadline": "300ms"}) as registry:
        await until_at_rest(registry)
        with pytest.raises(DataError) as caught:
            await call.run(DataSourceMiddleware(app, registry=registry))
        await assert_whole(registry, world)
    assert caught.value.kind is DataErrorKind.TIMEOUT
    assert call.types == ["http.response.start"]


async def test_a_cancellation_by_others_beside_the_deadlines_ends_the_call(world: World) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await session(scope).execute(INSERT)
        await asyncio.Event().wait()

    async with world.registry(replicas=(), transactions={"deadline": "300ms"}) as registry:
        await until_at_rest(registry)
        call = Call()
        running = asyncio.ensure_future(call.run(DataSourceMiddleware(app, registry=registry)))
        async with asyncio.timeout(20):
            while not running.cancelling():
                await asyncio.sleep(0)
        # Before the task wakes up: it sees one cancellation, for two reasons.
        running.cancel()
        await asyncio.wait({running}, timeout=20)
        assert running.cancelled()
        await registry.background.drain(5.0)
        await assert_whole(registry, world)
    assert call.sent == []


async def test_a_statement_that_others_cancel_beside_the_deadline_is_cancelled(world: World) -> None:
    async with world.registry(replicas=()) as registry, registry.session("acme") as db:
        for statement in (db.fetch_value, plainly(db)):
            running = asyncio.ensure_future(statement("select pg_sleep(20)"))
            await until(lambda: bool(db._running or db._busy))
            db.stop(DataError(DataErrorKind.TIMEOUT, "too late"))
            assert db.interrupt()
            running.cancel()
            await asyncio.wait({running}, timeout=20)
            assert running.cancelled()
            db.stopped_by = None


def plainly(db: DataSession):  # type: ignore[no-untyped-def]
    async def run(query: str) -> None:
        await db.executemany(query, [(), ()])

    return run


async def test_a_commit_that_was_not_sent_when_the_call_was_cancelled_is_never_sent(world: World) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.execute(INSERT)
        # The commit waits for the statement of another task.
        others.append(asyncio.ensure_future(db.execute("select pg_sleep(0.2)")))
        await until(lambda: db._busy is not None)
        await send(START)

    others: list[asyncio.Future[int]] = []
    async with world.registry(replicas=()) as registry:
        call = Call()
        running = asyncio.ensure_future(call.run(DataSourceMiddleware(app, registry=registry)))
        await until(lambda: len(registry.background) > 0)
        running.cancel()
        await asyncio.wait({running, *others}, timeout=20)
        assert running.cancelled()
        await registry.background.drain(5.0)
        await assert_whole(registry, world)
    assert await world.items() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_a_disconnect_is_withheld_until_the_outcome_is_known_and_then_told(world: World, fails: bool) -> None:
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        db = session(scope)
        await db.execute("insert into children (parent) values (1)" if fails else INSERT)
        # With a hook, the commit takes the longer way.
        db.before_commit(call.leave)
        listening = asyncio.ensure_future(receive())
        try:
            await send(START)
        finally:
            async with asyncio.timeout(20):
                received.append((await listening)["type"])

    call = Call()
    async with world.registry(replicas=()) as registry:
        await call.run(DataSourceMiddleware(app, registry=registry))
    assert received == ["http.disconnect"]
    assert call.status == (409 if fails else 200)


@pytest.mark.parametrize("last", [{**BODY, "more_body": False}, {"type": "http.response.trailers", "headers": []}])
async def test_the_last_message_of_a_stream_ends_its_snapshot(world: World, last: dict[str, object]) -> None:
    ended: list[bool] = []

    @transactional(read_only=True, stream=True)
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.fetch_value("select 1")
        await send(START)
        await send({**BODY, "more_body": True})
        ended.append(db.is_open)
        await send(last)
        ended.append(db.is_open)

    async with world.registry(replicas=()) as registry:
        await Call("GET", endpoint=app).run(DataSourceMiddleware(app, registry=registry))
    assert ended == [True, False]


async def test_hooks_before_a_commit_do_not_run_where_an_error_rolls_back(world: World) -> None:
    ran: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.execute(INSERT)
        db.before_commit(lambda: ran.append("before"))
        db.after_rollback(lambda: ran.append("after"))
        raise ValueError("boom")

    async with world.registry(replicas=()) as registry:
        with pytest.raises(ValueError, match="boom"):
            await Call().run(DataSourceMiddleware(app, registry=registry))
    assert ran == ["after"]
