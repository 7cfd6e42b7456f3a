"""Spans of OTLP's JSON form, as collectors write it.

Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. What `protobuf` itself makes of the messages
(ids in base64, enumerations by name) is read as well.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Final

from .parts import Part
from .spans import AttributeValue, Event, Link, Span

_KINDS: Final = ("internal", "internal", "server", "client", "producer", "consumer")
"""The kinds by number; 0 is unspecified, which means internal."""

_ERROR: Final = (2, "STATUS_CODE_ERROR")
_TRACE_DIGITS: Final = 32
_SPAN_DIGITS: Final = 16
_UNKNOWN: Final = "unknown_service"


def read_otlp(document: Part) -> Iterator[Span]:
    """The spans of one ExportTraceServiceRequest.

    Raises:
        Malformed: It is none.
    """
    for resource in document.parts("resourceSpans"):
        service = str(_attributes(resource.part("resource")).get("service.name", _UNKNOWN))
        for scope in resource.parts("scopeSpans"):
            for span in scope.parts("spans"):
                yield _span(span, service)


def _span(part: Part, service: str) -> Span:
    start, end = part.whole("startTimeUnixNano"), part.whole("endTimeUnixNano")
    if end < start:
        raise part.malformed("endTimeUnixNano", "is before startTimeUnixNano")
    status = part.part("status")
    return Span(
        trace_id=_id(part, "traceId", _TRACE_DIGITS),
        span_id=_id(part, "spanId", _SPAN_DIGITS),
        parent_id=_id(part, "parentSpanId", _SPAN_DIGITS, is_optional=True) or None,
        name=part.text("name", ""),
        kind=_kind(part),
        service=service,
        start_ns=start,
        end_ns=end,
        is_error=status.value.get("code") in _ERROR,
        attributes=_attributes(part),
        events=tuple([Event(one.text("name", ""), _attributes(one)) for one in part.parts("events")]),
        links=tuple([_link(one) for one in part.parts("links")]),
    )


def _link(part: Part) -> Link:
    return Link(_id(part, "traceId", _TRACE_DIGITS), _id(part, "spanId", _SPAN_DIGITS), _attributes(part))


def _id(part: Part, key: str, digits: int, *, is_optional: bool = False) -> str:
    found = part.value.get(key)
    if isinstance(found, str) and found.endswith("="):
        try:
            decoded = base64.b64decode(found, validate=True).hex()
        except binascii.Error:
            decoded = ""
        if len(decoded) == digits:
            return decoded
    return part.hexadecimal(key, digits, is_optional=is_optional)


def _kind(part: Part) -> str:
    found = part.value.get("kind", 0)
    if isinstance(found, str):
        name = found.removeprefix("SPAN_KIND_").lower()
        return name if name in _KINDS else _KINDS[0]
    return _KINDS[found] if isinstance(found, int) and 0 <= found < len(_KINDS) else _KINDS[0]


def _attributes(part: Part) -> dict[str, AttributeValue]:
    return {entry.text("key"): _value(entry.part("value")) for entry in part.parts("attributes")}


def _value(part: Part) -> AttributeValue:
    """A value, which is a mapping from its type to it."""
    for kind, value in part.value.items():
        match kind:
            case "stringValue" | "bytesValue":
                return part.text(kind)
            case "boolValue":
                return bool(value)
            case "intValue":
                return _whole(part, kind)
            case "doubleValue":
                return _fraction(part, kind, value)
            case "arrayValue":
                return tuple([_value(entry) for entry in part.part(kind).parts("values")])
            case "kvlistValue":
                entries = part.part(kind).parts("values")
                return tuple([(entry.text("key"), _value(entry.part("value"))) for entry in entries])
            case _:
                continue
    return ""


def _whole(part: Part, kind: str) -> int:
    found = part.value[kind]
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    digits = found.removeprefix("-") if isinstance(found, str) else ""
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _SPAN_DIGITS + 4):
        raise part.malformed(kind, "should be a whole number")
    return int(str(found))


def _fraction(part: Part, kind: str, value: Any) -> float:
    try:
        # "NaN" and "Infinity" are text.
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise part.malformed(kind, "should be a number") from None
