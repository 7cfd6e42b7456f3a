"""Metrics: only if enabled, with the names of the conventions, and with a limited number of tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, cast

import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.semconv._incubating.metrics import db_metrics
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, SessionClosed, compile, session
from asgi_datasource.observability import metrics
from asgi_datasource.observability.summary import analyze
from asgi_datasource.registry import registry as registry_module
from tests.apps import client
from tests.world import World

TENANT = "asgi_datasource.tenant.id"
Point = tuple[dict[str, Any], float]


def read(reader: InMemoryMetricReader) -> dict[str, list[Point]]:
    """All points by the name of their metric: attributes, and the value or the count."""
    data = reader.get_metrics_data()
    found: dict[str, list[Point]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    value = point.count if isinstance(point, HistogramDataPoint) else 0
                    if isinstance(point, NumberDataPoint):
                        value = point.value
                    found.setdefault(metric.name, []).append((dict(point.attributes or {}), value))
    return found


def total(found: Mapping[str, list[Point]], name: str, **wanted: Any) -> float:
    """The sum of a metric over the points with these attributes; `.` is written as `__`."""
    attributes = {key.replace("__", "."): value for key, value in wanted.items()}
    return sum(value for point, value in found.get(name, ()) if attributes.items() <= point.items())


class Since:
    """The records since a moment."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader
        self._before = read(reader)

    def total(self, name: str, **wanted: Any) -> float:
        return total(read(self._reader), name, **wanted) - total(self._before, name, **wanted)

    def changed(self) -> str:
        """The points that have changed, of all metrics, as text."""
        now = read(self._reader)
        return str(
            [
                (name, point)
                for name, points in now.items()
                for point in points
                if point not in self._before.get(name, ())
            ]
        )

    def values(self, name: str, attribute: str) -> set[Any]:
        """The values of an attribute on the points that have changed."""
        before = {tuple(sorted(point.items())): value for point, value in self._before.get(name, ())}
        return {
            point.get(attribute)
            for point, value in read(self._reader).get(name, ())
            if value != before.get(tuple(sorted(point.items())))
        }


async def place(request: Request) -> Response:
    db = session(request)
    await db.read.fetch_all("select item from orders where item <> 'secret literal'")
    await db.execute("insert into orders (item) values (%s)", [request.query_params["item"]])
    await db.read.fetch_value("select count(*) from orders")
    return JSONResponse({}, status_code=int(request.query_params.get("status", "201")))


async def test_a_request_is_measured_by_the_conventions_and_the_librarys_metrics(
    world: World, metric_reader: InMemoryMetricReader
) -> None:
    since = Since(metric_reader)
    made = world.registry(telemetry={"metrics": True}, pool={"min_size": 1, "max_size": 5})
    async with client(world, [Route("/", place, methods=["POST"])], registry=made) as http:
        assert (await http.post("/?item=tea")).status_code == 201
        assert (await http.post("/?item=cake&status=409")).status_code == 409
        assert (await http.post("/?item=tea")).status_code == 409
        on_primary = {"db__namespace": world.dbname, "asgi_datasource__node": "primary"}
        duration = "db.client.operation.duration"
        assert since.total(duration, db__operation__name="INSERT", **on_primary) == 3
        assert since.total(duration, db__operation__name="SELECT", **on_primary) == 2
        assert since.total(duration, db__operation__name="SELECT", db__namespace=world.dbname) == 5
        assert since.total(duration, db__operation__name="COMMIT", **on_primary) == 1
        assert since.total(duration, db__operation__name="ROLLBACK", **on_primary) == 2
        assert since.total(duration, error__type="23505", db__response__status_code="23505", **on_primary) == 1
        assert since.total(duration, db__system__name="postgresql", db__namespace=world.dbname) == 11
        assert since.total(duration, db__query__summary="INSERT orders", **on_primary) == 3
        # Of queries only; one point for each that has succeeded.
        rows = "db.client.response.returned_rows"
        assert since.total(rows, db__query__summary="SELECT orders") == 5
        assert since.total(rows) == 5

        decisions, outcomes = "asgi_datasource.route.decisions", "asgi_datasource.transaction.outcomes"
        assert since.total(decisions, asgi_datasource__role="replica", asgi_datasource__reason="balanced") == 3
        assert since.total(decisions, asgi_datasource__role="primary", asgi_datasource__reason="write") == 3
        assert since.total(decisions, asgi_datasource__reason="pinned") == 2
        assert since.total(outcomes, asgi_datasource__transaction__outcome="committed") == 1
        assert since.total(outcomes, asgi_datasource__transaction__outcome="rolled_back") == 2

        of_primary = {"db__client__connection__pool__name": "orders.primary"}
        assert since.total("db.client.connection.wait_time", **of_primary) == 3
        assert since.total("db.client.connection.use_time", **of_primary) == 3
        assert since.total("db.client.connection.create_time", **of_primary) >= 1
        now = read(metric_reader)
        assert total(now, "db.client.connection.max", **of_primary) == 5
        assert total(now, "db.client.connection.idle.max", **of_primary) == 5
        assert total(now, "db.client.connection.idle.min", **of_primary) == 1
        assert total(now, "db.client.connection.pending_requests", **of_primary) == 0
        count = "db.client.connection.count"
        assert 1 <= total(now, count, db__client__connection__state="idle", **of_primary) <= 5
        assert total(now, count, db__client__connection__state="used", **of_primary) == 0
        lags = now["asgi_datasource.replica.lag"]
        assert {point["asgi_datasource.node"] for point, lag in lags if 0 <= lag < 60} == {"r1", "r2"}
    # The registry is closed, so its pools are no longer observed.
    assert total(read(metric_reader), "db.client.connection.max", **of_primary) == 0
    # No literals, values and tenants.
    everything = since.changed()
    assert "secret" not in everything
    assert "cake" not in everything
    assert TENANT not in everything


def test_attribute_names_equal_those_of_the_conventions() -> None:
    ours = [getattr(metrics, name) for name in dir(metrics) if name.isupper()]
    names = {name for name in ours if isinstance(name, str) and name.startswith("db.client.")}
    known = {getattr(db_metrics, name) for name in dir(db_metrics) if name.startswith("DB_CLIENT")}
    assert names - {metrics.POOL_NAME, metrics.CONNECTION_STATE} <= known
    assert db_metrics.DB_CLIENT_RESPONSE_RETURNED_ROWS in names
    assert {name for name in known if name.startswith("db.client.connection.")} <= names


def test_statements_beyond_the_limit_have_no_summary(
    metric_reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_SUMMARIES", 2)

    class Pool:
        dimensions: ClassVar[dict[str, str]] = {"asgi_datasource.datasource": "bounded"}

    measure = metrics.Metrics(0).measure(None)
    for number in (1, 2, 3, 1):
        measure.ran(cast("Any", Pool()), analyze(f"select * from generated_{number}"), 0.001, None)
    points = read(metric_reader)["db.client.operation.duration"]
    found = {
        point.get("db.query.summary"): value
        for point, value in points
        if point.get("asgi_datasource.datasource") == "bounded"
    }
    assert found == {"SELECT generated_1": 2, "SELECT generated_2": 1, None: 1}


async def test_without_metrics_no_instrument_is_created(
    world: World, metric_reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("nobody asked for metrics")

    for name in ("Metrics", "Measure", "Use"):
        monkeypatch.setattr(getattr(metrics, name), "__init__", refuse)
    before = read(metric_reader)
    async with client(world, [Route("/", place, methods=["POST"])]) as http:
        assert (await http.post("/?item=tea")).status_code == 201
        assert (await http.post("/?item=tea")).status_code == 409
    assert read(metric_reader) == before


async def test_tenants_are_an_attribute_only_if_configured_and_up_to_the_limit(
    world: World, metric_reader: InMemoryMetricReader
) -> None:
    names = ("acme", "globex", "initech", "umbrella")
    document = world.config(telemetry={"metrics": True, "metric_tenants": 2}, replicas=())
    document["tenants"]["*"] = {"datasource": "orders", "schema": "nowhere_{tenant}"}
    since = Since(metric_reader)
    async with compile(document) as made:

        async def write(name: str) -> None:
            async with made.session(name) as db:
                await db.execute("insert into orders (item) values (gen_random_uuid())")

        for name in names:
            await write(name)
        for metric in (
            "db.client.operation.duration",
            "db.client.connection.use_time",
            "asgi_datasource.transaction.outcomes",
        ):
            assert since.values(metric, TENANT) == {"acme", "globex", metrics.OTHER_TENANTS}, metric
        assert since.total("asgi_datasource.transaction.outcomes", **{TENANT: metrics.OTHER_TENANTS}) == 2
        # A reload keeps the count of tenants.
        await made.reload({**document, "errors": {"debug": True}})
        since = Since(metric_reader)
        for name in names:
            await write(name)
        assert since.values("asgi_datasource.transaction.outcomes", TENANT) == {
            "acme",
            "globex",
            metrics.OTHER_TENANTS,
        }
        # A reload with another limit resets it.
        await made.reload({**document, "telemetry": {"metrics": True, "metric_tenants": 1}})
        since = Since(metric_reader)
        for name in reversed(names):
            await write(name)
        assert since.values("asgi_datasource.transaction.outcomes", TENANT) == {"umbrella", metrics.OTHER_TENANTS}
        # A reload without a limit ends it.
        await made.reload({**document, "telemetry": {"metrics": False}})
        since = Since(metric_reader)
        await write("acme")
        assert since.total("asgi_datasource.transaction.outcomes") == 0
        assert made not in metrics._sources


async def test_unknown_names_take_no_label_and_databases_of_tenants_are_one_pool(
    world: World, metric_reader: InMemoryMetricReader
) -> None:
    url = world.cluster.primary.url(dbname="PLACE").replace("PLACE", "{tenant}")
    document = {
        "version": 1,
        "datasources": {"own": {"primary": {"url": url}, "pool": {"min_size": 1, "max_size": 2}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {"*": {"datasource": "own"}},
        "telemetry": {"metrics": True, "metric_tenants": 1},
    }
    since = Since(metric_reader)
    other = f"{world.dbname}_other"
    await world.cluster.create_database(other)
    try:
        async with compile(document) as made:
            for name in ("nobody", "nothing"):
                with pytest.raises(DataError, match="no such tenant"):
                    async with made.session(name) as db:
                        await db.read.fetch_value("select 1")
            for name in (world.dbname, other):
                async with made.session(name) as db:
                    assert await db.read.fetch_value("select 1") == 1
            now = read(metric_reader)
            assert total(now, "asgi_datasource.tenants.open_pools", asgi_datasource__datasource="own") == 2
            pool = {"db__client__connection__pool__name": "own.primary"}
            assert total(now, "db.client.connection.max", **pool) == 4
            assert 2 <= total(now, "db.client.connection.count", **pool) <= 4
    finally:
        await world.cluster.drop_database(other)
    assert since.values("db.client.operation.duration", TENANT) == {world.dbname, metrics.OTHER_TENANTS}
    # The name of a database would identify the tenant, so no metric contains it.
    assert since.values("db.client.operation.duration", "db.namespace") == {None}
    assert other not in str(read(metric_reader))


async def test_waits_timeouts_uses_of_closed_sessions_and_interrupted_operations_are_counted(
    world: World, metric_reader: InMemoryMetricReader
) -> None:
    since = Since(metric_reader)
    pool = {"min_size": 1, "max_size": 1, "acquire_timeout": "200ms"}
    document = world.config(telemetry={"metrics": True}, pool=pool, replicas=())
    of_pool = {"db__client__connection__pool__name": "orders.primary"}
    async with compile(document) as made:
        async with made.session("acme") as first:
            await first.execute("insert into orders (item) values ('tea')")
            waiting = asyncio.ensure_future(late(made))
            async with asyncio.timeout(10):
                while total(read(metric_reader), "db.client.connection.pending_requests", **of_pool) != 1:
                    await asyncio.sleep(0.01)
            count = "db.client.connection.count"
            assert total(read(metric_reader), count, db__client__connection__state="used", **of_pool) == 1
            with pytest.raises(DataError):
                await waiting
        assert since.total("db.client.connection.timeouts", **of_pool) == 1
        with pytest.raises(SessionClosed):
            await first.execute("select 1")
        assert since.total("asgi_datasource.session.closed_use", asgi_datasource__datasource="orders") == 1
        async with made.session("acme") as db:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await db.read.execute("select pg_sleep(5)")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await db.write.execute("select pg_sleep(5)")
        duration = "db.client.operation.duration"
        assert since.total(duration, error__type="CancelledError", db__operation__name="SELECT") == 2
        await made.background.drain(10)
        assert since.total("db.client.connection.use_time", **of_pool) == since.total(
            "db.client.connection.wait_time", **of_pool
        )


async def late(made: registry_module.DataSourceRegistry) -> None:
    async with made.session("globex") as db:
        await db.read.fetch_value("select 1")
