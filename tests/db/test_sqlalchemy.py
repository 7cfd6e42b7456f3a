"""`db.sqlalchemy`: the ORM in the request's own transaction, on the servers that the request is routed to."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from typing import Any

import pytest
from sqlalchemy import event, exc, func, insert, inspect, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, selectinload
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import (
    DataError,
    DataErrorKind,
    DataSession,
    SessionClosed,
    UnexpectedRollback,
    session,
    transactional,
)
from tests.apps import client
from tests.asgi_call import Call
from tests.db.models import Child, Order, Parent
from tests.guarantees.test_cost import REPEATS, always, on_one_replica, open_meter
from tests.guarantees.test_garbage import at_rest, cycles_of, request
from tests.pools import borrowed
from tests.world import World

# -- round trips


async def orm_read(request: Request) -> Response:
    found = await session(request).sqlalchemy.scalars(select(Order).where(Order.id > 0))
    return JSONResponse([order.item for order in found])


async def orm_read_related(request: Request) -> Response:
    found = await session(request).sqlalchemy.scalars(select(Parent).options(selectinload(Parent.children)))
    return JSONResponse([[child.id for child in parent.children] for parent in found])


async def orm_write(request: Request) -> Response:
    """Never flushed by hand: that is done before the commit."""
    session(request).sqlalchemy.add(Order(item=str(uuid.uuid4())))
    return Response(status_code=201)


async def orm_write_many(request: Request) -> Response:
    orm = session(request).sqlalchemy
    parent = Parent(id=await orm.scalar(select(func.coalesce(func.max(Parent.id), 0) + 1)))
    parent.children = [Child() for _ in range(20)]
    orm.add(parent)
    return Response(status_code=201)


async def orm_change(request: Request) -> Response:
    db = session(request)
    order = await db.sqlalchemy.scalar(select(Order).limit(1))
    assert order is not None
    order.item += "!"
    async with db.sqlalchemy.begin_nested():
        await db.sqlalchemy.scalar(select(func.count()).select_from(Order))
    return Response(status_code=201)


async def core_read(request: Request) -> Response:
    return JSONResponse(await session(request).sqlalchemy_connection.scalar(select(func.count()).select_from(Order)))


ROUTES = [
    Route("/orm-read", orm_read),
    Route("/orm-read-related", orm_read_related),
    Route("/core-read", core_read),
    Route("/orm-write", orm_write, methods=["POST"]),
    Route("/orm-write-many", orm_write_many, methods=["POST"]),
    Route("/orm-change", orm_change, methods=["POST"]),
]


async def test_round_trips_are_those_of_the_same_sql_by_hand(world: World) -> None:
    for schema in ("acme", "shared"):
        await world.sql(f"insert into {schema}.orders (item, tenant) values ('tea', '41')")
        await world.sql(f"insert into {schema}.parents (id) values (1)")
    await world.cluster.caught_up()
    async with open_meter(world, ROUTES) as meter:
        assert on_one_replica(await meter.costs("GET", "/orm-read"), 1)
        assert on_one_replica(await meter.costs("GET", "/core-read"), 1)
        assert on_one_replica(await meter.costs("GET", "/orm-read-related"), 2)
        assert await meter.costs("POST", "/orm-write", status=201) == always({"primary": 2})
        # The highest id, the parent, its twenty children by one statement, and COMMIT.
        assert await meter.costs("POST", "/orm-write-many", status=201) == always({"primary": 4})
        # The read, the flush in front of the savepoint, the read inside; the savepoint itself, and COMMIT.
        assert await meter.costs("POST", "/orm-change", status=201) == always({"primary": 4})
    assert len(await world.items("acme")) == 1 + REPEATS


# -- one transaction


async def test_raw_sql_and_the_orm_see_what_the_other_has_not_committed(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        orm = db.sqlalchemy
        assert isinstance(orm, AsyncSession)
        assert db.sqlalchemy is orm
        orm.add(Order(item="by the ORM"))
        await orm.flush()
        assert await db.fetch_value("select item from orders") == "by the ORM"
        await db.execute("insert into orders (item) values ('by hand')")
        assert list(await orm.scalars(select(Order.item).order_by(Order.id))) == ["by the ORM", "by hand"]
        assert await db.sqlalchemy_connection.scalar(select(func.count()).select_from(Order)) == 2
        assert await world.items() == []
    assert await world.items() == ["by the ORM", "by hand"]


async def test_a_response_that_fails_undoes_both(world: World) -> None:
    async def fails(request: Request) -> Response:
        db = session(request)
        db.sqlalchemy.add(Order(item="by the ORM"))
        await db.sqlalchemy.flush()
        await db.execute("insert into orders (item) values ('by hand')")
        return Response(status_code=409)

    async with client(world, [Route("/", fails, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 409
    assert await world.items() == []


async def test_a_constraint_that_the_last_flush_breaks_is_the_response(world: World) -> None:
    async def place(request: Request) -> Response:
        session(request).sqlalchemy.add(Order(item="forbidden"))
        return Response(status_code=201)

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        response = await http.post("/")
    assert response.status_code == 422
    assert response.json()["kind"] == "constraint"


async def test_commit_and_rollback_are_the_sessions(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        order = Order(item="kept")
        db.sqlalchemy.add(order)
        await db.sqlalchemy.commit()
        assert await world.items() == ["kept"]
        # Not expired: no statement is needed to read it.
        assert order.item == "kept"
        await db.execute("insert into orders (item) values ('undone by the ORM')")
        await db.sqlalchemy.rollback()
        gone = Order(item="undone by hand")
        db.sqlalchemy.add(gone)
        await db.sqlalchemy.flush()
        await db.rollback()
        # The ORM knows: what is not in the database is not in its session either.
        assert gone not in db.sqlalchemy
        assert order in db.sqlalchemy
        db.sqlalchemy.add(Order(item="flushed by db.commit()"))
        await db.commit()
        assert await world.items() == ["kept", "flushed by db.commit()"]


async def test_the_end_of_the_orms_objects_is_not_that_of_the_transaction(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        async with db.sqlalchemy as orm:
            orm.add(Order(item="tea"))
            await orm.flush()
        async with db.sqlalchemy_connection as connection:
            await connection.execute(insert(Order).values(item="coffee"))
        await db.sqlalchemy_connection.execute(insert(Order).values(item="milk"))
    assert await world.items() == ["tea", "coffee", "milk"]


async def test_a_savepoint_is_one_of_both(world: World) -> None:
    ran: list[str] = []
    async with world.registry() as registry, registry.session("acme") as db:
        orm = db.sqlalchemy
        orm.add(Order(item="before"))
        with pytest.raises(exc.IntegrityError):
            async with orm.begin_nested():
                await db.execute("insert into orders (item) values ('inside, by hand')")
                db.after_commit(lambda: ran.append("inside"))
                orm.add(Order(item="forbidden"))
        async with orm.begin_nested():
            orm.add(Order(item="inside"))
            await orm.flush()
            async with db.transaction():
                await db.execute("insert into orders (item) values ('inside of inside')")
        db.after_commit(lambda: ran.append("outside"))
    assert await world.items() == ["before", "inside", "inside of inside"]
    assert ran == ["outside"]


async def test_a_failed_flush_leaves_nothing_but_a_rollback(world: World) -> None:
    """What was sent before it, by whomever, must not be lost while what comes behind it is committed."""
    async with world.registry() as registry:
        with pytest.raises(UnexpectedRollback):
            async with registry.session("acme") as db:
                await db.execute("insert into orders (item) values ('before')")
                db.sqlalchemy.add(Order(item="forbidden"))
                with pytest.raises(exc.IntegrityError):
                    await db.sqlalchemy.flush()
        assert await world.items() == []
        async with registry.session("acme") as db:
            await db.execute("insert into orders (item) values ('before')")
            db.sqlalchemy.add(Order(item="forbidden"))
            with pytest.raises(exc.IntegrityError):
                await db.sqlalchemy.flush()
            await db.sqlalchemy.rollback()
            db.sqlalchemy.add(Order(item="afterwards"))
        assert await world.items() == ["afterwards"]


async def test_a_flush_that_fails_in_python_leaves_nothing_but_a_rollback(world: World) -> None:
    def refuse(orm: Session, *_: object) -> None:
        raise RuntimeError("no")

    async with world.registry() as registry:
        with pytest.raises(UnexpectedRollback):
            async with registry.session("acme") as db:
                event.listen(db.sqlalchemy.sync_session, "after_flush", refuse)
                db.sqlalchemy.add(Order(item="half"))
                with pytest.raises(RuntimeError, match="no"):
                    await db.sqlalchemy.flush()
    assert await world.items() == []


async def test_a_flush_is_all_or_nothing_where_statements_commit_by_themselves(world: World) -> None:
    async def place(request: Request) -> Response:
        orm = session(request).sqlalchemy
        orm.add(Parent(id=1))
        orm.add(Order(item=request.path_params["item"]))
        await orm.flush()
        return Response(status_code=201)

    registry = world.registry(transactions={"default": "annotated"})
    async with client(world, [Route("/{item}", place, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/forbidden")).status_code == 422
        assert await world.sql("select count(*) from parents") == [(0,)]
        assert (await http.post("/tea")).status_code == 201
        assert await world.sql("select count(*) from parents") == [(1,)]


async def test_a_function_with_its_own_transaction_flushes_into_that(world: World) -> None:
    @transactional(propagation="requires_new")
    async def log_it(orm: AsyncSession) -> None:
        orm.add(Order(item="own"))

    async def place(request: Request) -> Response:
        db = session(request)
        await db.execute("insert into orders (item) values ('undone')")
        await log_it(db.sqlalchemy)
        return Response(status_code=400)

    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/")).status_code == 400
    assert await world.items() == ["own"]


# -- intent


async def test_a_flush_with_read_intent_says_what_to_write(world: World) -> None:
    seen: list[DataError] = []

    async def place(request: Request) -> Response:
        orm = session(request).sqlalchemy
        orm.add(Order(item="tea"))
        try:
            await orm.flush()
        except DataError as error:
            seen.append(error)
            raise
        return Response()

    async with client(world, [Route("/", place)]) as http:
        assert (await http.get("/")).status_code == 500
    [error] = seen
    assert error.kind is DataErrorKind.READ_ONLY
    assert "@transactional" in str(error)
    assert isinstance(error, exc.DBAPIError)


async def test_an_execution_option_fixes_the_intent_of_a_statement(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        read = select(Order.item).execution_options(access_intent="read")
        assert list(await db.sqlalchemy.scalars(read)) == []
        assert db.last_route is not None
        assert db.last_route.role.value == "replica"
        with pytest.raises(exc.StatementError, match='neither "read" nor "write"'):
            await db.sqlalchemy.scalars(select(Order.item).execution_options(access_intent="both"))


async def test_an_annotation_holds_for_the_orm(world: World) -> None:
    @transactional(read_only=True)
    async def report(request: Request) -> Response:
        db = session(request)
        first = await db.sqlalchemy.scalar(select(func.count()).select_from(Order))
        await world.sql("insert into orders (item) values ('meanwhile')")
        await world.cluster.caught_up()
        second = await db.sqlalchemy.scalar(select(func.count()).select_from(Order))
        isolation = await db.sqlalchemy.scalar(text("show transaction_isolation"))
        return JSONResponse([first, second, isolation])

    async with client(world, [Route("/", report)]) as http:
        assert (await http.get("/")).json() == [0, 0, "repeatable read"]


async def test_isolation_is_set_for_the_transaction_that_comes(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        connection = await db.sqlalchemy.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        assert await connection.get_isolation_level() == "SERIALIZABLE"
        assert await connection.scalar(text("show transaction_isolation")) == "serializable"
        assert await db.fetch_value("show transaction_isolation") == "serializable"
        with pytest.raises(DataError, match="isolation"):
            await db.sqlalchemy_connection.execution_options(isolation_level="REPEATABLE READ")


# -- results


async def test_a_stream_is_fetched_in_steps_from_a_cursor_on_the_server(world: World) -> None:
    await world.sql("insert into orders (item) select 'item ' || n from generate_series(1, 1200) n")
    await world.cluster.caught_up()
    async with world.registry() as registry, registry.session("acme", read_only=True) as db:
        result = await db.sqlalchemy.stream_scalars(select(Order).order_by(Order.id).execution_options(yield_per=100))
        items = [order.item async for order in result]
    assert len(items) == 1200
    assert items[-1] == "item 1200"
    async with world.registry() as registry:
        async with registry.session("acme") as db:
            result = await db.sqlalchemy.stream_scalars(select(Order.item))
            assert await anext(aiter(result)) is not None
            await result.close()
            # A second CLOSE would fail, and the transaction with it.
            await result.close()
            assert await db.fetch_value("select count(*) from pg_cursors where name like 'ads%%'", []) == 0
        assert borrowed(registry) == 0


async def test_bulk_statements_and_rowcounts(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        items = [{"item": str(number)} for number in range(10)]
        ids = list(await db.sqlalchemy.scalars(insert(Order).returning(Order.id, sort_by_parameter_order=True), items))
        assert len(ids) == 10
        result = await db.sqlalchemy_connection.execute(
            update(Order).where(Order.id <= ids[4]).values(item=Order.item + "!")
        )
        assert result.rowcount == 5
        changes = [{"id": number, "item": f"changed {number}"} for number in ids]
        await db.sqlalchemy.execute(update(Order), changes)
        assert await db.fetch_value("select count(*) from orders where item like 'changed %'") == 10


async def test_run_sync_and_events_work(world: World) -> None:
    seen: list[str] = []
    async with world.registry() as registry, registry.session("acme") as db:
        connection = db.sqlalchemy_connection
        event.listen(
            connection.sync_connection, "before_cursor_execute", lambda c, cursor, statement, *_: seen.append(statement)
        )
        assert await connection.run_sync(lambda sync: sync.scalar(text("select 1"))) == 1
        assert await db.sqlalchemy.run_sync(lambda sync: sync.query(Order).count()) == 0
    assert seen == ["select 1"]


# -- errors


async def test_an_error_is_sqlalchemys_and_the_librarys(world: World) -> None:
    async with world.registry() as registry:
        with pytest.raises(exc.IntegrityError) as caught:
            async with registry.session("acme") as db:
                await db.sqlalchemy.execute(insert(Order).values(item="forbidden"))
    error: Any = caught.value
    assert isinstance(error, DataError)
    assert (error.kind, error.sqlstate, error.http_status) == (DataErrorKind.CONSTRAINT, "23514", 422)
    assert type(error.orig).__name__ == "CheckViolation"
    assert "INSERT INTO orders" in str(error)


async def test_no_value_stands_in_a_message_or_a_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    async with world.registry() as registry:
        with pytest.raises(exc.DBAPIError) as caught:
            async with registry.session("acme") as db:
                await db.sqlalchemy.execute(text("select cast(:secret as int)"), {"secret": "hunter2"})
    shown = [str(caught.value), repr(caught.value), str(caught.value.orig), caplog.text]
    assert not [part for part in shown if "hunter2" in part]


async def test_a_lost_read_is_answered_by_another_server(world: World) -> None:
    async with world.registry() as registry, registry.session("acme", read_only=False) as db:
        read = select(func.pg_backend_pid()).execution_options(access_intent="read")
        pid = await db.sqlalchemy.scalar(read)
        for node in ("r1", "r2"):
            await world.sql(f"select pg_terminate_backend({pid})", node=node)
        assert await db.sqlalchemy.scalar(read) != pid


async def test_the_orm_dies_with_the_handle(world: World) -> None:
    kept: dict[str, AsyncSession] = {}

    async def place(request: Request) -> Response:
        kept["orm"] = session(request).sqlalchemy
        kept["orm"].add(Order(item="tea"))
        return Response(status_code=201)

    registry = world.registry()
    async with client(world, [Route("/", place, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 201
        with pytest.raises(SessionClosed, match=r"registry\.session"):
            await kept["orm"].scalars(select(Order))
        assert borrowed(registry) == 0
    assert await world.items() == ["tea"]


async def test_a_deadline_ends_a_statement_of_the_orm(world: World) -> None:
    async def sleeps(request: Request) -> Response:
        session(request).sqlalchemy.add(Order(item="tea"))
        await session(request).sqlalchemy.execute(text("select pg_sleep(30)"))
        return Response()

    registry = world.registry(transactions={"deadline": "300ms"})
    async with client(world, [Route("/", sleeps, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 504
    assert await world.items() == []


async def test_a_cancelled_statement_leaves_the_session_usable(world: World) -> None:
    async with world.registry() as registry, registry.session("acme", read_only=True) as db:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await db.sqlalchemy.execute(text("select pg_sleep(30)").execution_options(access_intent="read"))
        await db.sqlalchemy.rollback()
    async with world.registry() as registry:
        async with registry.session("acme") as db:
            assert await db.sqlalchemy.scalar(text("select 1")) == 1
        assert borrowed(registry) == 0


async def test_two_phase_transactions_are_refused(world: World) -> None:
    async with world.registry() as registry, registry.sqlalchemy_engine("acme").connect() as connection:
        with pytest.raises(DataError, match="two-phase"):
            await connection.run_sync(lambda sync: sync.begin_twophase())


# -- engines


async def test_an_engine_is_inside_its_tenant_and_follows_sqlalchemys_rules(world: World) -> None:
    async with world.registry() as registry:
        for tenant in ("acme", "initech", "umbrella"):
            engine = registry.sqlalchemy_engine(tenant)
            async with engine.begin() as connection:
                await connection.execute(insert(Order).values(item=f"of {tenant}"))
            async with engine.connect() as connection:
                await connection.execute(insert(Order).values(item="not committed"))
                assert await connection.scalar(select(func.count()).select_from(Order)) == 2
            async with AsyncSession(engine) as orm, orm.begin():
                assert list(await orm.scalars(select(Order.item))) == [f"of {tenant}"]
                with pytest.raises(RuntimeError):
                    async with orm.begin_nested():
                        orm.add(Order(item="undone"))
                        await orm.flush()
                        raise RuntimeError
                assert await orm.scalar(select(func.count()).select_from(Order)) == 1
        assert borrowed(registry) == 0


async def test_an_engine_that_only_reads_has_a_replica(world: World) -> None:
    async with world.registry() as registry:
        engine = registry.sqlalchemy_engine("acme", read_only=True)
        async with engine.connect() as connection:
            assert await connection.scalar(text("select pg_is_in_recovery()")) is True
            with pytest.raises(DataError) as caught:
                await connection.execute(insert(Order).values(item="tea"))
        assert caught.value.kind is DataErrorKind.READ_ONLY


async def test_reflection_sees_the_tenants_schema(world: World) -> None:
    async with world.registry() as registry, registry.sqlalchemy_engine("globex").connect() as connection:
        assert "orders" in await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        columns = await connection.run_sync(lambda sync: inspect(sync).get_columns("orders"))
        assert [column["name"] for column in columns] == ["id", "item", "tenant"]


# -- without it


async def test_nothing_of_it_is_loaded_unless_it_is_used() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c"),
        "import sys, asgi_datasource\n"
        "[getattr(asgi_datasource, name) for name in asgi_datasource.__all__]\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'sqlalchemy']\n",
    )
    assert await process.wait() == 0


async def test_where_it_is_not_installed_the_error_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("sqlalchemy", "asgi_datasource.db."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)  # type: ignore[arg-type]
    async with world.registry() as registry, registry.session("acme") as db:
        with pytest.raises(DataError, match=r"asgi-datasource\[sqlalchemy\]"):
            _ = db.sqlalchemy


async def test_a_request_that_has_used_it_leaves_no_cycle(world: World) -> None:
    async def work(db: DataSession) -> None:
        await db.sqlalchemy.scalars(select(Order))
        await db.sqlalchemy_connection.scalar(text("select 1"))
        db.sqlalchemy.add(Order(item=str(uuid.uuid4())))

    async with at_rest(world) as registry:
        app = request(registry, work)

        async def call() -> None:
            await Call("POST").run(app)

        # SQLAlchemy makes some of its own with every statement; the library's are none.
        found = await cycles_of(call)
    ours = {DataSession.__name__, "OrmSession", "OrmAsyncSession", "SessionConnection", "DialectLink", "Order"}
    assert not ours & set(found), found
