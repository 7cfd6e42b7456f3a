"""Pytest plugin of `scripts/mutants`: records which tests run which lines of the package, and how long each test takes.

Each process of pytest writes `NAME.coverage`, whose contexts are the tests, and `NAME.json` with the seconds of each
test that has passed, into the folder of `--reach`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest

import asgi_datasource


class Recorder:
    """Switches the context of coverage with each test."""

    def __init__(self, folder: Path) -> None:
        self._name = folder / f"{os.getpid()}"
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage = coverage.Coverage(
            data_file=f"{self._name}.coverage",
            source=[str(Path(asgi_datasource.__file__).parent)],
            concurrency=["thread", "greenlet"],
            config_file=False,
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """One test, with its fixtures."""
        _forget_results()
        self._coverage.start()
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.stop()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the seconds of all phases, since a test that waits for its cluster is run with it."""
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.outcome == "failed":
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write what was recorded."""
        if self._seconds:
            self._coverage.save()
            passed = {test: seconds for test, seconds in self._seconds.items() if test not in self._failed}
            Path(f"{self._name}.json").write_text(json.dumps(passed), encoding="utf-8")


def _forget_results() -> None:
    """Clear the caches of functions: a line behind one would count for the first test only."""
    for name, module in list(sys.modules.items()):
        if name.startswith("asgi_datasource."):
            for value in list(vars(module).values()):
                clear = getattr(value, "cache_clear", None)
                if callable(clear):
                    clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--reach`."""
    parser.addoption("--reach", type=Path, help="folder for what each test reaches")


def pytest_configure(config: Any) -> None:
    """Record in the processes that run tests: the workers of xdist, or the only process."""
    if config.getoption("numprocesses", None) is None or hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("reach")), "reach-recorder")
