"""Findings and changes as plain data, ready for JSON.

`scripts/generate/schemas.py` describes both documents; the schemas are published in `schemas/`, one folder for each
document. Programs that read them may rely on every key: a version only gains keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .changes import Change, Weight
from .diagnostics import Diagnostic, Position, Severity, show_path
from .suppressions import Suppressed


def describe_diagnostics(
    tool: str,
    files: Sequence[str],
    diagnostics: Iterable[Diagnostic],
    suppressed: Iterable[Suppressed] = (),
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """Findings as plain data.

    Args:
        tool: The command that found them.
        files: The files that were examined.
        diagnostics: The findings.
        suppressed: Findings that the files ignore.
        notes: What was not examined.
    """
    found = [_diagnostic(problem) for problem in diagnostics]
    return {
        "version": 1,
        "tool": tool,
        "files": list(files),
        "counts": {severity.value: sum(each["severity"] == severity.value for each in found) for severity in Severity},
        "diagnostics": found,
        "suppressed": [{**_diagnostic(ignored.diagnostic), "reason": ignored.reason} for ignored in suppressed],
        "notes": list(notes),
    }


def _diagnostic(problem: Diagnostic) -> dict[str, Any]:
    positions: Sequence[Position | None] = problem.related_positions or (None,) * len(problem.related)
    edit = problem.edit
    return {
        "code": problem.code.value,
        "name": problem.code.name.lower().replace("_", "-"),
        "severity": problem.severity.value,
        "message": problem.message,
        "fix": problem.fix,
        "key": problem.key,
        "position": _position(problem.position),
        "related": [
            {"key": show_path(path), "position": _position(position)}
            for path, position in zip(problem.related, positions, strict=True)
        ],
        "edit": None if edit is None else {"kind": edit.kind.value, "key": show_path(edit.path), "safe": edit.is_safe},
        "docs": problem.docs,
    }


def _position(position: Position | None) -> dict[str, Any] | None:
    if position is None:
        return None
    return {"file": position.file, "line": position.line, "column": position.column}


def describe_changes(old: str, new: str, changes: Iterable[Change]) -> dict[str, Any]:
    """Changes as plain data.

    Args:
        old: The file before.
        new: The file after.
        changes: The changes.
    """
    found = [
        {
            "kind": change.kind.value,
            "weight": change.weight.value,
            "key": change.key,
            "message": change.message,
            "tenants": list(change.tenants),
            "tenant_count": change.tenant_count,
        }
        for change in changes
    ]
    counts = {weight.value: sum(each["weight"] == weight.value for each in found) for weight in Weight}
    return {"version": 1, "old": old, "new": new, "counts": counts, "changes": found}
