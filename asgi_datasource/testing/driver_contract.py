"""Tests that every driver must pass: inherit `DriverContract`, and provide the driver's connection in a fixture.

    class TestMyDriver(DriverContract):
        @pytest.fixture
        def site(self, tmp_path):
            return DriverSite(driver=DRIVER, conninfo=..., unreachable=..., slow=..., lacks={Part.SETTINGS})

Needs pytest with pytest-asyncio and `asyncio_mode = "auto"`. Each test gets an empty database: `site.conninfo` must
lead to a new one each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pytest

from ..datasource.causal_reads import READ
from ..drivers.protocol import Connection, Driver, Server
from ..drivers.settings import ServerSettings
from ..drivers.statements import Control, ControlKind, Settings, Statement
from ..errors import DataError, DataErrorKind, SessionClosed
from ..routing import Role, parse_lsn
from ..transaction import control_statements

COMMIT: Final = control_statements.COMMIT
ROLLBACK: Final = Control(ControlKind.ROLLBACK, "rollback")
BEGIN: Final = control_statements.begin(None, read_only=False)
BEGIN_READ_ONLY: Final = control_statements.begin(None, read_only=True)

HANG_S: Final = 30.0
"""Timeout of each wait in a test, in seconds."""


class Part(StrEnum):
    """Parts of the contract that some databases cannot support. A test of a missing part checks that the operation is
    refused, or not answered, but never ignored."""

    SETTINGS = "settings"
    """Transaction-scoped settings: tenancy by schema, role or row security."""
    IDENTITY = "identity"
    """Lookup of a transaction's outcome after its connection was lost."""
    POSITIONS = "positions"
    """Positions in a write-ahead log, which replicas reach."""
    SAME_ROUND_TRIP = "same_round_trip"
    """Sending without waiting (`send_one`)."""


@dataclass(frozen=True, kw_only=True)
class DriverSite:
    """The driver under test and its database.

    Attributes:
        driver: The driver.
        conninfo: Connection string of an empty database.
        unreachable: Connection string without a server behind it. A password in it is `secret`.
        slow: A statement that takes at least ten seconds.
        secret: A text that no message may contain.
        setting: Name of a tenant's setting; unless `SETTINGS` is missing.
        read_setting: A statement that returns its value.
        lacks: Parts that are not supported.
    """

    driver: Driver
    conninfo: str
    unreachable: str
    slow: Statement
    secret: str = "not-to-be-told"
    setting: str = ""
    read_setting: str = ""
    lacks: frozenset[Part] = frozenset()


Make = Callable[..., Awaitable[Server]]


class DriverContract:
    """Inherit it in a test class with a fixture `site`."""

    @pytest.fixture
    async def make(self, site: DriverSite) -> AsyncIterator[Make]:
        """Makes and opens servers; closes them after the test."""
        made: list[Server] = []

        async def make(*, conninfo: str | None = None, is_open: bool = True, **options: Any) -> Server:
            options = {"max_size": 2, "acquire_timeout_s": 5.0, **options}
            settings = ServerSettings(conninfo=conninfo or site.conninfo, **options)
            server = site.driver.make_server("primary", "main", Role.PRIMARY, settings)
            made.append(server)
            if is_open:
                await server.open()
            return server

        yield make
        for server in made:
            await server.close(timeout_s=2.0)

    @pytest.fixture
    async def server(self, make: Make) -> Server:
        """A server with a table."""
        server = await make()
        async with _Lent(server) as connection:
            exchange = await connection.exchange(
                [Statement("create table items (id integer primary key, name varchar(20) not null unique)")]
            )
            assert exchange.error is None
        return server

    # -- the pool

    async def test_borrowed_connections_are_counted(self, server: Server) -> None:
        connection = await server.acquire(deadline=None)
        assert server.borrowed == 1
        assert connection.is_usable
        assert connection.is_idle
        server.release(connection)
        assert server.borrowed == 0
        again = server.try_acquire() or await server.acquire(deadline=None)
        assert again is connection
        server.put_back(again)
        assert server.borrowed == 0

    async def test_an_exhausted_pool_is_reported(self, make: Make) -> None:
        server = await make(acquire_timeout_s=0.5)
        lent = [await server.acquire(deadline=None) for _ in range(2)]
        with pytest.raises(DataError) as raised:
            await server.acquire(deadline=None)
        assert raised.value.kind is DataErrorKind.RESOURCE
        assert server.waiting == 0
        assert server.try_acquire() is None
        for connection in lent:
            server.release(connection)

    async def test_a_deadline_ends_the_wait(self, server: Server) -> None:
        lent = [await server.acquire(deadline=None) for _ in range(2)]
        with pytest.raises(DataError) as raised:
            await server.acquire(deadline=_in(0.1))
        assert raised.value.kind is DataErrorKind.RESOURCE
        with pytest.raises(DataError) as late:
            await server.acquire(deadline=_in(-0.1))
        assert late.value.kind is DataErrorKind.TIMEOUT
        for connection in lent:
            server.release(connection)

    async def test_a_returned_connection_goes_to_a_waiting_caller(self, server: Server) -> None:
        first, second = [await server.acquire(deadline=None) for _ in range(2)]
        waits = asyncio.create_task(server.acquire(deadline=None))
        await asyncio.sleep(0)
        server.release(first)
        assert await asyncio.wait_for(waits, HANG_S) is first
        server.release(first)
        server.release(second)
        assert server.borrowed == 0

    async def test_a_cancelled_wait_takes_nothing_with_it(self, server: Server) -> None:
        lent = [await server.acquire(deadline=None) for _ in range(2)]
        waits = asyncio.create_task(server.acquire(deadline=None))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        for connection in lent:
            server.release(connection)
        assert server.waiting == 0
        assert len({await server.acquire(deadline=None) for _ in range(2)}) == 2

    async def test_a_discarded_connection_is_replaced(self, server: Server) -> None:
        connection = await server.acquire(deadline=None)
        server.discard(connection)
        assert connection.closed
        for _ in range(2):
            fresh = await server.acquire(deadline=None)
            assert not fresh.closed

    async def test_a_closed_pool_lends_nothing_and_calls_its_watchers(self, server: Server) -> None:
        told: list[bool] = []

        def watcher() -> None:
            told.append(server.is_open)

        server.watch(watcher)
        lent = await server.acquire(deadline=None)
        await server.close(timeout_s=2.0)
        assert told == [False]
        assert lent.closed
        server.release(lent)
        assert server.try_acquire() is None
        with pytest.raises(DataError) as raised:
            await server.acquire(deadline=None)
        assert raised.value.kind is DataErrorKind.CONNECTION
        server.unwatch(watcher)
        await server.open()
        assert told == [False]

    async def test_a_retired_pool_lends_and_keeps_none(self, server: Server) -> None:
        server.retire()
        connection = await server.acquire(deadline=None)
        server.release(connection)
        await _until(lambda: server.idle == 0 and connection.closed)

    async def test_an_unreachable_server_is_reported_without_secrets(self, site: DriverSite, make: Make) -> None:
        server = await make(conninfo=site.unreachable, connect_timeout_s=2.0)
        with pytest.raises(DataError) as raised:
            await server.acquire(deadline=_in(3.0))
        assert raised.value.kind is DataErrorKind.CONNECTION
        with pytest.raises(DataError) as apart:
            await server.connect_apart(deadline=_in(3.0))
        for text in (str(raised.value), repr(raised.value), str(apart.value), server.label, repr(server)):
            assert site.secret not in text
        assert not server.was_reached

    async def test_a_connection_outside_the_pool_belongs_to_its_caller(self, server: Server) -> None:
        connection = await server.connect_apart(deadline=_in(HANG_S))
        assert (await connection.exchange(())).error is None
        assert server.borrowed == 0
        await connection.close()
        assert connection.closed

    async def test_the_health_check_works_while_the_pool_is_full(self, server: Server) -> None:
        lent = [await server.acquire(deadline=None) for _ in range(2)]
        check = server.health_check()
        observation = await check.ask(limit_s=HANG_S)
        assert not observation.is_standby
        assert observation.asked_at <= observation.answered_at
        check.close()
        for connection in lent:
            server.release(connection)

    # -- statements and results

    async def test_results_have_the_order_of_their_statements(self, server: Server) -> None:
        async with _Lent(server) as connection:
            exchange = await connection.exchange(
                [
                    Statement("insert into items values (%s, %s)", [1, "one"]),
                    Statement("select id, name from items where name = %(name)s", {"name": "one"}),
                    Statement("select name from items where id < 0"),
                ]
            )
            assert exchange.error is None
            assert exchange.has_landed
            inserted, found, none = exchange.answers(0, 3)
            assert inserted.rowcount == 1
            assert not inserted.returns_rows
            assert inserted.status_message == "INSERT 0 1"
            assert found.columns == ("id", "name")
            assert found.rows() == [{"id": 1, "name": "one"}]
            assert found.tuples() == [(1, "one")]
            assert found.first() == {"id": 1, "name": "one"}
            assert found.scalar() == 1
            assert none.returns_rows
            assert (none.rows(), none.first(), none.scalar()) == ([], None, None)
            assert not any(result.ends_transaction for result in (inserted, found, none))
            assert connection.is_idle

    async def test_a_row_factory_makes_the_rows(self, server: Server) -> None:
        def joined(cursor: Any) -> Callable[[Any], str]:
            names = [column[0] for column in cursor.description]
            return lambda values: ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))

        async with _Lent(server) as connection:
            exchange = await connection.exchange([Statement("select 1 as a, 2 as b")])
            assert exchange.answers(0, 1)[0].rows(joined) == ["a=1,b=2"]

    async def test_a_percent_sign_without_parameters_is_literal(self, server: Server) -> None:
        async with _Lent(server) as connection:
            exchange = await connection.exchange([Statement("select '100%'"), Statement("select '%%' || %s", ["x"])])
            assert [result.scalar() for result in exchange.answers(0, 2)] == ["100%", "%x"]

    async def test_an_empty_exchange_checks_the_connection(self, server: Server) -> None:
        async with _Lent(server) as connection:
            exchange = await connection.exchange((), deadline=_in(HANG_S))
            assert exchange.error is None
            assert list(exchange.results) == []

    async def test_statements_outside_a_transaction_are_one(self, server: Server) -> None:
        async with _Lent(server) as connection:
            exchange = await connection.exchange(
                [
                    Statement("insert into items values (1, 'one')"),
                    Statement("insert into items values (1, 'again')"),
                    Statement("insert into items values (2, 'two')"),
                ]
            )
            assert exchange.error is not None
            assert exchange.failed_at == 1
            assert [result is None for result in exchange.results] == [False, True, True]
            assert exchange.was_answered(0)
            assert not exchange.was_answered(1)
            assert connection.is_idle
            assert await _count(connection) == 0

    async def test_send_one_is_exchange_without_a_wait(self, site: DriverSite, server: Server) -> None:
        async with _Lent(server) as connection:
            await connection.exchange([Statement("insert into items values (1, 'one')")])
            loop = asyncio.get_running_loop()
            sent = connection.send_one(
                READ, (), "select name from items where id = %s", [1], deadline=_in(HANG_S), now=loop.time()
            )
            if Part.SAME_ROUND_TRIP in site.lacks:
                assert sent is None
                assert connection.send_controls((COMMIT,), deadline=None) is None
                return
            assert sent is not None
            await sent.waiter
            result = sent.take(READ.index, in_transaction=False)
            assert result is not None
            assert result.scalar() == "one"
            assert connection.is_idle
            refused = connection.send_one(
                READ, (), "insert into items values (2, 'two')", None, deadline=None, now=loop.time()
            )
            assert refused is not None
            await refused.waiter
            assert refused.take(READ.index, in_transaction=False) is None
            await connection.finish(refused)
            assert server.error_of(refused, is_write=False).kind is DataErrorKind.READ_ONLY

    # -- transactions

    async def test_others_see_a_transaction_once_it_is_committed(self, server: Server) -> None:
        async with _Lent(server) as connection, _Lent(server) as other:
            opened = await connection.exchange([BEGIN, Statement("insert into items values (1, 'one')")])
            assert opened.error is None
            assert (connection.is_in_transaction, connection.is_idle) == (True, False)
            assert await _count(other) == 0
            ended = await connection.exchange([COMMIT])
            assert ended.tag(0) == "COMMIT"
            assert connection.is_idle
            assert await _count(other) == 1

    async def test_a_failed_statement_leaves_a_rollback(self, server: Server) -> None:
        async with _Lent(server) as connection:
            exchange = await connection.exchange(
                [BEGIN, Statement("insert into items values (1, 'one')"), Statement("insert into nowhere values (1)")]
            )
            assert exchange.failed_at == 2
            assert (exchange.is_lost, connection.is_idle) == (False, False)
            assert (await connection.exchange([ROLLBACK])).error is None
            assert connection.is_idle
            assert not connection.has_failed_transaction
            assert await _count(connection) == 0

    async def test_savepoints_undo_what_came_behind_them(self, server: Server) -> None:
        async with _Lent(server) as connection:
            await connection.exchange(
                [
                    BEGIN,
                    Statement("insert into items values (1, 'one')"),
                    control_statements.savepoint("ads_1"),
                    Statement("insert into items values (2, 'two')"),
                ]
            )
            failed = await connection.exchange([Statement("insert into items values (2, 'again')")])
            assert failed.error is not None
            back = await connection.exchange(
                [control_statements.rollback_to("ads_1"), control_statements.release("ads_1")]
            )
            assert back.error is None
            assert connection.is_in_transaction
            await connection.exchange([COMMIT])
            assert await _count(connection) == 1

    async def test_read_only_transactions_refuse_writes(self, server: Server) -> None:
        write = Statement("insert into items values (1, 'one')")
        async with _Lent(server) as connection:
            for batch in ([BEGIN_READ_ONLY, write], [Settings((), is_read=True, deadline=None), write]):
                exchange = await connection.exchange(batch)
                assert exchange.error is not None
                assert server.error_of(exchange, is_write=False).kind is DataErrorKind.READ_ONLY
                if not connection.is_idle:
                    await connection.exchange([ROLLBACK])
            guarded = [BEGIN, control_statements.savepoint("ads_read"), *control_statements.READ_ONLY, write]
            assert (await connection.exchange(guarded)).error is not None
            back = [control_statements.rollback_to("ads_read"), control_statements.release("ads_read"), write, COMMIT]
            assert (await connection.exchange(back)).error is None
            assert await _count(connection) == 1

    async def test_settings_end_with_their_transaction(self, site: DriverSite, server: Server) -> None:
        read = Statement(site.read_setting or "select 1")
        settings = Settings(((site.setting, "acme"),), is_read=True, deadline=None)
        async with _Lent(server) as connection:
            exchange = await connection.exchange([settings, read])
            if Part.SETTINGS in site.lacks:
                assert exchange.error is not None
                assert exchange.failed_at == 0
                return
            assert exchange.answers(1, 1)[0].scalar() == "acme"
            exchange = await connection.exchange([read])
            assert exchange.answers(0, 1)[0].scalar() in (None, "")

    async def test_a_write_can_be_identified(self, site: DriverSite, server: Server) -> None:
        async with _Lent(server) as connection:
            batch = [BEGIN, control_statements.IDENTIFY, Statement("insert into items values (1, 'one')")]
            exchange = await connection.exchange([*batch, control_statements.IDENTIFY, COMMIT])
            assert exchange.value(1) is None
            assert (exchange.value(3) is None) is (Part.IDENTITY in site.lacks)

    async def test_writes_advance_the_position(self, site: DriverSite, server: Server) -> None:
        async with _Lent(server) as connection:
            before = await connection.exchange([control_statements.ASK_POSITION])
            write = Statement("insert into items values (1, 'one')")
            after = await connection.exchange([BEGIN, write, COMMIT, control_statements.WAL_POSITION])
            first, second = before.value(0), after.value(3)
            if Part.POSITIONS in site.lacks:
                assert (first, second) == (None, None)
                return
            assert first is not None
            assert second is not None
            assert parse_lsn(first) < parse_lsn(second)

    # -- what goes wrong

    async def test_errors_have_a_kind_and_hold_no_value(self, site: DriverSite, server: Server) -> None:
        cases: list[tuple[Statement, DataErrorKind]] = [
            (Statement("selekt 1"), DataErrorKind.QUERY),
            (Statement("insert into items values (%s, %s)", [2, None]), DataErrorKind.CONSTRAINT),
            (Statement("insert into items values (%s, %s)", [3, site.secret]), DataErrorKind.CONSTRAINT),
        ]
        async with _Lent(server) as connection:
            await connection.exchange([Statement("insert into items values (%s, %s)", [1, site.secret])])
            for statement, kind in cases:
                exchange = await connection.exchange([statement])
                error = server.error_of(exchange, is_write=True)
                assert error.kind is kind
                assert server.full_name in str(error)
                # Applications show and report messages; the address is an attribute.
                assert server.location not in str(error)
                assert error.server == server.location
                for text in (str(error), repr(error), repr(statement), repr(connection), repr(exchange)):
                    assert site.secret not in text
                assert connection.is_idle

    async def test_a_deadline_stops_the_statement(self, site: DriverSite, server: Server) -> None:
        async with _Lent(server) as connection:
            started = asyncio.get_running_loop().time()
            exchange = await connection.exchange([site.slow], deadline=_in(0.3))
            assert asyncio.get_running_loop().time() - started < 5.0
            assert exchange.timed_out
            error = server.error_of(exchange, is_write=False)
            assert error.kind is DataErrorKind.TIMEOUT
            assert error.is_retryable is False
            assert connection.closed or (await connection.exchange([Statement("select 1")])).error is None

    async def test_a_cancelled_exchange_can_be_reclaimed(self, site: DriverSite, server: Server) -> None:
        connection = await server.acquire(deadline=None)
        await connection.exchange([BEGIN, Statement("insert into items values (1, 'one')")])
        runs = asyncio.create_task(connection.exchange([site.slow]))
        await asyncio.sleep(0.2)
        runs.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runs
        await asyncio.wait_for(server.reclaim(connection), HANG_S)
        assert server.borrowed == 0
        assert connection.closed or connection.is_idle
        async with _Lent(server) as fresh:
            assert await _count(fresh) == 0

    async def test_a_cancelled_statement_is_stopped_and_its_transaction_waits_for_a_rollback(
        self, site: DriverSite, server: Server
    ) -> None:
        async with _Lent(server) as connection:
            await connection.exchange([BEGIN, Statement("insert into items values (1, 'one')")])
            runs = asyncio.create_task(connection.exchange([site.slow]))
            await asyncio.sleep(0.2)
            runs.cancel()
            with pytest.raises(asyncio.CancelledError):
                await runs
            await asyncio.wait_for(connection.stop_statement(), HANG_S)
            assert connection.closed or connection.has_failed_transaction or connection.is_in_transaction
        async with _Lent(server) as fresh:
            assert await _count(fresh) == 0

    async def test_a_cut_connection_is_reported_as_closed(self, server: Server) -> None:
        gone: list[bool] = []
        connection = await server.acquire(deadline=None)
        connection.when_gone = lambda: gone.append(True)
        connection.cut("the test cuts it")
        assert connection.closed
        assert gone == [True]
        assert not connection.is_usable
        server.release(connection)
        async with _Lent(server) as fresh:
            assert not fresh.closed

    async def test_a_borrowed_connection_expires(self, server: Server) -> None:
        async with _Lent(server) as connection:
            await connection.exchange([BEGIN])
            borrowed = server.lend(connection)
            borrowed = borrowed.connection
            assert borrowed.execute is not None
            borrowed.expire("the block has ended")
            with pytest.raises(SessionClosed, match="the block has ended"):
                await borrowed.execute("select 1")
            await connection.exchange([ROLLBACK])


class _Lent:
    """A borrowed connection, returned in any state."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> Connection:
        self._connection = await self._server.acquire(deadline=None)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._server.reclaim(self._connection)


async def _count(connection: Connection) -> int:
    exchange = await connection.exchange([Statement("select count(*) from items")])
    assert exchange.error is None
    count: int = exchange.answers(0, 1)[0].scalar() or 0
    return count


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not holds():
            await asyncio.sleep(0.01)
