"""What 100,000 tenants add to a start, and to a look-up.

Seconds and memory are those of reading, checking and compiling the config, over the same with ten tenants; the mapping
itself, which the caller made, does not count.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

from benchmarks.report import Report, Target

NAME: Final = "boot"
FORMS: Final = ("mapping", "json")
TENANTS: Final = 100_000
SIDE: Final = "asgi-datasource"
FEW: Final = "10 tenants"
SPREAD: Final = "every tenant in turn"


async def run(report: Report, *, quick: bool) -> None:
    rounds, tenants = (1, 2_000) if quick else (5, TENANTS)
    taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for form in FORMS:
            for metric, value in (await _boot(form, tenants)).items():
                taken[form, metric].append(value)
    for form in FORMS:
        case = f"{tenants:,} tenants, {form}"
        for metric, name, unit, target in (
            ("seconds", "added time", "s", Target("<=", 1.0)),
            ("memory_mb", "added memory", "MB", Target("<=", 60.0)),
            ("peak_mb", "added peak memory", "MB", None),
        ):
            report.measured(NAME, case, SIDE, name, unit, taken[form, metric])
            report.state(NAME, case, name, SIDE, target)
    case = f"look-up among {tenants:,}"
    look_ups = {SIDE: "look_up_ns", FEW: "look_up_few_ns", SPREAD: "look_up_spread_ns"}
    for side, metric in look_ups.items():
        report.measured(NAME, case, side, "time", "ns", [value for form in FORMS for value in taken[form, metric]])
    report.compare(NAME, case, "time", SIDE, FEW, Target("<=", 1.2))
    # Not judged: this is the processor's cache, which any map of this size leaves.
    report.compare(NAME, case, "time", SPREAD, FEW)


async def _boot(form: str, tenants: int) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.boot_child", form, str(tenants)),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the boot with {tenants} tenants ended with {process.returncode} (its error is above)")
    result: dict[str, float] = json.loads(output)
    return result
