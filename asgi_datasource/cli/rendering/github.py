"""Findings as GitHub's workflow commands, which GitHub shows next to the lines of a pull request.

Source: GitHub Actions documentation, "Workflow commands", error, warning and notice.
"""

from __future__ import annotations

from ...config import Diagnostic, Severity
from ..console import Style
from .report import Report

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.HINT: "notice"}


def render(report: Report, style: Style) -> str:
    """One command for each finding."""
    return "\n".join(map(_command, report.diagnostics))


def _command(problem: Diagnostic) -> str:
    position = problem.position
    properties = {"title": f"asgi-datasource {problem.code.value}"}
    if position is not None:
        properties["file"] = position.file
        if position.line is not None:
            properties["line"] = str(position.line)
        if position.column is not None:
            properties["col"] = str(position.column)
    listed = ",".join(f"{name}={_escape_property(value)}" for name, value in properties.items())
    key = f"{problem.key}: " if problem.path else ""
    return f"::{_COMMANDS[problem.severity]} {listed}::{_escape(f'{key}{problem.message}. {problem.fix}')}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")
