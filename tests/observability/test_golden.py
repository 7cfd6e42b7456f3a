"""The traces of the main scenarios, as `asgi-datasource trace` prints them: one file for each in `golden/`.

Ids, times and positions are masked. A scenario without a file gets one, and fails: read it, and commit it.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_datasource import compile
from asgi_datasource.testing import FaultProxy, write_traces
from tests.cli.run import call
from tests.observability.routes import ROUTES, SELECT, attempts
from tests.observability.traces import complete, traced
from tests.world import World

GOLDEN: Final = Path(__file__).parent / "golden"

PLAIN: Final[dict[str, tuple[str, str, int]]] = {
    "replica_read": ("GET", "/orders", 200),
    "pinned_read": ("POST", "/orders", 200),
    "failed_commit": ("POST", "/children", 409),
    "retry": ("POST", "/conflict", 200),
    "deadline": ("POST", "/slow", 504),
    "client_gone": ("POST", "/abandoned", 0),
    "requires_new": ("POST", "/audited", 200),
}
"""Scenarios of one request: method, path, and status; 0 where the client leaves."""

DURATION: Final = r"\d+(?:\.\d+)? m?s"


def normalised(text: str) -> str:
    """A printed trace without what differs from run to run: ids, times, ports; equal positions have equal numbers."""
    positions: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return positions.setdefault(match[0], f"LSN{len(positions) + 1}")

    text = re.sub(rf"^ *{DURATION} +{DURATION}  [·█]{{16}}  ", "  ", text, flags=re.MULTILINE)
    text = re.sub(r"pool [\d.]+ m?s(?: \(.*?\))?", "pool TIME", text)
    text = re.sub(rf"data of unknown age|data at most {DURATION} old|lag of {DURATION} at the last check", "AGE", text)
    text = re.sub(r"trace [0-9a-f]{32}", "trace ID", text)
    text = re.sub(r"trace [0-9a-f]{8}\b", "trace ID", text)
    text = re.sub(r"reference [0-9a-f]+", "reference ID", text)
    text = re.sub(DURATION, "TIME", text)
    return re.sub(r"\b[0-9A-F]+/[0-9A-F]+\b", number, text)


def check(name: str, spans: InMemorySpanExporter, folder: Path) -> None:
    """Compare the trace that has ended with the golden one."""
    path = folder / f"{name}.json"
    write_traces(path, spans.get_finished_spans())
    done = call("trace", path)
    assert done.code == 0, done.err
    found, golden = normalised(done.out), GOLDEN / f"{name}.txt"
    if not golden.exists():
        golden.write_text(found, encoding="utf-8")
        pytest.fail(f"{golden} is new: read it, and commit it")
    assert found == golden.read_text(encoding="utf-8"), done.out


def names_in(name: str) -> list[str]:
    """The names of the spans of a golden trace."""
    golden = GOLDEN / f"{name}.txt"
    lines = golden.read_text(encoding="utf-8").splitlines() if golden.exists() else []
    return [re.split(r"  +", line.lstrip(" │├└─"))[0] for line in lines if line.startswith("  ")]


async def test_requests_behind_opentelemetrys_middleware(
    world: World, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    async with traced(world, ROUTES, replicas=("r1",), telemetry={"tenant_attribute": True}) as http:
        await http.get("/orders")
        await http.post("/audited")
        for name, (method, path, status) in PLAIN.items():
            await world.sql("truncate orders")
            attempts.clear()
            spans.clear()
            if status == 0:
                with pytest.raises(httpx.TimeoutException):
                    await http.request(method, path, timeout=0.3)
            else:
                assert (await http.request(method, path)).status_code == status
            await complete(spans, *(names_in(name) or [f"{method} {path}"]))
            check(name, spans, tmp_path)


async def test_a_token_is_proved_by_the_replica(world: World, spans: InMemorySpanExporter, tmp_path: Path) -> None:
    consistency = {"token": "header", "secret": "a secret of more than thirty-two characters", "wait": "5s"}
    config = world.config(replicas=("r1",), consistency=consistency, routing={"check_interval": "1h"})
    async with traced(world, ROUTES, registry=compile(config)) as http:
        await http.get("/orders")
        spans.clear()
        written = await http.post("/orders")
        await world.cluster.caught_up()
        token = {"X-Datasource-Token": written.headers["X-Datasource-Token"]}
        assert (await http.get("/orders", headers=token)).status_code == 200
        await complete(spans, "POST /orders", "GET /orders")
        check("token", spans, tmp_path)


async def test_a_read_of_a_lost_replica_fails_over(world: World, spans: InMemorySpanExporter, tmp_path: Path) -> None:
    replica = world.cluster.replicas["r1"]
    async with FaultProxy(replica.host, replica.port) as proxy:
        config = world.config(
            replicas=("r1",), urls={"r1": proxy.through(world.url("r1"))}, routing={"check_interval": "1h"}
        )
        async with traced(world, ROUTES, registry=compile(config)) as http:
            await http.get("/orders")
            spans.clear()
            proxy.hold(at=SELECT.encode())
            reading = asyncio.create_task(http.get("/orders"))
            await proxy.until_held()
            await proxy.stop()
            assert (await reading).status_code == 200
            await complete(spans, "GET /orders")
            check("failover", spans, tmp_path)
