"""Each propagation of an annotated function, inside and outside of a transaction, on a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from asgi_datasource import (
    DataError,
    DataErrorKind,
    DataSession,
    UnexpectedRollback,
    current_session,
    transactional,
)
from tests.pools import assert_whole
from tests.sessions.requests import request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"
XID = "select pg_current_xact_id()::text"


async def put(db: DataSession, item: str) -> None:
    await db.execute(INSERT, [item])


async def xid(db: DataSession) -> str:
    return str(await db.write.fetch_value(XID))


@transactional
async def place(item: str, *, fails: bool = False) -> str:
    db = current_session()
    await put(db, item)
    if fails:
        raise ValueError(item)
    return await xid(db)


@transactional(propagation="requires_new")
async def audit(item: str, *, fails: bool = False) -> str:
    db = current_session()
    await put(db, item)
    if fails:
        raise ValueError(item)
    return await xid(db)


@transactional(propagation="nested")
async def try_to_place(item: str, *, fails: bool = False) -> str:
    db = current_session()
    await put(db, item)
    if fails:
        raise ValueError(item)
    return await xid(db)


@transactional(propagation="mandatory")
async def add_line(item: str) -> None:
    await put(current_session(), item)


@transactional(propagation="supports")
async def note(item: str) -> None:
    await put(current_session(), item)


@transactional(propagation="not_supported")
async def beside(item: str) -> None:
    await put(current_session(), item)


@transactional(propagation="never")
async def slow_work(item: str) -> None:
    await current_session().write.execute(INSERT, [item])


@transactional(read_only=True)
async def count() -> tuple[int, bool]:
    row = await current_session().fetch_one("select count(*) as n, pg_is_in_recovery() as on_replica from orders")
    assert row is not None
    return row["n"], row["on_replica"]


# -- required


async def test_required_joins_the_surrounding_transaction(world: World) -> None:
    async def body(db: DataSession) -> None:
        first = await xid(db)
        assert await place("tea") == first
        assert await place("milk") == first
        assert await world.items() == []

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["tea", "milk"]


async def test_required_opens_a_transaction_if_there_is_none(world: World) -> None:
    async def body(db: DataSession) -> None:
        await place("tea")
        assert await world.items() == ["tea"]
        with pytest.raises(ValueError, match="milk"):
            await place("milk", fails=True)
        await place("cocoa")

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["tea", "cocoa"]


@pytest.mark.parametrize("writes_before", [True, False])
async def test_a_failure_in_required_caught_outside_fails_the_commit(world: World, writes_before: bool) -> None:
    async def body(db: DataSession) -> None:
        if writes_before:
            await put(db, "before")
        with pytest.raises(ValueError, match="tea"):
            await place("tea", fails=True)
        # The server would still run statements, and the response may need to read.
        assert await db.fetch_value("select count(*) from orders") == writes_before + 1
        await put(db, "after")

    async with world.registry() as registry:
        call = await request(registry, body)
        assert call.status == 500
        assert b"unexpected" not in call.body
        await assert_whole(registry, world)
        with pytest.raises(UnexpectedRollback, match="ValueError left a function"):
            async with registry.session("acme") as db:
                await body(db)
    assert await world.items() == []


async def test_a_caught_failure_fails_the_commit_even_without_a_statement(world: World) -> None:
    @transactional
    async def check() -> None:
        raise ValueError

    async def body(db: DataSession) -> None:
        with pytest.raises(ValueError):
            await check()

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 500


async def test_a_rollback_response_is_kept_after_a_caught_failure(world: World) -> None:
    async def body(db: DataSession) -> str:
        with pytest.raises(ValueError):
            await place("tea", fails=True)
        return "sorry"

    async with world.registry() as registry:
        call = await request(registry, body, status=409)
        assert (call.status, call.body) == (409, b'"sorry"')
    assert await world.items() == []


async def test_commit_on_and_redirects_do_not_doom_the_transaction(world: World) -> None:
    @transactional(commit_on=[KeyError])
    async def tolerant() -> None:
        await put(current_session(), "tolerated")
        raise KeyError

    @transactional
    async def redirects() -> None:
        await put(current_session(), "redirected")
        raise HTTPException(303, headers={"Location": "/"})

    async def body(db: DataSession) -> None:
        with pytest.raises(KeyError):
            await tolerant()
        with pytest.raises(HTTPException):
            await redirects()

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["tolerated", "redirected"]


async def test_a_cancelled_joined_function_is_not_partly_committed(world: World) -> None:
    @transactional
    async def two() -> None:
        await put(current_session(), "half")
        await asyncio.Event().wait()

    async def body(db: DataSession) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await two()

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 500
    assert await world.items() == []


async def test_a_savepoint_around_the_function_contains_its_failure(world: World) -> None:
    async def body(db: DataSession) -> None:
        await put(db, "before")
        with pytest.raises(ValueError):
            async with db.transaction():
                await place("undone", fails=True)
        with pytest.raises(UnexpectedRollback, match="ValueError"):
            async with db.transaction():
                with pytest.raises(ValueError):
                    await place("caught too early", fails=True)
        await put(db, "after")

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["before", "after"]


async def test_rollback_inside_the_request_clears_the_failure(world: World) -> None:
    async def body(db: DataSession) -> None:
        with pytest.raises(ValueError):
            await place("undone", fails=True)
        with pytest.raises(UnexpectedRollback):
            await db.commit()
        await db.rollback()
        await put(db, "kept")

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["kept"]


# -- requires_new


async def test_requires_new_commits_independently_of_the_outer_transaction(world: World) -> None:
    ran: list[str] = []

    async def body(db: DataSession) -> None:
        await put(db, "outer")
        db.after_commit(lambda: ran.append("outer"))
        first = await xid(db)

        @transactional(propagation="requires_new")
        async def inner() -> None:
            assert await xid(db) != first
            assert await db.fetch_value("select count(*) from orders") == 0
            await put(db, "inner")
            db.after_commit(lambda: ran.append("inner"))
            assert db.in_transaction()

        await inner()
        assert ran == ["inner"]
        assert await world.items() == ["inner"]
        assert await xid(db) == first
        assert await db.fetch_value("select count(*) from orders") == 2

    async with world.registry() as registry:
        assert (await request(registry, body, status=409)).status == 409
        await assert_whole(registry, world)
    assert ran == ["inner"]
    assert await world.items() == ["inner"]


async def test_a_failure_in_requires_new_does_not_affect_the_outer_transaction(world: World) -> None:
    async def body(db: DataSession) -> None:
        await put(db, "outer")
        with pytest.raises(ValueError):
            await audit("undone", fails=True)
        with pytest.raises(DataError, match="orders_item_check"):
            await audit("forbidden")

        @transactional(propagation="requires_new")
        async def gives_up() -> None:
            await put(db, "given up")
            db.set_rollback_only("changed its mind")

        await gives_up()
        await audit("audited")
        await put(db, "more")

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert sorted(await world.items()) == ["audited", "more", "outer"]


async def test_requires_new_takes_a_second_connection_only_if_one_is_held(world: World) -> None:
    seen: list[Any] = []

    async def body(db: DataSession) -> None:
        primary = db.datasource.servers["primary"]

        @transactional(propagation="requires_new")
        async def inner(depth: int) -> None:
            await put(db, f"{depth} {len(seen)}")
            seen.append(primary.borrowed)
            if depth > 1:
                await inner(depth - 1)

        await inner(1)
        await put(db, "outer")
        await inner(2)

    async with world.registry(pool={"min_size": 1, "max_size": 3}) as registry:
        assert (await request(registry, body)).status == 201
    assert seen == [1, 2, 3]


async def test_requires_new_is_refused_if_the_pool_has_no_second_connection(world: World) -> None:
    async def body(db: DataSession) -> None:
        await audit("before")
        await put(db, "outer")
        with pytest.raises(DataError, match=r"pool\.max_size") as caught:
            await audit("refused")
        assert caught.value.kind is DataErrorKind.CONFIG
        with pytest.raises(DataError, match=r"pool\.max_size"):
            await beside("refused")
        await put(db, "more")

    async with world.registry(replicas=(), pool={"min_size": 1, "max_size": 1, "acquire_timeout": "60s"}) as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == ["before", "outer", "more"]


async def test_other_tasks_wait_until_requires_new_has_ended(world: World) -> None:
    inside = asyncio.Event()

    async def body(db: DataSession) -> None:
        async def other() -> str:
            await inside.wait()
            return await xid(db)

        first = await xid(db)
        task = asyncio.create_task(other())

        @transactional(propagation="requires_new")
        async def inner() -> None:
            inside.set()
            # A task that the function started belongs to it.
            mine, theirs = await asyncio.gather(xid(db), asyncio.create_task(xid(db)))
            assert mine == theirs != first
            assert not task.done()

        await inner()
        assert await task == first

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201


# -- nested, mandatory, supports, not_supported, never


async def test_nested_is_a_savepoint_inside_and_a_transaction_outside(world: World) -> None:
    async def inside(db: DataSession) -> None:
        first = await xid(db)
        with pytest.raises(ValueError):
            await try_to_place("undone", fails=True)
        await try_to_place("kept")
        assert await xid(db) == first

    async def outside(db: DataSession) -> None:
        with pytest.raises(ValueError):
            await try_to_place("undone", fails=True)
        await try_to_place("own")
        assert "own" in await world.items()

    async with world.registry() as registry:
        assert (await request(registry, inside)).status == 201
    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, outside)).status == 201
    assert await world.items() == ["kept", "own"]


async def test_mandatory_needs_a_declared_transaction(world: World) -> None:
    async def body(db: DataSession) -> None:
        await add_line("tea")

    @transactional
    async def asks(db: DataSession) -> None:
        await add_line("milk")

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        # A GET without annotation reads outside of any transaction until its first write.
        with pytest.raises(DataError, match=r'"mandatory" was called where nothing asks'):
            await request(registry, body, method="GET")
        assert (await request(registry, asks, method="GET")).status == 201
    async with world.registry(transactions={"default": "annotated"}) as registry:
        with pytest.raises(DataError, match=r'"mandatory" was called outside a transaction'):
            await request(registry, body)
        async with registry.session("acme"):
            await add_line("cocoa")
    assert await world.items() == ["tea", "milk", "cocoa"]


async def test_supports_joins_inside_and_autocommits_outside(world: World) -> None:
    async def inside(db: DataSession) -> None:
        await put(db, "tea")
        await note("undone with the request")

    async def outside(db: DataSession) -> None:
        await note("by itself")
        assert await world.items() == ["by itself"]

    async with world.registry() as registry:
        await request(registry, inside, status=400)
    async with world.registry(transactions={"default": "annotated"}) as registry:
        await request(registry, outside, status=400)
    assert await world.items() == ["by itself"]


async def test_not_supported_autocommits_while_the_transaction_is_suspended(world: World) -> None:
    async def body(db: DataSession) -> None:
        await put(db, "outer")
        await beside("beside")
        assert await world.items() == ["beside"]
        assert await db.fetch_value("select count(*) from orders") == 2
        await put(db, "more")

    async with world.registry() as registry:
        assert (await request(registry, body, status=409)).status == 409
        await assert_whole(registry, world)
        # Also before the request's transaction has begun.
        assert (await request(registry, lambda db: beside("first"), status=409)).status == 409
    assert await world.items() == ["beside", "first"]


async def test_never_is_refused_inside_and_autocommits_outside(world: World) -> None:
    async def inside(db: DataSession) -> None:
        with pytest.raises(DataError, match=r'"never" was called inside a transaction'):
            await slow_work("refused")

    async def outside(db: DataSession) -> None:
        await slow_work("by itself")
        assert "by itself" in await world.items()

    async with world.registry() as registry:
        assert (await request(registry, inside)).status == 201
        assert (await request(registry, outside, method="GET", status=400)).status == 400
    assert await world.items() == ["by itself"]


# -- read only and isolation


async def test_an_inner_read_only_function_reads_in_the_open_transaction_and_cannot_write(world: World) -> None:
    @transactional(read_only=True)
    async def look() -> None:
        db = current_session()
        assert await count() == (1, False)
        # Functions that it calls are read only as well.
        with pytest.raises(DataError) as caught:
            async with db.transaction(read_only=True):
                await place("refused")
        assert caught.value.kind is DataErrorKind.READ_ONLY
        with pytest.raises(DataError) as caught:
            await db.write.execute(INSERT, ["refused"])
        assert caught.value.kind is DataErrorKind.READ_ONLY

    async def body(db: DataSession) -> None:
        assert await count() == (0, True)
        await put(db, "outer")
        await look()
        # The server enforces it for functions called by a query, and only within this block.
        with pytest.raises(DataError) as caught:
            async with db.transaction(read_only=True):
                await db.fetch_value("select place('refused')")
        assert caught.value.kind is DataErrorKind.READ_ONLY
        # A separate transaction is not read only.
        assert await transactional(read_only=True)(audit)("audited")
        await put(db, "more")

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert sorted(await world.items()) == ["audited", "more", "outer"]


async def test_a_failure_in_an_inner_read_only_function_does_not_doom_the_transaction(world: World) -> None:
    @transactional(read_only=True)
    async def find() -> None:
        assert await current_session().fetch_all("select * from orders") != []
        raise LookupError

    async def body(db: DataSession) -> None:
        await put(db, "kept")
        with pytest.raises(LookupError):
            await find()

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["kept"]


async def test_a_read_write_function_reads_inside_a_read_only_transaction(world: World) -> None:
    @transactional
    async def reads() -> int:
        return int(await current_session().fetch_value("select count(*) from orders"))

    async with world.registry() as registry, registry.session("acme", read_only=True) as db:
        assert await reads() == 0
        await world.sql("insert into orders (item) values ('meanwhile')")
        await world.cluster.caught_up()
        # From the same snapshot.
        assert await reads() == 0
        with pytest.raises(DataError) as caught:
            async with db.transaction(read_only=True):
                await place("refused")
        assert caught.value.kind is DataErrorKind.READ_ONLY
        with pytest.raises(DataError, match="open it first"):
            async with db.transaction():
                pass


async def test_a_different_isolation_is_refused_inside_and_adopted_before_begin(world: World) -> None:
    @transactional(isolation="serializable")
    async def strict(item: str) -> str:
        db = current_session()
        await put(db, item)
        return str(await db.fetch_value("select current_setting('transaction_isolation')"))

    @transactional(isolation="read committed")
    async def plain(item: str) -> None:
        await put(current_session(), item)

    async def open_already(db: DataSession) -> None:
        await put(db, "open")
        with pytest.raises(DataError, match="'serializable' was asked for inside a transaction that has 'the default'"):
            await strict("refused")
        # The server's default is at least that.
        await plain("plain")

    async def not_open_yet(db: DataSession) -> None:
        assert await strict("strict") == "serializable"
        assert await strict("strict again") == "serializable"
        with pytest.raises(DataError, match="'read committed' was asked for inside a transaction that has 'serializab"):
            await plain("refused")

    async with world.registry() as registry:
        assert (await request(registry, open_already)).status == 201
        assert (await request(registry, not_open_yet)).status == 201
    assert await world.items() == ["open", "plain", "strict", "strict again"]


async def test_reads_run_in_the_transaction_if_its_isolation_covers_them(world: World) -> None:
    """Write skew would go unnoticed if the deciding read ran outside the transaction."""

    @transactional(isolation="serializable")
    async def body(db: DataSession) -> None:
        assert await db.read.fetch_value("select pg_is_in_recovery()") is False
        assert db.in_transaction()
        assert (await count())[1] is False
        await put(db, "tea")

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["tea"]
