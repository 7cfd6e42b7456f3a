"""What was found in some files, and every form in which it can be printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from ...config import Diagnostic, Findings, Severity, Suppressed, Text
from ..command import ExitCode
from ..console import Style

FORMATS: Final = ("text", "concise", "json", "sarif", "github", "gitlab", "junit")
"""The forms, each a module here with a function `render`; the first one is for people."""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a run.

    Attributes:
        tool: The command that found them.
        files: The files that were looked at.
        diagnostics: Every problem, file by file.
        suppressed: What the files ask to leave out.
        texts: What was read, for excerpts.
        is_strict: Whether warnings and hints count like errors.
        could_run: Whether everything could be looked at.
        notes: What was not looked at, of that which there is too much of.
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
        """One report of several examinations."""
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
        """How many problems of a severity there are."""
        return sum(problem.severity is severity for problem in self.diagnostics)

    @property
    def exit_code(self) -> ExitCode:
        """2 when something could not be looked at, else 1 when there is an error; with `--strict`, any finding."""
        if not self.could_run:
            return ExitCode.CANNOT_RUN
        found = len(self.diagnostics) if self.is_strict else self.count(Severity.ERROR)
        return ExitCode.FINDINGS if found else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The report in one of `FORMATS`."""
        render: Callable[[Report, Style], str] = import_module(f".{form}", __package__).render
        return render(self, style)
