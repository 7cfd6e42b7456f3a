"""`db.blocking`: handlers that are not async, in the request's transaction, without holding the event loop."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import httpx
import pandas
import polars
import pytest
from fastapi import Depends, FastAPI, HTTPException
from psycopg.rows import tuple_row
from sqlalchemy import exc, insert, select, text
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import (
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    SessionClosed,
    UnexpectedRollback,
    session,
    transactional,
)
from asgi_datasource.testing import serve
from tests.apps import client
from tests.db.models import Order
from tests.pools import borrowed
from tests.world import World

INSERT = "insert into orders (item) values (%s)"

Db = Annotated[DataSession, Depends(session)]


def place(request: Request) -> Response:
    """Starlette runs it in its thread pool."""
    db = session(request).blocking
    db.execute(INSERT, ["by hand"])
    db.sqlalchemy.add(Order(item="by the ORM"))
    db.sqlalchemy.flush()
    cursor = db.connection.cursor()
    cursor.execute(INSERT, ["by a cursor"])
    assert cursor.rowcount == 1
    db.sqlalchemy.add(Order(item="flushed by the commit"))
    return JSONResponse(db.fetch_all("select item from orders order by id", row_factory=tuple_row), status_code=201)


def orders(request: Request) -> Response:
    db = session(request)
    found = db.blocking.fetch_all("select item from orders order by id")
    assert db.last_route is not None
    return JSONResponse([db.last_route.role.value, [row["item"] for row in found]])


async def test_sync_handlers_of_starlette_share_one_transaction(world: World) -> None:
    registry = world.registry()
    routes = [Route("/", place, methods=["POST"]), Route("/", orders)]
    async with client(world, routes, registry=registry) as http:
        response = await http.post("/")
        assert (response.status_code, response.json()) == (201, [["by hand"], ["by the ORM"], ["by a cursor"]])
        await world.cluster.caught_up()
        role, items = (await http.get("/")).json()
        assert role == "replica"
        assert items == ["by hand", "by the ORM", "by a cursor", "flushed by the commit"]
        assert (await http.post("/")).status_code == 409
        assert borrowed(registry) == 0
    assert len(await world.items()) == 4


async def test_sync_handlers_and_dependencies_of_fastapi(world: World) -> None:
    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, registry=world.registry())

    def audit(db: Db) -> None:
        db.blocking.execute(INSERT, ["audit"])

    @app.post("/{item}", dependencies=[Depends(audit)])
    def place(item: str, db: Db) -> Any:
        db.blocking.execute(INSERT, [item])
        if item == "refused":
            raise HTTPException(409)
        return db.blocking.fetch_value("select count(*) from orders")

    async with serve(app) as server, httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http:
        assert (await http.post("/refused")).status_code == 409
        assert await world.items() == []
        assert (await http.post("/tea")).json() == 2
    assert await world.items() == ["audit", "tea"]


async def test_the_event_loop_is_never_held(world: World) -> None:
    def sleeps(request: Request) -> Response:
        db = session(request).blocking
        db.execute("select pg_sleep(0.7)")
        db.sqlalchemy.execute(text("select pg_sleep(0.7)"))
        return Response()

    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - before)

    registry = world.registry(pool={"max_size": 10})
    async with client(world, [Route("/", sleeps, methods=["POST"])], registry=registry) as http:
        watching = asyncio.create_task(watch())
        responses = await asyncio.gather(*[http.post("/") for _ in range(8)])
        watching.cancel()
    assert {response.status_code for response in responses} == {200}
    # Held, it would stand still for as long as a statement sleeps.
    assert longest < 0.6


async def test_on_the_loop_it_says_what_to_write(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        for use in (
            lambda: db.blocking.fetch_all("select 1"),
            lambda: db.blocking.sqlalchemy,
            lambda: db.blocking.connection,
            lambda: db.blocking.commit(),
            lambda: db.blocking.transaction().__enter__(),
        ):
            with pytest.raises(DataError, match=r"await db\.fetch_all") as caught:
                use()
            assert caught.value.kind is DataErrorKind.QUERY
        assert await db.fetch_value("select 1") == 1


async def test_blocks_commits_and_streams(world: World) -> None:
    def work(db: DataSession) -> list[Any]:
        blocking = db.blocking
        with blocking.transaction():
            blocking.executemany(INSERT, [["one"], ["two"]])
            with pytest.raises(DataError), blocking.transaction():
                blocking.execute(INSERT, ["undone"])
                blocking.execute(INSERT, ["forbidden"])
            with blocking.transaction():
                blocking.execute(INSERT, ["three"])
        blocking.commit()
        blocking.execute(INSERT, ["rolled back"])
        blocking.rollback()
        orm = blocking.sqlalchemy
        with pytest.raises(exc.IntegrityError), orm.begin_nested():
            blocking.execute(INSERT, ["undone"])
            orm.execute(insert(Order).values(item="forbidden"))
        with orm.begin_nested():
            orm.add(Order(item="four"))
        assert len(list(orm.scalars(select(Order).execution_options(yield_per=2)))) == 4
        return [row["item"] for row in blocking.stream("select item from orders order by id", size=2)]

    async with world.registry() as registry:
        async with registry.session("acme") as db:
            assert await run_in_threadpool(work, db) == ["one", "two", "three", "four"]
            # Nothing of the thread's blocks is in force here.
            assert await db.fetch_value("select count(*) from orders") == 4
        assert borrowed(registry) == 0
    assert await world.items() == ["one", "two", "three", "four"]


async def test_annotations_hold_for_sync_endpoints_and_functions(world: World) -> None:
    @transactional(propagation="requires_new")
    def log_it(db: DataSession) -> None:
        db.blocking.execute(INSERT, ["own"])

    @transactional(isolation="serializable")
    def place(request: Request) -> Response:
        db = session(request)
        db.blocking.execute(INSERT, ["undone"])
        log_it(db)
        assert db.blocking.fetch_value("show transaction_isolation") == "serializable"
        return Response(status_code=400)

    @transactional(read_only=True)
    def report(request: Request) -> Response:
        db = session(request).blocking
        return JSONResponse(
            [db.fetch_value("show transaction_read_only"), db.fetch_value("select pg_is_in_recovery()")]
        )

    @transactional
    def fails() -> None:
        raise RuntimeError

    def caught(request: Request) -> Response:
        session(request).blocking.execute(INSERT, ["doomed"])
        with pytest.raises(RuntimeError):
            fails()
        return Response(status_code=201)

    routes = [
        Route("/place", place, methods=["POST"]),
        Route("/report", report),
        Route("/caught", caught, methods=["POST"]),
    ]
    async with client(world, routes) as http:
        assert (await http.post("/place")).status_code == 400
        assert (await http.get("/report")).json() == ["on", True]
        assert (await http.post("/caught")).status_code == 500
    assert await world.items() == ["own"]


async def test_a_function_without_a_transaction_around_it_gets_one_of_its_own(world: World) -> None:
    @transactional
    def place(db: DataSession, item: str) -> None:
        db.blocking.execute(INSERT, ["before"])
        db.blocking.execute(INSERT, [item])

    def endpoint(request: Request) -> Response:
        place(session(request), request.path_params["item"])
        return Response(status_code=201)

    registry = world.registry(transactions={"default": "annotated"})
    async with client(world, [Route("/{item}", endpoint, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/forbidden")).status_code == 422
        assert await world.items() == []
        assert (await http.post("/tea")).status_code == 201
    assert await world.items() == ["before", "tea"]


async def test_a_deadline_ends_a_statement_of_a_thread(world: World) -> None:
    def sleeps(request: Request) -> Response:
        db = session(request).blocking
        db.execute(INSERT, ["undone"])
        db.execute("select pg_sleep(30)")
        return Response()

    registry = world.registry(transactions={"deadline": "400ms"})
    async with client(world, [Route("/", sleeps, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 504
        assert borrowed(registry) == 0
    assert await world.items() == []


async def test_it_dies_with_the_handle(world: World) -> None:
    kept: list[Any] = []

    def keeps(request: Request) -> Response:
        db = session(request)
        kept.extend([db.blocking, db.blocking.connection])
        return Response()

    async with client(world, [Route("/", keeps)]) as http:
        await http.get("/")
        blocking, connection = kept
        with pytest.raises(SessionClosed):
            await asyncio.to_thread(blocking.fetch_all, "select 1")
        with pytest.raises(SessionClosed):
            await asyncio.to_thread(connection.cursor().execute, "select 1")


async def test_pandas_and_polars_read_in_the_requests_transaction(world: World) -> None:
    def work(db: DataSession) -> list[list[str]]:
        blocking = db.blocking
        blocking.executemany(INSERT, [["tea"], ["milk"]])
        query = "select id, item from orders order by id"
        return [
            list(pandas.read_sql(text(query), blocking.sqlalchemy.connection())["item"]),
            list(
                pandas.read_sql("select item from orders where id = %(id)s", blocking.connection, params={"id": 1})[
                    "item"
                ]
            ),
            list(polars.read_database(query, blocking.connection)["item"]),
        ]

    async with world.registry() as registry, registry.session("acme") as db:
        with pytest.warns(UserWarning, match="pandas only supports SQLAlchemy"):
            read = await run_in_threadpool(work, db)
    assert read == [["tea", "milk"], ["tea"], ["tea", "milk"]]


async def test_threads_of_one_request_take_turns(world: World) -> None:
    def work(db: DataSession, number: int) -> None:
        with db.blocking.transaction():
            db.blocking.execute(INSERT, [f"first of {number}"])
            db.blocking.execute(INSERT, [f"second of {number}"])

    async with world.registry() as registry, registry.session("acme") as db:
        await asyncio.gather(*[run_in_threadpool(work, db, number) for number in range(5)])
    items = await world.items()
    assert [item.partition(" ")[0] for item in items] == ["first", "second"] * 5


async def test_a_caught_failure_leaves_nothing_but_a_rollback(world: World) -> None:
    def work(db: DataSession) -> None:
        db.blocking.execute(INSERT, ["before"])
        db.blocking.sqlalchemy.add(Order(item="forbidden"))
        with pytest.raises(exc.IntegrityError):
            db.blocking.sqlalchemy.flush()

    async with world.registry() as registry:
        with pytest.raises(UnexpectedRollback):
            async with registry.session("acme") as db:
                await run_in_threadpool(work, db)
    assert await world.items() == []
