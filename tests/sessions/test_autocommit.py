"""`db.autocommit()`: statements that PostgreSQL refuses inside a transaction block."""

from __future__ import annotations

import asyncio

import pytest

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry
from tests.pools import borrowed, until
from tests.world import World


async def test_statements_run_outside_of_any_transaction_inside_the_tenant(world: World) -> None:
    await world.sql("alter table acme.orders owner to app; alter schema acme owner to app")
    async with world.registry(pool={"max_size": 1}, replicas=()) as registry:
        # The connection comes from another tenant, so that its session is to be cleared first.
        async with registry.session("globex") as db:
            await db.execute("create temporary table orders (item text)")
        async with registry.session("acme") as db:
            async with db.autocommit() as bare:
                await bare.execute("vacuum orders")
                await bare.execute("create index concurrently by_item on orders (item)")
                assert await bare.executemany("insert into orders (item) values (%s)", [["tea"], ["milk"]]) == 2
                with pytest.raises(DataError) as caught:
                    await bare.execute("insert into orders (item) values ('forbidden')")
                assert caught.value.kind is DataErrorKind.CONSTRAINT
                with pytest.raises(DataError, match="placeholders"):
                    await bare.execute("select %s", [1, 2])
                with pytest.raises(DataError, match="BEGIN"):
                    await bare.execute("begin")
                with pytest.raises(DataError, match=r"db\.stream\(\)"):
                    bare.stream("select 1")
                # The only connection is in use: refused instead of waiting for itself.
                with pytest.raises(DataError, match="holds the last of 1"):
                    await db.fetch_all("select 1")
                assert await bare.fetch_value("select count(*) from orders", style="named") == 2
            assert db.pin.is_set
            db.set_rollback_only("what was committed stays")
        await settled(registry)
        async with registry.session("globex") as db:
            assert await db.fetch_value("select current_schema()") == "globex"
            assert await db.fetch_value("select count(*) from orders") == 0
    assert await world.items() == ["tea", "milk"]
    assert await world.sql("select 1 from pg_indexes where schemaname = 'acme' and indexname = 'by_item'")


async def settled(registry: DataSourceRegistry) -> None:
    await until(lambda: borrowed(registry) == 0, "the connection is still borrowed")


async def test_it_is_refused_inside_a_transaction_and_behind_a_pooler(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        await db.execute("insert into orders (item) values ('tea')")
        with pytest.raises(DataError, match=r"await db\.commit\(\)") as caught:
            await db.autocommit().__aenter__()
        assert caught.value.kind is DataErrorKind.QUERY
        await db.commit()
        async with db.autocommit() as bare:
            await bare.execute("update orders set item = 'milk'")
    async with world.registry(pool={"pooler": "transaction"}) as registry, registry.session("acme") as db:
        with pytest.raises(DataError, match="cannot outlive a transaction"):
            await db.autocommit().__aenter__()
        assert borrowed(registry) == 0
    assert await world.items() == ["milk"]


async def test_an_interrupted_statement_is_stopped_and_the_connection_comes_back(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        async with db.autocommit() as bare:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await bare.execute("select pg_sleep(30)")
            with pytest.raises(DataError, match="open another block"):
                await bare.execute("select 1")
        assert await db.fetch_value("select 1") == 1
    await settled(registry)
