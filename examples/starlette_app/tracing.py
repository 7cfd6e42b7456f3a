"""OpenTelemetry for the desk: spans go to the page, spans and metrics to a collector if configured, spans to files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_datasource.testing import TraceFiles

FILES: Final = "DESK_TRACES"
"""The variable with the folder that gets a file of each trace; without it there are none."""

SEND_LIMIT_S: Final = 2.0
"""Seconds that the last spans may take at the end; a collector that does not answer must not hold up the exit."""


def set_up(*processors: SpanProcessor) -> TracerProvider:
    """Install the SDK with these processors; with OTEL_EXPORTER_OTLP_ENDPOINT set, also an exporter to that address.

    With DESK_TRACES set, each trace is a file in that folder, which Jaeger's page and `asgi-datasource trace` open.
    With OTEL_EXPORTER_OTLP_METRICS_ENDPOINT set, metrics are exported to that address every 5 seconds.

    Returns:
        The provider; `SendLastSpans` shuts it down.
    """
    # Not at exit as well: that would wait for the collector without a limit.
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "flight-desk")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        # Half a second instead of five, so that a trace appears soon after its request.
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=500))
    if os.environ.get(FILES):
        provider.add_span_processor(BatchSpanProcessor(TraceFiles(Path(os.environ[FILES])), schedule_delay_millis=500))
    trace.set_tracer_provider(provider)
    if os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=5000)
        metrics.set_meter_provider(MeterProvider([reader], resource, shutdown_on_exit=False))
    return provider


class SendLastSpans:
    """ASGI middleware: shuts the provider down once the application and the registry have closed.

    `TracerProvider.shutdown` blocks until the collector has answered: it runs in its own thread, for a limited time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; before the end of the lifespan, send the remaining spans."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            provider = trace.get_tracer_provider()
            if message["type"].startswith("lifespan.shutdown.") and isinstance(provider, TracerProvider):
                await shut_down(provider)
            await send(message)

        await self._app(scope, receive, send_last)


async def shut_down(provider: TracerProvider) -> None:
    """Send the remaining spans for at most `SEND_LIMIT_S` seconds."""
    loop, is_done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        provider.shutdown()
        if not loop.is_closed():
            loop.call_soon_threadsafe(is_done.set)

    # A daemon: the interpreter does not wait for it, as it would for a thread of the loop's executor.
    threading.Thread(target=work, daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SEND_LIMIT_S):
            await is_done.wait()
