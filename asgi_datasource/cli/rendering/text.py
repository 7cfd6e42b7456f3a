"""Findings for people: the problem, its position with the line, the fix, and the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...config import Diagnostic, Position, Severity, show_path
from ..console import Style
from .concise import notes, summary
from .excerpt import Excerpts
from .report import Report

_MOST: int = 100
"""Most findings that are printed; more than that usually have a common cause."""


def render(report: Report, style: Style) -> str:
    """The findings with their excerpts, and their number."""
    shown = report.diagnostics[:_MOST]
    excerpts = Excerpts(report.texts, (problem.position for problem in shown if problem.position is not None))
    blocks = ["\n".join(_lines(problem, excerpts, style)) for problem in shown]
    if len(report.diagnostics) > _MOST:
        blocks.append(f"and {len(report.diagnostics) - _MOST} more; --format concise prints them all")
    return "\n\n".join([*blocks, "\n".join([*notes(report), summary(report, style)])])


def _paint(severity: Severity, style: Style) -> Callable[[str], str]:
    return {Severity.ERROR: style.red, Severity.WARNING: style.yellow, Severity.HINT: style.blue}[severity]


def _lines(problem: Diagnostic, excerpts: Excerpts, style: Style) -> Iterator[str]:
    paint = _paint(problem.severity, style)
    yield f"{paint(f'{problem.severity.value}[{problem.code.value}]')}{style.bold(f': {problem.message}')}"
    position = problem.position
    gutter = " " * len(str(_last_line(problem)))
    if position is not None:
        yield from _place(problem, position, excerpts, gutter, style)
    elif problem.path:
        yield f"{gutter} {style.blue('=')} {style.bold('at')}: {problem.key}"
    for path, where in zip(problem.related, problem.related_positions, strict=False):
        yield f"{gutter} {style.blue('=')} {style.bold('see')}: {show_path(path)} at {where}"
    yield f"{gutter} {style.blue('=')} {style.bold('fix')}: {problem.fix}"
    yield f"{gutter} {style.blue('=')} {style.faint(problem.docs)}"


def _last_line(problem: Diagnostic) -> int:
    return (problem.position.line if problem.position else None) or 0


def _place(problem: Diagnostic, position: Position, excerpts: Excerpts, gutter: str, style: Style) -> Iterator[str]:
    yield f"{gutter}{style.blue('-->')} {position}"
    excerpt = excerpts.at(position)
    if excerpt is None:
        return
    bar = style.blue("|")
    yield f"{gutter} {bar}"
    yield f"{style.blue(str(excerpt.line))} {bar} {excerpt.text}"
    marker = _paint(problem.severity, style)("^" * excerpt.length)
    yield f"{gutter} {bar} {' ' * excerpt.start}{marker}{f' {problem.key}' if problem.path else ''}"
    yield f"{gutter} {bar}"
