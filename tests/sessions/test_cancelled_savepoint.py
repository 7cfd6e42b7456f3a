"""A statement that is cancelled inside a savepoint costs what the savepoint holds, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from asgi_datasource import DataError, DataErrorKind, DataSession
from asgi_datasource.routing import AccessIntent
from tests.drivers.polling import until
from tests.pools import assert_whole
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


async def by_timeout(db: DataSession, first: str | None) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), db.transaction():
            if first is not None:
                await db.execute(INSERT, [first])
            await db.execute("select pg_sleep(30)")


async def on_the_borrowed_connection(db: DataSession, first: str | None) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), db.transaction():
            if first is not None:
                await db.execute(INSERT, [first])
            async with db.connection(AccessIntent.WRITE) as connection:
                await connection.execute("select pg_sleep(30)")


async def in_a_nested_one(db: DataSession, first: str | None) -> None:
    async with db.transaction():
        await db.execute(INSERT, ["outer"])
        await by_timeout(db, first)


@pytest.mark.parametrize("how", [by_timeout, on_the_borrowed_connection, in_a_nested_one])
@pytest.mark.parametrize("first", [None, "undone"])
async def test_the_transaction_goes_on_behind_it(world: World, how, first: str | None) -> None:  # type: ignore[no-untyped-def]
    async with world.registry() as registry:
        async with registry.session("acme") as db:
            await db.execute(INSERT, ["before"])
            pid = await db.write.fetch_value("select pg_backend_pid()")
            await how(db, first)
            assert await db.write.fetch_value("select pg_backend_pid()") == pid
            await db.execute(INSERT, ["after"])
        outer = ["outer"] if how is in_a_nested_one else []
        assert await world.items() == ["before", *outer, "after"]
        await assert_whole(registry, world)


async def test_without_a_savepoint_the_transaction_ends_with_the_statement(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        await db.execute(INSERT, ["before"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await db.execute("select pg_sleep(30)")
        with pytest.raises(DataError, match="was cancelled, and the transaction rolled back") as caught:
            await db.execute(INSERT, ["after"])
        assert caught.value.kind is DataErrorKind.QUERY
        await db.rollback()
    assert await world.items() == []


async def test_a_connection_that_is_lost_while_the_statement_is_stopped_is_the_end(world: World) -> None:
    async with world.registry(replicas=()) as registry, registry.session("acme") as db:
        await db.execute(INSERT, ["before"])
        pid = await db.write.fetch_value("select pg_backend_pid()")

        async def sleeps() -> None:
            async with db.transaction():
                await db.execute("select pg_sleep(30)")

        async def is_asleep() -> bool:
            rows = await world.sql(f"select 1 from pg_stat_activity where pid = {pid} and wait_event = 'PgSleep'")
            return bool(rows)

        sleeping = asyncio.create_task(sleeps())
        await until(is_asleep)
        ending = asyncio.create_task(world.sql(f"select pg_terminate_backend({pid}, 5000)"))
        sleeping.cancel()
        await asyncio.wait({sleeping, ending})
        with pytest.raises(DataError):
            await db.execute(INSERT, ["after"])
        await db.rollback()
    assert await world.items() == []


async def test_a_sessions_statement_finds_its_own_block_below_another_sessions(world: World) -> None:
    async with (
        world.registry() as registry,
        registry.session("acme") as db,
        registry.session("globex") as other,
        asyncio.timeout(20),
        db.transaction(),
    ):
        await db.execute(INSERT, ["outer"])
        async with other.transaction():
            await other.execute(INSERT, ["other"])
            await db.execute(INSERT, ["from below"])
            async with db.transaction():
                await db.execute(INSERT, ["nested"])
                await other.execute(INSERT, ["other again"])
    assert await world.items() == ["outer", "from below", "nested"]
    assert await world.items("globex") == ["other", "other again"]
