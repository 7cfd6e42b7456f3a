"""Promise 3: the handle dies with the request. Used later it says what to write instead, and does nothing else."""

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


class Lates:
    """Uses a handle too late, and keeps what became of it."""

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
            # What happened, and the line to write instead.
            assert "after its response had started" in error.message
            assert "async with db.registry.session(tenant=db.tenant.name) as later:" in error.message


def in_a_background_task(lates: Lates) -> Any:
    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")
        return PlainTextResponse("ok", background=BackgroundTask(lates.try_it, db))

    return endpoint


def in_a_generator(lates: Lates) -> Any:
    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")

        async def body() -> AsyncIterator[bytes]:
            await lates.try_it(db)
            yield b"ok"

        return StreamingResponse(body())

    return endpoint


def in_a_child_task(lates: Lates) -> Any:
    """The task stays behind: it goes on when the response has been sent."""

    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")
        over = asyncio.Event()

        async def stray() -> None:
            await over.wait()
            await lates.try_it(db)

        request.state.stray = asyncio.create_task(stray())

        async def say_so() -> None:
            over.set()

        return PlainTextResponse("ok", background=BackgroundTask(say_so))

    return endpoint


def without_having_been_used(lates: Lates) -> Any:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(lates.try_it, session(request)))

    return endpoint


def asked_for_too_late(lates: Lates) -> Any:
    async def endpoint(request: Request) -> Response:
        async def late() -> None:
            await lates.try_it(session(request))

        return PlainTextResponse("ok", background=BackgroundTask(late))

    return endpoint


PLACES = [in_a_background_task, in_a_generator, in_a_child_task, without_having_been_used, asked_for_too_late]


@pytest.mark.parametrize("place", PLACES)
async def test_it_says_what_to_write_instead_and_writes_nothing(
    world: World, place: Callable[[Lates], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Every way to use it, one request each."""
    registry = world.registry()
    lates = {name: Lates(use) for name, use in USES.items()}
    routes = [Route(f"/{number}", place(late), methods=["POST"]) for number, late in enumerate(lates.values())]
    async with client(world, routes, registry=registry) as http:
        for number, (name, late) in enumerate(lates.items()):
            before = lent(registry)
            assert (await http.post(f"/{number}")).status_code == 200
            await until(lambda late=late: late.errors != [], name)
            late.assert_refused()
            assert lent(registry) - before <= 1, "the request's own write, and nothing else"
            await world.sql("delete from orders where item = 'in time'")
        assert await world.items() == []
        await assert_whole(registry, world)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_line_to_write_instead_works(world: World) -> None:
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


async def test_an_uncaught_late_use_breaks_a_stream_off_and_strands_nothing(world: World) -> None:
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
async def test_after_a_hundred_late_uses_the_pool_is_whole(world: World, place: Callable[[Lates], Any]) -> None:
    registry = world.registry(replicas=(), pool={"max_size": 5})
    lates = Lates(lambda db: db.execute(INSERT))

    async def one_query(request: Request) -> Response:
        return PlainTextResponse(str(await session(request).fetch_value("select count(*) from orders")))

    routes = [Route("/late", place(lates), methods=["POST"]), Route("/query", one_query)]
    async with client(world, routes, registry=registry) as http:
        await world.sql("alter table orders drop constraint orders_item_key")
        for _ in range(10):
            answers = await asyncio.gather(*(http.post("/late") for _ in range(10)))
            assert {answer.status_code for answer in answers} == {200}
        await until(lambda: len(lates.errors) == 100, "a hundred late uses")
        lates.assert_refused(times=100)
        await assert_whole(registry, world)
        assert len(await world.backends()) <= 5
        # All five can be had, and at once.
        answers = await asyncio.gather(*(http.get("/query") for _ in range(5)))
        assert [answer.text for answer in answers] == ["100"] * 5


class Captured:
    """Everything that a request can carry away from its session."""

    def __init__(self) -> None:
        self.db: DataSession
        self.connection: Any
        self.cursor: Any
        self.rows: AsyncIterator[Any]
        self.block: Any
        self.connection_block: Any


async def test_with_a_pool_of_one_it_never_runs_in_another_requests_transaction(world: World) -> None:
    """The connection of the first request is the one that the second is in a transaction on."""
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
        assert pids[0] == pids[1], "the very same connection"
        for name, use in uses.items():
            # commit() and rollback() of a borrowed connection are refused whenever they are called.
            is_end = name in ("connection.commit", "connection.rollback")
            with pytest.raises(DataError if is_end else SessionClosed):
                await use()
            assert borrowed(registry) == 1
        go_on.set()
        assert (await second_request).status_code == 500
        # The transaction of the second was its own to the end: nothing has committed it, nothing was added.
        assert await world.items() == ["first"]
        await assert_whole(registry, world)


async def in_a_pipeline(connection: AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        await connection.execute(INSERT)


async def copy_into(cursor: Any) -> None:
    async with cursor.copy("copy orders (item) from stdin") as copy:
        await copy.write_row(["late"])


async def test_a_task_that_waits_for_its_turn_when_the_response_starts(world: World) -> None:
    """Its statement was not sent yet: it is refused, not run behind the commit."""
    lates = Lates(lambda db: db.execute(INSERT))
    strays: list[asyncio.Task[None]] = []

    async def endpoint(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('in time')")

        async def stray() -> None:
            # Runs when the loop next turns, which is during COMMIT.
            await lates.try_it(db)

        strays.append(asyncio.create_task(stray()))
        return PlainTextResponse("ok")

    registry = world.registry()
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 200
        await asyncio.wait(strays)
        lates.assert_refused()
        await assert_whole(registry, world)
    assert await world.items() == ["in time"]


async def test_a_task_whose_statement_runs_when_the_response_starts(world: World) -> None:
    """It was sent in time: it belongs to the request, which waits for it and commits it too."""
    running = asyncio.Event()
    lates = Lates(lambda db: db.execute(INSERT))
    strays: list[asyncio.Task[None]] = []

    async def endpoint(request: Request) -> Response:
        db = session(request)

        async def stray() -> None:
            running.set()
            await db.execute("insert into orders (item) select 'in time' from pg_sleep(0.2)")
            await lates.try_it(db)

        strays.append(asyncio.create_task(stray()))
        await running.wait()
        return PlainTextResponse("ok")

    registry = world.registry()
    async with client(world, [Route("/", endpoint, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 200
        assert await world.items() == ["in time"]
        await asyncio.wait(strays)
        lates.assert_refused()
        await assert_whole(registry, world)


async def test_a_stream_of_rows_that_is_left_open(world: World) -> None:
    """Its cursor goes with the session, and its connection with it."""
    rows: list[AsyncIterator[Any]] = []
    lates = Lates(lambda db: anext(rows[0]))

    async def endpoint(request: Request) -> Response:
        db = session(request)
        rows.append(aiter(db.stream("select generate_series(1, 10000) as number", size=10)))
        await anext(rows[0])
        return PlainTextResponse("ok", background=BackgroundTask(read_on, db))

    async def read_on(db: DataSession) -> None:
        for _ in range(9):
            await anext(rows[0])
        # What had been fetched in time is there; the next rows would need the cursor.
        await lates.try_it(db)

    registry = world.registry()
    async with client(world, [Route("/", endpoint)], registry=registry) as http:
        assert (await http.get("/")).status_code == 200
        await until(lambda: lates.errors != [], "the background task")
        lates.assert_refused()
        await assert_whole(registry, world)


async def test_fastapis_background_tasks_and_dependencies(world: World) -> None:
    lates = Lates(lambda db: db.execute(INSERT))
    app = FastAPI()
    registry = world.registry()
    app.add_middleware(DataSourceMiddleware, registry=registry)

    async def dependency(db: Db) -> AsyncIterator[None]:
        yield
        await lates.try_it(db)

    @app.post("/", dependencies=[Depends(dependency)])
    async def endpoint(tasks: FastAPIBackgroundTasks, db: Db) -> None:
        tasks.add_task(lates.try_it, db)
        await db.execute("insert into orders (item) values ('in time')")

    async with serve(app) as server, client(world, []) as http:
        assert (await http.post(server.url)).status_code == 200
        await until(lambda: len(lates.errors) == 2, "the task and the dependency")
        lates.assert_refused(times=2)
        await assert_whole(registry, world)
    assert await world.items() == ["in time"]


async def test_a_workers_session_dies_with_its_block(world: World) -> None:
    async with world.registry() as registry:
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('in time')")
        for name, use in USES.items():
            if name not in ("current_session", "a service function"):
                with pytest.raises(SessionClosed):
                    await use(db)
        await assert_whole(registry, world)
    assert await world.items() == ["in time"]
