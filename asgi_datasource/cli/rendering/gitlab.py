"""Findings as GitLab's code quality report, which GitLab shows in merge requests.

Source: GitLab documentation, "Code Quality", code quality report format.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ...config import Diagnostic, Severity
from ..console import Style
from .report import Report

_SEVERITIES = {Severity.ERROR: "major", Severity.WARNING: "minor", Severity.HINT: "info"}


def render(report: Report, style: Style) -> str:
    """One entry for each finding; findings without a file get the first file."""
    seen: dict[str, int] = {}
    return json.dumps([_entry(problem, report, seen) for problem in report.diagnostics], indent=2, ensure_ascii=False)


def _entry(problem: Diagnostic, report: Report, seen: dict[str, int]) -> dict[str, Any]:
    position = problem.position
    file = position.file if position is not None else report.files[0]
    # The identity does not include the line, so that an inserted line does not make it a new finding.
    identity = f"{problem.code.value}\0{file}\0{problem.key}\0{problem.message}"
    number = seen[identity] = seen.get(identity, 0) + 1
    key = f"{problem.key}: " if problem.path else ""
    return {
        "description": f"{key}{problem.message}. {problem.fix}",
        "check_name": problem.code.value,
        "fingerprint": hashlib.sha256(f"{identity}\0{number}".encode()).hexdigest(),
        "severity": _SEVERITIES[problem.severity],
        "location": {"path": file, "lines": {"begin": (position.line if position else None) or 1}},
    }
