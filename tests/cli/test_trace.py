"""`asgi-datasource trace`: files of traces, filters, and files that are none."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped] - it has no stubs
from jsonschema import Draft202012Validator
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from asgi_datasource.testing import TraceFiles, as_jaeger, write_traces
from tests.cli.run import call, run

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/trace/v1.json").read_text())
ADS = "asgi_datasource."


def recorded(*processors: Any) -> Sequence[ReadableSpan]:
    """Two traces of this library's shape: a failed write of acme, and a read of globex."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    for processor in (SimpleSpanProcessor(exporter), *processors):
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("asgi_datasource")
    with tracer.start_as_current_span(
        "POST /orders",
        kind=SpanKind.SERVER,
        attributes={
            "http.response.status_code": 409,
            f"{ADS}tenant.id": "acme",
            f"{ADS}nodes": ("r1", "primary"),
            f"{ADS}problem.reference": "5f0c",
        },
    ):
        with tracer.start_as_current_span(
            "orders → r1 (balanced)",
            attributes={
                f"{ADS}node": "r1",
                f"{ADS}role": "replica",
                f"{ADS}reason": "balanced",
                f"{ADS}candidates": ("r1 lag 3 ms", "primary up"),
                f"{ADS}lag_age_ms": 12.5,
                f"{ADS}pool.wait_ms": 3.0,
                f"{ADS}pool.queue_ms": 1.0,
                f"{ADS}pool.connect_ms": 2.0,
            },
        ) as choice:
            pass
        with tracer.start_as_current_span(
            "INSERT orders",
            kind=SpanKind.CLIENT,
            links=[Link(choice.get_span_context())],
            attributes={
                f"{ADS}node": "primary",
                f"{ADS}role": "primary",
                "db.query.text": "insert into orders (item)\n values (%s)",
                "error.type": "23505",
                f"{ADS}error.constraint": "orders_item_key",
            },
        ) as insert:
            insert.set_status(Status(StatusCode.ERROR, "23505"))
            insert.add_event("exception", {"exception.type": "\x1b[31mBroken"})
    with tracer.start_as_current_span("GET /orders", kind=SpanKind.SERVER, attributes={f"{ADS}tenant.id": "globex"}):
        pass
    for processor in processors:
        processor.force_flush()
    return exporter.get_finished_spans()


@pytest.fixture(scope="module")
def spans() -> Sequence[ReadableSpan]:
    return recorded()


def otlp(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """One ExportTraceServiceRequest as a collector writes it: ids in hexadecimal digits, enumerations as numbers."""
    found: dict[str, Any] = MessageToDict(encode_spans(list(spans)), use_integers_for_enums=True)
    for resource in found["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for owner in (span, *span.get("links", ())):
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if key in owner:
                            owner[key] = base64.b64decode(owner[key]).hex()
    return found


def test_all_forms_give_the_same_waterfall(spans: Sequence[ReadableSpan], tmp_path: Path) -> None:
    acme, globex = spans[:3], spans[3:]
    api = as_jaeger(spans)
    forms = {
        "jaeger.json": json.dumps(api, indent=2),
        "jaeger-of-one-trace.json": "\n".join(json.dumps(trace) for trace in api["data"]),
        "otlp.json": json.dumps(otlp(spans), indent=2),
        "otlp-of-protobuf.json": json.dumps(MessageToDict(encode_spans(list(spans)))),
        "otlp-lines.jsonl": "\n".join([json.dumps(otlp(acme)), "", json.dumps(otlp(globex)), ""]),
        "otlp-list.json": json.dumps([otlp(acme), otlp(globex)]),
        "jaeger-v3.json": json.dumps({"result": otlp(spans)}),
    }
    printed: dict[str, Any] = {}
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        done = call("trace", tmp_path / name, "--format", "json")
        assert done.code == 0, done.err
        document = json.loads(done.out)
        Draft202012Validator(SCHEMA).validate(document)
        printed[name] = [
            [(span["depth"], span["name"], span["kind"], span["service"], span["answers"]) for span in trace["spans"]]
            for trace in document["traces"]
        ]
    assert all(found == printed["otlp.json"] for found in printed.values()), printed
    first = [answers for _, _, _, _, answers in printed["otlp.json"][0]]
    assert first[0] == {"status": "409", "tenant": "acme", "server": "r1, primary", "reference": "5f0c"}
    assert first[1] == {
        "server": "r1 (replica)",
        "reason": "it is the replica whose turn it is",
        "staleness": "data at most 12.5 ms old",
        "pool_wait": "pool 3.0 ms (queue 1.0 ms, connecting 2.0 ms)",
    }
    assert first[2] == {
        "server": "primary",
        "statement": "insert into orders (item) values (%s)",
        "cause": "a unique constraint is broken (23505): orders_item_key",
        "events": "exception ?[31mBroken",
    }
    # The same span in two files is one span.
    both = call("trace", tmp_path / "otlp.json", tmp_path / "jaeger.json", "--format", "json")
    assert len(json.loads(both.out)["traces"]) == 2


def test_the_text_is_a_waterfall(spans: Sequence[ReadableSpan], tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.json", spans)
    done = run("trace", "-", "--tenant", "acme", stdin=(tmp_path / "traces.json").read_text())
    assert done.code == 0, done.err
    head, *lines = done.out.splitlines()
    assert head.startswith("POST /orders  trace ")
    assert head.endswith(", tenant acme, reference 5f0c")
    assert [line.split("  ", 2)[-1].partition("  ")[2] for line in lines] != []
    assert lines[0].endswith("POST /orders               409; went to r1, primary")
    assert (
        "├─ orders → r1 (balanced)  it is the replica whose turn it is; data at most 12.5 ms old; pool 3.0 ms"
        in lines[1]
    )
    assert "└─ INSERT orders           on primary; insert into orders (item) values (%s); a unique" in lines[2]
    assert "\x1b" not in done.out


def test_filters_select_traces(spans: Sequence[ReadableSpan], tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    write_traces(path, spans)

    def names(*options: str) -> tuple[int, list[str]]:
        done = call("trace", path, "--format", "json", *options)
        return done.code, [trace["name"] for trace in json.loads(done.out)["traces"]]

    globex = spans[-1].context
    assert globex is not None
    assert names() == (0, ["POST /orders", "GET /orders"])
    assert names("--reference", "5f0c") == (0, ["POST /orders"])
    assert names("--trace-id", f"{globex.trace_id:032X}"[:12]) == (0, ["GET /orders"])
    assert names("--tenant", "globex") == (0, ["GET /orders"])
    assert names("--error") == (1, ["POST /orders"])
    assert names("--tenant", "globex", "--error") == (0, [])
    done = call("trace", path, "--reference", "nothing")
    assert (done.code, done.err) == (
        2,
        "error: none of 2 trace(s) has the reference nothing. Was the request sampled, and does the file cover its"
        " time?\n",
    )


def test_an_exporter_writes_a_file_for_each_trace(tmp_path: Path) -> None:
    recorded(BatchSpanProcessor(TraceFiles(tmp_path / "traces")))
    files = sorted((tmp_path / "traces").iterdir())
    assert [path.name.split("-", 1)[1].rpartition("-")[0] for path in files] == ["POST-orders", "GET-orders"]
    done = call("trace", *files)
    assert done.out.count("  trace ") == 2


SPAN = {
    "traceId": "1" * 32,
    "spanId": "2" * 16,
    "name": "x",
    "startTimeUnixNano": "5",
    "endTimeUnixNano": "9",
}


def of_otlp(**changes: Any) -> str:
    span = {key: value for key, value in {**SPAN, **changes}.items() if value is not None}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN, span]}]}]}, indent=1)


WHERE = "resourceSpans[0].scopeSpans[0].spans[1]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "FILE is empty"),
        ("{", "FILE:1:2 is not JSON: expecting property name enclosed in double quotes"),
        ('{"resourceSpans": []}\n{"resourceSpans": [', "FILE:2:20 is not JSON: expecting value"),
        ("[1]", "FILE:1: [0] is a number, and should be a mapping"),
        ('{"spam": 1}', "FILE:1: the document has none of the keys resourceSpans, data, spans and result"),
        ('{"resourceSpans": 1}', "FILE:1: resourceSpans is a number, and should be a list"),
        ('{"resourceSpans": []}', "there are no spans"),
        (
            of_otlp(startTimeUnixNano="soon"),
            f"FILE:18: {WHERE}.startTimeUnixNano is text, and should be a whole number",
        ),
        (of_otlp(endTimeUnixNano="1"), f"FILE:19: {WHERE}.endTimeUnixNano is before startTimeUnixNano"),
        (of_otlp(traceId="secret"), f"FILE:15: {WHERE}.traceId should be up to 32 hexadecimal digits"),
        (of_otlp(spanId=None), f"{WHERE}.spanId is missing"),
        (
            of_otlp(attributes=[{"key": "a", "value": {"intValue": "x"}}]),
            f"{WHERE}.attributes[0].value.intValue should be a whole number",
        ),
        (
            '{"data": [{"spans": []}]}\n{"data": [{"spans": [{"traceID": "1", "spanID": "2", "startTime": -1}]}]}',
            "FILE:2: data[0].spans[0].startTime is a number, and should be a whole number",
        ),
    ],
)
def test_a_file_that_holds_no_traces_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    path.write_text(text)
    done = call("trace", path)
    assert done.code == 2
    assert problem.replace("FILE", str(path)) in done.err
    assert "secret" not in done.err


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "missing.json cannot be read: No such file" in call("trace", tmp_path / "missing.json").err
    (tmp_path / "latin.json").write_bytes(b'{"data":\n"\xe4"}')
    assert "latin.json:2 is not UTF-8" in call("trace", tmp_path / "latin.json").err
