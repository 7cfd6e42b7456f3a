"""Prepared statements: the server's statements always equal the connection's records, also after failures."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from asgi_datasource.drivers.psycopg import Pipeline, PsycopgConnection, PsycopgServer
from asgi_datasource.drivers.psycopg.borrowed_connection import lend
from asgi_datasource.drivers.psycopg.prepared import StatementCache
from asgi_datasource.drivers.statements import Statement
from tests.drivers.conftest import Connect, OpenServer

BEGIN = Statement("begin", prepare=False)
COMMIT = Statement("commit", prepare=False)
ROLLBACK = Statement("rollback", prepare=False)


async def on_server(connection: PsycopgConnection) -> set[str]:
    """The names of the statements on the server, queried without preparing this query."""
    statement = Statement("select name from pg_prepared_statements", prepare=False)
    exchange = await connection.exchange([statement])
    assert exchange.error is None
    assert exchange.results[0] is not None
    return {row["name"] for row in exchange.results[0].rows()}


def prepared(connection: PsycopgConnection) -> set[bytes]:
    """The names in the connection's records."""
    cache = connection.plans
    plans = (*cache._plans.values(), *cache._controls.values())
    return {plan.name for plan in plans if plan.is_ready and plan.name is not None}


async def agree(connection: PsycopgConnection) -> None:
    """The server's statements equal the connection's records."""
    await connection.exchange([])  # also sends the pending Close messages
    assert await on_server(connection) == {name.decode() for name in prepared(connection)}


async def run(connection: PsycopgConnection, *queries: str | Statement) -> Pipeline:
    return await connection.exchange([q if isinstance(q, Statement) else Statement(q) for q in queries])


async def test_a_statement_is_prepared_at_its_second_use(connection: PsycopgConnection) -> None:
    await run(connection, "select 1")
    assert await on_server(connection) == set()
    await run(connection, "select 1")
    await run(connection, "select 1")
    assert await on_server(connection) == {"ads_1"}
    await agree(connection)


async def test_the_second_use_may_be_in_the_same_exchange(connection: PsycopgConnection) -> None:
    exchange = await connection.exchange([Statement("select %s::int as n", [n]) for n in range(5)])
    assert [r.scalar() if r else None for r in exchange.results] == [0, 1, 2, 3, 4]
    assert await on_server(connection) == {"ads_1"}


async def test_other_types_of_parameters_are_another_plan(connection: PsycopgConnection) -> None:
    for value in (1, 70000, "x", 1, 70000, "x", None, None):
        await connection.exchange([Statement("select %s::text as v", [value])])
    # int2, int4, and unknown, which a string and NULL share
    assert len(await on_server(connection)) == 3
    await agree(connection)


@pytest.mark.parametrize(("prepare", "expected"), [(True, {"ads_1"}), (False, set())])
async def test_the_caller_can_force_or_prevent_preparing(
    connection: PsycopgConnection, prepare: bool, expected: set[str]
) -> None:
    for _ in range(3):
        await connection.exchange([Statement("select 1", prepare=prepare)])
    assert await on_server(connection) == expected


async def test_behind_a_transaction_pooler_nothing_is_prepared(open_server: OpenServer) -> None:
    server = await open_server(prepares=False)
    connection = await server.acquire(deadline=None)
    for _ in range(3):
        await connection.exchange([Statement("select 1", prepare=True)])
    assert await on_server(connection) == set()
    server.release(connection)


async def test_statements_skipped_by_a_failed_pipeline_are_not_prepared(connection: PsycopgConnection) -> None:
    await run(connection, "select 'skipped'")
    exchange = await run(connection, "select 1/0", "select 'skipped'")
    assert exchange.failed_at == 0
    await agree(connection)
    for _ in range(3):
        assert (await run(connection, "select 'skipped'")).error is None
    await agree(connection)


async def test_a_statement_with_a_syntax_error_is_not_counted(connection: PsycopgConnection) -> None:
    for _ in range(3):
        exchange = await run(connection, "select 1", Statement("select * from later", prepare=True), "select 2")
        assert isinstance(exchange.error, psycopg.errors.UndefinedTable)
        assert exchange.failed_at == 1
    await run(connection, "create table later (n int)")
    assert (await run(connection, Statement("select * from later", prepare=True))).error is None
    await agree(connection)


async def test_commit_succeeds_after_a_failed_commit(connection: PsycopgConnection) -> None:
    """psycopg's own cache is corrupted in this case: COMMIT raises 26000 although it succeeded."""
    await run(connection, "create table p (id int primary key)", "create table t (n int)")
    await run(connection, "create table c (p int references p deferrable initially deferred)")
    for round_trip in range(12):
        await run(connection, BEGIN, "insert into c values (5)" if round_trip == 3 else "insert into t values (1)")
        exchange = await run(connection, COMMIT, "select pg_current_wal_insert_lsn()::text")
        assert (exchange.error is None) is (round_trip != 3), exchange.error
    assert (await run(connection, "select count(*) from t")).results[0].scalar() == 11  # type: ignore[union-attr]
    await agree(connection)


async def test_the_cache_is_bounded_and_closes_what_it_drops(connection: PsycopgConnection) -> None:
    connection.plans = StatementCache(max_plans=5)
    for number in range(40):
        for _ in range(2):
            await run(connection, f"select {number}", "select 'always'")
        assert len(connection.plans) <= 5
    await agree(connection)
    assert len(await on_server(connection)) <= 5
    # Used continuously, so it was never dropped.
    assert b"ads_2" in prepared(connection)


async def test_one_exchange_may_use_more_than_the_cache_holds(connection: PsycopgConnection) -> None:
    connection.plans = StatementCache(max_plans=3)
    texts = [f"select {number} as n" for number in range(20)]
    for _ in range(4):
        exchange = await connection.exchange([Statement(text, prepare=True) for text in texts * 2])
        assert exchange.error is None
        assert [r.scalar() if r else None for r in exchange.results] == [*range(20), *range(20)]
    await agree(connection)


async def test_older_libpqs_close_by_deallocate_in_the_same_round_trip(connection: PsycopgConnection) -> None:
    connection.plans = StatementCache(max_plans=2)
    connection.plans.closes_by_message = False
    for number in range(12):
        for _ in range(2):
            assert (await run(connection, f"select {number}")).error is None
    await agree(connection)
    # A failed DEALLOCATE would abort an open transaction, so it is sent after the end of the transaction.
    await run(connection, "deallocate all")
    assert (await run(connection, BEGIN)).error is None
    connection.plans.retire()
    assert (await run(connection, "select 'in it'")).error is None
    assert (await run(connection, COMMIT)).error is None
    assert (await run(connection, "select 'after it'")).error is None
    await agree(connection)


@pytest.mark.parametrize("query", ["deallocate all", "discard all", "deallocate ads_1"])
async def test_a_statement_deallocated_by_the_user_is_prepared_again(connection: PsycopgConnection, query: str) -> None:
    for _ in range(3):
        await run(connection, "select 'mine'", "select 'too'")
    assert (await run(connection, query)).error is None
    for _ in range(3):
        assert (await run(connection, "select 'mine'", "select 'too'")).error is None
    await agree(connection)


async def test_without_close_messages_an_open_transaction_is_left_alone(connection: PsycopgConnection) -> None:
    connection.plans.closes_by_message = False
    await run(connection, BEGIN)
    # DEALLOCATE of a name that the server does not have would fail the transaction.
    connection.plans.to_close.append(b"ads_99")
    assert (await run(connection, "select 1")).error is None
    assert connection.is_in_transaction
    await run(connection, COMMIT)
    assert connection.plans.to_close == [b"ads_99"]
    assert (await run(connection, "select 1")).error is None
    assert connection.plans.to_close == []


async def test_names_to_close_are_kept_when_nothing_is_sent(connection: PsycopgConnection) -> None:
    connection.plans.to_close.append(b"ads_99")
    with pytest.raises(psycopg.ProgrammingError):
        await run(connection, "copy nowhere to stdout")
    await connection.exchange([Statement("select 1")], deadline=0.0)
    assert connection.plans.to_close == [b"ads_99"]


async def test_a_statement_lost_without_a_tag_fails_once_as_a_stale_plan(connection: PsycopgConnection) -> None:
    for _ in range(3):
        await run(connection, "select 'mine'")
    await run(connection, "do $$ begin execute 'deallocate all'; end $$")
    exchange = await run(connection, "select 'mine'")
    assert isinstance(exchange.error, psycopg.errors.InvalidSqlStatementName)
    assert exchange.is_stale_plan
    assert (await run(connection, "select 'mine'")).error is None
    await agree(connection)


async def test_other_errors_are_not_taken_for_a_stale_plan(connection: PsycopgConnection) -> None:
    for query in ("select 1/0", "selec", "copy (select 1) to program 'x'"):
        assert not (await run(connection, query)).is_stale_plan
    # 0A000 for another reason
    exchange = await run(connection, "begin isolation level serializable", "select 1")
    exchange = await run(connection, "create table t (n int)", "create index concurrently on t (n)")
    assert exchange.error is not None
    assert not exchange.is_stale_plan


async def test_a_table_changed_by_another_connection_fails_once_as_a_stale_plan(
    connection: PsycopgConnection, connect: Connect
) -> None:
    await run(connection, "create table t (n int)", "insert into t values (1)")
    for _ in range(3):
        await run(connection, "select * from t")
    other = await connect()
    await run(other, "alter table t add m int default 2")
    exchange = await run(connection, "select * from t")
    assert isinstance(exchange.error, psycopg.errors.FeatureNotSupported)
    assert exchange.is_stale_plan
    for _ in range(3):
        exchange = await run(connection, "select * from t")
        assert exchange.results[0] is not None
        assert exchange.results[0].rows() == [{"n": 1, "m": 2}]
    await agree(connection)


async def test_a_statement_whose_columns_depend_on_the_schema_is_not_prepared_for_long(
    connection: PsycopgConnection,
) -> None:
    for tenant, columns in (("a", "n int"), ("b", "n text, m int")):
        await run(connection, f"create schema {tenant}", f"create table {tenant}.t ({columns})")
    failures = 0
    for turn in range(20):
        setting = Statement("select set_config('search_path', %s, true)", ["ab"[turn % 2]])
        exchange = await run(connection, setting, "select * from t")
        failures += exchange.error is not None
    assert failures == 1
    await agree(connection)


async def test_ddl_in_the_same_transaction_is_detected_before_a_statement_fails(
    connection: PsycopgConnection,
) -> None:
    await run(connection, "create table t (n int)", "insert into t values (1)")
    for _ in range(3):
        await run(connection, "select * from t")
    exchange = await run(connection, BEGIN, "alter table t add m int default 2")
    for _ in range(3):
        exchange = await run(connection, "select * from t")
        assert exchange.error is None, exchange.error
        assert exchange.results[0] is not None
        assert exchange.results[0].rows() == [{"n": 1, "m": 2}]
    await run(connection, ROLLBACK)
    for _ in range(3):
        exchange = await run(connection, "select * from t")
        assert exchange.error is None, exchange.error
        assert exchange.results[0] is not None
        assert exchange.results[0].rows() == [{"n": 1}]
    await agree(connection)


async def test_prepared_names_of_psycopg_and_of_the_library_do_not_collide(connection: PsycopgConnection) -> None:
    for _ in range(3):
        await run(connection, "select 'ours'")
    for number in range(3):
        view = lend(connection)
        view.prepare_threshold = 0
        for _ in range(2):
            await view.execute("select 'theirs'")
        cursor = await view.execute("select name from pg_prepared_statements", prepare=False)
        assert (f"_pg3_{number}",) in await cursor.fetchall()
        view.expire("over")
    assert (await run(connection, "select 'ours'")).error is None
    assert not any(name.startswith("_pg3") for name in await on_server(connection))


async def test_composed_queries_are_prepared_like_others(connection: PsycopgConnection) -> None:
    for _ in range(3):
        await connection.exchange([Statement(sql.SQL("select {}").format(sql.Literal("x")))])
    assert await on_server(connection) == {"ads_1"}


async def test_every_pooled_connection_keeps_its_own_names(server: PsycopgServer) -> None:
    first = await server.acquire(deadline=None)
    second = await server.acquire(deadline=None)
    for connection in (first, second, first, second):
        for _ in range(2):
            assert (await run(connection, "select 'shared text'")).error is None
    for connection in (first, second):
        await agree(connection)
        server.release(connection)
