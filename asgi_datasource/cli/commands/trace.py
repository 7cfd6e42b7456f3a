"""`asgi-datasource trace FILE`: the traces of a file as waterfalls, with what they say about routing in words."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from ..command import CannotRun, ExitCode, offer_formats
from ..console import Console, Style
from ..rendering.trace import as_document, render_text
from ..traces.reading import read_file
from ..traces.spans import Trace, collect


@dataclass(frozen=True, slots=True)
class Waterfalls:
    """Traces.

    Attributes:
        traces: The traces in order of their start.
        exit_code: FINDINGS if failed ones were asked for, and are there.
    """

    traces: Sequence[Trace]
    exit_code: ExitCode

    def render(self, form: str, style: Style) -> str:
        """The traces as text, or as a document."""
        if form == "json":
            return json.dumps(as_document(self.traces), indent=2, ensure_ascii=False)
        return render_text(self.traces, style)


def configure(parser: ArgumentParser) -> None:
    """Add the files and the filters."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="OTLP JSON, one document or one a line, or Jaeger's JSON; - is stdin"
    )
    group = parser.add_argument_group("filters")
    group.add_argument("--reference", metavar="R", help="the trace that was answered with this problem document")
    group.add_argument("--trace-id", metavar="ID", help="the trace of this id, or of an id that begins so")
    group.add_argument("--tenant", metavar="NAME", help="traces of this tenant (telemetry: {tenant_attribute: true})")
    group.add_argument(
        "--error",
        action="store_true",
        help="traces with a failed span or a problem document; exit with 1 if there are any",
    )
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Waterfalls:
    """Read the files, and select traces."""
    found = collect([span for name in options.files for span in read_file(name)])
    if not found:
        raise CannotRun(f"{', '.join(options.files)}: there are no spans", "Is tracing on, and the request sampled?")
    traces = _selected(found, options)
    if options.error:
        traces = [trace for trace in traces if trace.is_error]
        if not traces:
            console.progress("no trace has a failed span or a problem document")
    return Waterfalls(traces, ExitCode.FINDINGS if options.error and traces else ExitCode.CLEAN)


def _selected(traces: Sequence[Trace], options: Namespace) -> list[Trace]:
    """The traces that were asked for by reference, id and tenant.

    Raises:
        CannotRun: There are none.
    """
    reference, trace_id, tenant = options.reference, options.trace_id, options.tenant
    found = [
        trace
        for trace in traces
        if (reference is None or reference in trace.references)
        and (trace_id is None or trace.trace_id.startswith(trace_id.lower()))
        and (tenant is None or tenant in trace.tenants)
    ]
    if not found:
        filters = {"reference": reference, "id": trace_id, "tenant": tenant}
        asked = " and ".join(f"the {name} {value}" for name, value in filters.items() if value is not None)
        raise CannotRun(f"none of {len(traces)} trace(s) has {asked}", _missing(traces, options))
    return found


def _missing(traces: Sequence[Trace], options: Namespace) -> str:
    if options.tenant is not None and not any(trace.tenants for trace in traces):
        return "Spans name the tenant with telemetry: {tenant_attribute: true} only."
    return "Was the request sampled, and does the file cover its time?"
