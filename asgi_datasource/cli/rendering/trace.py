"""Traces as text: a waterfall of spans with their answers beside them; and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ...observability.names import LINKED_FROM, NODES
from ..console import Style, printable
from ..traces.answers import answers_of, milliseconds
from ..traces.spans import Link, Row, Span, Trace, named

VERSION: Final = 1
_BAR: Final = 16
_NAME_WIDTH: Final = 44
"""Columns of the names; longer ones push the answers of their own line to the right."""

Spans = Mapping[tuple[str, str], Span]


def render_text(traces: Sequence[Trace], style: Style) -> str:
    """A paragraph for each trace.

    Args:
        traces: The traces.
        style: The emphasis.
    """
    known = named(traces)
    return "\n\n".join("\n".join(_lines(trace, known, style)) for trace in traces)


def _lines(trace: Trace, known: Spans, style: Style) -> Iterator[str]:
    first, took = trace.first, milliseconds((trace.end_ns - trace.start_ns) / 1e6)
    head = [f"trace {trace.trace_id}", took]
    head += [f"tenant {printable(one)}" for one in trace.tenants]
    head += [f"reference {printable(one)}" for one in trace.references]
    name = printable(first.name)
    yield f"{style.red(name) if trace.is_error else style.bold(name)}  {style.faint(', '.join(head))}"
    rows = [(row, _tree(row) + printable(row.span.name)) for row in trace.rows()]
    width = min(_NAME_WIDTH, max(len(label) for _, label in rows))
    services = len({span.service for span in trace.spans})
    for row, label in rows:
        span = row.span
        start, duration = (span.start_ns - trace.start_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6
        answers = "; ".join(_said(span, known, names_service=services > 1 and row.depth == 0))
        shown = label.ljust(width) if answers else label
        if span.is_error:
            shown = shown.replace(printable(span.name), style.red(printable(span.name)), 1)
        times = f"{milliseconds(start):>9} {milliseconds(duration):>9}"
        yield f"{style.faint(times)}  {style.blue(_bar(trace, span))}  {shown}{'  ' if answers else ''}{answers}"


def _tree(row: Row) -> str:
    """The lines of the tree before a name."""
    if not row.branches:
        return ""
    return "".join("│  " if follows else "   " for follows in row.branches[:-1]) + (
        "├─ " if row.branches[-1] else "└─ "
    )


def _bar(trace: Trace, span: Span) -> str:
    """The time of a span within its trace."""
    whole = max(1, trace.end_ns - trace.start_ns)
    begin = min(_BAR - 1, _BAR * (span.start_ns - trace.start_ns) // whole)
    end = max(begin + 1, round(_BAR * (span.end_ns - trace.start_ns) / whole))
    return f"{'·' * begin}{'█' * (end - begin)}{'·' * (_BAR - end)}"


def _said(span: Span, known: Spans, *, names_service: bool) -> Iterator[str]:
    if names_service:
        yield f"service {printable(span.service)}"
    for question, answer in answers_of(span).items():
        # The name of a choice has the server; the head of the trace has tenant and reference.
        if question in ("tenant", "reference") or (question == "server" and "→" in span.name):
            continue
        if question == "server":
            yield f"{'went to' if NODES in span.attributes else 'on'} {answer}"
        else:
            yield answer
    yield from (text for link in span.links if (text := _linked(span, link, known)))


def _linked(span: Span, link: Link, known: Spans) -> str:
    """A link in words: to the COMMIT that a read needs, or to the application's span around a statement."""
    target = known.get((link.trace_id, link.span_id))
    name = f"span {link.span_id}" if target is None else printable(target.name)
    where = "" if link.trace_id == span.trace_id else f" of trace {link.trace_id[:8]}"
    is_around = link.attributes.get(LINKED_FROM) == "caller" or (target is not None and target.kind == "internal")
    return f"{'called in' if is_around and not where else 'after'} {name}{where}"


def as_document(traces: Sequence[Trace]) -> dict[str, Any]:
    """The traces by `schemas/trace/v1.json`."""
    return {"version": VERSION, "traces": [_trace(trace) for trace in traces]}


def _trace(trace: Trace) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "name": trace.first.name,
        "started_at": datetime.fromtimestamp(trace.start_ns / 1e9, UTC).isoformat(timespec="microseconds"),
        "duration_ms": (trace.end_ns - trace.start_ns) / 1e6,
        "is_error": trace.is_error,
        "tenants": list(trace.tenants),
        "references": list(trace.references),
        "spans": [_span(trace, row) for row in trace.rows()],
    }


def _span(trace: Trace, row: Row) -> dict[str, Any]:
    span = row.span
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "depth": row.depth,
        "name": span.name,
        "kind": span.kind,
        "service": span.service,
        "start_ms": (span.start_ns - trace.start_ns) / 1e6,
        "duration_ms": (span.end_ns - span.start_ns) / 1e6,
        "is_error": span.is_error,
        "answers": answers_of(span),
        "attributes": dict(span.attributes),
        "events": [{"name": event.name, "attributes": dict(event.attributes)} for event in span.events],
        "links": [{"trace_id": link.trace_id, "span_id": link.span_id} for link in span.links],
    }
