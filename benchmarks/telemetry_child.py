"""Requests with one kind of telemetry, in a process of its own: the tracer provider of a process is permanent.

    python -m benchmarks.telemetry_child MODE URL

Each line of standard input, `METHOD CALLS`, runs a round of every application; the answer is a line with the
microseconds of a request: `{"spans": [wall, CPU], "off": [wall, CPU]}`. The line `questions` is answered with `{"us":
...}`, see `questions_us`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import timeit
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import perf_counter, process_time
from typing import Any, Final

from opentelemetry import context, metrics, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from asgi_datasource import DataSourceMiddleware
from asgi_datasource.observability import tracing
from benchmarks.children import lines, say_ready
from benchmarks.drive import receive_nothing, request_scope, send_nowhere, started
from benchmarks.rounds import interleaved
from benchmarks.sides import ours
from benchmarks.sides.asgi import ITEMS, ASGIApp

WITHOUT_SDK: Final = "no SDK"
NOT_SAMPLED: Final = "SDK, not sampled"
RECORDED: Final = "SDK, recorded"
MEASURED: Final = "SDK, metrics"
MODES: Final = (WITHOUT_SDK, NOT_SAMPLED, RECORDED, MEASURED)

OFF: Final = "off"
SPANS: Final = "spans"
METRICS: Final = "metrics"
TAGS_ROUTE: Final = "sqlcommenter: route"
TAGS_TRACE: Final = "sqlcommenter: traceparent"
APPLICATION_NAME: Final = "application_name"
TELEMETRY: Final[dict[str, dict[str, dict[str, Any]]]] = {
    WITHOUT_SDK: {OFF: {"spans": False}, SPANS: {}},
    NOT_SAMPLED: {
        OFF: {"spans": False},
        SPANS: {},
        TAGS_ROUTE: {"spans": False, "sqlcommenter": "route"},
        TAGS_TRACE: {"spans": False, "sqlcommenter": "traceparent"},
        APPLICATION_NAME: {"spans": False, "application_name": True},
    },
    RECORDED: {OFF: {"spans": False}, SPANS: {}},
    MEASURED: {OFF: {"spans": False}, METRICS: {"spans": False, "metrics": True}},
}
WARM_UP: Final = 60


def install(mode: str) -> None:
    """Install the SDK with exporters that drop everything, unless the mode is without one."""
    if mode == MEASURED:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        # Not beside spans: the SDK also measures itself.
        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    if mode in (WITHOUT_SDK, MEASURED):
        return
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Dropping(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Dropping()))
    trace.set_tracer_provider(provider)


def app(url: str, telemetry: dict[str, Any]) -> ASGIApp:
    """The service with this section `telemetry`."""
    document = ours.config(url, 1)
    document["telemetry"] = telemetry
    return DataSourceMiddleware(ours.application(), config=document)


async def one_round(mode: str, called: ASGIApp, method: str, calls: int) -> tuple[float, float]:
    """Wall-clock time and CPU of each of some requests, in microseconds, without those of the request's own span."""
    scopes = [
        {**request_scope(method, f"/items/{1 + number % ITEMS}"), "path_template": "/items/{id}"}
        for number in range(calls)
    ]
    tracer = trace.get_tracer("benchmarks")
    unsampled = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))
    wall = cpu = 0.0
    gc.collect()
    for scope in scopes:
        span = unsampled if mode == NOT_SAMPLED else tracer.start_span("request", kind=SpanKind.SERVER)
        token = context.attach(trace.set_span_in_context(span))
        began, cpu_began = perf_counter(), process_time()
        await called(scope, receive_nothing, send_nowhere)
        wall += perf_counter() - began
        cpu += process_time() - cpu_began
        context.detach(token)
        span.end()
    return wall / calls * 1e6, cpu / calls * 1e6


def questions_us() -> float:
    """What a request pays to learn that there is no SDK, in microseconds: it asks twice."""

    def both() -> None:
        tracing.has_provider()
        tracing.has_provider()

    def neither() -> None:
        pass

    times = 5000
    taken, empty = [min(timeit.repeat(each, number=times, repeat=7)) for each in (both, neither)]
    return (taken - empty) / times * 1e6


async def main(mode: str, url: str) -> None:
    install(mode)
    async with AsyncExitStack() as stack:
        apps = {
            name: await stack.enter_async_context(started(app(url, found))) for name, found in TELEMETRY[mode].items()
        }
        for method in ("GET", "POST"):
            for called in apps.values():
                await one_round(mode, called, method, WARM_UP)
        say_ready()
        number = 0
        async for line in lines():
            if line.strip() == "questions":
                say_ready(us=questions_us())
                continue
            method, calls = line.split()
            # Each line is a round: each begins with another application.
            order = list(interleaved(list(apps), number + 1))[-len(apps) :]
            number += 1
            say_ready(**{name: await one_round(mode, apps[name], method, int(calls)) for name in order})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
