"""The documents that are written about a configuration, as JSON, and their schemas.

They are published in `schemas/`, one folder a document. A program that reads them may rely on every key: a version only
ever gains keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..routing import AccessIntent, Consistency, Reason, Role, Verdict
from .changes import Change, Kind, Weight
from .diagnostics import Code, Diagnostic, Edit, Position, Severity, show_path
from .suppressions import Suppressed

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


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
        files: The files that were looked at.
        diagnostics: What was found.
        suppressed: What the files ask to leave out.
        notes: What was not looked at.
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
    fix = problem.fix
    return {
        "code": problem.code.value,
        "name": problem.code.name.lower().replace("_", "-"),
        "severity": problem.severity.value,
        "message": problem.message,
        "mend": problem.mend,
        "key": problem.key,
        "position": _position(problem.position),
        "related": [
            {"key": show_path(path), "position": _position(position)}
            for path, position in zip(problem.related, positions, strict=True)
        ],
        "fix": None if fix is None else {"edit": fix.edit.value, "key": show_path(fix.path), "safe": fix.is_safe},
        "docs": problem.docs,
    }


def _position(position: Position | None) -> dict[str, Any] | None:
    if position is None:
        return None
    return {"file": position.file, "line": position.line, "column": position.column}


def closed(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The schema of a mapping in which all of these keys stand; a later version may write others beside them."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), **more}


def document_schema(
    name: str, title: str, properties: Mapping[str, Any], definitions: Mapping[str, Any]
) -> dict[str, Any]:
    """The schema of a document that is written here."""
    return {
        "$schema": _DRAFT,
        "$id": f"urn:asgi-datasource:schema:{name}:v1",
        "title": title,
        **closed({"version": {"const": 1}, **properties}),
        "$defs": dict(definitions),
    }


def diagnostics_schema() -> dict[str, Any]:
    """The schema of what `describe_diagnostics` makes."""
    number = {"type": ["integer", "null"], "minimum": 1}
    position = closed({"file": {"type": "string"}, "line": number, "column": number})
    diagnostic = {
        "code": {"type": "string", "pattern": "^ADS[0-9]{3}$", "examples": [Code.UNKNOWN_KEY.value]},
        "name": {"type": "string", "description": "The code in words."},
        "severity": {"enum": [severity.value for severity in Severity]},
        "message": {"type": "string", "description": "What is wrong, without full stop."},
        "mend": {"type": "string", "description": "What to do, a sentence."},
        "key": {"type": "string", "description": "The way to the key; empty for the file as a whole."},
        "position": {"$ref": "#/$defs/MaybePosition"},
        "related": {
            "type": "array",
            "description": "Other places that have to do with it.",
            "items": closed({"key": {"type": "string"}, "position": {"$ref": "#/$defs/MaybePosition"}}),
        },
        "fix": {
            "description": "The mend as an edit, where it is one; `validate --fix` makes those that are safe.",
            "anyOf": [
                {"type": "null"},
                closed(
                    {
                        "edit": {"enum": [edit.value for edit in Edit]},
                        "key": {"type": "string"},
                        "safe": {"type": "boolean"},
                    }
                ),
            ],
        },
        "docs": {"type": "string", "description": "The page that explains this code."},
    }
    return document_schema(
        "diagnostics",
        "asgi-datasource diagnostics",
        {
            "tool": {"type": "string", "description": "The command that found them.", "examples": ["validate"]},
            "files": {"type": "array", "items": {"type": "string"}},
            "counts": closed({severity.value: {"type": "integer", "minimum": 0} for severity in Severity}),
            "diagnostics": {"type": "array", "items": {"$ref": "#/$defs/Diagnostic"}},
            "suppressed": {
                "type": "array",
                "description": "What the files ask to leave out, with their reasons.",
                "items": {"$ref": "#/$defs/Diagnostic", "required": ["reason"]},
            },
            "notes": {
                "type": "array",
                "description": "What was not looked at, of that which there is too much of.",
                "items": {"type": "string"},
                "examples": [["10 of the 1,203 databases of own that are known were asked"]],
            },
        },
        {
            "Diagnostic": closed(diagnostic),
            "MaybePosition": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Position"}]},
            "Position": position,
        },
    )


def describe_changes(old: str, new: str, changes: Iterable[Change]) -> dict[str, Any]:
    """Changes as plain data.

    Args:
        old: The file before.
        new: The file after.
        changes: What changes.
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


def changes_schema() -> dict[str, Any]:
    """The schema of what `describe_changes` makes."""
    change = {
        "kind": {"enum": [kind.value for kind in Kind]},
        "weight": {
            "enum": [weight.value for weight in Weight],
            "description": "How much a reviewer has to look at it.",
        },
        "key": {"type": "string", "description": "The way to the key."},
        "message": {"type": "string", "description": "What it means."},
        "tenants": {"type": "array", "items": {"type": "string"}, "description": "Whose: some of them."},
        "tenant_count": {"type": "integer", "minimum": 0, "description": "How many tenants it is about."},
    }
    return document_schema(
        "diff",
        "asgi-datasource diff",
        {
            "old": {"type": "string"},
            "new": {"type": "string"},
            "counts": closed({weight.value: {"type": "integer", "minimum": 0} for weight in Weight}),
            "changes": {"type": "array", "items": closed(change)},
        },
        {},
    )


def explanation_schema() -> dict[str, Any]:
    """The schema of what `explain` tells (`explanation.py` makes it)."""
    text = {"type": "string"}
    maybe = {"type": ["string", "null"]}

    def or_null(properties: Mapping[str, Any], description: str) -> dict[str, Any]:
        return {"description": description, "anyOf": [{"type": "null"}, closed(properties)]}

    role = {"enum": [role.value for role in Role]}
    schema = document_schema(
        "explain",
        "asgi-datasource explain",
        {
            "request": closed({"method": text, "path": text}),
            "outcome": {
                "enum": ["routed", "refused", "exempt"],
                "description": "routed: a server was chosen. refused: see refusal. exempt: the path has no session.",
            },
            "refusal": or_null(
                {"kind": text, "status": {"type": "integer"}, "message": text}, "Why it would be refused."
            ),
            "tenant": or_null(
                {
                    "name": maybe,
                    "datasource": text,
                    "strategy": text,
                    "state": text,
                    "max_connections": {"type": ["integer", "null"]},
                },
                "Whose request it is; a null name is the tenant of requests that name none.",
            ),
            "rule": or_null(
                {"index": {"type": "integer", "minimum": 0}, "match": text}, "The rule of routes that matches."
            ),
            "plan": or_null(
                {
                    "intent": {"enum": [intent.value for intent in AccessIntent]},
                    "runs": {"type": "string", "description": "What its first statement runs in."},
                    "consistency": {
                        "enum": [None, *(word.value for word in Consistency)],
                        "description": "What it has to see of the client's past; null where nobody looks at that.",
                    },
                    "max_lag_s": {"type": ["number", "null"], "description": "How old its data may be."},
                    "timeout_s": {"type": ["number", "null"], "description": "Until the end of COMMIT."},
                    "priority": {"enum": ["low", "normal", "high"]},
                    "max_in_flight": {"type": ["integer", "null"]},
                },
                "What holds for its first statement.",
            ),
            "token": or_null(
                {"position": {**maybe, "description": "What the server has to have, as timeline:lsn."}, "why": text},
                "What became of the tokens; null where there are none.",
            ),
            "route": or_null(
                {"node": text, "role": role, "reason": {"enum": [reason.value for reason in Reason]}},
                "The server that was chosen.",
            ),
            "servers": {
                "type": "array",
                "description": "What became of each server.",
                "items": closed(
                    {
                        "node": text,
                        "role": role,
                        "verdict": {"enum": [verdict.value for verdict in Verdict]},
                        "why": {"type": "string", "description": "The verdict in words, with its figures."},
                        "seen": {"type": "string", "description": "How it looked."},
                    }
                ),
            },
        },
        {},
    )
    schema["properties"] |= {
        "file": {"type": "string", "description": "The configuration, where it was asked on the command line."},
        "assumed": {"type": "boolean", "description": "Whether, there, every server was taken to be up and current."},
    }
    return schema
