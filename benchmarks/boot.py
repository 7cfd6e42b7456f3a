"""The cost of 100,000 tenants at start-up and for a look-up.

Seconds and memory of reading, validating and compiling the configuration, minus those with ten tenants. The mapping
itself belongs to the caller and does not count.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.boot_child import FEW, document
from benchmarks.report import Report, Target

NAME: Final = "boot"
JSON: Final = "json"
FORMS: Final = ("mapping", JSON)
TENANTS: Final = 100_000
SIDE: Final = "asgi-datasource"
AMONG_FEW: Final = f"{FEW} tenants"
SPREAD: Final = "every tenant in turn"


async def run(report: Report, *, quick: bool) -> None:
    rounds, tenants = (1, 2_000) if quick else (5, TENANTS)
    taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("few.json", "many.json")]
        for file, number in zip(files, (FEW, tenants), strict=True):
            file.write_text(json.dumps(document(number)), encoding="utf-8")
        for _ in range(rounds):
            for form in FORMS:
                for metric, value in (await _boot(tenants, files if form == JSON else ())).items():
                    taken[form, metric].append(value)
    for form in FORMS:
        case = f"{tenants:,} tenants, {form}"
        for metric, name, unit, target in (
            ("seconds", "added time", "s", Target("<=", 1.0)),
            # The figure for the target: CPU time, as on an idle machine.
            ("cpu_seconds", "added CPU time", "s", None),
            ("memory_mb", "added memory", "MB", Target("<=", 60.0)),
            ("peak_mb", "added peak memory", "MB", None),
        ):
            report.measured(NAME, case, SIDE, name, unit, taken[form, metric])
            report.state(NAME, case, name, SIDE, target)
    case = f"look-up among {tenants:,}"
    look_ups = {SIDE: "look_up_ns", AMONG_FEW: "look_up_few_ns", SPREAD: "look_up_spread_ns"}
    for side, metric in look_ups.items():
        report.measured(NAME, case, side, "time", "ns", [value for form in FORMS for value in taken[form, metric]])
    report.compare(NAME, case, "time", SIDE, AMONG_FEW, Target("<=", 1.2))
    # Without a target: a map of this size exceeds the processor's cache.
    report.compare(NAME, case, "time", SPREAD, AMONG_FEW)


async def _boot(tenants: int, files: Sequence[Path]) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.boot_child", str(tenants), *map(str, files)),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the boot with {tenants} tenants ended with {process.returncode} (its error is above)")
    result: dict[str, float] = json.loads(output)
    return result
