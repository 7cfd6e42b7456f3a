"""OpenTelemetry for the desk: spans go to the page, and to a collector if configured."""

from __future__ import annotations

import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def set_up(*processors: SpanProcessor) -> TracerProvider:
    """Install the SDK with these processors; with OTEL_EXPORTER_OTLP_ENDPOINT set, also an exporter to that address.

    Returns:
        The provider; `shutdown()` sends the remaining spans.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "flight-desk"}))
    for processor in processors:
        provider.add_span_processor(processor)
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        # Half a second instead of five, so that a trace appears soon after its request.
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=500))
    trace.set_tracer_provider(provider)
    return provider
