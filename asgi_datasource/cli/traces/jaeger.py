"""Spans of Jaeger's JSON: of its query API, its page's downloads and uploads.

Source: https://www.jaegertracing.io/docs/latest/apis/ and `model/json` of github.com/jaegertracing/jaeger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from .parts import Part
from .spans import AttributeValue, Event, Link, Span

_KINDS: Final = ("server", "client", "producer", "consumer")
_TRACE_DIGITS: Final = 32
_SPAN_DIGITS: Final = 16
_UNKNOWN: Final = "unknown_service"


def read_jaeger(document: Part) -> Iterator[Span]:
    """The spans of an answer of the API, or of one trace.

    Raises:
        Malformed: It is none.
    """
    for trace in [document] if "spans" in document.value else document.parts("data"):
        processes = trace.part("processes")
        services = {key: processes.part(key).text("serviceName", _UNKNOWN) for key in processes.value}
        for span in trace.parts("spans"):
            yield _span(span, services)


def _span(part: Part, services: Mapping[str, str]) -> Span:
    tags = _tags(part, "tags")
    trace_id, start = part.hexadecimal("traceID", _TRACE_DIGITS), 1000 * part.whole("startTime")
    process = services.get(part.text("processID", ""))
    references = [(one.text("refType", "CHILD_OF"), _link(one)) for one in part.parts("references")]
    parents = [link.span_id for kind, link in references if kind == "CHILD_OF" and link.trace_id == trace_id]
    # Until 2017 the parent was a field.
    parent = part.hexadecimal("parentSpanID", _SPAN_DIGITS, is_optional=True)
    kind = str(tags.pop("span.kind", "internal"))
    return Span(
        trace_id=trace_id,
        span_id=part.hexadecimal("spanID", _SPAN_DIGITS),
        parent_id=parents[0] if parents else parent or None,
        name=part.text("operationName", ""),
        kind=kind if kind in _KINDS else "internal",
        service=process or part.part("process").text("serviceName", _UNKNOWN),
        start_ns=start,
        end_ns=start + 1000 * part.whole("duration"),
        is_error=_is_error(tags),
        attributes=tags,
        events=tuple([_event(one) for one in part.parts("logs")]),
        links=tuple([link for kind, link in references if kind != "CHILD_OF"]),
    )


def _is_error(tags: dict[str, AttributeValue]) -> bool:
    code = tags.pop("otel.status_code", None)
    tags.pop("otel.status_description", None)
    return tags.pop("error", None) in (True, "true") or code == "ERROR"


def _link(part: Part) -> Link:
    return Link(part.hexadecimal("traceID", _TRACE_DIGITS), part.hexadecimal("spanID", _SPAN_DIGITS))


def _event(part: Part) -> Event:
    fields = _tags(part, "fields")
    return Event(str(fields.pop("event", "")), fields)


def _tags(part: Part, key: str) -> dict[str, AttributeValue]:
    return {tag.text("key"): _value(tag) for tag in part.parts(key)}


def _value(tag: Part) -> AttributeValue:
    """A tag's value; Jaeger writes lists as text."""
    found: Any = tag.value.get("value")
    if isinstance(found, str) and found.startswith("["):
        try:
            parsed: object = json.loads(found)
        except (ValueError, RecursionError):
            return found
        return tuple(cast("list[object]", parsed)) if isinstance(parsed, list) else found
    return found if isinstance(found, str | bool | int | float) else ""
