"""Behind PgBouncer in transaction mode: transactions on any server connection, and tenants apart all the same."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgi_datasource import AccessIntent, DataError, DataErrorKind, DataSourceRegistry, compile
from tests.guarantees.test_tenants import LASTING, LEFTOVERS
from tests.pgbouncer import Bouncer, pgbouncer
from tests.pools import assert_whole
from tests.world import ROW_TENANTS, SCHEMA_TENANTS, World

SERVER_CONNECTIONS = 2
RUNNING = "select 1 from pg_stat_activity"


@pytest.fixture
async def bouncer(world: World) -> AsyncIterator[Bouncer]:
    async with pgbouncer(world.url(), size=SERVER_CONNECTIONS) as running:
        yield running


@asynccontextmanager
async def registry(
    world: World, bouncer: Bouncer, *, pooler: str | None = "transaction", **sections: Any
) -> AsyncIterator[DataSourceRegistry]:
    # 200 sessions share two connections of the pooler: how long each waits for its turn is the machine's matter.
    pool = {
        "min_size": 1,
        "max_size": 8,
        "max_waiting": 0,
        "acquire_timeout": "30s",
        **({} if pooler is None else {"pooler": pooler}),
    }
    document = world.config(replicas=(), pool=pool, urls={"primary": bouncer.url(world.dbname)}, **sections)
    document["tenancy"]["default"] = "orders"
    async with compile(document) as made:
        yield made


async def test_every_tenant_sees_its_own_rows_on_whichever_connection(world: World, bouncer: Bouncer) -> None:
    places = {**{name: name for name in SCHEMA_TENANTS}, **dict.fromkeys(ROW_TENANTS, "shared")}
    for name, schema in places.items():
        number = ROW_TENANTS.get(name, name)
        await world.sql(f"insert into orders (item, tenant) values ('of {name}', '{number}')", schema=schema)
    chance = random.Random(6)
    async with registry(world, bouncer) as made:

        async def ask(name: str) -> None:
            async with made.session(name) as db:
                read = "select item, pg_backend_pid() as pid from orders where item like %s"
                [row] = await db.read.fetch_all(read, ("of %",))
                assert row["item"] == f"of {name}"
                pids.add(row["pid"])
                if chance.random() < 0.5:
                    await db.execute("insert into orders (item) values (%s)", (f"new {chance.random()}",))
                    await db.commit()
                    [row] = await db.fetch_all(read, ("of %",))
                    assert row["item"] == f"of {name}"

        pids: set[int] = set()
        names = [chance.choice(list(places)) for _ in range(200)]
        await asyncio.gather(*(ask(name) for name in names))
        assert len(pids) == SERVER_CONNECTIONS
        async with made.session() as db:
            assert await db.read.fetch_value("select count(*) from pg_prepared_statements") == 0


async def leftovers(made: DataSourceRegistry) -> set[str]:
    """The state of every server connection, as a statement without a tenant finds it."""
    found: dict[int, str] = {}
    async with asyncio.timeout(20):
        while len(found) < SERVER_CONNECTIONS:
            rows = await asyncio.gather(*(_leftover(made) for _ in range(2 * SERVER_CONNECTIONS)))
            found.update(rows)
    return set(found.values())


async def _leftover(made: DataSourceRegistry) -> tuple[int, str]:
    async with made.session() as db:
        row = await db.write.fetch_one(f"select * from ({LEFTOVERS}) state, pg_sleep(0.01)")
    assert row is not None
    return row["pid"], row["state"]


@pytest.mark.parametrize("intent", AccessIntent)
async def test_what_would_stay_with_the_session_is_refused(
    world: World, bouncer: Bouncer, intent: AccessIntent
) -> None:
    async with registry(world, bouncer) as made:
        before = await leftovers(made)
        for statement in LASTING:
            with pytest.raises(DataError, match="behind a pooler in transaction mode"):
                async with made.session("acme") as db:
                    view = db.read if intent is AccessIntent.READ else db.write
                    await view.execute(statement.format(role="app"))
        async with made.session("acme") as db:
            await db.write.execute("set local search_path = globex")
            await db.write.execute("select set_config('app.tenant', '7', true), pg_advisory_xact_lock(1)")
        assert await leftovers(made) == before
        await assert_whole(made, world)


async def test_a_statement_is_cancelled_on_the_server(world: World, bouncer: Bouncer) -> None:
    async with registry(world, bouncer) as made:
        with pytest.raises(DataError) as caught:
            async with made.session("acme", timeout=0.3) as db:
                await db.execute("select pg_sleep(30)")
        assert caught.value.kind is DataErrorKind.TIMEOUT
        async with made.session("acme") as db:
            task = asyncio.ensure_future(db.read.execute("select pg_sleep(31)"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await db.read.fetch_value("select current_schemas(false)") == ["acme"]
        async with asyncio.timeout(10):
            while await world.sql(
                "select 1 from pg_stat_activity where query like 'select pg_sleep(3%' and state = 'active'"
            ):
                await asyncio.sleep(0.02)
        await assert_whole(made, world)


async def test_a_loan_ends_with_its_transaction(world: World, bouncer: Bouncer) -> None:
    async with registry(world, bouncer) as made:
        async with made.session("acme") as db, db.connection(AccessIntent.WRITE) as connection:
            await connection.execute("insert into orders (item) values ('lent')")
        async with made.session("globex") as db:
            assert await db.read.fetch_value("select count(*) from orders") == 0
    assert await world.items("acme") == ["lent"]


async def test_a_pooler_that_nobody_told_of_is_noticed(
    world: World, bouncer: Bouncer, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry(world, bouncer, pooler=None) as made:
        for _ in range(4):
            async with made.session("acme") as db:
                for _ in range(3):
                    assert await db.read.fetch_value("select count(*) from orders") == 0
        told = [record.getMessage() for record in caplog.records if "a pooler in between" in record.getMessage()]
        assert len(told) == 1
        async with made.session() as db:
            assert await db.read.fetch_value("select count(*) from pg_prepared_statements") == 0


async def test_without_one_nothing_is_noticed_and_statements_are_prepared(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "asgi_datasource.server")
    async with world.registry(replicas=(), pool={"max_size": 1}) as made, made.session("acme") as db:
        for _ in range(3):
            await db.read.fetch_value("select count(*) from orders")
        assert await db.read.fetch_value("select count(*) from pg_prepared_statements") > 0
    assert not [record for record in caplog.records if record.name == "asgi_datasource.server"]
