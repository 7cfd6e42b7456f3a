"""One line for each finding, `file:line:column: CODE message`: for narrow terminals and editors that jump to it."""

from __future__ import annotations

from ...config import Severity
from ..console import Style
from .report import Report


def render(report: Report, style: Style) -> str:
    """The findings and their number."""
    return "\n".join([*(str(problem) for problem in report.diagnostics), *notes(report), summary(report, style)])


def notes(report: Report) -> list[str]:
    """The notes, one line each."""
    return [f"note: {note}" for note in report.notes]


def summary(report: Report, style: Style) -> str:
    """The number of findings, in one line."""
    files = report.files[0] if len(report.files) == 1 else f"{len(report.files)} files"
    counts = [
        f"{count} {severity.value}{'s' if count > 1 else ''}"
        for severity in Severity
        if (count := report.count(severity))
    ]
    ignored = f" ({len(report.suppressed)} ignored, with reasons)" if report.suppressed else ""
    if not counts:
        return f"{files}: {style.green('nothing found')}{ignored}"
    fixable = sum(problem.edit is not None and problem.edit.is_safe for problem in report.diagnostics)
    fixes = f"; {fixable} can be fixed with --fix" if fixable and report.tool == "validate" else ""
    return f"{files}: {style.bold(', '.join(counts))}{ignored}{fixes}"
