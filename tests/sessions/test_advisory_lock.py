"""`db.lock()`: an advisory lock until the transaction ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asgi_datasource import DataError, DataErrorKind, DataSession, transactional
from tests.faults.servers import proxy_of, through
from tests.pools import assert_whole
from tests.sessions.requests import request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


async def held(world: World) -> int:
    """The number of advisory locks held in the database."""
    rows = await world.sql(
        "select count(*) from pg_locks where locktype = 'advisory' and granted"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    return int(rows[0][0])


async def waiting(world: World) -> bool:
    """Whether a session waits for an advisory lock."""
    return bool(await world.sql("select 1 from pg_locks where locktype = 'advisory' and not granted"))


@pytest.mark.parametrize("key", ["invoices", "", 7, -(2**63), (1, -2)])
@pytest.mark.parametrize("timeout", [None, 0, 5.0])
async def test_the_same_key_is_locked_until_the_transaction_ends(world: World, key: Any, timeout: float | None) -> None:
    order: list[str] = []

    async with world.registry() as registry:

        async def second() -> None:
            async with registry.session("acme") as db:
                await db.lock(key)
                order.append("second")
                await db.execute(INSERT, ["second"])

        async with registry.session("acme") as db:
            await db.lock(key, timeout=timeout)
            assert await held(world) == 1
            task = asyncio.create_task(second())
            async with asyncio.timeout(10):
                while not await waiting(world):
                    await asyncio.sleep(0.01)
            order.append("first")
            await db.execute(INSERT, ["first"])
        await task
        await assert_whole(registry, world)
    assert order == ["first", "second"]
    assert await world.items() == ["first", "second"]
    assert await held(world) == 0


@pytest.mark.parametrize("timeout", [0, 0.2])
async def test_a_lock_timeout_leaves_the_transaction_usable(world: World, timeout: float) -> None:
    async with world.registry() as registry:
        async with registry.session("acme") as holder, registry.session("acme") as db:
            await holder.lock("invoices")
            await db.execute("set local lock_timeout = '7s'")
            await db.execute(INSERT, ["before"])
            with pytest.raises(DataError, match="the lock was not available") as caught:
                await db.lock("invoices", timeout=timeout)
            assert (caught.value.kind, caught.value.sqlstate) == (DataErrorKind.CONFLICT, "55P03")
            assert "invoices" not in caught.value.message
            assert await db.fetch_value("show lock_timeout") == "7s"
            await db.lock("receipts", timeout=3)
            assert await db.fetch_value("show lock_timeout") == "7s"
            await db.execute(INSERT, ["after"])
        await assert_whole(registry, world)
    assert await world.items() == ["before", "after"]


async def test_a_name_is_local_to_the_tenant_and_a_number_is_global_to_the_database(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as one, registry.session("globex") as other:
        await one.lock("invoices")
        await other.lock("invoices", timeout=0)
        await one.lock(7)
        with pytest.raises(DataError):
            await other.lock(7, timeout=0)
        # The same lock space as in plain SQL.
        assert await other.fetch_value("select pg_try_advisory_xact_lock(7)") is False
        assert await other.fetch_value("select pg_try_advisory_xact_lock(7, 0)") is True
        await one.lock((7, 1))
        assert await other.fetch_value("select pg_try_advisory_xact_lock(7, 1)") is False


async def test_a_lock_needs_a_read_write_transaction(world: World) -> None:
    async def body(db: DataSession) -> None:
        with pytest.raises(DataError, match="ends with its transaction, and there is none here"):
            await db.lock("invoices")
        async with db.transaction():
            await db.lock("invoices")
            assert await held(world) == 1
        assert await held(world) == 0
        async with db.transaction(read_only=True):
            with pytest.raises(DataError) as caught:
                await db.lock("invoices")
            assert caught.value.kind is DataErrorKind.READ_ONLY
        for wrong in (1.5, True, (1,), (1, 2, 3), None):
            with pytest.raises(TypeError):
                async with db.transaction():
                    await db.lock(wrong)  # type: ignore[arg-type]

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201


async def test_rollback_to_a_savepoint_releases_its_locks(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        await db.lock("outer", timeout=1)
        with pytest.raises(ZeroDivisionError):
            async with db.transaction():
                await db.lock("inner", timeout=1)
                assert await held(world) == 2
                raise ZeroDivisionError
        assert await db.fetch_value("select 1") == 1
        assert await held(world) == 1


async def test_a_deadlock_of_advisory_locks_is_a_conflict_and_is_retried(world: World) -> None:
    met = asyncio.Barrier(2)
    attempts = 0

    async with world.registry() as registry:

        @transactional(propagation="requires_new", retry=5)
        async def both(db: DataSession, first: str, second: str) -> None:
            nonlocal attempts
            attempts += 1
            await db.lock(first)
            if attempts <= 2:
                await met.wait()
            await db.lock(second)
            await db.execute(INSERT, [first])

        async def work(first: str, second: str) -> None:
            async with registry.session("acme") as db:
                await both(db, first, second)

        async with asyncio.timeout(20):
            await asyncio.gather(work("a", "b"), work("b", "a"))
    assert attempts == 3
    assert sorted(await world.items()) == ["a", "b"]


async def test_a_lock_costs_one_round_trip(world: World) -> None:
    async with proxy_of(world.cluster.nodes["primary"]) as proxy:
        urls = {"primary": through(proxy, world.url())}
        async with world.registry(replicas=(), urls=urls, pool={"min_size": 1, "max_size": 1}) as registry:
            for timeout in (None, 0, 2.0) * 3:
                async with registry.session("acme") as db:
                    await db.execute(INSERT, [str(timeout)])
                    proxy.reset_counters()
                    await db.lock("invoices", timeout=timeout)
                    assert proxy.round_trips == 1
                    # RELEASE SAVEPOINT travels with the next statement.
                    await db.execute("delete from orders")
                    assert proxy.round_trips == 2
