"""All metrics of the library, as the SDK collects them from a scripted run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum

from asgi_datasource import DataError, SessionClosed, compile
from asgi_datasource.outbox import OutboxEntry, Refused
from tests.outbox.delivery import until
from tests.world import World

SCOPE = "asgi_datasource"


@dataclass(frozen=True)
class Emitted:
    """One metric.

    Attributes:
        unit: Its unit.
        kind: `counter`, `updowncounter`, `gauge` or `histogram`.
        attributes: The names of the attributes on its points.
        bounds: The boundaries of a histogram.
    """

    unit: str
    kind: str
    attributes: frozenset[str]
    bounds: tuple[float, ...] = ()


async def refuse_cakes(entry: OutboxEntry) -> None:
    """The destination of the events."""
    if entry.topic == "cakes.ordered":
        raise Refused("no cakes")


async def emit_everything(world: World, reader: InMemoryMetricReader) -> dict[str, Emitted]:
    """Do what makes the library emit each of its metrics, with each of its attributes."""
    url = world.cluster.primary.url(dbname="PLACE").replace("PLACE", "{tenant}")
    document = world.config(
        pool={"min_size": 1, "max_size": 1, "acquire_timeout": "100ms"},
        telemetry={"metrics": True, "metric_tenants": 1},
        outbox={"relay": "embedded", "publisher": {"callable": f"{__name__}:refuse_cakes"}},
    )
    document["datasources"]["own"] = {"primary": {"url": url}}
    document["tenants"][world.dbname] = {"datasource": "own"}
    async with compile(document) as registry:
        relay = await registry.start_relay()
        async with registry.session(world.dbname) as db:
            await db.read.fetch_value("select 1")
        async with registry.session("acme") as first:
            await first.read.fetch_all("select item from orders")
            await first.execute("insert into orders (item) values ('tea')")
            await first.outbox.publish("orders.placed", key="1")
            await first.outbox.publish("cakes.ordered", key="2")
            with suppress(DataError):
                async with registry.session("globex") as second:
                    await second.execute("insert into orders (item) values ('tea')")
        with suppress(SessionClosed):
            await first.execute("select 1")
        with suppress(DataError):
            async with registry.session("acme") as third:
                await third.execute("insert into orders (item) values ('forbidden')")
        await until(lambda: sum(one.published + one.refused for one in relay.stats.values()) == 2)
        data = reader.get_metrics_data()
    found: dict[str, Emitted] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            if scope.scope.name == SCOPE:
                for metric in scope.metrics:
                    found[metric.name] = _described(metric.unit or "", metric.data)
    return found


def _described(unit: str, data: Any) -> Emitted:
    attributes = frozenset(name for point in data.data_points for name in point.attributes)
    if isinstance(data, Histogram):
        return Emitted(unit, "histogram", attributes, tuple(data.data_points[0].explicit_bounds))
    if isinstance(data, Gauge):
        return Emitted(unit, "gauge", attributes)
    assert isinstance(data, Sum)
    return Emitted(unit, "counter" if data.is_monotonic else "updowncounter", attributes)
