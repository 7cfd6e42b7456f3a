"""Findings for programs: the document described by `schemas/diagnostics/v1.json`."""

from __future__ import annotations

import json

from ...config import describe_diagnostics
from ..console import Style
from .report import Report


def render(report: Report, style: Style) -> str:
    """The findings as JSON."""
    document = describe_diagnostics(report.tool, report.files, report.diagnostics, report.suppressed, report.notes)
    return json.dumps(document, indent=2, ensure_ascii=False)
