"""Helpers for tests of traces: an application behind OpenTelemetry's ASGI middleware, and the outline of a trace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.routing import BaseRoute

from asgi_datasource import DataSourceRegistry
from asgi_datasource.testing import serve
from tests.apps import application
from tests.drivers.polling import until
from tests.world import World

P = "asgi_datasource."


@asynccontextmanager
async def traced(
    world: World, routes: Sequence[BaseRoute], *, registry: DataSourceRegistry | None = None, **config: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real uvicorn, whose application is behind `OpenTelemetryMiddleware`."""
    app = application(registry or world.registry(**config), routes)
    behind = OpenTelemetryMiddleware(app, exclude_spans=["send", "receive"])
    async with (
        serve(behind) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}, timeout=20.0) as http,
    ):
        yield http


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span; the library's own without their prefix."""
    return {key.removeprefix(P): value for key, value in (span.attributes or {}).items()}


class Trace:
    """The spans that have ended, by name and as an outline."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        [span] = [span for span in self.spans if span.name == name]
        return span

    def of(self, name: str) -> dict[str, Any]:
        """The attributes of the only span of this name."""
        return attributes(self.named(name))

    @property
    def request(self) -> ReadableSpan:
        """The request's span."""
        [span] = [span for span in self.spans if span.kind is SpanKind.SERVER]
        return span

    @property
    def outline(self) -> list[str]:
        """The names in order of their start, indented below their parents."""
        ids = {span.context.span_id for span in self.spans if span.context is not None}
        lines: list[str] = []

        def add(parent: int | None, depth: int) -> None:
            for span in self.spans:
                above = None if span.parent is None or span.parent.span_id not in ids else span.parent.span_id
                if above == parent and span.context is not None:
                    lines.append("  " * depth + span.name)
                    add(span.context.span_id, depth + 1)

        add(None, 0)
        return lines

    @property
    def count(self) -> int:
        """Number of traces."""
        return len({span.context.trace_id for span in self.spans if span.context is not None})


async def complete(exporter: InMemorySpanExporter, *names: str) -> Trace:
    """The trace once spans of these names have ended; a name may be expected several times."""

    def is_complete() -> bool:
        found = [span.name for span in exporter.get_finished_spans()]
        return all(found.count(name) >= names.count(name) for name in names)

    try:
        await until(is_complete, timeout_s=10.0)
    except TimeoutError:
        raise AssertionError("\n".join(["some spans have not ended:", *Trace(exporter).outline])) from None
    return Trace(exporter)
