"""What spans, metrics and query tags add to a request: without an SDK, not sampled, and recorded.

One request at a time through the middleware, in one process for each state of the SDK. In each of them, the same
application with `telemetry: {spans: false}` takes turns with the measured one, and what is added is the difference of a
round. The request's own span is not part of it, nor is the export.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.children import answering
from benchmarks.report import Report, Target
from benchmarks.server import Server
from benchmarks.telemetry_child import MODES, OFF, RECORDED, SPANS, WITHOUT_SDK

NAME: Final = "telemetry"
QUESTIONS: Final = "whether anything is recorded"
TARGETS: Final = {
    ("one read", RECORDED, SPANS): Target("<=", 60),
    (QUESTIONS, WITHOUT_SDK, SPANS): Target("<=", 0.3),
}
"""Microseconds of a request."""


async def run(report: Report, server: Server, *, quick: bool) -> None:
    rounds, calls = (2, 20) if quick else (40, 100)
    async with AsyncExitStack() as stack:
        asks = {
            mode: await stack.enter_async_context(answering("benchmarks.telemetry_child", mode, server.url()))
            for mode in MODES
        }
        for case, method in (("one read", "GET"), ("one write", "POST")):
            wall: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
            cpu: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
            for _ in range(rounds):
                for mode, ask in asks.items():
                    for kind, (wall_us, cpu_us) in (await ask(f"{method} {calls}")).items():
                        wall[mode, kind].append(wall_us)
                        cpu[mode, kind].append(cpu_us)
            for mode, kind in wall:
                off, side = f"{mode}: {OFF}", f"{mode}: {kind}"
                report.measured(NAME, case, side, "wall", "us", wall[mode, kind])
                report.measured(NAME, case, side, "client CPU", "us", cpu[mode, kind])
                if kind == OFF:
                    continue
                added = [a - b for a, b in zip(wall[mode, kind], wall[mode, OFF], strict=True)]
                report.measured(NAME, case, side, "added", "us", added)
                report.state(NAME, case, "added", side, TARGETS.get((case, mode, kind)))
                if (NAME, case, off, "wall") in report:
                    report.compare(NAME, case, "wall", side, off)
        asked = [(await asks[WITHOUT_SDK]("questions"))["us"] for _ in range(rounds)]
        side = f"{WITHOUT_SDK}: {SPANS}"
        report.measured(NAME, QUESTIONS, side, "cost", "us", asked)
        report.state(NAME, QUESTIONS, "cost", side, TARGETS[QUESTIONS, WITHOUT_SDK, SPANS])
