"""The duration of the command line: `--help`, and validating a file with 10,000 tenants.

Each run is a process, measured from its start to its end, like the wait of a user.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import yaml

from benchmarks.boot_child import document
from benchmarks.report import Report, Target

NAME: Final = "validate"
SIDE: Final = "asgi-datasource"
TENANTS: Final = 10_000
TIMEOUT_S: Final = 120.0


def run(report: Report, *, quick: bool) -> None:
    """Measure starts and validations."""
    rounds, tenants = (1, 500) if quick else (7, TENANTS)
    cases: list[tuple[str, list[str], Target | None]] = [
        ("python alone", ["-c", "pass"], None),
        ("--help", ["-m", "asgi_datasource", "--help"], Target("<=", 0.15)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        content = document(tenants)
        for notation, text in (("yaml", yaml.safe_dump(content, sort_keys=False)), ("json", json.dumps(content))):
            path = Path(folder) / f"datasource.{notation}"
            path.write_text(text, encoding="utf-8")
            command = ["-m", "asgi_datasource", "validate", str(path)]
            cases.append((f"validate {tenants:,} tenants, {notation}", command, Target("<=", 1.5)))
        for case, arguments, target in cases:
            wall, cpu = zip(*(_run(arguments) for _ in range(rounds)), strict=True)
            report.measured(NAME, case, SIDE, "time", "s", list(wall))
            report.measured(NAME, case, SIDE, "CPU time", "s", list(cpu))
            report.state(NAME, case, "time", SIDE, target)
            # The figure for the target: CPU time, as on an idle machine.
            report.state(NAME, case, "CPU time", SIDE)


def _run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of one run: elapsed, and CPU."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=TIMEOUT_S)
    taken, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
