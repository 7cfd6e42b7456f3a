"""Spans as they stand in a file, and the traces that they make up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...observability.names import REFERENCE, TENANT_ID

AttributeValue = str | bool | int | float | tuple[object, ...]
"""The value of an attribute."""

REQUEST_KIND: Final = "server"


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a span.

    Attributes:
        name: Its name.
        attributes: Its attributes.
    """

    name: str
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Link:
    """A span that another one refers to.

    Attributes:
        trace_id: Its trace.
        span_id: The span.
        attributes: Attributes of the link; Jaeger's format has none.
    """

    trace_id: str
    span_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict[str, AttributeValue])


@dataclass(frozen=True, slots=True)
class Span:
    """One span.

    Attributes:
        trace_id: Its trace, as lower-case hexadecimal digits.
        span_id: Its id, likewise.
        parent_id: The id of its parent; None without one.
        name: Its name.
        kind: `internal`, `server`, `client`, `producer` or `consumer`.
        service: The name of the service that has recorded it.
        start_ns: Its start, in nanoseconds since 1970.
        end_ns: Its end.
        is_error: Its status is ERROR.
        attributes: Its attributes.
        events: Its events, in order.
        links: The spans that it refers to.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    service: str
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: Mapping[str, AttributeValue]
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()

    def text(self, name: str) -> str | None:
        """An attribute as text; None without it."""
        value = self.attributes.get(name)
        return None if value is None else str(value)

    def number(self, name: str) -> float | None:
        """An attribute as a number; None without it, and where it is none."""
        value = self.attributes.get(name)
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class Row:
    """A span of a trace with its place below its parent.

    Attributes:
        span: The span.
        depth: The number of spans above it.
        branches: For each level from the second on, whether more spans of that level follow.
    """

    span: Span
    depth: int
    branches: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """The spans of one trace, in order of their start.

    Attributes:
        trace_id: Its id.
        spans: At least one span.
    """

    trace_id: str
    spans: tuple[Span, ...]

    @property
    def first(self) -> Span:
        """The request's span, or else the first one without a parent in the file."""
        known = {span.span_id for span in self.spans}
        roots = [span for span in self.spans if span.parent_id not in known] or [self.spans[0]]
        return next((span for span in roots if span.kind == REQUEST_KIND), roots[0])

    @property
    def start_ns(self) -> int:
        """The start of the first span."""
        return min(span.start_ns for span in self.spans)

    @property
    def end_ns(self) -> int:
        """The end of the last span."""
        return max(span.end_ns for span in self.spans)

    @property
    def is_error(self) -> bool:
        """Whether a span has failed, or the request was answered with a problem document."""
        return bool(self.references) or any(span.is_error for span in self.spans)

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants that spans name."""
        return self._values(TENANT_ID)

    @property
    def references(self) -> tuple[str, ...]:
        """The references of the problem documents that it was answered with."""
        return self._values(REFERENCE)

    def _values(self, name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(span.attributes[name]) for span in self.spans if name in span.attributes))

    def rows(self) -> Iterator[Row]:
        """The spans below their parents; those whose parent is not in the file stand at the top."""
        known = {span.span_id for span in self.spans}
        below: dict[str | None, list[Span]] = {}
        for span in self.spans:
            below.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
        seen: set[str] = set()
        # After those without a parent come those in a circle of parents, which no correct file has.
        for top in (*below.get(None, ()), *self.spans):
            stack: list[Row] = [Row(top, 0, ())]
            while stack:
                row = stack.pop()
                if row.span.span_id in seen:
                    continue
                seen.add(row.span.span_id)
                yield row
                children = below.get(row.span.span_id, [])
                stack += [
                    Row(child, row.depth + 1, (*row.branches, number < len(children) - 1))
                    for number, child in reversed([*enumerate(children)])
                ]


def collect(spans: Iterable[Span]) -> list[Trace]:
    """The traces of spans, in order of their start; a span that stands in several files counts once."""
    found: dict[str, dict[str, Span]] = {}
    for span in spans:
        found.setdefault(span.trace_id, {}).setdefault(span.span_id, span)
    traces = [
        Trace(trace_id, tuple(sorted(inside.values(), key=lambda span: span.start_ns)))
        for trace_id, inside in found.items()
    ]
    return sorted(traces, key=lambda trace: trace.start_ns)


def named(traces: Sequence[Trace]) -> dict[tuple[str, str], Span]:
    """All spans of traces by trace and id, for links."""
    return {(span.trace_id, span.span_id): span for trace in traces for span in trace.spans}
