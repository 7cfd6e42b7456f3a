"""The findings of a run, and the formats that render them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from ...config import Diagnostic, Findings, Severity, Suppressed, Text
from ..command import ExitCode
from ..console import Style

FORMATS: Final = ("text", "concise", "json", "sarif", "github", "gitlab", "junit")
"""The formats, each a module of this package with a function `render`; the first one is for people."""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a run.

    Attributes:
        tool: The command that found them.
        files: The examined files.
        diagnostics: The problems, file by file.
        suppressed: Ignored problems.
        texts: The files that were read, for excerpts.
        is_strict: Whether warnings and hints count like errors.
        could_run: Whether everything could be examined.
        notes: What was left out, because there is too much of it.
    """

    tool: str
    files: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...]
    suppressed: tuple[Suppressed, ...] = ()
    texts: tuple[Text, ...] = ()
    is_strict: bool = False
    could_run: bool = True
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        tool: str,
        files: Iterable[str],
        findings: Iterable[Findings],
        *,
        is_strict: bool,
        could_run: bool = True,
        notes: Iterable[str] = (),
    ) -> Report:
        """One report of the findings of several files."""
        found = tuple(findings)
        return cls(
            tool,
            tuple(files),
            tuple(problem for each in found for problem in each.diagnostics),
            tuple(problem for each in found for problem in each.suppressed),
            tuple(text for each in found for text in each.texts),
            is_strict,
            could_run,
            tuple(notes),
        )

    def count(self, severity: Severity) -> int:
        """The number of problems of a severity."""
        return sum(problem.severity is severity for problem in self.diagnostics)

    @property
    def exit_code(self) -> ExitCode:
        """2 when something could not be examined, else 1 for errors, with `--strict` for any finding."""
        if not self.could_run:
            return ExitCode.CANNOT_RUN
        found = len(self.diagnostics) if self.is_strict else self.count(Severity.ERROR)
        return ExitCode.FINDINGS if found else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The report in one of `FORMATS`."""
        render: Callable[[Report, Style], str] = import_module(f".{form}", __package__).render
        return render(self, style)
