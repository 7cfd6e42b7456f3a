"""The schemas of the documents that this library writes, and of the state that `explain` reads.

A document's schema only gains keys: programs that read the document rely on every key that a published schema requires.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asgi_datasource.config.changes import Kind, Weight
from asgi_datasource.config.diagnostics import Code, EditKind, Severity
from asgi_datasource.config.state import StateDocument
from asgi_datasource.routing import AccessIntent, Consistency, Reason, Role, Verdict

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


def _closed(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The schema of a mapping in which all of these keys stand; a later version may write others beside them."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), **more}


def _document(name: str, title: str, properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a document that is written here."""
    return {
        "$schema": _DRAFT,
        "$id": f"urn:asgi-datasource:schema:{name}:v1",
        "title": title,
        **_closed({"version": {"const": 1}, **properties}),
        "$defs": dict(definitions),
    }


def diagnostics_schema() -> dict[str, Any]:
    """The schema of what `describe_diagnostics` makes."""
    number = {"type": ["integer", "null"], "minimum": 1}
    position = _closed({"file": {"type": "string"}, "line": number, "column": number})
    diagnostic = {
        "code": {"type": "string", "pattern": "^ADS[0-9]{3}$", "examples": [Code.UNKNOWN_KEY.value]},
        "name": {"type": "string", "description": "The code in words."},
        "severity": {"enum": [severity.value for severity in Severity]},
        "message": {"type": "string", "description": "What is wrong, without full stop."},
        "fix": {"type": "string", "description": "What to do, a sentence."},
        "key": {"type": "string", "description": "The way to the key; empty for the file as a whole."},
        "position": {"$ref": "#/$defs/MaybePosition"},
        "related": {
            "type": "array",
            "description": "Other places that have to do with it.",
            "items": _closed({"key": {"type": "string"}, "position": {"$ref": "#/$defs/MaybePosition"}}),
        },
        "edit": {
            "description": "The fix as an edit, where a program can make it; `validate --fix` makes the safe ones.",
            "anyOf": [
                {"type": "null"},
                _closed(
                    {
                        "kind": {"enum": [kind.value for kind in EditKind]},
                        "key": {"type": "string"},
                        "safe": {"type": "boolean"},
                    }
                ),
            ],
        },
        "docs": {"type": "string", "description": "The page that explains this code."},
    }
    return _document(
        "diagnostics",
        "asgi-datasource diagnostics",
        {
            "tool": {"type": "string", "description": "The command that found them.", "examples": ["validate"]},
            "files": {"type": "array", "items": {"type": "string"}},
            "counts": _closed({severity.value: {"type": "integer", "minimum": 0} for severity in Severity}),
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
            "Diagnostic": _closed(diagnostic),
            "MaybePosition": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Position"}]},
            "Position": position,
        },
    )


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
    return _document(
        "diff",
        "asgi-datasource diff",
        {
            "old": {"type": "string"},
            "new": {"type": "string"},
            "counts": _closed({weight.value: {"type": "integer", "minimum": 0} for weight in Weight}),
            "changes": {"type": "array", "items": _closed(change)},
        },
        {},
    )


def explanation_schema() -> dict[str, Any]:
    """The schema of what `explain` tells (`explanation.py` makes it)."""
    text = {"type": "string"}
    maybe = {"type": ["string", "null"]}

    def or_null(properties: Mapping[str, Any], description: str) -> dict[str, Any]:
        return {"description": description, "anyOf": [{"type": "null"}, _closed(properties)]}

    role = {"enum": [role.value for role in Role]}
    schema = _document(
        "explain",
        "asgi-datasource explain",
        {
            "request": _closed({"method": text, "path": text}),
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
                "items": _closed(
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


def state_schema() -> dict[str, Any]:
    """The JSON Schema of a state."""
    schema = StateDocument.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:asgi-datasource:schema:state:v1",
        **schema,
        "title": "asgi-datasource state",
    }
