"""The progress of `migrate apply`: a bar on a terminal where `rich` is installed, lines of text elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from time import monotonic
from typing import Any, Final

from ...migrate import Events, Progress
from ..console import Console

LINE_EVERY_S: Final = 5.0
"""Pause between two lines."""


@contextmanager
def open_progress(console: Console) -> Generator[Events]:
    """Show how far a run is: rate, time left, failures so far.

    Args:
        console: Where it is shown: on standard error.
    """
    if console.err.isatty() and find_spec("rich") is not None:
        with _bar(console) as events:
            yield events
    else:
        lines = ProgressLines(console.progress)
        yield Events(lines.began, lines.ended, console.progress)


class ProgressLines:
    """One line for every few seconds, and one for each failure.

    Args:
        write: Prints a line.
        clock: Seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = monotonic) -> None:
        self._write = write
        self._clock = clock
        self._total = self._done = self._failures = 0
        self._began = self._written = clock()

    def began(self, total: int) -> None:
        """So many schemas have something pending."""
        self._total, self._done = total, 0
        self._began = self._written = self._clock()
        if total:
            self._write(f"{total} schemas to migrate")

    def ended(self, one: Progress) -> None:
        """One of them is done with."""
        self._done += 1
        if one.failed is not None:
            self._failures += 1
            self._write(f"{one.name}: {one.failed} failed: {one.error}")
        now = self._clock()
        if now - self._written >= LINE_EVERY_S or (self._done == self._total > 1):
            self._written = now
            self._write(self._line(now))

    def _line(self, now: float) -> str:
        rate = self._done / max(now - self._began, 0.001)
        left = (self._total - self._done) / rate if rate else 0.0
        failures = f", {self._failures} failed" if self._failures else ""
        return f"{self._done} of {self._total}{failures}, {rate:.0f}/s, about {left:.0f} s left"


@contextmanager
def _bar(console: Console) -> Generator[Events]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failures]}"),
    ]
    with Bar(*columns, console=RichConsole(file=console.err), transient=True) as bar:
        task = bar.add_task("migrating", total=None, rate="", failures="")
        failures = 0
        began = monotonic()

        def started(total: int) -> None:
            bar.update(task, total=total, completed=0)

        def ended(one: Progress) -> None:
            nonlocal failures
            failures += one.failed is not None
            rate = (bar.tasks[0].completed + 1) / max(monotonic() - began, 0.001)
            bar.update(task, advance=1, rate=f"{rate:.0f}/s", failures=f"{failures} failed" if failures else "")
            if one.failed is not None:
                bar.console.print(f"{one.name}: {one.failed} failed: {one.error}", markup=False)

        yield Events(started, ended, lambda text: bar.console.print(text, markup=False))
