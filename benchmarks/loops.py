"""Event loops and servers: asyncio and uvloop, uvicorn and granian.

    python -m benchmarks.loops                        a few minutes
    python -m benchmarks.loops --rounds 3

Without a web server, in a process for each round: what a read gains from uvloop. With one: requests per second of each
combination, for `asgi-datasource` and asyncpg by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from benchmarks import load
from benchmarks.children import child
from benchmarks.report import Report
from benchmarks.rounds import interleaved
from benchmarks.server import Server, benchmark_server
from benchmarks.sides import ASYNCPG, OURS

NAME: Final = "loops"
LOOPS: Final = ("asyncio", "uvloop")
SERVERS: Final = {"uvicorn": "benchmarks.serve", "granian": "benchmarks.serve_granian"}
SIDES: Final = (OURS, ASYNCPG)


async def run(report: Report, server: Server, *, rounds: int, calls: int, seconds: int, client: load.Generator) -> None:
    """Measure both parts.

    Args:
        report: Takes the figures.
        server: The database server.
        rounds: How many rounds.
        calls: Reads of a round without a web server.
        seconds: Seconds of load in a round with one.
        client: The load generator.
    """
    await _without_web_server(report, server.url(), rounds, calls)
    await _with_web_server(report, server.url(), rounds, seconds, client)


async def _without_web_server(report: Report, url: str, rounds: int, calls: int) -> None:
    taken: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for key in interleaved([f"{side}/{loop}" for side in SIDES for loop in LOOPS], rounds):
        side, _, loop = key.partition("/")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.loops_child", loop, side, url, str(calls)),
            cwd=Path(__file__).parent.parent,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{side} on {loop} ended with {process.returncode}")
        for metric, value in json.loads(output).items():
            taken[side, loop, metric].append(value)
    for side in SIDES:
        for metric in ("alone, wall", "alone, CPU", "32 at once, wall", "32 at once, CPU"):
            for loop in LOOPS:
                report.measured(NAME, side, loop, metric, "us", taken[side, loop, metric])
            report.compare(NAME, side, metric, "uvloop", "asyncio")


async def _with_web_server(report: Report, url: str, rounds: int, seconds: int, client: load.Generator) -> None:
    combinations = {f"{name}, {loop}": (module, loop) for name, module in SERVERS.items() for loop in LOOPS}
    for side in SIDES:
        async with AsyncExitStack() as stack:
            running = {
                key: await stack.enter_async_context(child(module, side, url, str(load.POOL_SIZE), loop))
                for key, (module, loop) in combinations.items()
            }
            for kind, method in (("one read", "GET"), ("one write", "POST")):
                case = f"{kind}, {side}"
                taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
                for _, ready in running.values():
                    await load.put_under_load(client, ready["port"], method, 1)
                for key in interleaved(list(running), rounds):
                    result = await load.put_under_load(client, running[key][1]["port"], method, seconds)
                    if result["errors"] or not result["requests"]:
                        raise RuntimeError(f"{side}, {key}: {result['errors']:.0f} answers are not 200")
                    taken[key, "requests per second"].append(result["requests"] / result["seconds"])
                    taken[key, "latency p99"].append(result["p99_ms"])
                for (key, metric), values in taken.items():
                    report.measured(NAME, case, key, metric, "1/s" if metric.startswith("requests") else "ms", values)
                for metric in ("requests per second", "latency p99"):
                    for key in running:
                        if key != "uvicorn, asyncio":
                            report.compare(NAME, case, metric, key, "uvicorn, asyncio")


async def _main(options: argparse.Namespace) -> None:
    report = Report(quick=options.quick)
    rounds, calls, seconds = (1, 200, 1) if options.quick else (options.rounds, 4000, 2)
    async with benchmark_server(None) as server:
        report.environment["server"] = server.settings
        client = load.generator("auto")
        await run(report, server, rounds=rounds, calls=calls, seconds=seconds, client=client)
    print(report.table())
    if options.json is not None:
        report.write(options.json)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loops", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the result")
    asyncio.run(_main(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
