"""Steps without a transaction: claimed by one process, resumed by the next one, and never in a deadlock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asgi_datasource.migrate import Standing, Verdict
from tests.migrate.site import Site
from tests.tenancy.commands import Command

ORDERS = "create table orders (id int, item text); insert into orders select n, 'x' from generate_series(1, 100) n;"
INDEX = "-- transaction: off\ncreate index concurrently orders_item on orders (item);"
INDEXES = (
    "select indexrelid::regclass::text, indisvalid from pg_index"
    " where indexrelid::regclass::text like '%orders_%' order by 1"
)
BUILDING = (
    "select from pg_stat_activity where query like '%concurrently%' and wait_event_type = 'Lock'"
    " and datname = current_database()"
)
WORKERS = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name like 'asgi-ds-migrate%'"


@asynccontextmanager
async def old_snapshot(site: Site) -> AsyncIterator[None]:
    """A transaction that CREATE INDEX CONCURRENTLY has to wait for."""
    async with site.connect() as connection:
        await connection.execute("begin isolation level repeatable read")
        await connection.execute("select 1")
        yield
        await connection.execute("rollback")


async def until(site: Site, query: str, command: Command | None = None) -> None:
    """Wait until a query has rows."""
    async with asyncio.timeout(30):
        while not await site.sql(query):
            assert command is None or command.is_running, command.wait().err
            await asyncio.sleep(0.02)


async def test_it_runs_after_the_others_and_is_written_down(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_index.sql": INDEX + "\nalter table orders set (fillfactor = 90);",
            "tenant__0003_note.sql": "alter table orders add column note text;",
        }
    )
    await site.add_schemas(["acme", "globex"])
    report = await site.apply()
    assert (report.verdict, report.applied) == (Verdict.AT_HEAD, 6)
    assert await site.ledger("version, state, step") == [(1, "applied", 0), (2, "applied", 2), (3, "applied", 0)] * 2
    assert await site.sql(INDEXES) == [("acme.orders_item", True), ("globex.orders_item", True)]


async def test_two_processes_and_a_concurrent_index_come_to_no_deadlock(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS, "tenant__0002_index.sql": INDEX})
    await site.add_schemas(["acme", "globex"])
    for name in ("one", "two"):
        (site.folder / name).mkdir()
    async with old_snapshot(site):
        commands = [site.start_in(site.folder / name, "apply", "--format", "json") for name in ("one", "two")]
        await until(site, BUILDING, commands[0])
    ended = [command.wait() for command in commands]
    assert [done.code for done in ended] == [0, 0], [done.out + done.err for done in ended]
    applied = [label for done in ended for one in json.loads(done.out)["schemas"] for label in one["applied"]]
    assert sorted(applied) == ["0001_orders"] * 2 + ["0002_index"] * 2, [done.out + done.err for done in ended]
    assert await site.sql(INDEXES) == [("acme.orders_item", True), ("globex.orders_item", True)]


async def test_killed_in_a_concurrent_index_the_next_run_drops_what_is_invalid_and_ends(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS})
    await site.add_schemas(["acme"])
    await site.apply()
    site.write(
        **{
            "tenant__0002_index.sql": "-- transaction: off\ncreate index concurrently orders_id on orders (id);\n"
            + INDEX
        }
    )
    async with old_snapshot(site):
        command = site.start("apply")
        await until(site, BUILDING, command)
        command.kill()
        assert await site.ledger("version, state, step") == [(1, "applied", 0), (2, "running", 0)]
        await site.sql(WORKERS)
    assert await site.sql(INDEXES) == [("acme.orders_id", False)]
    report = await site.apply()
    assert (report.verdict, report.applied) == (Verdict.AT_HEAD, 1)
    assert await site.sql(INDEXES) == [("acme.orders_id", True), ("acme.orders_item", True)]


async def test_a_claim_whose_backend_still_works_is_waited_for(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS, "tenant__0002_index.sql": INDEX})
    await site.add_schemas(["acme"])
    async with old_snapshot(site):
        command = site.start("apply")
        await until(site, BUILDING, command)
        command.kill()
        applying = asyncio.create_task(site.apply())
        await asyncio.sleep(0.5)
        assert not applying.done()
    report = await applying
    assert report.verdict is Verdict.AT_HEAD
    assert await site.sql(INDEXES) == [("acme.orders_item", True)]


async def test_a_statement_that_fails_is_where_the_next_run_goes_on(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_two.sql": "-- transaction: off\n\nalter table orders add column a int;\n"
            "create unique index concurrently orders_unique on orders (item);\nalter table orders add column b int;",
        }
    )
    await site.add_schemas(["acme"])
    report = await site.apply()
    [failed] = report.standing(Standing.FAILED)
    assert (failed.failed, failed.sqlstate) == ("0002_two", "23505")
    assert await site.ledger("version, state, step, sqlstate") == [(1, "applied", 0, None), (2, "failed", 1, "23505")]
    await site.sql("update acme.orders set item = id::text")
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    assert await site.sql(INDEXES) == [("acme.orders_unique", True)]


async def test_an_index_that_was_built_and_not_written_down_is_not_built_twice(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS, "tenant__0002_index.sql": INDEX})
    await site.add_schemas(["acme"])
    await site.apply(up_to=1)
    await site.sql(
        "create index orders_item on acme.orders (item); insert into asgi_datasource.migration (scope, version, kind,"
        " name, nsp, state, checksum, raw_checksum, run_id, step, beat_at, tool) select scope, 2, kind, 'index', nsp,"
        " 'running', checksum, raw_checksum, run_id, 0, now() - interval '1 hour', tool from asgi_datasource.migration"
    )
    # The checksum of a claim is that of the file.
    await site.sql("update asgi_datasource.migration set state = 'failed' where version = 2")
    assert (await site.apply()).verdict is Verdict.AT_HEAD


async def test_killed_in_a_transaction_nothing_is_left(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": f"{ORDERS} select pg_sleep(60);"})
    await site.add_schemas(["acme"])
    command = site.start("apply")
    await until(
        site, "select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()", command
    )
    command.kill()
    await site.sql("select pg_terminate_backend(pid, 5000) from pg_stat_activity where wait_event = 'PgSleep'")
    assert (await site.tables("acme"), await site.ledger(), await site.advisory_locks()) == ([], [], 0)
    site.write(**{"tenant__0001_orders.sql": ORDERS})
    assert (await site.apply()).applied == 1
