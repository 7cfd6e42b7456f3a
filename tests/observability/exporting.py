"""An application that exports its spans to two collectors, in a process of its own; one of them never answers.

    OTEL_EXPORTER_OTLP_ENDPOINT=... python -m tests.observability.exporting CONFIG DEAD_ENDPOINT

Prints a JSON object: the seconds of the slowest request, and of the shutdown.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource import DataSourceMiddleware, session
from benchmarks.drive import call, started
from examples.starlette_app import tracing

READS: Final = 200
WRITES: Final = 100
AT_ONCE: Final = 10


async def read(request: Request) -> Response:
    return Response(str(await session(request).fetch_value("select count(*) from orders")))


async def write(request: Request) -> Response:
    await session(request).execute("insert into orders (item) values (gen_random_uuid())")
    return Response()


async def main(config: Path, dead: str) -> None:
    provider = tracing.set_up()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{dead}/v1/traces"), schedule_delay_millis=50))
    routes = [Route("/", read, methods=["GET"]), Route("/", write, methods=["POST"])]
    inner = Starlette(routes=routes, middleware=[Middleware(DataSourceMiddleware, config=config)])
    app: Any = tracing.SendLastSpans(OpenTelemetryMiddleware(inner, exclude_spans=["receive", "send"]))
    slowest = 0.0
    async with started(app):
        waiting = iter(["GET"] * READS + ["POST"] * WRITES)

        async def work() -> None:
            nonlocal slowest
            for method in waiting:
                began = perf_counter()
                await call(app, method, "/")
                slowest = max(slowest, perf_counter() - began)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        ended = perf_counter()
    print(json.dumps({"slowest_s": slowest, "shutdown_s": perf_counter() - ended}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
