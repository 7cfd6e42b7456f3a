"""Spans, and the one table of their names.

Only `opentelemetry-api` is used. Where no SDK is installed, or the request's trace is not recorded, no span object
and no attribute is built. Names follow OpenTelemetry's semantic conventions for databases where they have one, and
start with `asgi_datasource.` where they have none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from ..errors import DataError

DATASOURCE: Final = "asgi_datasource.datasource"
INTENT: Final = "asgi_datasource.intent"
NODE: Final = "asgi_datasource.node"
ROLE: Final = "asgi_datasource.role"
REASON: Final = "asgi_datasource.reason"
CANDIDATES: Final = "asgi_datasource.candidates"
POOL_WAIT_MS: Final = "asgi_datasource.pool.wait_ms"
PIN_AGE_MS: Final = "asgi_datasource.pin.age_ms"
PIN_LSN: Final = "asgi_datasource.pin.lsn"
TENANT_ID: Final = "asgi_datasource.tenant.id"
TENANT_STRATEGY: Final = "asgi_datasource.tenant.strategy"
OUTCOME: Final = "asgi_datasource.transaction.outcome"
ROLLBACK_REASON: Final = "asgi_datasource.transaction.rollback_reason"
ERROR_KIND: Final = "asgi_datasource.error.kind"
SAVEPOINT: Final = "asgi_datasource.savepoint"
HOOK: Final = "asgi_datasource.hook"
HOOK_EVENT: Final = "asgi_datasource.hook.event"
RETRY_ATTEMPT: Final = "asgi_datasource.retry.attempt"
RETRY_DELAY_MS: Final = "asgi_datasource.retry.delay_ms"
RETRY_OUTCOME: Final = "asgi_datasource.retry.outcome"

SAVEPOINT_SET: Final = "asgi_datasource.savepoint.set"
SAVEPOINT_ROLLED_BACK: Final = "asgi_datasource.savepoint.rolled_back"
DOOMED: Final = "asgi_datasource.transaction.doomed"
RETRY: Final = "asgi_datasource.transaction.retry"
RETRY_GIVEN_UP: Final = "asgi_datasource.transaction.retry.given_up"
HOOK_FAILED: Final = "asgi_datasource.hook.failed"
"""Events, added to the current span."""

DB_SYSTEM: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_OPERATION: Final = "db.operation.name"
DB_BATCH_SIZE: Final = "db.operation.batch.size"
DB_STATUS_CODE: Final = "db.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_OPERATION: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_BODY_SIZE: Final = "messaging.message.body.size"

AttributeValue = str | bool | int | float | tuple[str, ...]

_tracer: Final = trace.get_tracer("asgi_datasource", schema_url="https://opentelemetry.io/schemas/1.33.0")


_IS_SET_BY_ENVIRONMENT: Final = OTEL_PYTHON_TRACER_PROVIDER in os.environ


def is_recording() -> bool:
    """Whether spans started here would be recorded: an SDK is installed and the parent is sampled."""
    # `get_tracer_provider` searches the environment in each call while no provider is set.
    if getattr(trace, "_TRACER_PROVIDER", trace) is None and not _IS_SET_BY_ENVIRONMENT:
        return False
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return False
    parent = trace.get_current_span()
    return parent.is_recording() or not parent.get_span_context().is_valid


def start_route_span(name: str, attributes: Mapping[str, AttributeValue], *, pinned_by: SpanContext | None) -> Span:
    """Start the span of a routing decision and of the wait for a connection.

    Args:
        name: The decision in short: `orders → primary (pinned)`.
        attributes: The decision, its tenant and its candidates.
        pinned_by: The span that set the pin; linked.
    """
    links = (Link(pinned_by),) if pinned_by is not None else ()
    return _tracer.start_span(name, attributes=attributes, links=links)


def start_client_span(name: str, server: Mapping[str, AttributeValue]) -> Span:
    """Start the span of a command sent to a server: BEGIN, COMMIT, ROLLBACK.

    Args:
        name: The command.
        server: The server's attributes; see `server_attributes`.
    """
    attributes = {**server, DB_OPERATION: name}
    return _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def start_statement_span(text: str, count: int, server: Mapping[str, AttributeValue]) -> Span:
    """Start the span of a statement, or of a batch of them: `INSERT orders`.

    Args:
        text: The first statement's text with its placeholders; only its summary goes into the span.
        count: Number of statements in this round trip.
        server: The server's attributes; see `server_attributes`.
    """
    summary = summarize(text)
    attributes = {**server, DB_QUERY_SUMMARY: summary, DB_OPERATION: operation_of(text)}
    if count > 1:
        attributes[DB_BATCH_SIZE] = count
    return _tracer.start_span(summary, kind=SpanKind.CLIENT, attributes=attributes)


@contextmanager
def send_span(
    topic: str, headers: Mapping[str, str], attributes: Mapping[str, AttributeValue]
) -> Generator[tuple[Mapping[str, str], Callable[[str], None]]]:
    """A span around the sending of a message, in the trace that the message was written in.

    Args:
        topic: The message's destination.
        headers: The message's headers, with the trace context of its writing.
        attributes: The message's other attributes, by OpenTelemetry's messaging conventions.

    Yields:
        The headers to send: with the trace context of this span, where it is recorded; and a function that marks the
        span as failed, with the reason's kind.
    """
    named = {MESSAGING_OPERATION: "send", MESSAGING_OPERATION_TYPE: "send", MESSAGING_DESTINATION: topic}
    with _tracer.start_as_current_span(
        f"send {topic}",
        context=propagate.extract(headers),
        kind=SpanKind.PRODUCER,
        attributes={**named, **attributes},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:

        def fail(kind: str) -> None:
            span.set_attribute(ERROR_TYPE, kind)
            span.set_status(Status(StatusCode.ERROR, kind))

        sent = dict(headers)
        if span.is_recording():
            propagate.inject(sent)
        yield sent, fail


def add_event(name: str, attributes: Mapping[str, AttributeValue]) -> None:
    """Add an event to the current span, if it is recorded."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(name, attributes)


def retry_attributes(attempt: int, delay_s: float, conflict: DataError) -> dict[str, AttributeValue]:
    """The attributes of a retry.

    Args:
        attempt: Number of attempts that have failed.
        delay_s: Seconds until the next attempt.
        conflict: The error of the last attempt.
    """
    return {
        RETRY_ATTEMPT: attempt,
        RETRY_DELAY_MS: round(delay_s * 1000, 3),
        DB_STATUS_CODE: conflict.sqlstate or "",
    }


def note_attempts(attempts: int, *, has_lost: bool) -> None:
    """Record on the current span how many attempts a request took, and whether the last one succeeded."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute(RETRY_ATTEMPT, attempts)
        span.set_attribute(RETRY_OUTCOME, "given_up" if has_lost else "settled")


@contextmanager
def hook_span(event: str, name: str, *, is_traced: bool) -> Generator[Callable[[BaseException], None]]:
    """A span around a hook, current while the hook runs; yields the function that marks it as failed.

    Args:
        event: The event that the hook runs on.
        name: The hook's name.
        is_traced: Whether tracing is enabled.
    """
    if not is_traced or not is_recording():
        yield _ignore
        return

    def fail(error: BaseException) -> None:
        span.add_event(HOOK_FAILED, {ERROR_TYPE: type(error).__name__})
        span.set_attribute(ERROR_TYPE, type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))

    # Of an exception only the class is recorded: its text may quote data.
    with _tracer.start_as_current_span(
        event, attributes={HOOK_EVENT: event, HOOK: name}, record_exception=False, set_status_on_exception=False
    ) as span:
        yield fail


def _ignore(_: BaseException) -> None:
    """Does nothing: there is no span to mark."""


def current_span_context() -> SpanContext | None:
    """The context of the current span, for a link to it; None without a span."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


def server_attributes(*, host: str, port: int, namespace: str, system: str = "postgresql") -> dict[str, AttributeValue]:
    """A server's attributes, by OpenTelemetry's database conventions; a port of 0 is left out."""
    found: dict[str, AttributeValue] = {DB_SYSTEM: system, DB_NAMESPACE: namespace, SERVER_ADDRESS: host}
    if port:
        found[SERVER_PORT] = port
    return found


def fail_span(span: Span, error: DataError) -> None:
    """Mark a span as failed with the error's kind and SQLSTATE, without its text, which may quote data."""
    span.set_attribute(ERROR_KIND, error.kind.value)
    span.set_attribute(ERROR_TYPE, error.sqlstate or error.kind.value)
    if error.sqlstate is not None:
        span.set_attribute(DB_STATUS_CODE, error.sqlstate)
    span.set_status(Status(StatusCode.ERROR, error.kind.value))


_NOISE: Final = re.compile(
    r"""
      '(?:[^'\\]|''|\\.)*'                       # a literal; may also be a C-style one
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$            # a dollar-quoted literal
    | --[^\n]*
    | /\*.*?\*/
    """,
    re.VERBOSE | re.DOTALL,
)
_NAME: Final = r'(?:"[^"]+"|[A-Za-z_][\w$]*)(?:\s*\.\s*(?:"[^"]+"|[A-Za-z_][\w$]*))*'
_VERB: Final = re.compile(r"\s*\(*\s*([A-Za-z]+)")
_TARGETS: Final = {
    "SELECT": re.compile(rf"\bfrom\s+(?:only\s+|lateral\s+)?({_NAME})", re.IGNORECASE),
    "INSERT": re.compile(rf"\binto\s+({_NAME})", re.IGNORECASE),
    "UPDATE": re.compile(rf"\bupdate\s+(?:only\s+)?({_NAME})", re.IGNORECASE),
    "DELETE": re.compile(rf"\bfrom\s+(?:only\s+)?({_NAME})", re.IGNORECASE),
    "MERGE": re.compile(rf"\binto\s+(?:only\s+)?({_NAME})", re.IGNORECASE),
}
_ARGUMENTS: Final = re.compile(r"\((?!\s*(?:select|insert|update|delete|merge|with)\b)[^()]*\)", re.IGNORECASE)
"""Parentheses that contain no statement: `extract(hour from departure)` names no table."""
_COMPARISON: Final = re.compile(r"\bdistinct\s+from\b", re.IGNORECASE)
_AROUND_DOT: Final = re.compile(r"\s*\.\s*")
_AFTER_CTE: Final = re.compile(r"\)\s*(select|insert|update|delete|merge)\b", re.IGNORECASE)


@lru_cache(maxsize=2048)
def summarize(sql: str) -> str:
    """Summarize a statement without any literal: `INSERT orders`.

    Args:
        sql: The statement's text with its placeholders.

    Returns:
        The operation and, for queries and data changes, the first table that it names.

    Source: OpenTelemetry semantic conventions, "db.query.summary".
    """
    text = _NOISE.sub(" ", sql)
    verb_match = _VERB.match(text)
    if verb_match is None:
        return "statement"
    verb = verb_match[1].upper()
    if verb == "WITH":
        # The last "...) VERB" is the statement that the common table expressions belong to.
        ends = list(_AFTER_CTE.finditer(text))
        if not ends:
            return verb
        verb, text = ends[-1][1].upper(), text[ends[-1].start(1) :]
    if verb in ("SELECT", "DELETE"):
        text = _COMPARISON.sub("distinct_from", _without_arguments(text))
    target = _TARGETS.get(verb)
    found = target.search(text) if target is not None else None
    return verb if found is None else f"{verb} {_AROUND_DOT.sub('.', found[1])}"


def operation_of(sql: str) -> str:
    """The operation of a statement: `INSERT`."""
    return summarize(sql).partition(" ")[0]


def _without_arguments(text: str) -> str:
    """The text without parentheses that contain no statement, innermost first."""
    shorter = _ARGUMENTS.sub(" ", text)
    while shorter != text:
        text, shorter = shorter, _ARGUMENTS.sub(" ", shorter)
    return text
