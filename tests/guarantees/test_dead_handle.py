"""Promise 3: a handle used after its request raises an error that names the replacement, and has no effect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks as FastAPIBackgroundTasks
from fastapi import Depends, FastAPI
from psycopg import AsyncConnection
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_datasource import (
    AccessIntent,
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    SessionClosed,
    current_session,
    session,
    transactional,
)
from asgi_datasource.testing import serve
from tests.apps import client
from tests.pools import assert_whole, borrowed, lent, until
from tests.world import World

INSERT = "insert into orders (item) values ('late')"

Db = Annotated[DataSession, Depends(session)]

Use = Callable[[DataSession], Awaitable[object]]


async def entered(db: DataSession, **options: Any) -> None:
    async with db.transaction(**options):
        await db.execute(INSERT)


async def iterated(db: DataSession) -> None:
    async for _ in db.stream("select 1 as one"):
        pass


async def borrowed_connection(db: DataSession, intent: AccessIntent | None = None) -> None:
    async with db.connection(intent) as connection:
        await connection.execute(INSERT)


async def called(function: Callable[[], object]) -> None:
    function()


@transactional
async def service_function() -> None:
    await current_session().execute(INSERT)


USES: dict[str, Use] = {
    "execute": lambda db: db.execute(INSERT),
    "executemany": lambda db: db.executemany("insert into orders (item) values (%s)", [["late"], ["later"]]),
    "fetch_all": lambda db: db.fetch_all("select 1 as one"),
    "fetch_one": lambda db: db.fetch_one("select 1 as one"),
    "fetch_value": lambda db: db.fetch_value("select 1"),
    "stream": iterated,
    "read.fetch_all": lambda db: db.read.fetch_all("select 1 as one"),
    "read.fetch_one": lambda db: db.read.fetch_one("select 1 as one"),
    "read.fetch_value": lambda db: db.read.fetch_value("select 1"),
    "read.execute": lambda db: db.read.execute("select 1"),
    "write.execute": lambda db: db.write.execute(INSERT),
    "write.executemany": lambda db: db.write.executemany("insert into orders (item) values (%s)", [["late"]]),
    "connection": borrowed_connection,
    "connection(READ)": lambda db: borrowed_connection(db, AccessIntent.READ),
    "transaction": entered,
    "transaction(read_only)": lambda db: entered(db, read_only=True),
    "commit": lambda db: db.commit(),
    "rollback": lambda db: db.rollback(),
    "set_rollback_only": lambda db: called(lambda: db.set_rollback_only("too late")),
    "after_commit": lambda db: called(lambda: db.after_commit(lambda: None)),
    "after_rollback": lambda db: called(lambda: db.after_rollback(lambda: None)),
    "current_session": lambda db: current_session().execute(INSERT),
    "a service function": lambda db: service_function(),
}


class LateUses:
    """Uses a handle after its request, and records the errors."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self.errors: list[BaseException | None] = []

    async def try_it(self, db: DataSession) -> None:
        try:
            await self._use(db)
        except BaseException as error:
            self.errors.append(error)
        else:
            self.errors.append(None)

    def assert_refused(self, times: int = 1) -> None:
        assert [type(error) for error in self.errors] == [SessionClosed] * times
        for error in self.errors:
            assert isinstance(error, SessionClosed)
            assert error.kind is DataErrorKind.CLOSED
            # The error says what happened and names the replacement.
            assert "after its response had started" in error.message
            assert "async with db.registry.session(tenant=db.tenant.name) as later:" in error.message


def in_a_background_task(late_uses: LateUses) -> Any:
    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")
        return PlainTextResponse("ok", background=BackgroundTask(late_uses.try_it, db))

    return endpoint


def in_a_generator(late_uses: LateUses) -> Any:
    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")

        async def body() -> AsyncIterator[bytes]:
            await late_uses.try_it(db)
            yield b"ok"

        return StreamingResponse(body())

    return endpoint


def in_a_child_task(late_uses: LateUses) -> Any:
    """The task outlives the request: it uses the handle after the response was sent."""

    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")
        over = asyncio.Event()

        async def stray() -> None:
            await over.wait()
            await late_uses.try_it(db)

        request.state.stray = asyncio.create_task(stray())

        async def say_so() -> None:
            over.set()

        return PlainTextResponse("ok", background=BackgroundTask(say_so))

    return endpoint


def without_having_been_used(late_uses: LateUses) -> Any:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(late_uses.try_it, session(request)))

    return endpoint


def asked_for_too_late(late_uses: LateUses) -> Any:
    async def endpoint(request: Request) -> Response:
        async def late() -> None:
            await late_uses.try_it(session(request))

        return PlainTextResponse("ok", background=BackgroundTask(late))

    return endpoint


PLACES = [in_a_background_task, in_a_generator, in_a_child_task, without_having_been_used, asked_for_too_late]


@pytest.mark.parametrize("place", PLACES)
async def test_late_use_raises_with_the_replacement_and_writes_nothing(
    world: World, place: Callable[[LateUses], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Every method of the handle, one request each."""
    registry = world.registry()
    late_uses = {name: LateUses(use) for name, use in USES.items()}
    routes = [Route(f"/{number}", place(late), methods=["POST"]) for number, late in enumerate(late_uses.values())]
    async with client(world, routes, registry=registry) as http:
        for number, (name, late) in enumerate(late_uses.items()):
            before = lent(registry)
            assert (await http.post(f"/{number}")).status_code == 200
            await until(lambda late=late: late.errors != [], name)
            late.assert_refused()
            assert lent(registry) - before <= 1, "only the write of the request itself"
            await world.sql("delete from orders where item = 'in time'")
        assert await world.items() == []
        await assert_whole(registry, world)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_replacement_named_by_the_error_works(world: World) -> None:
    done = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        db = session(request)

        async def send_receipt() -> None:
            async with db.registry.session(tenant=db.tenant.name) as later:
                await later.execute(INSERT)
            done.set()

        return PlainTextResponse("ok", background=BackgroundTask(send_receipt))

    async with client(world, [Route("/", endpoint)]) as http:
        await http.get("/")
        await asyncio.wait_for(done.wait(), 5)
    assert await world.items() == ["late"]


async def test_an_uncaught_late_use_aborts_the_stream_and_leaks_no_connection(world: World) -> None:
    registry = world.registry(replicas=(), pool={"max_size": 1})

    async def endpoint(request: Request) -> Response:
        db = session(request)

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await db.execute(INSERT)
            yield b"never"

        return StreamingResponse(body())

    async with client(world, [Route("/", endpoint)], registry=registry) as http:
        async with http.stream("GET", "/") as answer:
            with pytest.raises(Exception, match="incomplete chunked read"):
                await answer.aread()
        await assert_whole(registry, world)
    assert await world.items() == []


@pytest.mark.parametrize("place", [in_a_background_task, in_a_generator, in_a_child_task])
async def test_pool_is_complete_after_a_hundred_late_uses(world: World, place: Callable[[LateUses], Any]) -> None:
    registry = world.registry(replicas=(), pool={"max_size": 5})
    late_uses = LateUses(lambda db: db.execute(INSERT))

    async def one_query(request: Request) -> Response:
        return PlainTextResponse(str(await session(request).fetch_value("select count(*) from orders")))

    routes = [Route("/late", place(late_uses), methods=["POST"]), Route("/query", one_query)]
    async with client(world, routes, registry=registry) as http:
        await world.sql("alter table orders drop constraint orders_item_key")
        for _ in range(10):
            answers = await asyncio.gather(*(http.post("/late") for _ in range(10)))
            assert {answer.status_code for answer in answers} == {200}
        await until(lambda: len(late_uses.errors) == 100, "a hundred late uses")
        late_uses.assert_refused(times=100)
        await assert_whole(registry, world)
        assert len(await world.backends()) <= 5
        # All five connections can be borrowed at the same time.
        answers = await asyncio.gather(*(http.get("/query") for _ in range(5)))
        assert [answer.text for answer in answers] == ["100"] * 5


class Captured:
    """Every object that a request can keep from its session."""

    def __init__(self) -> None:
        self.db: DataSession
        self.connection: Any
        self.cursor: Any
        self.rows: AsyncIterator[Any]
        self.block: Any
        self.connection_block: Any


async def test_late_use_never_runs_in_the_transaction_of_another_request(world: World) -> None:
    """With a pool of one, both requests use the same connection."""
    captured = Captured()
    in_transaction, go_on = asyncio.Event(), asyncio.Event()
    pids: list[int] = []

    async def first(request: Request) -> Response:
        db = captured.db = session(request)
        await db.execute("insert into orders (item) values ('first')")
        captured.block, captured.connection_block = db.transaction(), db.connection()
        captured.rows = aiter(db.stream("select * from orders", size=1))
        async with db.connection() as connection:
            pids.append(connection.info.backend_pid)
            captured.connection, captured.cursor = connection, connection.cursor()
            await captured.cursor.execute("select 1")
        return PlainTextResponse("ok")

    async def second(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('second')")
        pids.append(await db.fetch_value("select pg_backend_pid()"))
        in_transaction.set()
        await go_on.wait()
        return PlainTextResponse("no", status_code=500)

    uses: dict[str, Callable[[], Awaitable[object]]] = {
        "execute": lambda: captured.db.execute(INSERT),
        "fetch": lambda: captured.db.fetch_value("select count(*) from orders"),
        "commit": lambda: captured.db.commit(),
        "rollback": lambda: captured.db.rollback(),
        "stream": lambda: anext(captured.rows),
        "block": lambda: captured.block.__aenter__(),
        "connection block": lambda: captured.connection_block.__aenter__(),
        "connection.execute": lambda: captured.connection.execute(INSERT),
        "connection.commit": lambda: captured.connection.commit(),
        "connection.rollback": lambda: captured.connection.rollback(),
        "connection.cursor": lambda: captured.connection.cursor().execute(INSERT),
        "connection.transaction": lambda: captured.connection.transaction().__aenter__(),
        "connection.pipeline": lambda: in_a_pipeline(captured.connection),
        "connection.close": lambda: captured.connection.close(),
        "connection.cancel_safe": lambda: captured.connection.cancel_safe(),
        "cursor.execute": lambda: captured.cursor.execute(INSERT),
        "cursor.executemany": lambda: captured.cursor.executemany(
            "insert into orders (item) values (%s)", [["late"], ["later"]]
        ),
        "cursor.copy": lambda: copy_into(captured.cursor),
    }

    registry = world.registry(replicas=(), pool={"max_size": 1})
    routes = [Route("/first", first, methods=["POST"]), Route("/second", second, methods=["POST"])]
    async with client(world, routes, registry=registry) as http:
        assert (await http.post("/first")).status_code == 200
        second_request = asyncio.create_task(http.post("/second"))
        await in_transaction.wait()
        assert pids[0] == pids[1], "both requests use the same connection"
        for name, use in uses.items():
            # commit() and rollback() of a borrowed connection are refused at any time.
            is_end = name in ("connection.commit", "connection.rollback")
            with pytest.raises(DataError if is_end else SessionClosed):
                await use()
            assert borrowed(registry) == 1
        go_on.set()
        assert (await second_request).status_code == 500
        # The second request's transaction was not committed, and no statement was added to it.
        assert await world.items() == ["first"]
        await assert_whole(registry, world)


async def in_a_pipeline(connection: AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        await connection.execute(INSERT)


async def copy_into(cursor: Any) -> None:
    async with cursor.copy("copy orders (item) from stdin") as copy:
        await copy.write_row(["late"])


async def test_a_task_queued_for_the_session_when_the_response_starts_is_refused(world: World) -> None:
    """Its statement has not been sent yet: it must not run after COMMIT."""
    late_uses = LateUses(lambda db: db.execute(INSERT))
    strays: list[asyncio.Task[None]] = []

    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")

        async def stray() -> None:
            # Runs in the next iteration of the event loop, which is during COMMIT.
            await late_uses.try_it(db)

        strays.append(asyncio.create_task(stray()))
        return PlainTextResponse("ok")

    registry = world.registry()
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 200
        await asyncio.wait(strays)
        late_uses.assert_refused()
        await assert_whole(registry, world)
    assert await world.items() == ["in time"]


async def test_a_statement_that_runs_when_the_response_starts_is_awaited_and_committed(world: World) -> None:
    """It was sent before the response started, so it belongs to the request."""
    running = asyncio.Event()
    late_uses = LateUses(lambda db: db.execute(INSERT))
    strays: list[asyncio.Task[None]] = []

    async def endpoint(request: Request) -> Response:
        db = session(request)

        async def stray() -> None:
            running.set()
            await db.execute("insert into orders (item) select 'in time' from pg_sleep(0.2)")
            await late_uses.try_it(db)

        strays.append(asyncio.create_task(stray()))
        await running.wait()
        return PlainTextResponse("ok")

    registry = world.registry()
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 200
        assert await world.items() == ["in time"]
        await asyncio.wait(strays)
        late_uses.assert_refused()
        await assert_whole(registry, world)


async def test_a_row_stream_left_open_is_closed_with_the_session(world: World) -> None:
    """Its cursor is closed and its connection is returned."""
    rows: list[AsyncIterator[Any]] = []
    late_uses = LateUses(lambda db: anext(rows[0]))

    async def endpoint(request: Request) -> Response:
        db = session(request)
        rows.append(aiter(db.stream("select generate_series(1, 10000) as number", size=10)))
        await anext(rows[0])
        return PlainTextResponse("ok", background=BackgroundTask(read_on, db))

    async def read_on(db: DataSession) -> None:
        for _ in range(9):
            await anext(rows[0])
        # Rows that were already fetched are available; further rows would need the cursor.
        await late_uses.try_it(db)

    registry = world.registry()
    async with client(world, [Route("/", endpoint)], registry=registry) as http:
        assert (await http.get("/")).status_code == 200
        await until(lambda: late_uses.errors != [], "the background task")
        late_uses.assert_refused()
        await assert_whole(registry, world)


async def test_fastapi_background_tasks_and_dependencies(world: World) -> None:
    late_uses = LateUses(lambda db: db.execute(INSERT))
    app = FastAPI()
    registry = world.registry()
    app.add_middleware(DataSourceMiddleware, registry=registry)

    async def dependency(db: Db) -> AsyncIterator[None]:
        yield
        await late_uses.try_it(db)

    @app.post("/", dependencies=[Depends(dependency)])
    async def endpoint(tasks: FastAPIBackgroundTasks, db: Db) -> None:
        tasks.add_task(late_uses.try_it, db)
        await db.execute("insert into orders (item) values ('in time')")

    async with serve(app) as server, client(world, []) as http:
        assert (await http.post(server.url)).status_code == 200
        await until(lambda: len(late_uses.errors) == 2, "the task and the dependency")
        late_uses.assert_refused(times=2)
        await assert_whole(registry, world)
    assert await world.items() == ["in time"]


async def test_a_workers_session_is_closed_after_its_block(world: World) -> None:
    async with world.registry() as registry:
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('in time')")
        for name, use in USES.items():
            if name not in ("current_session", "a service function"):
                with pytest.raises(SessionClosed):
                    await use(db)
        await assert_whole(registry, world)
    assert await world.items() == ["in time"]
