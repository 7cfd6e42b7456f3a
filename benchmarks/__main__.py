"""`python -m benchmarks`: run, print the ratios with their targets, write the JSON file."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from benchmarks import (
    boot,
    choice,
    counted,
    in_process,
    latency,
    load,
    orm,
    profile,
    round_trips,
    session_reset,
    telemetry,
    tenants,
    tournament,
    validate,
)
from benchmarks.report import Report
from benchmarks.server import benchmark_server

NAMES: Final = (
    in_process.NAME,
    choice.NAME,
    round_trips.NAME,
    latency.NAME,
    orm.NAME,
    load.NAME,
    boot.NAME,
    validate.NAME,
    tenants.NAME,
    session_reset.NAME,
    telemetry.NAME,
    profile.NAME,
    tournament.NAME,
)
RESULTS: Final = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; the exit status is 0 even if targets are missed, because the machine may be noisy."""
    options = _parser().parse_args(arguments)
    if options.gate:
        reference: Path = options.reference
        counting = counted.gate(options.server, reference, write=options.write, instructions=options.instructions)
        return asyncio.run(counting)
    names = options.only or list(NAMES)
    report = Report(quick=options.quick)
    path = options.json or RESULTS / f"{report.started_at.replace(':', '').replace('+0000', 'Z')}.json"
    try:
        asyncio.run(_run(report, names, options))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception:
        report.write(path)
        print(f"what was measured before the error is in {path}", file=sys.stderr)
        raise
    print(report.table())
    missed = [ratio for ratio in report.ratios if ratio.is_met is False]
    print(f"\n{len(missed)} target(s) missed, {sum(ratio.is_met is True for ratio in report.ratios)} met.")
    if report.quick:
        print("--quick only checks that everything runs; its figures are meaningless.")
    report.write(path)
    print(f"written to {path}", file=sys.stderr)
    return 0


async def _run(report: Report, names: Sequence[str], options: argparse.Namespace) -> None:
    if in_process.NAME in names:
        with _progress(in_process.NAME):
            await in_process.run(report, quick=options.quick)
    if choice.NAME in names:
        with _progress(choice.NAME):
            choice.run(report, quick=options.quick)
    if validate.NAME in names:
        with _progress(validate.NAME):
            validate.run(report, quick=options.quick)
    if boot.NAME in names:
        with _progress(boot.NAME):
            await boot.run(report, quick=options.quick)
    without_server = {in_process.NAME, choice.NAME, validate.NAME, boot.NAME}
    if without_server.issuperset(names):
        return
    replicas = 1 if tournament.NAME in names else 0
    async with benchmark_server(options.server, replicas=replicas) as server:
        report.environment["server"] = server.settings
        if round_trips.NAME in names:
            with _progress(round_trips.NAME):
                await round_trips.run(report, server, quick=options.quick)
        if latency.NAME in names:
            with _progress(latency.NAME):
                await latency.run(report, server, quick=options.quick)
        if orm.NAME in names:
            with _progress(orm.NAME):
                await orm.run(report, server, quick=options.quick)
        if tenants.NAME in names:
            with _progress(tenants.NAME):
                await tenants.run(report, server, quick=options.quick)
        if session_reset.NAME in names:
            with _progress(session_reset.NAME):
                await session_reset.run(report, server, quick=options.quick)
        if telemetry.NAME in names:
            with _progress(telemetry.NAME):
                await telemetry.run(report, server, quick=options.quick)
        if tournament.NAME in names:
            with _progress(tournament.NAME):
                await tournament.run(
                    report, server, quick=options.quick, rounds=options.rounds, seconds=options.seconds
                )
        if profile.NAME in names:
            with _progress(profile.NAME):
                print(await profile.run(server, quick=options.quick), end="\n\n")
        if load.NAME in names:
            client = load.generator(options.client)
            with _progress(load.NAME):
                for loop in ("asyncio", "uvloop") if options.loop == "both" else (options.loop,):
                    await load.run(
                        report,
                        server,
                        quick=options.quick,
                        loop=loop,
                        client=client,
                        rounds=options.load_rounds,
                        seconds=options.load_seconds,
                    )


class _progress:  # noqa: N801 # reads as a statement: with _progress("load")
    """Prints the running benchmark and its duration to standard error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._started = perf_counter()
        print(f"{self._name} ...", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        print(f"{self._name}: {perf_counter() - self._started:.0f} s", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/bench", description="Measure asgi_datasource next to its alternatives.")
    parser.add_argument("--quick", action="store_true", help="a few calls of each benchmark, to check that they run")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the result (default: benchmarks/results/)")
    parser.add_argument("--server", metavar="URL", help="a superuser's URL; default: an embedded PostgreSQL")
    parser.add_argument(
        "--loop", choices=("both", "asyncio", "uvloop"), default="both", help="event loop of the servers"
    )
    parser.add_argument(
        "--gate", action="store_true", help="compare counted figures with the committed ones; 1 if one rose"
    )
    parser.add_argument("--write", action="store_true", help="with --gate: renew the committed figures")
    parser.add_argument("--instructions", action="store_true", help="with --gate: count instructions, with valgrind")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", default=counted.REFERENCE, help="with --gate: the committed figures"
    )
    parser.add_argument("--load-rounds", type=int, default=8, help="rounds of each case of load")
    parser.add_argument("--load-seconds", type=int, default=2, help="load of each side in a round of load")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each cell of the tournament")
    parser.add_argument("--seconds", type=float, default=0.4, help="load of each side in a round of the tournament")
    parser.add_argument("--client", choices=("auto", "wrk", "builtin"), default="auto", help="load generator")
    return parser


if __name__ == "__main__":
    sys.exit(main())
