"""Nested scopes of a session: savepoints, transactions, snapshots, borrowed connections and streams."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import psycopg
import pytest
from psycopg.rows import class_row, scalar_row
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from asgi_datasource import (
    AccessIntent,
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    SessionClosed,
    UnexpectedRollback,
    session,
    transactional,
)
from tests.asgi_call import Call
from tests.pools import assert_whole, borrowed, until
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


async def test_a_failed_block_is_rolled_back_alone(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.execute(INSERT, ["before"])
        with pytest.raises(DataError) as caught:
            async with db.transaction():
                await db.execute(INSERT, ["inside"])
                await db.execute(INSERT, ["before"])
        assert caught.value.kind is DataErrorKind.CONSTRAINT
        assert caught.value.constraint == "orders_item_key"
        await db.execute(INSERT, ["after"])
    assert await world.items() == ["before", "after"]


async def test_nested_blocks_commit_and_roll_back_independently(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db, db.transaction():
        await db.execute(INSERT, ["outer"])
        with pytest.raises(ZeroDivisionError):
            async with db.transaction():
                await db.execute(INSERT, ["inner, undone"])
                async with db.transaction():
                    await db.execute(INSERT, ["innermost, undone with it"])
                raise ZeroDivisionError
        async with db.transaction():
            await db.execute(INSERT, ["inner, kept"])
    assert await world.items() == ["outer", "inner, kept"]


async def test_a_caught_statement_failure_fails_the_savepoint(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.execute(INSERT, ["before"])
        with pytest.raises(UnexpectedRollback, match="orders_item_key"):
            async with db.transaction():
                with pytest.raises(DataError):
                    await db.execute(INSERT, ["before"])
        await db.execute(INSERT, ["after"])
    assert await world.items() == ["before", "after"]


async def test_a_commit_after_a_caught_statement_failure_raises(world: World) -> None:
    async with world.registry() as registry:
        with pytest.raises(UnexpectedRollback):
            async with registry.session(tenant="acme") as db:
                await db.execute(INSERT, ["before"])
                with pytest.raises(DataError):
                    await db.execute(INSERT, ["before"])
                with pytest.raises(DataError, match="earlier failure has ended this transaction"):
                    await db.execute(INSERT, ["after"])
    assert await world.items() == []


async def test_tasks_outside_a_block_wait_until_it_ends(world: World) -> None:
    inside = asyncio.Event()

    async def other(db: DataSession) -> None:
        await inside.wait()
        await db.execute(INSERT, ["other"])

    async with world.registry() as registry, registry.session(tenant="acme") as db:
        task = asyncio.create_task(other(db))
        with pytest.raises(ZeroDivisionError):
            async with db.transaction():
                await db.execute(INSERT, ["undone"])
                inside.set()
                # Tasks that the block started are part of it, and do not deadlock.
                await asyncio.gather(*(db.execute(INSERT, [f"undone {n}"]) for n in range(3)))
                assert not task.done()
                raise ZeroDivisionError
        await task
    assert await world.items() == ["other"]


async def test_a_read_only_block_is_a_snapshot_on_one_replica(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        async with db.transaction(read_only=True):
            assert await db.fetch_value("select count(*) from orders") == 0
            await world.sql("insert into orders (item) values ('meanwhile')")
            await world.cluster.caught_up()
            assert await db.fetch_value("select count(*) from orders") == 0
            assert await db.fetch_value("select pg_is_in_recovery()") is True
            with pytest.raises(DataError) as caught:
                await db.write.execute(INSERT, ["no"])
            assert caught.value.kind in (DataErrorKind.READ_ONLY, DataErrorKind.QUERY)
        assert await db.read.fetch_value("select count(*) from orders") == 1


async def test_a_different_isolation_inside_a_transaction_is_refused(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        async with db.transaction(isolation="serializable"):
            assert await db.fetch_value("select current_setting('transaction_isolation')") == "serializable"
            with pytest.raises(DataError, match="isolation is decided where the transaction is opened"):
                async with db.transaction(isolation="repeatable read"):
                    raise AssertionError("the block was entered")
        with pytest.raises(ValueError, match="isolation"):
            db.transaction(isolation="chaos")


async def test_commit_and_rollback_inside_the_session_keep_tenant_and_pin(world: World) -> None:
    ran: list[str] = []
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.execute(INSERT, ["first"])
        db.after_commit(lambda: ran.append("first"))
        await db.commit()
        assert ran == ["first"]
        assert not db.in_transaction()
        assert await world.items() == ["first"]
        await db.execute(INSERT, ["second"])
        db.after_commit(lambda: ran.append("never"))
        db.after_rollback(lambda: ran.append("undone"))
        await db.rollback()
        assert ran == ["first", "undone"]
        assert await db.read.fetch_all("select item from orders") == [{"item": "first"}]
        assert db.last_route is not None
        assert db.last_route.reason == "pinned"
        await db.execute(INSERT, ["third"])
        with pytest.raises(DataError, match="leave the transaction"):
            async with db.transaction():
                await db.commit()
    assert await world.items() == ["first", "third"]


@pytest.mark.parametrize("how", ["db.commit()", "requires_new"])
@pytest.mark.parametrize("fails", [False, True])
async def test_the_response_waits_for_a_commit_whose_caller_was_cancelled(world: World, how: str, fails: bool) -> None:
    """The caller is no longer waiting and continues as if COMMIT had succeeded."""

    async def write(db: DataSession) -> None:
        await db.execute(INSERT, ["tea"])
        # COMMIT is slow, and may fail at a deferred foreign key.
        await db.execute("insert into slow values (1)")
        if fails:
            await db.execute("insert into children (parent) values (99)")

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        sessions.append(db)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                if how == "requires_new":
                    await transactional(propagation="requires_new")(write)(db)
                else:
                    await write(db)
                    await db.commit()
        assert db.committing
        await db.execute(INSERT, ["more"])
        await JSONResponse({}, status_code=201)(scope, receive, send)

    sessions: list[DataSession] = []
    under_way: list[int] = []
    async with world.registry() as registry:
        call = Call(on_send=lambda message: under_way.append(len(sessions[0].committing)))
        await call.run(DataSourceMiddleware(endpoint, registry=registry))
        items = await world.items()
        await assert_whole(registry, world)
    assert set(under_way) == {0}
    if how == "requires_new":
        # A separate transaction fails alone, as its caller expects.
        assert (call.status, items) == (201, ["more"] if fails else ["tea", "more"])
    else:
        assert (call.status, items) == ((409, []) if fails else (201, ["tea", "more"]))


async def test_hooks_run_in_order_independently_and_know_the_tenant(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[object] = []
    async with world.registry() as registry, registry.session(tenant="acme") as db:

        async def last() -> None:
            ran.append(db.tenant.name)

        def fails() -> None:
            raise ZeroDivisionError

        await db.execute(INSERT, ["tea"])
        db.after_commit(lambda: ran.append(1))
        db.after_commit(fails)
        db.after_commit(last)
        db.after_rollback(lambda: ran.append("never"))
        with pytest.raises(KeyError):
            async with db.transaction():
                await db.execute(INSERT, ["undone"])
                db.after_commit(lambda: ran.append("never"))
                raise KeyError
        assert ran == []
    assert ran == [1, "acme"]
    assert "the hook" in caplog.text
    assert await world.items() == ["tea"]


async def test_set_rollback_only_rolls_back_the_session(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        await db.execute(INSERT, ["tea"])
        db.set_rollback_only("a dry run")
    assert await world.items() == []


async def test_a_stream_reads_in_batches_and_returns_its_connection(world: World) -> None:
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        rows = [row["n"] async for row in db.read.stream("select n from generate_series(1, %s) as n", [1234], size=100)]
        assert rows == list(range(1, 1235))
        async with aclosing(
            db.read.stream("select n from generate_series(1, 100) as n", size=10, row_factory=scalar_row)
        ) as s:  # type: ignore[type-var]
            async for number in s:
                assert number == 1
                assert await db.read.fetch_value("select pg_is_in_recovery()") is True
                break
        assert [endpoint.borrowed for endpoint in db.datasource.servers.values()] == [0, 0, 0]
        await db.execute(INSERT, ["tea"])
        assert [row["item"] async for row in db.stream("select item from orders")] == ["tea"]


async def test_a_borrowed_connection_shares_the_transaction_and_expires_with_its_block(world: World) -> None:
    async with world.registry() as registry:
        async with registry.session(tenant="acme") as db:
            async with db.connection(AccessIntent.WRITE) as connection:
                async with connection.cursor().copy("copy orders (item) from stdin") as copy:
                    await copy.write_row(["copied"])
                cursor = connection.cursor()
            assert await db.fetch_all("select item from orders") == [{"item": "copied"}]
            with pytest.raises(SessionClosed):
                await cursor.execute("select 1")
            with pytest.raises(SessionClosed):
                await connection.execute("select 1")
            with pytest.raises((psycopg.Error, DataError)):
                async with db.connection(AccessIntent.READ) as connection:
                    await connection.execute(INSERT, ["refused"])
        # Its session is cleared in the background, before it is lent again.
        await until(lambda: borrowed(registry) == 0, "the connection is back")


async def test_row_factories_and_parameters(world: World) -> None:
    class Order:
        def __init__(self, id: int, item: str) -> None:
            self.id, self.item = id, item

    async with world.registry() as registry, registry.session(tenant="acme") as db:
        assert await db.executemany(INSERT, [["tea"], ["coffee"]]) == 2
        assert await db.executemany(INSERT, []) == 0
        orders = await db.fetch_all("select id, item from orders order by id", row_factory=class_row(Order))
        assert [order.item for order in orders] == ["tea", "coffee"]
        assert await db.fetch_one("select item from orders where item = %(item)s", {"item": "tea"}) == {"item": "tea"}
        assert await db.fetch_one("select item from orders where false") is None
        assert await db.fetch_value("select count(*) from orders") == 2
        assert await db.execute("update orders set item = item || '!'") == 2
        with pytest.raises(DataError, match="returns no rows"):
            async with db.transaction():
                await db.fetch_all("update orders set item = 'x' where false")


async def test_service_functions_join_the_transaction(world: World) -> None:
    @transactional
    async def place(db: DataSession, item: str) -> None:
        await db.execute(INSERT, [item])
        if item == "bad":
            raise ValueError(item)

    @transactional(read_only=True)
    async def count(db: DataSession) -> int:
        return int(await db.fetch_value("select count(*) from orders"))

    @transactional(isolation="serializable")
    async def strict(db: DataSession) -> None:
        await db.execute(INSERT, ["strict"])

    async with world.registry() as registry, registry.session(tenant="acme") as db:
        assert await count(db) == 0
        await place(db, "tea")
        assert await count(db) == 1
        with pytest.raises(DataError, match="isolation"):
            await strict(db)
        await place(db, "coffee")
    assert await world.items() == ["tea", "coffee"]


async def test_closing_an_abandoned_stream_does_not_disturb_a_running_statement(world: World) -> None:
    async with world.registry(pool={"max_size": 1}) as registry:
        async with registry.session("acme") as db:
            rows = db.stream("select generate_series(1, 10) as number", size=2)
            assert await anext(rows) == {"number": 1}
            running = asyncio.ensure_future(db.read.fetch_value("select 'done' from pg_sleep(0.3)"))
            for _ in range(10):
                await asyncio.sleep(0)
            # The event loop does this for an unreferenced async generator.
            await rows.aclose()
            assert await running == "done"
            assert await db.read.fetch_value("select 1") == 1
        await assert_whole(registry, world)
