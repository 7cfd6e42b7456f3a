"""The result of a run: measurements, ratios with their targets, the table, and the JSON file.

`benchmarks/README.md` documents the format of the file; `VERSION` changes with it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Final, Literal

from benchmarks.rounds import paired_ratios

VERSION: Final = 1
PACKAGES: Final = (
    "asgi-datasource",
    "asyncpg",
    "fastapi",
    "httptools",
    "advanced-alchemy",
    "litestar",
    "psqlpy",
    "sqlspec",
    "psycopg",
    "psycopg-binary",
    "psycopg-pool",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "uvloop",
)


@dataclass(frozen=True, slots=True)
class Target:
    """The bound that a ratio or a figure should meet."""

    op: Literal["<=", ">=", "=="]
    value: float

    def is_met_by(self, value: float) -> bool:
        match self.op:
            case "<=":
                return value <= self.value
            case ">=":
                return value >= self.value
            case "==":
                return value == self.value

    def __str__(self) -> str:
        return f"{self.op} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of one side: every round, and their median."""

    benchmark: str
    case: str
    side: str
    metric: str
    unit: str
    median: float
    rounds: list[float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two sides or, with `against` None, an absolute figure, with its target."""

    benchmark: str
    case: str
    metric: str
    side: str
    against: str | None
    value: float
    low: float
    """Lower quartile of the rounds' ratios."""
    high: float
    """Upper quartile."""
    target: Target | None
    is_met: bool | None
    """None without a target."""


@dataclass(slots=True)
class Report:
    """Collects measurements and ratios, in the order of the benchmarks."""

    quick: bool
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    environment: dict[str, object] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    def measured(self, benchmark: str, case: str, side: str, metric: str, unit: str, rounds: Sequence[float]) -> None:
        """Record the rounds of one side."""
        self.measurements.append(
            Measurement(
                benchmark, case, side, metric, unit, _short(median(rounds)), [_short(value) for value in rounds]
            )
        )

    def rounds_of(self, benchmark: str, case: str, side: str, metric: str) -> list[float]:
        """The rounds recorded under these names; raises KeyError without any."""
        for found in self.measurements:
            if (found.benchmark, found.case, found.side, found.metric) == (benchmark, case, side, metric):
                return found.rounds
        raise KeyError((benchmark, case, side, metric))

    def __contains__(self, names: tuple[str, str, str, str]) -> bool:
        """Whether there are rounds under this benchmark, case, side and metric."""
        return any((found.benchmark, found.case, found.side, found.metric) == names for found in self.measurements)

    def compare(
        self, benchmark: str, case: str, metric: str, side: str, against: str, target: Target | None = None
    ) -> Ratio:
        """Divide `side` by `against`, round by round, and compare the median with the target."""
        value, low, high = paired_ratios(
            self.rounds_of(benchmark, case, side, metric), self.rounds_of(benchmark, case, against, metric)
        )
        return self._judge(benchmark, case, metric, side, against, (value, low, high), target)

    def state(self, benchmark: str, case: str, metric: str, side: str, target: Target | None = None) -> Ratio:
        """Compare an absolute figure with its target: a count of round trips, seconds of a start."""
        rounds = self.rounds_of(benchmark, case, side, metric)
        return self._judge(benchmark, case, metric, side, None, (median(rounds), min(rounds), max(rounds)), target)

    def _judge(
        self,
        benchmark: str,
        case: str,
        metric: str,
        side: str,
        against: str | None,
        spread: tuple[float, float, float],
        target: Target | None,
    ) -> Ratio:
        value, low, high = (_short(number) for number in spread)
        met = None if target is None else target.is_met_by(value)
        ratio = Ratio(benchmark, case, metric, side, against, value, low, high, target, met)
        self.ratios.append(ratio)
        return ratio

    def document(self) -> dict[str, object]:
        """The run as the JSON document that README.md describes."""
        return {
            "version": VERSION,
            "started_at": self.started_at,
            "quick": self.quick,
            "environment": {**environment(), **self.environment},
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "measurements": [asdict(measurement) for measurement in self.measurements],
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")

    def table(self) -> str:
        """The ratios with their targets, one on each line."""
        rows = [("benchmark", "case", "metric", "side", "against", "value", "quartiles", "target", "")]
        for ratio in self.ratios:
            rows.append(
                (
                    ratio.benchmark,
                    ratio.case,
                    ratio.metric,
                    ratio.side,
                    ratio.against or "-",
                    f"{ratio.value:.3g}" + ("x" if ratio.against else ""),
                    "" if ratio.low == ratio.high else f"{ratio.low:.3g}..{ratio.high:.3g}",
                    "" if ratio.target is None else str(ratio.target),
                    {True: "met", False: "MISSED", None: ""}[ratio.is_met],
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
        return "\n".join(lines)


def environment() -> dict[str, object]:
    """Describe the machine and its software, without host names and paths."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def _short(value: float) -> float:
    """Round to six significant digits; more would be noise."""
    return float(f"{value:.6g}")
