"""Every kind of failure that a real server can produce, and its classification (`errors.SQLSTATE_TABLE`)."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.errors import lookup

from asgi_datasource import DataError, DataErrorKind, DataSession, DataSourceRegistry
from asgi_datasource.testing import FaultProxy
from tests.drivers.polling import until
from tests.faults.servers import through
from tests.world import World

K = DataErrorKind


@asynccontextmanager
async def opened(world: World, **config: Any) -> AsyncIterator[DataSourceRegistry]:
    async with world.registry(**{"replicas": (), **config}) as registry:
        yield registry


async def failure_of(db: DataSession, *statements: str, intent: str = "write") -> DataError:
    """The error of the last statement; those before it succeed."""
    *before, last = statements
    view = db.write if intent == "write" else db.read
    for statement in before:
        await view.execute(statement)
    with pytest.raises(DataError) as caught:
        await view.execute(last)
    return caught.value


def verdict(error: DataError) -> tuple[str | None, DataErrorKind, bool, int]:
    return error.sqlstate, error.kind, error.is_retryable, error.http_status


PROVOKED = [
    # constraints: unique, foreign key, exclusion, restrict, check, not null, check option
    (
        ["insert into orders (item) values ('tea')", "insert into orders (item) values ('tea')"],
        "23505",
        K.CONSTRAINT,
        409,
    ),
    (["set constraints all immediate", "insert into children (parent) values (404)"], "23503", K.CONSTRAINT, 409),
    (
        [
            "create temp table rooms (span int4range, exclude using gist (span with &&))",
            "insert into rooms values ('[1,3]')",
            "insert into rooms values ('[2,4]')",
        ],
        "23P01",
        K.CONSTRAINT,
        409,
    ),
    (
        [
            "create temp table a (id int primary key)",
            "create temp table b (a int references a on delete restrict)",
            "insert into a values (1)",
            "insert into b values (1)",
            "delete from a",
        ],
        "23001",
        K.CONSTRAINT,
        409,
    ),
    (["insert into orders (item) values ('forbidden')"], "23514", K.CONSTRAINT, 422),
    (["insert into orders (item) values (null)"], "23502", K.CONSTRAINT, 422),
    (
        [
            "create temp table c (n int)",
            "create temp view small as select n from c where n < 10 with check option",
            "insert into small values (11)",
        ],
        "44000",
        K.CONSTRAINT,
        422,
    ),
    # errors in the statement
    (["select 1/0"], "22012", K.VALUE, 422),
    (["select 'x'::int"], "22P02", K.VALUE, 422),
    (["select 99999999999::int"], "22003", K.VALUE, 422),
    (["selec 1"], "42601", K.QUERY, 500),
    (["select * from nowhere"], "42P01", K.QUERY, 500),
    (["select nothing from orders"], "42703", K.QUERY, 500),
    (["select nofunction()"], "42883", K.QUERY, 500),
    (["select * from pg_authid"], "42501", K.QUERY, 500),
    (["select lpad('', 1 << 30)"], "54000", K.QUERY, 500),
    (["do 'begin raise exception ''no''; end'"], "P0001", K.QUERY, 500),
    (["select count(*) from orders for update"], "0A000", K.QUERY, 500),
    (["select 1", "execute nothing_prepared"], "26000", K.QUERY, 500),
    (
        ["set transaction isolation level serializable", "select 1", "set transaction_isolation = 'read committed'"],
        "25001",
        K.QUERY,
        500,
    ),
    # limits of the server
    (["set local statement_timeout = '30ms'", "select pg_sleep(5)"], "57014", K.TIMEOUT, 504),
    (["set constraints all immediate", "create index concurrently on orders (tenant)"], "25001", K.QUERY, 500),
]


@pytest.mark.parametrize(
    ("statements", "sqlstate", "kind", "status"), PROVOKED, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_a_failing_statement(
    world: World, statements: list[str], sqlstate: str, kind: DataErrorKind, status: int
) -> None:
    async with opened(world) as registry:
        with pytest.raises(DataError) as caught:
            async with registry.session(tenant="acme") as db:
                error = await failure_of(db, *statements)
                assert verdict(error) == (sqlstate, kind, False, status)
                assert isinstance(error.__cause__, lookup(sqlstate))
                # The transaction has failed; the next statement reports 25P02.
                assert (await failure_of(db, "select 1")).sqlstate == "25P02"
        assert caught.value.sqlstate == sqlstate
        async with registry.session(tenant="acme") as db:
            assert await db.fetch_value("select 1") == 1


EXPECTED: list[tuple[str, DataErrorKind, bool, int]] = [
    # The first matching rule.
    ("08007", K.COMMIT_UNKNOWN, False, 500),
    ("40003", K.COMMIT_UNKNOWN, False, 500),
    ("57P04", K.CONNECTION, False, 503),
    ("28", K.CONNECTION, False, 503),
    ("3D000", K.CONNECTION, False, 503),
    ("08", K.CONNECTION, True, 503),
    ("57P01", K.CONNECTION, True, 503),
    ("57P02", K.CONNECTION, True, 503),
    ("57P03", K.CONNECTION, True, 503),
    ("57P05", K.CONNECTION, True, 503),
    ("57014", K.TIMEOUT, False, 504),
    ("25P03", K.TIMEOUT, False, 504),
    ("25P04", K.TIMEOUT, False, 504),
    ("40001", K.CONFLICT, True, 409),
    ("40P01", K.CONFLICT, True, 409),
    ("55P03", K.CONFLICT, True, 409),
    ("72000", K.CONFLICT, True, 409),
    ("23505", K.CONSTRAINT, False, 409),
    ("23503", K.CONSTRAINT, False, 409),
    ("23P01", K.CONSTRAINT, False, 409),
    ("23001", K.CONSTRAINT, False, 409),
    ("23", K.CONSTRAINT, False, 422),
    ("40002", K.CONSTRAINT, False, 422),
    ("44000", K.CONSTRAINT, False, 422),
    ("25006", K.READ_ONLY, False, 500),
    ("22023", K.QUERY, False, 500),
    ("22", K.VALUE, False, 422),
    ("25", K.QUERY, False, 500),
    ("26000", K.QUERY, False, 500),
    ("42", K.QUERY, False, 500),
    ("54", K.QUERY, False, 500),
    ("P0", K.QUERY, False, 500),
    ("0A000", K.QUERY, False, 500),
    ("53300", K.RESOURCE, True, 503),
    ("53", K.RESOURCE, False, 503),
    ("58030", K.RESOURCE, False, 503),
    ("", K.OTHER, False, 500),
]


async def test_every_sqlstate_known_to_psycopg_raised_by_a_server(world: World) -> None:
    await world.sql(
        "create function public.fail(state text) returns int language plpgsql"
        " as $$ begin raise exception 'raised by the application' using errcode = state; end $$"
    )
    # PL/pgSQL cannot raise success, warnings and no-data conditions, which are not errors. 08P01 on a live connection
    # is the server's response to a missing parameter.
    states = [code for code in psycopg.errors._sqlcodes if re.fullmatch(r"(?!00|01|02|08P01)[0-9A-Z]{5}", code)]
    assert len(states) > 200
    async with opened(world) as registry, registry.session(tenant="acme") as db:
        for state in states:
            error = await failure_of(db, f"select public.fail('{state}')", intent="read")
            expected = next(row for row in EXPECTED if state.startswith(row[0]))
            assert verdict(error) == (state, *expected[1:])
            assert isinstance(error.__cause__, lookup(state))


async def test_an_sqlstate_defined_by_the_application(world: World) -> None:
    async with opened(world) as registry, registry.session(tenant="acme") as db:
        error = await failure_of(
            db, "do $$ begin raise exception 'raised by the application' using errcode = 'ZZ999'; end $$", intent="read"
        )
        assert verdict(error) == ("ZZ999", K.OTHER, False, 500)


class TestConflicts:
    """Conflicts between transactions: 409, retryable."""

    async def test_serialization_failure(self, world: World) -> None:
        await world.sql("insert into orders (item) values ('tea')")
        async with opened(world) as registry:
            with pytest.raises(DataError) as caught:
                async with registry.session(tenant="acme") as db, db.transaction(isolation="repeatable read"):
                    await db.fetch_all("select * from orders")
                    await world.sql("update orders set item = 'coffee'")
                    await db.execute("update orders set item = 'milk'")
            assert verdict(caught.value) == ("40001", K.CONFLICT, True, 409)

    async def test_serialization_failure_at_commit(self, world: World) -> None:
        async with opened(world) as registry:

            async def count_and_place(item: str, barrier: asyncio.Barrier) -> None:
                async with registry.session(tenant="acme") as db, db.transaction(isolation="serializable"):
                    await db.fetch_value("select count(*) from orders")
                    await db.execute("insert into orders (item) values (%s)", [item])
                    await barrier.wait()

            barrier = asyncio.Barrier(2)
            outcomes = await asyncio.gather(
                count_and_place("tea", barrier), count_and_place("coffee", barrier), return_exceptions=True
            )
        failures = [outcome for outcome in outcomes if isinstance(outcome, DataError)]
        assert [verdict(error) for error in failures] == [("40001", K.CONFLICT, True, 409)]
        assert len(await world.items()) == 1

    async def test_deadlock(self, world: World) -> None:
        await world.sql("insert into parents values (1), (2)")
        async with opened(world) as registry:

            async def update(first: int, second: int, barrier: asyncio.Barrier) -> None:
                async with registry.session(tenant="acme") as db:
                    await db.execute("select 1 from parents where id = %s for update", [first])
                    await barrier.wait()
                    await db.execute("select 1 from parents where id = %s for update", [second])

            barrier = asyncio.Barrier(2)
            outcomes = await asyncio.gather(update(1, 2, barrier), update(2, 1, barrier), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, DataError)]
        assert [verdict(error) for error in failures] == [("40P01", K.CONFLICT, True, 409)]

    async def test_lock_not_available(self, world: World) -> None:
        await world.sql("insert into parents values (1)")
        async with opened(world) as registry, registry.session(tenant="acme") as holder:
            await holder.execute("select 1 from parents for update")
            with pytest.raises(DataError) as caught:
                async with registry.session(tenant="acme") as db:
                    await db.execute("select 1 from parents for update nowait")
            assert verdict(caught.value) == ("55P03", K.CONFLICT, True, 409)


class TestReadOnly:
    async def test_a_write_with_read_intent(self, world: World) -> None:
        async with opened(world) as registry, registry.session(tenant="acme") as db:
            error = await failure_of(db, "insert into orders (item) values ('tea')", intent="read")
            assert verdict(error) == ("25006", K.READ_ONLY, False, 500)

    async def test_a_write_on_a_standby_in_place_of_the_primary(self, world: World) -> None:
        async with opened(world, urls={"primary": world.url("r1")}) as registry:
            with pytest.raises(DataError) as caught:
                async with registry.session(tenant="acme") as db:
                    await db.execute("insert into orders (item) values ('tea')")
            # The standby is refused when the connection is set up.
            assert (caught.value.sqlstate, caught.value.kind, caught.value.http_status) == (None, K.CONNECTION, 503)
            assert "it is a standby and takes no writes" in caught.value.message

    async def test_a_write_on_a_fenced_server(self, world: World) -> None:
        await world.cluster.primary.configure(default_transaction_read_only=True)
        try:
            async with opened(world) as registry:
                with pytest.raises(DataError) as caught:
                    async with registry.session(tenant="acme") as db:
                        await db.execute("insert into orders (item) values ('tea')")
            assert (caught.value.sqlstate, caught.value.kind, caught.value.http_status) == ("25006", K.CONNECTION, 503)
        finally:
            await world.cluster.primary.configure(default_transaction_read_only=None)

    async def test_a_function_that_is_unavailable_on_a_standby(self, world: World) -> None:
        async with opened(world, replicas=("r1",)) as registry, registry.session(tenant="acme") as db:
            error = await failure_of(db, "select pg_current_wal_lsn()", intent="read")
            assert verdict(error) == ("55000", K.READ_ONLY, False, 500)


class TestLosses:
    """The connection is lost in the middle of a transaction: nothing is repeated, and the next transaction succeeds."""

    async def lose(self, registry: DataSourceRegistry, pid: list[int], is_lost: Any) -> DataError:
        with pytest.raises(DataError):
            async with registry.session(tenant="acme") as db:
                pid.append(await db.fetch_value("select pg_backend_pid()"))
                await db.execute("insert into orders (item) values ('lost')")
                sleeping = asyncio.create_task(db.execute("select pg_sleep(60)"))
                await is_lost()
                with pytest.raises(DataError) as caught:
                    await sleeping
        return caught.value

    @pytest.mark.parametrize(
        ("how", "sqlstate", "kind", "status"),
        [
            ("terminated", "57P01", K.CONNECTION, 503),
            ("cut", None, K.CONNECTION, 503),
            ("killed", None, K.CONNECTION, 503),
            ("cancelled", "57014", K.TIMEOUT, 504),
        ],
    )
    async def test_a_running_statement(
        self, world: World, proxy: FaultProxy, how: str, sqlstate: str | None, kind: DataErrorKind, status: int
    ) -> None:
        pids: list[int] = []

        async def end_it() -> None:
            async def is_asleep() -> bool:
                return bool(await world.sql("select 1 from pg_stat_activity where wait_event = 'PgSleep'"))

            await until(is_asleep)
            if how == "terminated":
                await world.sql(f"select pg_terminate_backend({pids[0]})")
            elif how == "cancelled":
                await world.sql(f"select pg_cancel_backend({pids[0]})")
            elif how == "cut":
                proxy.cut()
            else:
                os.kill(pids[0], signal.SIGKILL)

        async with opened(world, urls={"primary": through(proxy, world.url())}) as registry:
            error = await self.lose(registry, pids, end_it)
            assert (error.sqlstate, error.kind, error.http_status) == (sqlstate, kind, status)
            assert error.is_retryable is (kind is K.CONNECTION)

            async def works() -> bool:
                try:
                    async with registry.session(tenant="acme") as db:
                        return bool(await db.fetch_value("select true"))
                except DataError:
                    return False

            await until(works)

            async def nothing_was_committed() -> bool:
                # After SIGKILL the server may still be in recovery.
                try:
                    return await world.items() == []
                except psycopg.OperationalError:
                    return False

            await until(nothing_was_committed)
