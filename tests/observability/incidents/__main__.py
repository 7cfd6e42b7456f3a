"""`scripts/incidents`: make the incidents, and write what was seen of them into docs/incidents.md."""

from __future__ import annotations

import argparse
import asyncio
import sys

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_datasource.testing import EmbeddedCluster
from tests.observability.incidents.page import PAGE, missing, signs_of, written
from tests.observability.incidents.scenarios import INCIDENTS, run
from tests.observability.incidents.stage import Signals
from tests.world import World


async def main(names: list[str]) -> int:
    """Run the incidents; 1 where a sign of the page was not seen."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    status = 0
    with EmbeddedCluster(replicas=1) as cluster:
        # The destructive one is the last.
        for incident in sorted(INCIDENTS, key=lambda one: one.is_destructive):
            if names and incident.name not in names:
                continue
            print(incident.name, flush=True)
            if incident.is_destructive:
                seen = await run(incident, await World.make(cluster), Signals(exporter, reader))
            else:
                async with World.create(cluster) as world:
                    seen = await run(incident, world, Signals(exporter, reader))
            text = PAGE.read_text("utf-8")
            PAGE.write_text(written(text, incident.name, seen), encoding="utf-8")
            for sign in missing(signs_of(text, incident.name), seen):
                print(f"  not seen: {sign}", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/incidents", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as the headings of the page; default: all")
    sys.exit(asyncio.run(main(parser.parse_args().names)))
