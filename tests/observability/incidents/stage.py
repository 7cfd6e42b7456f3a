"""An application with a console on real servers, and what all signals show of an incident there."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount

from asgi_datasource import DataSourceMiddleware, DataSourceRegistry, compile
from asgi_datasource.cli.command import ExitCode
from asgi_datasource.cli.commands.trace import Waterfalls
from asgi_datasource.cli.console import PLAIN
from asgi_datasource.cli.console_reader import ConsoleReader
from asgi_datasource.cli.rendering.top import render_text
from asgi_datasource.cli.traces.answers import milliseconds
from asgi_datasource.cli.traces.reading import read_file
from asgi_datasource.cli.traces.spans import collect
from asgi_datasource.console import Console
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from asgi_datasource.drivers.protocol import Server
from asgi_datasource.observability import decision_log
from asgi_datasource.testing import serve, write_traces
from tests.drivers.polling import until
from tests.world import World

ROOT: Final = Path(__file__).parents[3]

WIDTH: Final = 128
"""Columns of the console's tables."""

SHOWN: Final = {
    "asgi_datasource.node": "node",
    "asgi_datasource.reason": "reason",
    "asgi_datasource.transaction.outcome": "outcome",
    "db.operation.name": "operation",
    "db.client.connection.pool.name": "pool",
    "db.client.connection.state": "state",
    "error.type": "error.type",
}
"""The attributes of metrics that are shown, and how they are written."""

Point = tuple[float, float | None]
"""The value of a metric, and of a histogram the sum."""


@dataclass
class Seen:
    """What was seen of an incident.

    Attributes:
        trace: What `asgi-datasource trace` prints.
        metrics: Metrics that have moved.
        log: Lines of the library's loggers.
        console: What `asgi-datasource top --once` prints.
    """

    trace: str = ""
    metrics: str = ""
    log: str = ""
    console: str = ""

    def of(self, signal: str) -> str:
        """The text of a signal by its name: `trace`, `metric`, `log` or `console`."""
        return {"trace": self.trace, "metric": self.metrics, "log": self.log, "console": self.console}[signal]


@dataclass
class Signals:
    """The readers of this process's telemetry.

    Attributes:
        spans: The spans that have ended.
        reader: The metrics.
    """

    spans: InMemorySpanExporter
    reader: InMemoryMetricReader


class _Lines(logging.Handler):
    """Keeps the lines of a log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, without a traceback."""
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@contextmanager
def _log() -> Iterator[_Lines]:
    logger, lines = logging.getLogger("asgi_datasource"), _Lines()
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    # What another test has logged a moment ago is logged again.
    decision_log._repeated.clear()
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)


@dataclass
class Stage:
    """A running application.

    Attributes:
        world: Its database.
        registry: Its registry.
        http: A client of tenant `acme`.
        url: Its address.
    """

    world: World
    registry: DataSourceRegistry
    http: httpx.AsyncClient
    url: str
    _signals: Signals
    _lines: _Lines
    _before: dict[str, Point] = field(default_factory=dict[str, Point])
    _during: dict[str, Point] = field(default_factory=dict[str, Point])
    _console: str = ""

    @property
    def primary(self) -> Server:
        """The primary of the datasource."""
        orders = self.registry.datasources["orders"]
        assert isinstance(orders, ReplicatedDataSource)
        return orders.primary

    @property
    def lines(self) -> list[str]:
        """The lines of the log so far."""
        return self._lines.lines

    def begin(self) -> None:
        """What came before does not belong to the incident."""
        self._signals.spans.clear()
        self._lines.lines.clear()
        self._before = points(self._signals.reader)

    async def look(self) -> None:
        """Look at the console and at the gauges now, in the middle of the incident."""
        state = await asyncio.to_thread(ConsoleReader(f"{self.url}/ops", {}).read)
        self._console = render_text(state, is_coloured=False, width=WIDTH)
        self._during = points(self._signals.reader)

    async def ended(self, *names: str) -> None:
        """Wait until spans of these names have ended; a name may be expected several times."""

        def are_there() -> bool:
            found = [span.name for span in self._signals.spans.get_finished_spans()]
            return all(found.count(name) >= names.count(name) for name in names)

        await until(are_there)

    def seen(self, roots: Sequence[str], metrics: Sequence[str]) -> Seen:
        """Everything that was seen.

        Args:
            roots: Names of the requests' spans whose last traces are shown, in this order.
            metrics: Names of the metrics that are shown where they have moved.
        """
        after = points(self._signals.reader)
        return Seen(
            trace=self._traces(roots),
            metrics="\n".join(_moved(self._before, self._during, after, metrics)),
            log="\n".join(self._lines.lines).replace(f"{ROOT}/", ""),
            console=self._console,
        )

    def _traces(self, roots: Sequence[str]) -> str:
        spans = self._signals.spans.get_finished_spans()
        shown: list[ReadableSpan] = []
        used: set[int] = set()
        for name in roots:
            requests = [span for span in spans if span.kind is SpanKind.SERVER and span.name == name]
            fresh = [span for span in requests if span.context is not None and span.context.trace_id not in used]
            context = fresh[-1].context
            assert context is not None
            used.add(context.trace_id)
            shown += [span for span in spans if span.context is not None and span.context.trace_id == context.trace_id]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "traces.json"
            write_traces(path, shown)
            return Waterfalls(collect(read_file(str(path))), ExitCode.CLEAN).render("text", PLAIN)


@asynccontextmanager
async def staged(
    world: World, routes: Sequence[BaseRoute], signals: Signals, config: Mapping[str, Any]
) -> AsyncIterator[Stage]:
    """Serve routes and a console, behind OpenTelemetry's middleware, on a real uvicorn."""
    document = dict(config)
    document["telemetry"] = {"metrics": True, "tenant_attribute": True, **document.get("telemetry", {})}
    document["tenancy"] = {**document["tenancy"], "exempt": ["/ops"]}
    registry = compile(document)
    app = Starlette(
        routes=[Mount("/ops", Console(registry, guard=lambda _: True)), *routes],
        middleware=[Middleware(DataSourceMiddleware, registry=registry)],
    )
    behind = OpenTelemetryMiddleware(app, exclude_spans=["send", "receive"], excluded_urls="ops")
    with _log() as lines:
        async with (
            serve(behind) as server,
            httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=30.0) as http,
        ):
            stage = Stage(world, registry, http, server.url, signals, lines)
            stage.begin()
            yield stage


# -- metrics


def points(reader: InMemoryMetricReader) -> dict[str, Point]:
    """All points of the library's metrics by name and shown attributes, added up over the others."""
    data = reader.get_metrics_data()
    found: dict[str, Point] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics if scope.scope.name == "asgi_datasource" else ():
                for point in metric.data.data_points:
                    name = f"{metric.name}{_labels(point.attributes or {})}"
                    value, total = found.get(name, (0.0, None))
                    if isinstance(point, HistogramDataPoint):
                        found[name] = value + point.count, (total or 0.0) + point.sum
                    else:
                        found[name] = value + float(getattr(point, "value", 0.0)), None
    return found


def _labels(attributes: Mapping[str, Any]) -> str:
    shown = [f"{text}={attributes[name]}" for name, text in SHOWN.items() if name in attributes]
    return f"{{{', '.join(shown)}}}"


def _moved(
    before: Mapping[str, Point], during: Mapping[str, Point], after: Mapping[str, Point], names: Sequence[str]
) -> Iterator[str]:
    for name in names:
        for key in sorted(key for key in {**during, **after} if key.startswith(f"{name}{{")):
            (old, old_sum), (new, new_sum) = before.get(key, (0.0, None)), after.get(key, (0.0, None))
            if new_sum is not None:
                if new > old:
                    mean = (new_sum - (old_sum or 0.0)) / (new - old)
                    yield f"{key} +{new - old:g}, {milliseconds(1000 * mean)} on average"
            elif name in GAUGES:
                seen = during.get(key, (new, None))[0]
                if seen != old:
                    yield f"{key} {old:.3g} → {seen:.3g}"
            elif new > old:
                yield f"{key} +{new - old:g}"


GAUGES: Final = frozenset(
    {
        "asgi_datasource.servers.up",
        "asgi_datasource.replica.lag",
        "db.client.connection.count",
        "db.client.connection.pending_requests",
    }
)
"""Metrics that go up and down: shown as they were in the middle of the incident."""
