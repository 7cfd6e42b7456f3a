"""A request leaves no reference cycles: a full run of the cyclic garbage collector stops all requests."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import Receive, Scope, Send

from asgi_datasource import (
    AccessIntent,
    DataError,
    DataSession,
    DataSourceMiddleware,
    DataSourceRegistry,
    SessionClosed,
    session,
    transactional,
)
from tests.asgi_call import Call
from tests.pools import assert_whole, until_at_rest
from tests.world import World


@asynccontextmanager
async def at_rest(world: World, **config: Any) -> AsyncIterator[DataSourceRegistry]:
    """A registry with open pools and idle monitors: each new topology would be garbage."""
    async with world.registry(routing={"check_interval": "1h"}, **config) as registry:
        await until_at_rest(registry)
        yield registry


UnitOfWork = Callable[[DataSession], Awaitable[Any]]

INSERT = "insert into orders (item) values (gen_random_uuid())"
ROUNDS = 20


async def cycles_of(work: Callable[[], Awaitable[Any]]) -> dict[str, int]:
    """Objects left to the garbage collector by each run of `work`, counted by type."""
    for _ in range(3):
        await asyncio.create_task(_settled(work))
    gc.collect()
    gc.disable()
    flags, kept = gc.get_debug(), len(gc.garbage)
    try:
        for _ in range(ROUNDS):
            await asyncio.create_task(_settled(work))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(type(one).__qualname__ for one in gc.garbage[kept:])
        # Fewer than one per round come from background tasks.
        return {name: count for name, count in found.items() if count >= ROUNDS}
    finally:
        gc.set_debug(flags)
        del gc.garbage[kept:]
        gc.enable()


async def _settled(work: Callable[[], Awaitable[Any]]) -> None:
    await work()
    for _ in range(3):
        await asyncio.sleep(0)


def request(registry: DataSourceRegistry, work: UnitOfWork, *, status: int = 200) -> DataSourceMiddleware:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await work(session(scope))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    return DataSourceMiddleware(app, registry=registry)


async def nothing(db: DataSession) -> None:
    assert db.tenant.name == "acme"


async def read(db: DataSession) -> None:
    await db.read.fetch_all("select item from orders")


async def read_side_by_side(db: DataSession) -> None:
    await asyncio.gather(*[asyncio.create_task(read(db)) for _ in range(3)])


async def write(db: DataSession) -> None:
    await db.execute(INSERT)
    await db.read.fetch_value("select 1")


async def write_in_blocks(db: DataSession) -> None:
    async with db.transaction():
        await db.execute(INSERT)
        async with db.transaction():
            await db.execute(INSERT)


async def write_twice(db: DataSession) -> None:
    await db.execute(INSERT)
    await db.commit()
    await db.execute(INSERT)


async def write_with_hooks(db: DataSession) -> None:
    async def check() -> None:
        assert await db.fetch_value("select 1") == 1

    db.before_commit(check)
    db.after_commit(lambda: None)
    await db.execute(INSERT)


@transactional(propagation="requires_new")
async def apart(db: DataSession) -> None:
    await db.execute(INSERT)


async def write_apart(db: DataSession) -> None:
    await db.execute(INSERT)
    await apart(db)


async def read_a_stream(db: DataSession) -> None:
    async for _ in db.stream("select generate_series(1, 10)"):
        pass


async def borrow(db: DataSession) -> None:
    async with db.connection(AccessIntent.READ) as connection:
        await connection.execute("select 1")


@pytest.mark.parametrize(
    "work",
    [
        nothing,
        read,
        read_side_by_side,
        write,
        write_in_blocks,
        write_twice,
        write_with_hooks,
        write_apart,
        read_a_stream,
        borrow,
    ],
)
@pytest.mark.parametrize("max_parallel", [1, 3])
async def test_a_request_leaves_no_cycles(world: World, work: UnitOfWork, max_parallel: int) -> None:
    async with at_rest(world, pool={"max_size": 5}, transactions={"max_parallel": max_parallel}) as registry:
        app = request(registry, work)

        async def once() -> None:
            assert (await Call().run(app)).status == 200

        assert await cycles_of(once) == {}


@pytest.mark.parametrize(
    "config",
    [
        {"transactions": {"retry": 3}},
        {"transactions": {"default": "annotated"}},
        {"consistency": {"token": "cookie", "secret": "a secret that only the service knows", "monotonic": True}},
    ],
    ids=["retry", "annotated", "tokens"],
)
async def test_a_request_leaves_no_cycles_with_any_configuration(
    world: World, spans: InMemorySpanExporter, config: dict[str, Any]
) -> None:
    async with at_rest(world, **config) as registry:
        app = request(registry, write)

        async def once() -> None:
            assert (await Call().run(app)).status == 200

        assert await cycles_of(once) == {}
        assert spans.get_finished_spans()


async def test_a_request_without_sql_leaves_no_cycles(world: World) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async with at_rest(world) as registry:
        middleware = DataSourceMiddleware(app, registry=registry)
        assert await cycles_of(lambda: Call("GET").run(middleware)) == {}


async def test_a_rolled_back_request_leaves_no_cycles(world: World) -> None:
    async with at_rest(world) as registry:
        assert await cycles_of(lambda: Call().run(request(registry, write, status=409))) == {}


async def fail_with_the_first(db: DataSession) -> None:
    await db.execute("insert into nowhere values (1)")


async def fail_later(db: DataSession) -> None:
    await db.execute(INSERT)
    await db.execute("insert into nowhere values (1)")


async def fail_to_read(db: DataSession) -> None:
    await db.read.fetch_all("select 1 from nowhere")


async def fail_inside(db: DataSession) -> None:
    await db.execute(INSERT)
    async with db.transaction():
        await db.execute("insert into nowhere values (1)")


@pytest.mark.parametrize("work", [fail_with_the_first, fail_later, fail_to_read, fail_inside])
async def test_a_failed_request_leaves_no_cycles(world: World, work: UnitOfWork) -> None:
    async with at_rest(world) as registry:

        async def once() -> None:
            # `pytest.raises` would keep a reference to the error.
            with suppress(DataError):
                await Call().run(request(registry, work))
                raise AssertionError("the request did not fail")

        assert await cycles_of(once) == {}


async def test_a_request_with_an_unknown_tenant_leaves_no_cycles(world: World) -> None:
    async with at_rest(world) as registry:

        async def once() -> None:
            call = Call(headers=[(b"x-tenant", b"nobody")])
            assert (await call.run(request(registry, nothing))).status == 404

        assert await cycles_of(once) == {}


async def test_a_websocket_leaves_no_cycles(world: World) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await write(session(scope))

    async with at_rest(world) as registry:
        middleware = DataSourceMiddleware(app, registry=registry)
        assert await cycles_of(lambda: Call(type="websocket").run(middleware)) == {}


async def test_a_session_outside_of_requests_leaves_no_cycles(world: World) -> None:
    async with at_rest(world) as registry:

        async def job() -> None:
            async with registry.session(tenant="acme") as db:
                await write_with_hooks(db)

        assert await cycles_of(job) == {}


async def test_a_connection_outside_of_requests_leaves_no_cycles(world: World) -> None:
    async with at_rest(world) as registry:

        async def job() -> None:
            async with registry.acquire(registry.datasources["orders"], AccessIntent.READ) as connection:
                await connection.execute("select 1")

        assert await cycles_of(job) == {}


async def test_a_session_keeps_its_references_until_it_has_ended(world: World) -> None:
    async with at_rest(world) as registry:
        async with registry.session(tenant="acme") as db:
            await write(db)
            ending = db.end(commit=False, reason="rolled back")
            db.release_references()
            await ending
        assert await world.items() == []
        await assert_whole(registry, world)


async def test_a_handle_kept_after_its_request_still_raises_session_closed(world: World) -> None:
    async with at_rest(world) as registry:
        held: list[DataSession] = []

        async def keep(db: DataSession) -> None:
            held.append(db)
            await write(db)

        call = await Call().run(request(registry, keep))
        unused = await Call("GET").run(request(registry, nothing))
        for db in (held[0], session(call.scope), session(unused.scope)):
            with pytest.raises(SessionClosed):
                await db.fetch_value("select 1")
            assert db.tenant.name == "acme"
            assert not db.in_transaction()
            assert "closed" in repr(db)
        assert held[0].last_route is not None


async def test_messages_sent_after_the_application_returned_are_refused(world: World) -> None:
    async with at_rest(world) as registry:
        kept: list[Any] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            kept.extend((receive, send))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        call = await Call().run(DataSourceMiddleware(app, registry=registry))
        receive, send = kept
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(RuntimeError, match="after the application had returned"):
            await send({"type": "http.response.body", "body": b"more"})
        assert call.body == b"done"
