"""Every metric that is emitted is compared with the registry of OpenTelemetry's semantic conventions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import AsyncIterator, Mapping
from types import ModuleType
from typing import Any

import opentelemetry.semconv._incubating.attributes as attribute_modules
import opentelemetry.semconv.attributes as stable_modules
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.metrics import db_metrics, messaging_metrics
from opentelemetry.semconv.schemas import Schemas

from asgi_datasource.observability import metrics, names
from asgi_datasource.outbox import metrics as outbox_metrics
from asgi_datasource.testing import EmbeddedCluster
from tests.docs.samples import samples
from tests.observability.emitted import Emitted, emit_everything
from tests.outbox.tables import install_tables
from tests.world import World

OWN = "asgi_datasource."


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with World.create(cluster) as made:
        await install_tables(made)
        yield made


class Recorder:
    """A meter that notes what the functions of the registry create: kind and unit by name."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def _create(self, kind: str, name: str, unit: str) -> None:
        self.found[name] = kind, unit

    def create_counter(self, name: str, description: str, unit: str) -> None:
        self._create("counter", name, unit)

    def create_up_down_counter(self, name: str, description: str, unit: str) -> None:
        self._create("updowncounter", name, unit)

    def create_histogram(self, name: str, description: str, unit: str) -> None:
        self._create("histogram", name, unit)


def registered(module: ModuleType) -> dict[str, tuple[str, str]]:
    """The metrics of a module of the registry that are not deprecated."""
    recorder = Recorder()
    for name, create in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("create_") and "Deprecated" not in (create.__doc__ or ""):
            create(recorder)
    return recorder.found


def registered_attributes() -> set[str]:
    """The names of all attributes of the registry that are not deprecated."""
    found: set[str] = set()
    for package in (attribute_modules, stable_modules):
        for module in pkgutil.iter_modules(package.__path__):
            source = importlib.import_module(f"{package.__name__}.{module.name}")
            text = inspect.getsource(source)
            for name in dir(source):
                value: Any = getattr(source, name)
                is_deprecated = f'{name}: Final = "{value}"\n"""\nDeprecated: ' in text
                if name.isupper() and isinstance(value, str) and not is_deprecated:
                    found.add(value)
    return found


async def test_all_that_is_emitted_is_in_the_registry_or_below_the_librarys_prefix(
    world: World, metric_reader: InMemoryMetricReader
) -> None:
    emitted = await emit_everything(world, metric_reader)
    known = {**registered(db_metrics), **registered(messaging_metrics)}
    attributes = registered_attributes()
    assert "db.system" not in attributes, "a deprecated attribute"
    for name, metric in emitted.items():
        if not name.startswith(OWN):
            assert (metric.kind, metric.unit) == known[name], name
        unknown = {one for one in metric.attributes if not one.startswith(OWN)} - attributes
        assert not unknown, (name, unknown)
    ours = [getattr(module, name) for module in (metrics, outbox_metrics) for name in dir(module) if name.isupper()]
    prefixes = (OWN, "db.client.", "messaging.client.")
    declared = {name for name in ours if isinstance(name, str) and name.startswith(prefixes)}
    attribute_names = {value for value in vars(names).values() if isinstance(value, str)}
    assert declared - attribute_names - {outbox_metrics.REASON} == set(emitted), "not all were emitted"
    assert {name for name in known if name.startswith("db.client.connection.")} <= set(emitted)
    required(emitted)


def required(emitted: Mapping[str, Emitted]) -> None:
    """Check the attributes and boundaries that the conventions require."""
    server = {"db.system.name", "db.namespace", "server.address", "server.port"}
    statement = {"db.operation.name", "db.query.summary"}
    failure = {"error.type", "db.response.status_code"}
    tenant = names.TENANT_ID
    own = {names.DATASOURCE, names.NODE, tenant}
    message = {"messaging.system", "messaging.operation.name", "messaging.destination.name", "error.type"}
    expected = {
        "db.client.operation.duration": server | statement | failure | own,
        "db.client.response.returned_rows": server | statement | own,
        "db.client.connection.count": {names.POOL_NAME, names.CONNECTION_STATE},
        "db.client.connection.wait_time": {names.POOL_NAME, tenant},
        "db.client.connection.create_time": {names.POOL_NAME},
        "messaging.client.sent.messages": message,
        "messaging.client.operation.duration": message | {"messaging.operation.type"},
    }
    assert {name: emitted[name].attributes for name in expected} == expected
    seconds = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
    assert emitted["db.client.operation.duration"].bounds == seconds
    assert emitted["db.client.response.returned_rows"].bounds[:4] == (1, 2, 5, 10)
    assert emitted["messaging.client.operation.duration"].bounds[:3] == (0.005, 0.01, 0.025)


def test_the_named_version_of_the_conventions_is_one_that_is_shipped() -> None:
    assert names.SCHEMA_URL in {schema.value for schema in Schemas}


def test_cardinality_is_bounded_whatever_the_topics_are(metric_reader: InMemoryMetricReader) -> None:
    measure = outbox_metrics.RelayMeasure()
    for number in range(outbox_metrics.MAX_TOPICS + 5):
        measure.sent("bounded", f"topic {number}", 0.001, None)
    data = metric_reader.get_metrics_data()
    topics = {
        point.attributes["messaging.destination.name"]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == outbox_metrics.SENT_MESSAGES
        for point in metric.data.data_points
        if point.attributes["messaging.system"] == "bounded"
    }
    assert len(topics) == outbox_metrics.MAX_TOPICS + 1
    assert names.OTHER in topics


def test_the_views_of_the_page_are_applied() -> None:
    [sample] = [one for one in samples("python", "docs/telemetry.md") if "VIEWS = " in one.text]
    found: dict[str, Any] = {}
    exec(compile(sample.text, str(sample), "exec"), found)
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], views=found["VIEWS"]).get_meter("views")
    meter.create_histogram("db.client.operation.duration", "s").record(0.0003)
    meter.create_histogram("db.client.connection.use_time", "s").record(0.0003)
    meter.create_histogram("db.client.response.returned_rows", "{row}").record(1, {"db.query.summary": "SELECT orders"})
    data = reader.get_metrics_data()
    duration, use_time, rows = [one.data.data_points[0] for one in data.resource_metrics[0].scope_metrics[0].metrics]
    assert tuple(duration.explicit_bounds) == found["SECONDS"]
    assert hasattr(use_time, "scale")
    assert dict(rows.attributes) == {}


def test_attributes_of_spans_are_in_the_registry_or_below_the_librarys_prefix() -> None:
    declared = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    outside = {value for value in declared if not value.startswith(OWN)} - {names.SCHEMA_URL, names.OTHER}
    assert outside <= registered_attributes()
