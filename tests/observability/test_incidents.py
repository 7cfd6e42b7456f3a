"""The page about incidents: its table of questions, and the signs that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_datasource import compile
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.polling import until
from tests.observability.incidents.page import PAGE, missing, signs_of
from tests.observability.incidents.scenarios import INCIDENTS, Incident, run
from tests.observability.incidents.stage import Signals
from tests.observability.routes import ROUTES, attempts
from tests.observability.traces import complete, traced
from tests.world import World

TEXT: Final = PAGE.read_text("utf-8")
QUESTION: Final = re.compile(r"^\| ([^|]+\?) \| `([^`]+)`[^|]* \| `([^`]+)` \| `((?:[^`])+)` \|$", re.MULTILINE)
QUESTIONS: Final = QUESTION.findall(TEXT)

FORMS: Final = (r"\d+", r"\d+\.\d+", r"[0-9A-F]+/[0-9A-F]+", r"[0-9a-f]{16}")
"""The forms of values that differ from run to run: an example of a form stands for all of it."""

_recorded: list[ReadableSpan] = []


@pytest.fixture
async def recorded(cluster: EmbeddedCluster, spans: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    """The spans of requests behind OpenTelemetry's middleware; recorded once for all questions."""
    if _recorded:
        return _recorded
    async with World.create(cluster) as world:
        config = world.config(
            replicas=("r1",), telemetry={"tenant_attribute": True}, routing={"check_interval": "50ms"}
        )
        async with traced(world, ROUTES, registry=compile(config)) as http:

            async def is_age_known() -> bool:
                await http.get("/orders")
                return any(
                    "asgi_datasource.lag_age_ms" in (span.attributes or {}) for span in spans.get_finished_spans()
                )

            await until(is_age_known)
            attempts.clear()
            statuses = [(await http.post(path)).status_code for path in ("/slow", "/children", "/conflict")]
            assert statuses == [504, 409, 200]
            found = await complete(spans, "POST /conflict", "POST /children", "POST /slow")
    _recorded.extend(found.spans)
    return _recorded


def matches(example: str, value: object) -> bool:
    """Whether a value is the example, or of its form."""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    wanted = example.replace("\\|", "|")
    if wanted == text:
        return True
    if isinstance(value, tuple):
        return bool(re.fullmatch(r"r1 (up|lag .*), primary up", text))
    if "…" in wanted:
        return text.endswith(wanted.partition("…")[2])
    return any(re.fullmatch(form, wanted) and re.fullmatch(form, text) for form in FORMS if form != r"\d+")


def test_the_page_has_all_questions() -> None:
    assert len(QUESTIONS) == TEXT.partition("| question |")[2].partition("\n\n")[0].count("\n") - 1


@pytest.mark.parametrize(("question", "attribute", "name", "example"), QUESTIONS, ids=[row[0] for row in QUESTIONS])
async def test_a_question_is_answered_by_one_attribute(
    question: str, attribute: str, name: str, example: str, recorded: Sequence[ReadableSpan]
) -> None:
    values = [
        (span.attributes or {})[attribute]
        for span in recorded
        if span.name == name and attribute in (span.attributes or {})
    ]
    assert any(matches(example, value) for value in values), (question, values)


@pytest.mark.parametrize("incident", INCIDENTS, ids=[incident.name for incident in INCIDENTS])
async def test_the_signs_on_the_page_come_out(
    incident: Incident,
    cluster: EmbeddedCluster,
    spans: InMemorySpanExporter,
    metric_reader: InMemoryMetricReader,
    whole: bool,
) -> None:
    signs = signs_of(TEXT, incident.name)
    if not (whole or incident.is_quick):
        # What the page shows has the signs that it names; the incident itself runs with --whole.
        shown = TEXT.partition(f"\n## {incident.name}\n")[2].partition("\n## ")[0].partition("<!-- begin")[2]
        lost = [sign for _, sign in signs if not re.search(".*".join(map(re.escape, sign.split("…"))), shown)]
        assert not lost
        return
    signals = Signals(spans, metric_reader)
    if incident.is_destructive:
        with EmbeddedCluster(replicas=1, settings={"max_connections": 60}) as own:
            seen = await run(incident, await World.make(own), signals)
    else:
        async with World.create(cluster) as world:
            seen = await run(incident, world, signals)
    assert not missing(signs, seen), (seen.trace, seen.metrics, seen.log, seen.console)
