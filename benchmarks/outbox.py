"""The outbox: delivering, writing, and the way from a commit to the destination.

All sides deliver to a function that does nothing, one process and one relay each, from a table that is filled before.

    python -m benchmarks.outbox                       a few minutes, most of it procrastinate
    python -m benchmarks.outbox --events 2000 --rounds 3
    python -m benchmarks.outbox --only write --only way
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psycopg

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.outbox import OutboxEntry
from asgi_datasource.outbox.publishers.function import FunctionPublisher
from asgi_datasource.outbox.relay import Relay
from asgi_datasource.registry.outbox import relay_sites
from benchmarks.outbox_sides import FastStreamOutbox, LeaseLoop, Loop, Ours, Procrastinate, Side
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved

NAME: Final = "outbox"
CLIENTS: Final = 32
WRITE_S: Final = 1.0
PLAIN: Final = "without an event"
PARTS: Final = ("deliver", "snapshot", "write", "way")
DURABLE: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


async def run(
    report: Report, url: str, *, events: int, rounds: int, a_second: int, parts: Collection[str] = PARTS
) -> None:
    """Measure the cases.

    Args:
        report: Takes the figures.
        url: An empty database, as its owner.
        events: How many are delivered in a round.
        rounds: How many rounds.
        a_second: Events a second whose way is timed.
        parts: Which cases.
    """
    ours = Ours(url)
    await ours.create()
    if {"deliver", "snapshot"}.intersection(parts):
        others = [side(url) for side in (Loop, LeaseLoop, Procrastinate, FastStreamOutbox)]
        for side in others:
            await side.create()
        sides: dict[str, Side] = {side.name: side for side in (ours, *others)}
        for side in sides.values():
            await side.rate(max(100, events // 20))
        if "deliver" in parts:
            await _deliver(report, sides, events, rounds)
        if "snapshot" in parts:
            await _beside_a_snapshot(report, sides, url, events, rounds)
    async with compile(ours.config()) as registry:
        if "write" in parts:
            await _write(report, ours, registry, rounds)
        if "way" in parts:
            await _time_the_way(report, registry, a_second, rounds)


async def _deliver(report: Report, sides: dict[str, Side], events: int, rounds: int) -> None:
    case = f"deliver {events:,} events"
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for name in interleaved(list(sides), rounds):
        rates[name].append(await sides[name].rate(events))
    for name, found in rates.items():
        report.measured(NAME, case, name, "rate", "1/s", found)
    for name in (FastStreamOutbox.name, Procrastinate.name):
        report.compare(NAME, case, "rate", Ours.name, name, Target(">=", 1.5))
    report.compare(NAME, case, "rate", Ours.name, Loop.name, Target(">=", 0.85))
    report.compare(NAME, case, "rate", Ours.name, LeaseLoop.name)


async def _beside_a_snapshot(report: Report, sides: dict[str, Side], url: str, events: int, rounds: int) -> None:
    """A snapshot is held from before all events until after them: no row that is deleted can be removed."""
    case = f"deliver {events:,} events beside a held snapshot"
    compared = (Ours.name, LeaseLoop.name)
    alone: dict[str, list[float]] = {name: [await sides[name].rate(events) for _ in range(rounds)] for name in compared}
    held: defaultdict[str, list[float]] = defaultdict(list)
    async with await psycopg.AsyncConnection.connect(url) as holder:
        await holder.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await holder.execute("select 1 from pg_class limit 1")
        for name in compared:
            # What the measured rounds have to read past.
            await sides[name].rate(4 * events)
        for name in interleaved(compared, rounds):
            held[name].append(await sides[name].rate(events))
    for name in compared:
        report.measured(NAME, case, name, "rate", "1/s", held[name])
        report.measured(NAME, case, f"{name}, without", "rate", "1/s", alone[name])
        target = Target(">=", 0.5) if name == Ours.name else None
        report.compare(NAME, case, "rate", name, f"{name}, without", target)
    report.compare(NAME, case, "rate", Ours.name, LeaseLoop.name, Target(">=", 5.0))


async def _write(report: Report, ours: Ours, registry: DataSourceRegistry, rounds: int) -> None:
    """Transactions a second of concurrent writers, with one event each and without."""
    case = f"{CLIENTS} writers, one INSERT each"
    await ours.sql("create table if not exists items (id bigint generated always as identity primary key, name text)")
    rates: defaultdict[str, list[float]] = defaultdict(list)

    async def client(end: float, *, publishes: bool) -> int:
        done = 0
        while perf_counter() < end:
            async with registry.session(tenant="all") as db:
                await db.execute("insert into items (name) values ('x')")
                if publishes:
                    await db.outbox.publish("t", payload={"number": 1})
            done += 1
        return done

    for name in interleaved((Ours.name, PLAIN), 2 * rounds):
        began = perf_counter()
        clients = (client(began + WRITE_S, publishes=name == Ours.name) for _ in range(CLIENTS))
        rates[name].append(sum(await asyncio.gather(*clients)) / (perf_counter() - began))
        await ours.sql("truncate asgi_datasource.outbox")
    for name, found in rates.items():
        report.measured(NAME, case, name, "rate", "1/s", found)
    report.compare(NAME, case, "rate", Ours.name, PLAIN, Target(">=", 0.9))


async def _time_the_way(report: Report, registry: DataSourceRegistry, a_second: int, rounds: int) -> None:
    """From the answer to COMMIT to the call of the destination, in one process, at a steady rate."""
    case = f"commit to destination, {a_second:,} a second"
    late_ms: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        took = sorted(await _one_way(registry, a_second))
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            late_ms[name].append(took[int(len(took) * part)] * 1000)
    for name, found in late_ms.items():
        report.measured(NAME, case, Ours.name, name, "ms", found)
    report.state(NAME, case, "p50", Ours.name)
    report.state(NAME, case, "p99", Ours.name, Target("<=", 50.0))


async def _one_way(registry: DataSourceRegistry, a_second: int) -> list[float]:
    committed: dict[Any, float] = {}
    arrived: dict[Any, float] = {}

    async def arrive(entry: OutboxEntry) -> None:
        arrived[entry.event_id] = perf_counter()

    relay = Relay(lambda: relay_sites(registry.compiled), FunctionPublisher(arrive))
    await relay.start()
    count = 2 * a_second
    numbers = itertools.count()
    began = perf_counter()

    async def client() -> None:
        while (number := next(numbers)) < count:
            await asyncio.sleep(max(0.0, began + number / a_second - perf_counter()))
            async with registry.session(tenant="all") as db:
                event = await db.outbox.publish("t", payload={"number": number})
            committed[event] = perf_counter()
            relay.hint(("orders", None))

    try:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        async with asyncio.timeout(60):
            while len(arrived) < count:
                await asyncio.sleep(0.01)
    finally:
        await relay.stop()
    return [max(0.0, arrived[event] - at) for event, at in committed.items()]


async def _main(options: argparse.Namespace) -> None:
    from asgi_datasource.testing import EmbeddedCluster

    report = Report(quick=options.quick)
    events, rounds, a_second = (300, 1, 100) if options.quick else (options.events, options.rounds, options.rate)
    try:
        # As servers have it: without it a COMMIT costs nothing, and the client alone is measured.
        async with EmbeddedCluster(settings=DURABLE) as cluster:
            await cluster.create_database("bench")
            url = cluster.primary.url(dbname="bench")
            await run(report, url, events=events, rounds=rounds, a_second=a_second, parts=options.only or PARTS)
    finally:
        # Also what was measured before it was stopped.
        print(report.table())
        for found in report.measurements:
            print(f"{found.case}: {found.side}: {found.metric} {found.median:g} {found.unit}")
        if options.json is not None:
            report.write(options.json)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outbox", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=1_000, help="events a second whose way is timed")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the result")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    asyncio.run(_main(parser.parse_args()))
