"""Traces as files, for tests and demos: the JSON that Jaeger's page opens, and `asgi-datasource trace` prints.

Jaeger's own form, and not OTLP: the page of every version of Jaeger shows it as it is, while it has OTLP converted by a
query service, which older versions do not have.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, format_span_id, format_trace_id

KEPT: Final = 500
"""Traces whose files can still grow."""

_SLUG_LENGTH: Final = 60


def as_jaeger(spans: Iterable[ReadableSpan]) -> dict[str, Any]:
    """Ended spans as a document of Jaeger's query API, which its page opens.

    Args:
        spans: The spans, of any number of traces.

    Source: `otlp2jaeger` of github.com/jaegertracing/jaeger.
    """
    traces: dict[str, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        traces.setdefault(format_trace_id(_context(span).trace_id), []).append(span)
    return {"data": [_trace(trace_id, inside) for trace_id, inside in traces.items()]}


def _trace(trace_id: str, spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    processes: dict[str, dict[str, Any]] = {}
    for span in spans:
        about = dict(span.resource.attributes)
        name = str(about.pop("service.name", "unknown_service"))
        processes.setdefault(name, {"serviceName": name, "tags": _tags(about)})
    return {"traceID": trace_id, "spans": [_span(trace_id, span) for span in spans], "processes": processes}


def _span(trace_id: str, span: ReadableSpan) -> dict[str, Any]:
    start, end = span.start_time or 0, span.end_time or 0
    references = [] if span.parent is None else [_reference("CHILD_OF", span.parent)]
    references += [_reference("FOLLOWS_FROM", link.context) for link in span.links]
    tags = _tags(span.attributes or {})
    if span.kind is not SpanKind.INTERNAL:
        tags.append(_tag("span.kind", span.kind.name.lower()))
    if span.instrumentation_scope is not None:
        tags.append(_tag("otel.scope.name", span.instrumentation_scope.name))
    if span.status.status_code is not StatusCode.UNSET:
        tags.append(_tag("otel.status_code", span.status.status_code.name))
    if span.status.status_code is StatusCode.ERROR:
        tags.append(_tag("error", True))
    return {
        "traceID": trace_id,
        "spanID": format_span_id(_context(span).span_id),
        "operationName": span.name,
        "references": references,
        "startTime": start // 1000,
        "duration": max(1, (end - start) // 1000),
        "tags": tags,
        "logs": [
            {"timestamp": event.timestamp // 1000, "fields": [_tag("event", event.name), *_event_tags(event)]}
            for event in span.events
        ],
        "processID": str(span.resource.attributes.get("service.name", "unknown_service")),
    }


def _event_tags(event: Event) -> list[dict[str, Any]]:
    return _tags(event.attributes or {})


def _reference(kind: str, context: SpanContext) -> dict[str, str]:
    ids = {"traceID": format_trace_id(context.trace_id), "spanID": format_span_id(context.span_id)}
    return {"refType": kind, **ids}


def _tags(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_tag(key, value) for key, value in attributes.items()]


def _tag(key: str, value: Any) -> dict[str, Any]:
    match value:
        case bool():
            kind = "bool"
        case int():
            kind = "int64"
        case float():
            kind = "float64"
        case str():
            kind = "string"
        case _:
            kind, value = "string", json.dumps(list(value), ensure_ascii=False)
    return {"key": key, "type": kind, "value": value}


def _context(span: ReadableSpan) -> SpanContext:
    context = span.context
    if not isinstance(context, SpanContext):
        raise ValueError(f"the span {span.name!r} has no context")
    return context


def write_traces(path: Path, spans: Iterable[ReadableSpan]) -> None:
    """Write ended spans to one file.

    Args:
        path: The file; its folder is made.
        spans: The spans, of any number of traces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through another file: a reader never sees half of it.
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(as_jaeger(spans), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


class TraceFiles(SpanExporter):
    """An exporter that writes a file for each trace: `120305.120431-POST-orders-4bf92f35.json`.

    Give it to the SDK in its batch processor. Spans that end after the request's are added to its file, as long as the
    trace is one of the last `KEPT`.

    Args:
        folder: The folder of the files; it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._traces: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._paths: dict[int, Path] = {}
        self._lock = Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the files of the traces that these spans belong to."""
        with self._lock:
            changed: dict[int, None] = {}
            for span in spans:
                trace_id = _context(span).trace_id
                self._traces.setdefault(trace_id, []).append(span)
                changed[trace_id] = None
            try:
                for trace_id in changed:
                    self._write(trace_id)
            except OSError:
                return SpanExportResult.FAILURE
            while len(self._traces) > KEPT:
                oldest, _ = self._traces.popitem(last=False)
                self._paths.pop(oldest, None)
        return SpanExportResult.SUCCESS

    def _write(self, trace_id: int) -> None:
        spans = self._traces[trace_id]
        path = self._folder / _file_name(trace_id, spans)
        before = self._paths.get(trace_id)
        if before is not None and before != path:
            before.unlink(missing_ok=True)
        self._paths[trace_id] = path
        write_traces(path, spans)


def _file_name(trace_id: int, spans: Sequence[ReadableSpan]) -> str:
    """The start and the name of the first span without a parent among these, and the trace's id."""
    known = {_context(span).span_id for span in spans}
    tops = [span for span in spans if span.parent is None or span.parent.span_id not in known]
    first = min(tops or spans, key=lambda span: span.start_time or 0)
    at = datetime.fromtimestamp((first.start_time or 0) / 1e9, UTC).strftime("%H%M%S.%f")
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", first.name).strip("-.")[:_SLUG_LENGTH]
    return f"{at}-{slug}-{format_trace_id(trace_id)[:8]}.json"
