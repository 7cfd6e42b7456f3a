"""Spans arrive at a collector over OTLP/HTTP, the last ones at shutdown; one that is dead costs no request anything."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from tests.examples.otlp_collector import Collector
from tests.observability.exporting import READS, WRITES
from tests.world import World

ROOT: Final = Path(__file__).parents[2]

OF_A_READ: Final = {"GET /": 1, "orders → primary (no_replicas)": 1, "SELECT orders": 1}
OF_A_WRITE: Final = {
    "POST /": 1,
    "transaction orders.primary": 1,
    "orders → primary (write)": 1,
    "INSERT orders": 1,
    "COMMIT": 1,
}


async def test_every_span_arrives_and_a_dead_collector_costs_no_request_anything(world: World, tmp_path: Path) -> None:
    config = tmp_path / "datasource.json"
    config.write_text(json.dumps(world.config(replicas=())), encoding="utf-8")
    with Collector() as collector, socket.create_server(("127.0.0.1", 0)) as dead:
        # It accepts connections, and never answers.
        endpoint = f"http://127.0.0.1:{dead.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.observability.exporting", str(config), endpoint),
            cwd=ROOT,
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            answer = json.loads(await process.stdout.read())
            assert await process.wait() == 0
        traces: dict[str, Counter[str]] = {}
        for span in collector.spans:
            traces.setdefault(span.trace_id, Counter())[span.name] += 1
    assert Counter(json.dumps(names, sort_keys=True) for names in traces.values()) == {
        json.dumps(OF_A_READ, sort_keys=True): READS,
        json.dumps(OF_A_WRITE, sort_keys=True): WRITES,
    }
    # The exporter waits 10 s for an answer: a request that waited for it would take as long.
    assert answer["slowest_s"] < 5
    assert answer["shutdown_s"] < 8
