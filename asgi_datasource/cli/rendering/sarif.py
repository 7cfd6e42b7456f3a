"""Findings as SARIF 2.1.0, the format of GitHub's code scanning and most editors.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0".
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ...config import Code, Diagnostic, Position, Severity, Suppressed, explain_code, show_path
from ..console import Style
from .report import Report

_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.HINT: "note"}
_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(report: Report, style: Style) -> str:
    """The findings as one run."""
    found = [*report.diagnostics, *(ignored.diagnostic for ignored in report.suppressed)]
    rules = sorted({problem.code for problem in found})
    numbers = {code: number for number, code in enumerate(rules)}
    results = [_result(problem, numbers) for problem in report.diagnostics]
    results += [_suppressed(ignored, numbers) for ignored in report.suppressed]
    driver = {
        "name": "asgi-datasource",
        "version": version("asgi-datasource"),
        "rules": [_rule(code) for code in rules],
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "artifacts": [{"location": {"uri": _uri(file)}} for file in report.files],
        "invocations": [{"executionSuccessful": report.could_run}],
        "results": results,
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _rule(code: Code) -> dict[str, Any]:
    explained = explain_code(code)
    return {
        "id": code.value,
        "name": "".join(word.capitalize() for word in code.name.split("_")),
        "shortDescription": {"text": explained.title},
        "fullDescription": {"text": explained.text},
        "help": {"text": explained.as_markdown(), "markdown": explained.as_markdown()},
        "properties": {"docs": explained.docs},
    }


def _result(problem: Diagnostic, numbers: dict[Code, int]) -> dict[str, Any]:
    key = f"{problem.key}: " if problem.path else ""
    result: dict[str, Any] = {
        "ruleId": problem.code.value,
        "ruleIndex": numbers[problem.code],
        "level": _LEVELS[problem.severity],
        "message": {"text": f"{key}{problem.message}. {problem.fix}"},
        "properties": {"fix": problem.fix},
    }
    if problem.position is not None:
        result["locations"] = [_location(problem.position, problem.key)]
    if problem.related_positions:
        result["relatedLocations"] = [
            {"id": number, **_location(position, show_path(path)), "message": {"text": show_path(path)}}
            for number, (path, position) in enumerate(
                zip(problem.related, problem.related_positions, strict=True), start=1
            )
        ]
    return result


def _location(position: Position, key: str) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(position.file)}}
    if position.line is not None:
        place["region"] = {"startLine": position.line, "startColumn": position.column or 1}
    location: dict[str, Any] = {"physicalLocation": place}
    if key:
        location["logicalLocations"] = [{"fullyQualifiedName": key}]
    return location


def _suppressed(ignored: Suppressed, numbers: dict[Code, int]) -> dict[str, Any]:
    suppression = {"kind": "inSource", "justification": ignored.reason}
    return {**_result(ignored.diagnostic, numbers), "suppressions": [suppression]}


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
