"""Reads that share a connection's pipeline behave as if each had a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, compile
from asgi_datasource.datasource.causal_reads import CausalRead
from asgi_datasource.datasource.router import Router
from asgi_datasource.drivers.psycopg import connection as connection_module
from asgi_datasource.drivers.psycopg.connection import PsycopgConnection
from asgi_datasource.drivers.psycopg.read_sharing import ReadShare, ReadSharing
from asgi_datasource.drivers.psycopg.statement import MAX_CACHED_LENGTH
from asgi_datasource.routing import Role, parse_lsn
from tests.pools import assert_whole, until, until_at_rest
from tests.world import World

DEPTH: Final = 8
ONE: Final = {"min_size": 1, "max_size": 1, "max_depth": DEPTH, "acquire_timeout": "10s", "max_waiting": 0}
TWO: Final = {**ONE, "min_size": 2, "max_size": 2}
QUIET: Final = {"replicas": (), "telemetry": {"spans": False}}

QUICK: Final = "select pg_backend_pid() as pid, coalesce(current_setting('app.tenant', true), '') as tenant"
BLOCKED: Final = "select pg_advisory_xact_lock_shared(7), pg_backend_pid() as pid"
"""Waits for `Gate`."""


@pytest.fixture(autouse=True)
def depths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of reads on a connection, each time that one more joined it."""
    found: list[int] = []
    share = ReadSharing.share

    def counting(self: ReadSharing, connection: PsycopgConnection, tenant: Any) -> ReadShare:
        made = share(self, connection, tenant)
        found.append(connection.shares + connection.is_owned)
        assert found[-1] <= DEPTH
        return made

    monkeypatch.setattr(ReadSharing, "share", counting)
    return found


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No read is withdrawn from behind a slow one."""
    monkeypatch.setattr(connection_module, "HEAD_PATIENCE_S", 600.0)
    monkeypatch.setattr(connection_module, "MAX_HEAD_PATIENCE_S", 600.0)


class Gate:
    """Holds back `BLOCKED` on the server until it is opened."""

    def __init__(self, blocker: psycopg.AsyncConnection[Any]) -> None:
        self._blocker = blocker

    async def open(self) -> None:
        await self._blocker.execute("select pg_advisory_unlock(7)")


@asynccontextmanager
async def gate(world: World) -> AsyncIterator[Gate]:
    async with await psycopg.AsyncConnection.connect(
        world.url(), autocommit=True, application_name="asgi-datasource gate"
    ) as blocker:
        await blocker.execute("select pg_advisory_lock(7)")
        yield Gate(blocker)


async def fetch(registry: DataSourceRegistry, query: str, tenant: str = "initech", **options: Any) -> Any:
    async with registry.session(tenant, **options) as db:
        return await db.read.fetch_one(query)


async def reads(
    registry: DataSourceRegistry, *queries: str, tenant: str = "initech"
) -> list[asyncio.Task[dict[str, Any]]]:
    """Start reads in this order; each is sent, or waits for a connection, when this returns."""
    tasks: list[asyncio.Task[dict[str, Any]]] = []
    for query in queries:
        tasks.append(asyncio.ensure_future(fetch(registry, query, tenant)))
        await asyncio.sleep(0)
    return tasks


async def settle(registry: DataSourceRegistry) -> None:
    """Wait until the pools have their connections, and their texts are known."""
    await until_at_rest(registry)
    for _ in range(2):
        await asyncio.gather(*(fetch(registry, QUICK) for _ in range(4)))
    await until_at_rest(registry)


async def test_tenants_never_meet(world: World, depths: list[int]) -> None:
    """200 tenants at depth 8 on two connections, with session state that no text shows."""
    await world.sql(
        "create function shared.leave_behind() returns text language plpgsql as $$"
        " declare found text := coalesce(current_setting('app.note', true), '');"
        " begin perform set_config('app.note', current_setting('app.tenant'), false); return found; end $$;"
        " grant execute on function shared.leave_behind to app"
    )
    config = world.config(pool=TWO, **QUIET)
    for number in range(200):
        config["tenants"][f"t{number}"] = {
            "datasource": "orders",
            "schema": "shared",
            "row_security": {"app.tenant": f"n{number}"},
        }
    await world.sql("insert into shared.orders (item, tenant) select 'i' || n, 'n' || n from generate_series(0, 199) n")
    query = (
        "select current_setting('app.tenant') as tenant, current_setting('transaction_read_only') as mode,"
        " (select string_agg(item, ',') from orders) as items, leave_behind() as note, %s::int as number"
    )
    async with compile(config) as registry:
        await until_at_rest(registry)

        async def read(number: int) -> None:
            async with registry.session(f"t{number}") as db:
                row = await db.read.fetch_one(query, [number])
            assert row is not None
            expected = {"tenant": f"n{number}", "mode": "on", "items": f"i{number}", "number": number}
            assert {name: row[name] for name in expected} == expected
            assert row["note"] in ("", f"n{number}")

        for _ in range(3):
            await asyncio.gather(*(read(number) for number in range(200)))
        await assert_whole(registry, world)
    assert max(depths) == DEPTH


@pytest.mark.usefixtures("patient")
async def test_a_read_that_could_not_join_leaves_no_state_of_others(world: World, depths: list[int]) -> None:
    """It changes the tenant of the session while another tenant's read, with the reset for that one, is in progress."""
    await world.sql(
        "create function shared.leave_behind() returns text language plpgsql as $$"
        " declare found text := coalesce(current_setting('app.note', true), '');"
        " begin perform set_config('app.note', current_setting('app.tenant'), false); return found; end $$;"
        " grant execute on function shared.leave_behind to app"
    )
    async with world.registry(pool=ONE, **QUIET) as registry, gate(world) as held:
        await settle(registry)
        await fetch(registry, QUICK, tenant="umbrella")
        depths.clear()
        (first,) = await reads(registry, f"{BLOCKED}, leave_behind() as note")
        long = "select coalesce(current_setting('app.note', true), '') as note" + " " * MAX_CACHED_LENGTH
        (second,) = await reads(registry, long, tenant="umbrella")
        assert depths == [2], "it was lent a part of the connection, on which nothing was sent"
        await held.open()
        assert (await first)["note"] == ""
        assert (await second)["note"] == ""
        await assert_whole(registry, world)


async def test_a_failed_read_fails_alone(world: World, depths: list[int]) -> None:
    async with world.registry(pool=ONE, **QUIET) as registry:
        await settle(registry)
        depths.clear()
        bad = ("select 1 / 0 as n", "select * from nowhere", "insert into orders (item) values ('x') returning id")
        tasks = await reads(registry, QUICK, bad[0], QUICK, bad[1], QUICK, bad[2], QUICK)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [one.kind if isinstance(one, DataError) else None for one in found]
        value, query, refused = DataErrorKind.VALUE, DataErrorKind.QUERY, DataErrorKind.READ_ONLY
        assert kinds == [None, value, None, query, None, refused, None]
        assert [one["tenant"] for one in found if isinstance(one, dict)] == ["41"] * 4
        await assert_whole(registry, world)
    assert len(depths) == len(tasks) - 1


@pytest.mark.usefixtures("patient")
async def test_a_caller_that_leaves_drops_its_own_result_only(world: World) -> None:
    """A cancelled head, a cancelled follower and an expired one: the server is never asked to cancel."""
    async with world.registry(pool=ONE, **QUIET) as registry, gate(world) as held:
        await settle(registry)
        head, left = await reads(registry, BLOCKED, QUICK)
        late = asyncio.ensure_future(fetch(registry, QUICK, timeout=0.1))
        others = await reads(registry, QUICK, BLOCKED, QUICK)
        for task in (head, left):
            task.cancel()
            await asyncio.wait({task}, timeout=5)
            assert task.cancelled(), "at once, although the server still runs the first one"
        with pytest.raises(DataError) as error:
            await late
        assert error.value.kind is DataErrorKind.TIMEOUT
        assert not any(task.done() for task in others)
        await held.open()
        rows = await asyncio.gather(*others)
        assert len({row["pid"] for row in rows}) == 1, "on the connection that they had joined"
        await assert_whole(registry, world)


@pytest.mark.usefixtures("patient")
async def test_the_statement_is_stopped_when_no_caller_is_left(world: World) -> None:
    async with world.registry(pool=ONE, **QUIET) as registry, gate(world):
        await settle(registry)
        tasks = await reads(registry, BLOCKED, BLOCKED, QUICK)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await assert_whole(registry, world)
        assert (await fetch(registry, QUICK))["tenant"] == "41"


async def test_a_slow_read_does_not_hold_back_others(world: World) -> None:
    """Those behind it finish while it still runs, and it is not joined again."""
    async with world.registry(pool=TWO, **QUIET) as registry, gate(world) as held:
        await settle(registry)
        (slow,) = await reads(registry, BLOCKED)
        for _ in range(5):
            async with asyncio.timeout(5):
                await asyncio.gather(*(await reads(registry, *[QUICK] * 12)))
        server = registry.datasources["orders"].servers["primary"]
        known = server.pool.hand_over.sharing.slow  # type: ignore[attr-defined, union-attr]
        await until(lambda: BLOCKED in known, "the text does not count as slow")
        assert not slow.done()
        await held.open()
        await slow
        await assert_whole(registry, world)


@pytest.mark.usefixtures("patient")
async def test_a_lost_connection_fails_over_each_read_by_itself(world: World, depths: list[int]) -> None:
    async with world.registry(pool=ONE, **QUIET) as registry, gate(world) as held:
        await settle(registry)
        depths.clear()
        tasks = await reads(registry, BLOCKED, QUICK, "select 1 / 0 as n", QUICK)
        assert len(depths) == 3
        ((pid, _),) = await world.backends()
        await world.sql(f"select pg_terminate_backend({pid})")
        await held.open()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [one.kind if isinstance(one, DataError) else None for one in found]
        assert kinds == [None, None, DataErrorKind.VALUE, None]
        assert pid not in [one["pid"] for one in found if isinstance(one, dict)]
        await assert_whole(registry, world)


async def test_a_writer_is_not_starved(world: World, depths: list[int]) -> None:
    async with world.registry(pool=ONE, **QUIET) as registry:
        await settle(registry)
        is_over = False

        async def keep_reading() -> int:
            count = 0
            while not is_over:
                await fetch(registry, QUICK)
                count += 1
            return count

        async def write(number: int) -> None:
            async with registry.session("initech") as db:
                await db.execute("insert into orders (item) values (%s)", [f"item {number}"])

        readers = [asyncio.ensure_future(keep_reading()) for _ in range(12)]
        await until(lambda: len(depths) > 20, "no read has joined another")
        async with asyncio.timeout(10):
            for number in range(10):
                await write(number)
        is_over = True
        assert all(await asyncio.gather(*readers))
        await assert_whole(registry, world)


async def test_limits_hold_and_fair_pools_do_not_share(world: World, depths: list[int]) -> None:
    config = world.config(pool=ONE, **QUIET)
    config["tenants"]["initech"]["limits"] = {"max_connections": 2}
    async with compile(config) as registry:
        await settle(registry)
        depths.clear()
        await asyncio.gather(*(await reads(registry, *[QUICK] * 20)))
        assert max(depths) == 2
        await assert_whole(registry, world)
    depths.clear()
    async with world.registry(pool={**ONE, "fair": True}, **QUIET) as registry:
        await settle(registry)
        await asyncio.gather(*(await reads(registry, *[QUICK] * 20)))
    assert depths == []


async def test_off_means_a_connection_for_each_read(world: World, depths: list[int]) -> None:
    async with world.registry(pool={**ONE, "multiplex": "off"}, **QUIET) as registry:
        await settle(registry)
        await asyncio.gather(*(await reads(registry, *[QUICK] * 20)))
    assert depths == []


async def test_clients_read_their_own_writes(world: World, depths: list[int]) -> None:
    """With tokens, on one connection to the primary and one to a replica."""
    options: dict[str, Any] = {
        **QUIET,
        "replicas": ("r1",),
        "routing": {"check_interval": "50ms", "max_lag": "10s"},
        "consistency": {"token": "header", "secret": "a secret of more than thirty-two characters"},
    }
    async with world.registry(pool=ONE, **options) as registry:
        await settle(registry)
        token: str | None = None
        for number in range(4):
            async with registry.session("initech", token=token) as db:
                await db.execute("insert into orders (item) values (%s)", [f"own {number}"])
            token = db.token

            async def count(seen: str | None = token) -> tuple[Any, str]:
                async with registry.session("initech", token=seen) as reader:
                    found = await reader.read.fetch_value("select count(*) from orders")
                    assert reader.last_route is not None
                    return found, reader.last_route.node

            found = await asyncio.gather(*(count() for _ in range(12)))
            assert {rows for rows, _ in found} == {number + 1}
    assert depths


@pytest.mark.usefixtures("patient")
async def test_a_proof_is_not_asked_for_behind_a_read_whose_caller_has_left(
    world: World, depths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read of a connection has no proof yet, and behind its answer another one is still in progress."""
    options: dict[str, Any] = {
        **QUIET,
        "replicas": ("r1",),
        "routing": {"check_interval": "50ms", "max_lag": "10s"},
        "consistency": {"token": "header", "secret": "a secret of more than thirty-two characters"},
    }
    is_met = CausalRead.is_met
    asked: list[str] = []

    def not_at_first(self: CausalRead, exchange: Any, server: Any, connection: Any) -> bool:
        asked.append(server.name)
        return len(asked) > 1 and is_met(self, exchange, server, connection)

    async with world.registry(pool=ONE, **options) as registry:
        await settle(registry)
        async with registry.session("initech") as db:
            await db.execute("insert into orders (item) values ('own')")
        ((written,),) = await world.sql("select pg_current_wal_lsn()::text")
        await until(lambda: read_position(registry) >= parse_lsn(written), "the replica is behind")
        monkeypatch.setattr(Router, "must_prove", lambda _, server, *__: server.role is Role.REPLICA)
        monkeypatch.setattr(CausalRead, "is_met", not_at_first)
        depths.clear()

        async def count() -> Any:
            async with registry.session("initech", token=db.token) as reader:
                return await reader.read.fetch_value("select count(*), pg_sleep(0.2) from orders")

        first = asyncio.ensure_future(count())
        await asyncio.sleep(0)
        (left,) = await reads(registry, "select pg_sleep(3)")
        assert depths == [2]
        left.cancel()
        assert await first == 1
        assert asked[0] == "r1"
        await assert_whole(registry, world)


def read_position(registry: DataSourceRegistry) -> int:
    """The last known position of the replica."""
    (node,) = registry.datasources["orders"].topology.replicas
    return 0 if node.position is None else node.position.lsn


def recorded(reader: InMemoryMetricReader, name: str) -> tuple[int, float]:
    """How often a histogram was recorded, and the sum of its values."""
    data = reader.get_metrics_data()
    points = [
        point
        for resource in ([] if data is None else data.resource_metrics)
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint)
    ]
    return sum(point.count for point in points), sum(point.sum for point in points)


@pytest.mark.usefixtures("patient")
async def test_wait_and_execution_are_told_apart(world: World, metric_reader: InMemoryMetricReader) -> None:
    options: dict[str, Any] = {"replicas": (), "telemetry": {"spans": False, "metrics": True}}
    async with world.registry(pool=ONE, **options) as registry, gate(world) as held:
        await settle(registry)
        names = ("db.client.connection.wait_time", "db.client.connection.use_time", "db.client.operation.duration")
        before = [recorded(metric_reader, name) for name in names]
        tasks = await reads(registry, BLOCKED, *[QUICK] * 4)
        await asyncio.sleep(0.05)
        await held.open()
        await asyncio.gather(*tasks)
        after = [recorded(metric_reader, name) for name in names]
        counts = [now[0] - then[0] for now, then in zip(after, before, strict=True)]
        waited, used, took = (now[1] - then[1] for now, then in zip(after, before, strict=True))
        assert counts == [5, 5, 5]
        assert waited >= 0.2, "four reads waited for the first one"
        assert max(used, took) < waited


@pytest.mark.usefixtures("patient")
async def test_a_traced_read_has_its_span_with_its_wait(
    world: World, spans: InMemorySpanExporter, depths: list[int]
) -> None:
    async with world.registry(pool=ONE, replicas=()) as registry, gate(world) as held:
        await settle(registry)
        spans.clear()
        depths.clear()
        tasks = await reads(registry, BLOCKED, *[QUICK] * 4)
        await asyncio.sleep(0.05)
        await held.open()
        await asyncio.gather(*tasks)
        found = [span for span in spans.get_finished_spans() if span.name.startswith("SELECT")]
        waits = [(span.attributes or {}).get("asgi_datasource.pool.wait_ms") for span in found]
        assert (len(found), waits.count(None), len(depths)) == (5, 1, 4)
        assert all(isinstance(wait, float) and wait >= 40 for wait in waits if wait is not None)


async def test_a_session_that_ended_cannot_join(world: World) -> None:
    async with world.registry(pool=ONE, **QUIET) as registry, gate(world) as held:
        await settle(registry)
        tasks = await reads(registry, BLOCKED, QUICK)
        async with registry.session("initech") as db:
            pass
        with pytest.raises(DataError, match="after its response"):
            await db.fetch_one(QUICK)
        await held.open()
        await asyncio.gather(*tasks)
        await assert_whole(registry, world)
