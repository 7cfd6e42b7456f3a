"""The schemas of the documents that this library writes, and of the state that `explain` reads.

A document's schema only gains keys: programs that read the document rely on every key that a published schema requires.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asgi_datasource.cli.traces.answers import QUESTIONS
from asgi_datasource.config.changes import Kind, Weight
from asgi_datasource.config.diagnostics import Code, EditKind, Severity
from asgi_datasource.config.state import StateDocument
from asgi_datasource.migrate import Scope, Standing, Trouble
from asgi_datasource.migrate import Verdict as MigrationVerdict
from asgi_datasource.routing import AccessIntent, Consistency, Reason, Role, Verdict

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


def _closed(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The schema of a mapping with all of these keys; a later version may add others."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), **more}


def _document(name: str, title: str, properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a document."""
    return {
        "$schema": _DRAFT,
        "$id": f"urn:asgi-datasource:schema:{name}:v1",
        "title": title,
        **_closed({"version": {"const": 1}, **properties}),
        "$defs": dict(definitions),
    }


def diagnostics_schema() -> dict[str, Any]:
    """The schema of the result of `describe_diagnostics`."""
    number = {"type": ["integer", "null"], "minimum": 1}
    position = _closed({"file": {"type": "string"}, "line": number, "column": number})
    diagnostic = {
        "code": {"type": "string", "pattern": "^ADS[0-9]{3}$", "examples": [Code.UNKNOWN_KEY.value]},
        "name": {"type": "string", "description": "The code in words."},
        "severity": {"enum": [severity.value for severity in Severity]},
        "message": {"type": "string", "description": "What is wrong, without a full stop."},
        "fix": {"type": "string", "description": "What to do, a sentence."},
        "key": {"type": "string", "description": "The path of the key; empty for the whole file."},
        "position": {"$ref": "#/$defs/MaybePosition"},
        "related": {
            "type": "array",
            "description": "Other paths that belong to the problem.",
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
        "docs": {"type": "string", "description": "The command that prints the documentation of the code."},
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
                "description": "Findings that the files ignore, with their reasons.",
                "items": {"$ref": "#/$defs/Diagnostic", "required": ["reason"]},
            },
            "notes": {
                "type": "array",
                "description": "What was not checked, because there is too much of it.",
                "items": {"type": "string"},
                "examples": [["10 of the 1,203 known databases of own were checked"]],
            },
        },
        {
            "Diagnostic": _closed(diagnostic),
            "MaybePosition": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Position"}]},
            "Position": position,
        },
    )


def changes_schema() -> dict[str, Any]:
    """The schema of the result of `describe_changes`."""
    change = {
        "kind": {"enum": [kind.value for kind in Kind]},
        "weight": {
            "enum": [weight.value for weight in Weight],
            "description": "How closely the change needs review.",
        },
        "key": {"type": "string", "description": "The path of the key."},
        "message": {"type": "string", "description": "What it means."},
        "tenants": {"type": "array", "items": {"type": "string"}, "description": "Some of the affected tenants."},
        "tenant_count": {"type": "integer", "minimum": 0, "description": "The number of affected tenants."},
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
    """The schema of the result of `Explanation.document`."""
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
                "description": "routed: a server was chosen. refused: see refusal. exempt: the request has no session.",
            },
            "refusal": or_null(
                {"kind": text, "status": {"type": "integer"}, "message": text}, "Why the request would be refused."
            ),
            "tenant": or_null(
                {
                    "name": maybe,
                    "datasource": text,
                    "strategy": text,
                    "state": text,
                    "max_connections": {"type": ["integer", "null"]},
                },
                "The tenant of the request; the name is null for requests without a tenant.",
            ),
            "rule": or_null(
                {"index": {"type": "integer", "minimum": 0}, "match": text}, "The matching rule of routes."
            ),
            "plan": or_null(
                {
                    "intent": {"enum": [intent.value for intent in AccessIntent]},
                    "runs": {"type": "string", "description": "How its first statement runs."},
                    "consistency": {
                        "enum": [None, *(word.value for word in Consistency)],
                        "description": "What the statement must see; null when tokens are disabled.",
                    },
                    "max_lag_s": {"type": ["number", "null"], "description": "How old its data may be."},
                    "timeout_s": {"type": ["number", "null"], "description": "Until the end of COMMIT."},
                    "priority": {"enum": ["low", "normal", "high"]},
                    "max_in_flight": {"type": ["integer", "null"]},
                },
                "The plan of its first statement.",
            ),
            "token": or_null(
                {
                    "position": {**maybe, "description": "The position that the server must have, as timeline:lsn."},
                    "why": text,
                },
                "The result of the client's tokens; null when there are none.",
            ),
            "route": or_null(
                {"node": text, "role": role, "reason": {"enum": [reason.value for reason in Reason]}},
                "The server that was chosen.",
            ),
            "servers": {
                "type": "array",
                "description": "The verdict on each server.",
                "items": _closed(
                    {
                        "node": text,
                        "role": role,
                        "verdict": {"enum": [verdict.value for verdict in Verdict]},
                        "why": {"type": "string", "description": "The verdict in words, with its figures."},
                        "seen": {"type": "string", "description": "The server's state."},
                    }
                ),
            },
        },
        {},
    )
    schema["properties"] |= {
        "file": {"type": "string", "description": "The configuration file; only on the command line."},
        "assumed": {
            "type": "boolean",
            "description": "Whether all servers were assumed to be up and current; only on the command line.",
        },
        "assumed_tenants": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Tenants that were taken to be in the table of tenants_from, which was not read; only on the"
            " command line.",
        },
    }
    return schema


def health_schema() -> dict[str, Any]:
    """The schema of `registry.health().document` and of the answer of `/ready`."""
    count = {"type": "integer", "minimum": 0}
    server = _closed(
        {
            "server": {"type": "string", "description": "Datasource and server.", "examples": ["orders.primary"]},
            "role": {"enum": [role.value for role in Role]},
            "state": {
                "enum": ["up", "down", "connecting", "unused", "closed"],
                "description": (
                    "up: it is in use. down: it could not be reached, or has stopped answering. connecting: the first"
                    " connection is being made. unused: no connection was needed so far. closed: its pool is closed."
                ),
            },
            "cause": {"type": ["string", "null"], "description": "Why it is down, without a login."},
            "since": {"type": ["string", "null"], "format": "date-time", "description": "When it went down, in UTC."},
            "pool": _closed({"max_size": count, "borrowed": count, "idle": count, "waiting": count}),
        }
    )
    return _document(
        "health",
        "The health of a process, as it knows it",
        {
            "status": {"enum": ["ready", "not_ready"]},
            "rule": {
                "description": "health.ready of the configuration.",
                "oneOf": [{"enum": ["every_primary", "any_server"]}, _closed({"tenants": {"type": "string"}})],
            },
            "reasons": {"type": "array", "items": {"type": "string"}, "description": "Why it is not ready."},
            "tenants": _closed({"known": count, "served": count}, description="The tenants that are not suspended."),
            "datasources": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "servers": {"type": "array", "items": {"$ref": "#/$defs/Server"}},
                        "open_pools": {**count, "description": "With a database for each tenant: pools that are open."},
                    },
                    "required": ["servers"],
                },
            },
            "outbox": {
                "description": (
                    "The outbox, as the relay of this process knows it; null without a relay. It does not decide"
                    " whether the process is ready: events only wait."
                ),
                "oneOf": [{"type": "null"}, {"$ref": "#/$defs/Outbox"}],
            },
        },
        {"Server": server, "Outbox": _outbox_health()},
    )


def console_schema() -> dict[str, Any]:
    """The schema of the console's `state.json`."""
    count, seconds = {"type": "integer", "minimum": 0}, {"type": "number", "minimum": 0}
    maybe_seconds = {"type": ["number", "null"], "minimum": 0}
    text, maybe_text = {"type": "string"}, {"type": ["string", "null"]}
    moment = {"type": "string", "format": "date-time"}
    spans = {"last_min": count, "last_5_min": count, "last_15_min": count}
    server = _closed(
        {
            "server": {**text, "description": "Datasource and server.", "examples": ["orders.primary"]},
            "name": text,
            "database": maybe_text,
            "location": {**text, "description": "Host and port."},
            "role": {"enum": [role.value for role in Role]},
            "version": {**count, "description": "As libpq reports it; 0 until a connection was made."},
            "state": {"enum": ["up", "down", "connecting", "unused", "closed"]},
            "cause": {**maybe_text, "description": "Why it is down, without a login."},
            "down_s": maybe_seconds,
            "breaker": {"enum": ["closed", "open", "half_open"]},
            "failures": {**count, "description": "Failed attempts since it was last up."},
            "foreign": {"type": "boolean", "description": "It answers, but is no replica of the primary."},
            "draining": {"type": "boolean", "description": "It gets no new reads."},
            "refusal": {**maybe_text, "description": "Why it cannot be drained."},
            "lag_s": maybe_seconds,
            "lag_bytes": {"type": ["integer", "null"]},
            "age_s": {**maybe_seconds, "description": "How old its data may be."},
            "rtt_s": maybe_seconds,
            "statements_per_s": {**seconds, "description": "Over the last minute."},
            "pool": _closed({"max_size": count, "borrowed": count, "idle": count, "waiting": count}),
        }
    )
    replica = _closed({"server": text, "draining": {"type": "boolean"}, "refusal": maybe_text})
    routing = _closed({"balance": text, "no_replica": text, "max_lag_s": maybe_seconds})
    datasource = _closed(
        {
            "name": text,
            "kind": {"enum": ["shared", "database_per_tenant"]},
            "routing": {"oneOf": [{"type": "null"}, routing]},
            "in_flight": {"type": ["integer", "null"]},
            "max_in_flight": {"type": ["integer", "null"]},
            "open_pools": {"type": ["integer", "null"]},
            "replicas": {
                "type": "array",
                "items": replica,
                "description": "With a database for each tenant: the replicas of all of them.",
            },
            "statements_per_s": seconds,
            "servers": {"type": "array", "items": server},
        }
    )
    blocker = _closed(
        {
            "pid": count,
            "application": maybe_text,
            "state": maybe_text,
            "age_s": maybe_seconds,
            "text": {**text, "description": "The blocker in words, with the route where it is this process's own."},
        }
    )
    transaction = _closed(
        {
            "server": text,
            "database": maybe_text,
            "tenant": maybe_text,
            "route": {**maybe_text, "description": "Method and declared route, never the path; null outside requests."},
            "reason": {**text, "description": "Why this server was chosen."},
            "age_s": {**seconds, "description": "Since the connection was borrowed."},
            "pid": count,
            "state": {**maybe_text, "description": "As in pg_stat_activity."},
            "waits_for": {**maybe_text, "description": "Type and name of the wait event."},
            "blocked_by": {"type": "array", "items": blocker},
        }
    )
    decision = _closed(
        {
            "datasource": text,
            "reason": {"enum": [reason.value for reason in Reason]},
            "fallback": {"type": "boolean", "description": "A replica that should have answered could not."},
            "node": text,
            **spans,
        }
    )
    course = _closed({"datasource": text, "reason": text, "counts": {"type": "array", "items": count}})
    outcome = _closed({"datasource": text, "outcome": {"enum": ["committed", "rolled_back", "unknown"]}, **spans})
    tenant = _closed(
        {
            "tenant": maybe_text,
            "statements": count,
            "failed": count,
            "refused": {**count, "description": "Requests for a connection that got none in time."},
            "connections": {**seconds, "description": "Connections held, on average."},
            "waiting": {**seconds, "description": "Requests that waited for one, on average."},
            "share": {**seconds, "maximum": 1},
        }
    )
    schema = _closed({"name": text, "standing": text, "version": count, "head": count, "reason": maybe_text})
    migrations = _closed(
        {
            "at": {**maybe_text, "description": "When the schemas were last looked at."},
            "counts": {"type": "object", "additionalProperties": count},
            "schemas": {"type": "array", "items": schema, "description": "Those that are not at their head."},
            "failure": maybe_text,
            "held_back": {**count, "description": "Tenants that are refused because their schemas are behind."},
        }
    )
    outbox = _outbox_health()
    outbox["properties"] = {"relay": {"type": "boolean"}, **outbox["properties"]}
    attention = _closed({"severity": {"enum": ["alarm", "notice"]}, "section": text, "text": text})
    return _document(
        "console",
        "The state of a process, as its console shows it",
        {
            "at": moment,
            "process": _closed({"id": text, "pid": count, "host": text, "up_s": seconds}),
            "status": {"enum": ["ready", "not_ready"]},
            "reasons": {"type": "array", "items": text, "description": "Why it is not ready."},
            "served_tenants": _closed({"known": count, "served": count}),
            "datasources": {"type": "array", "items": datasource},
            "transactions": _closed(
                {
                    "count": {**count, "description": "Connections in use."},
                    "rows": {"type": "array", "items": transaction, "description": "The oldest of them."},
                    "unanswered": {"type": "array", "items": _closed({"server": text, "why": text})},
                }
            ),
            "decisions": _closed(
                {
                    "slot_s": seconds,
                    "rows": {"type": "array", "items": decision},
                    "courses": {"type": "array", "items": course},
                }
            ),
            "outcomes": {"type": "array", "items": outcome},
            "tenants": _closed(
                {
                    "covered_s": {**seconds, "description": "The time that the figures are of."},
                    "active": count,
                    "more_statements": count,
                    "refused_last_min": count,
                    "rows": {"type": "array", "items": tenant, "description": "Those with the highest load."},
                }
            ),
            "outbox": {"oneOf": [{"type": "null"}, outbox]},
            "migrations": {"oneOf": [{"type": "null"}, migrations]},
            "configuration": _closed({"files": {"type": "array", "items": text}}),
            "attention": {"type": "array", "items": attention, "description": "Alarms first."},
        },
        {},
    )


def _outbox_health() -> dict[str, Any]:
    count, seconds = {"type": "integer", "minimum": 0}, {"type": "number", "minimum": 0}
    reasons = {"type": "array", "items": {"type": "string"}, "description": "Why it is a warning."}
    status = {"enum": ["ok", "warning"]}
    database = _closed(
        {
            "name": {"type": "string"},
            "status": status,
            "reasons": reasons,
            "backlog": {**count, "description": "Events that wait, counted up to 100,000, at most every 15 seconds."},
            "oldest_s": {**seconds, "description": "Age of the oldest of them, in seconds."},
            "held": {**count, "description": "Events that wait behind a refused one of their key."},
            "dead": count,
            "lanes": {**count, "description": "Lanes that this process owns."},
            "snapshot_s": {**seconds, "description": "Age of the oldest snapshot, in seconds."},
        }
    )
    return _closed(
        {
            "status": status,
            "reasons": reasons,
            "destination": {"type": ["string", "null"], "description": "Why the destination counts as away."},
            "databases": {"type": "array", "items": database},
        }
    )


def migration_report_schema() -> dict[str, Any]:
    """The schema of the result of `MigrationReport.document`."""
    text = {"type": "string"}
    maybe = {"type": ["string", "null"]}
    labels = {"type": "array", "items": text}
    version = {"type": "integer", "minimum": 0}
    seconds = {"type": "number", "minimum": 0}
    schema = {
        "datasource": text,
        "database": {**maybe, "description": "What stands for {tenant} in the URL of the datasource; null without."},
        "scope": {"enum": [scope.value for scope in Scope]},
        "schema": {"type": "string", "description": "Where its statements create tables."},
        "tenants": {
            "type": "array",
            "items": text,
            "description": "The tenants that live in it; none for a shared part.",
        },
        "standing": {
            "enum": [standing.value for standing in Standing],
            "description": (
                "at_head: it has everything. pending: it lacks something. waiting: a contract migration waits for"
                " another tenant. refused: see findings. failed: see error. moving: its tenant is being moved."
            ),
        },
        "from_version": {**version, "description": "Its highest version at the beginning; 0 for none."},
        "to_version": {**version, "description": "Its highest version at the end."},
        "head": {**version, "description": "The highest version of the files."},
        "applied": {**labels, "description": "What this run has applied."},
        "pending": {**labels, "description": "What it lacks."},
        "failed": {**maybe, "description": "The migration that has failed."},
        "error": {**maybe, "description": "Why; never a value of a row."},
        "sqlstate": maybe,
        "waits_for": {**maybe, "description": "The schema that a contract migration waits for."},
        "findings": {
            "type": "array",
            "items": _closed(
                {
                    "trouble": {"enum": [trouble.value for trouble in Trouble]},
                    "label": {"type": "string", "description": "The file or version; empty for the whole schema."},
                    "message": text,
                    "fix": text,
                }
            ),
        },
        "seconds": seconds,
    }
    return _document(
        "migration-report",
        "asgi-datasource migrate",
        {
            "command": {"type": "string", "examples": ["plan", "check", "status", "apply"]},
            "run_id": {**maybe, "description": "The run, as the ledger has it; null where nothing was changed."},
            "seconds": seconds,
            "exit_code": {"enum": [int(verdict) for verdict in MigrationVerdict]},
            "counts": _closed({standing.value: version for standing in Standing}),
            "schemas": {"type": "array", "items": _closed(schema)},
        },
        {},
    )


def trace_schema() -> dict[str, Any]:
    """The schema of `asgi-datasource trace --format json`."""
    text, maybe_text = {"type": "string"}, {"type": ["string", "null"]}
    milliseconds = {"type": "number", "minimum": 0, "description": "In milliseconds."}
    attributes = {"type": "object", "description": "As in the file."}
    event = _closed({"name": text, "attributes": attributes})
    link = _closed({"trace_id": text, "span_id": text})
    span = _closed(
        {
            "span_id": text,
            "parent_id": maybe_text,
            "depth": {"type": "integer", "minimum": 0, "description": "Spans above it in the file."},
            "name": text,
            "kind": {"enum": ["internal", "server", "client", "producer", "consumer"]},
            "service": text,
            "start_ms": {**milliseconds, "description": "Milliseconds since the start of the trace."},
            "duration_ms": milliseconds,
            "is_error": {"type": "boolean"},
            "answers": {
                "type": "object",
                "description": "What it says, in words for people, by question; a later version may word it otherwise.",
                "propertyNames": {"enum": list(QUESTIONS)},
                "additionalProperties": text,
            },
            "attributes": attributes,
            "events": {"type": "array", "items": event},
            "links": {"type": "array", "items": link},
        }
    )
    trace = _closed(
        {
            "trace_id": {**text, "pattern": "^[0-9a-f]{32}$"},
            "name": {**text, "description": "Name of the request's span, or of the first one."},
            "started_at": {**text, "format": "date-time"},
            "duration_ms": milliseconds,
            "is_error": {"type": "boolean", "description": "A span has failed, or there is a problem document."},
            "tenants": {"type": "array", "items": text},
            "references": {"type": "array", "items": text, "description": "Of problem documents."},
            "spans": {"type": "array", "items": span, "description": "Parents before their children."},
        }
    )
    return _document("trace", "Traces with their answers", {"traces": {"type": "array", "items": trace}}, {})


def state_schema() -> dict[str, Any]:
    """The JSON Schema of a state."""
    schema = StateDocument.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:asgi-datasource:schema:state:v1",
        **schema,
        "title": "asgi-datasource state",
    }
