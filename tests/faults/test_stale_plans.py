"""Prepared statements that are gone, or whose result columns have changed: retried if that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from asgi_datasource import DataError, DataSourceRegistry
from tests.world import World

TIMES = 8
"""More executions than it takes until a statement is prepared."""


@pytest.fixture
async def registry(world: World) -> AsyncIterator[DataSourceRegistry]:
    """A pool of one: every statement runs on the same connection."""
    async with world.registry(replicas=(), pool={"max_size": 1}) as made:
        yield made


async def read(registry: DataSourceRegistry, *, tenant: str = "acme") -> list[dict[str, object]]:
    async with registry.session(tenant=tenant) as db:
        return await db.read.fetch_all("select * from orders order by id")


async def write_all(registry: DataSourceRegistry, statement: str, items: list[list[str]]) -> None:
    async with registry.session(tenant="acme") as db:
        await db.executemany(statement, items)


async def prepare(registry: DataSourceRegistry) -> None:
    for _ in range(TIMES):
        await read(registry)


@pytest.mark.parametrize(
    "change",
    ["alter table orders add column note text", "alter table orders alter column item type varchar(80)"],
)
async def test_a_read_succeeds_after_its_table_changed_columns(
    world: World, registry: DataSourceRegistry, change: str
) -> None:
    await world.sql("insert into orders (item) values ('tea')")
    await prepare(registry)
    await world.sql(change)
    for _ in range(TIMES):
        rows = await read(registry)
        assert [row["item"] for row in rows] == ["tea"]
        assert ("note" in rows[0]) is ("note" in change)


async def test_a_read_succeeds_after_its_table_was_recreated(world: World, registry: DataSourceRegistry) -> None:
    await prepare(registry)
    await world.sql("alter table orders rename to old_orders")
    await world.sql("create table orders (id int, item int, price int)")
    await world.sql("insert into orders values (1, 2, 3)")
    await world.sql("grant all on orders to app")
    for _ in range(TIMES):
        assert await read(registry) == [{"id": 1, "item": 2, "price": 3}]


async def test_tenants_with_different_tables_share_a_connection(world: World, registry: DataSourceRegistry) -> None:
    await world.sql("alter table orders add column note text", schema="globex")
    for schema in ("acme", "globex"):
        await world.sql(f"insert into orders (item) values ('{schema}')", schema=schema)
    for _ in range(TIMES):
        for tenant in ("acme", "globex"):
            [row] = await read(registry, tenant=tenant)
            assert row["item"] == tenant
            assert ("note" in row) is (tenant == "globex")


async def test_the_first_statement_of_a_transaction_is_retried_once(world: World, registry: DataSourceRegistry) -> None:
    statement = "insert into orders (item) values (gen_random_uuid()) returning *"
    for _ in range(TIMES):
        async with registry.session(tenant="acme") as db:
            await db.fetch_one(statement)
    await world.sql("alter table orders add column note text")
    async with registry.session(tenant="acme") as db:
        row = await db.fetch_one(statement)
        assert row is not None
        assert "note" in row
    assert len(await world.items()) == TIMES + 1


async def test_a_later_statement_fails_and_its_transaction_is_rolled_back(
    world: World, registry: DataSourceRegistry
) -> None:
    for _ in range(TIMES):
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values (gen_random_uuid())")
            await db.fetch_all("select * from parents")
    await world.sql("alter table parents add column note text")
    with pytest.raises(DataError) as caught:
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('lost')")
            await db.fetch_all("select * from parents")
    assert caught.value.sqlstate == "0A000"
    assert "lost" not in await world.items()
    for _ in range(TIMES):
        async with registry.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values (gen_random_uuid())")
            await db.fetch_all("select * from parents")
    assert len(await world.items()) == 2 * TIMES


@pytest.mark.parametrize("command", ["deallocate all", "discard all"])
async def test_deallocated_statements_are_prepared_again(
    world: World, registry: DataSourceRegistry, command: str
) -> None:
    await prepare(registry)
    if command == "deallocate all":
        async with registry.session(tenant="acme") as db:
            await db.execute(command)
    else:
        async with registry.session(tenant="acme") as db, db.connection() as connection:
            await connection.execute("deallocate all")
    for _ in range(TIMES):
        assert await read(registry) == []


async def test_a_skipped_statement_does_not_count_as_prepared(world: World, registry: DataSourceRegistry) -> None:
    """The cache stays correct, whichever execution was skipped because of an earlier error in the pipeline."""
    await world.sql("insert into orders (item) values ('there')")
    for failing_use in range(1, TIMES):
        statement = f"insert into orders (item) values (%s) /* {failing_use} */"
        for use in range(1, TIMES + 1):
            items = [["there"], [f"{failing_use} {use}"]] if use == failing_use else [[f"{failing_use} {use}"]]
            if use == failing_use:
                with pytest.raises(DataError, match="unique constraint"):
                    await write_all(registry, statement, items)
            else:
                await write_all(registry, statement, items)
    assert len(await world.items()) == 1 + (TIMES - 1) * (TIMES - 1)


async def test_concurrent_reads_survive_changes_of_their_table(world: World) -> None:
    async with world.registry(replicas=(), pool={"max_size": 4}) as registry:
        await prepare(registry)
        is_over = asyncio.Event()

        async def keep_reading() -> None:
            while not is_over.is_set():
                await read(registry)

        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(keep_reading())
            for number in range(6):
                await world.sql(f"alter table orders add column note{number} text")
            is_over.set()
