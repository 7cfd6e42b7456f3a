"""The tracer, and the spans that belong to no session: hooks and waits before a retry.

Only `opentelemetry-api` is used. Where no SDK is installed, or the request's trace is not sampled, no span object and
no attribute is built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from ..errors import ClientDisconnected, DataError, DataErrorKind
from .names import (
    CONSTRAINT,
    DB_NAMESPACE,
    DB_STATUS_CODE,
    DB_SYSTEM,
    ERROR_KIND,
    ERROR_TYPE,
    HOOK,
    HOOK_EVENT,
    HOOK_FAILED,
    MESSAGING_DESTINATION,
    MESSAGING_OPERATION,
    MESSAGING_OPERATION_TYPE,
    REFERENCE,
    RETRY_ATTEMPT,
    RETRY_DELAY_MS,
    RETRY_OUTCOME,
    SCHEMA_URL,
    SERVER_ADDRESS,
    SERVER_PORT,
    AttributeValue,
)

SCOPE: Final = "asgi_datasource"
"""Name of the instrumentation scope."""


def _version() -> str:
    """Version of the instrumentation scope; empty where the package is not installed."""
    try:
        return metadata.version("asgi-datasource")
    except metadata.PackageNotFoundError:
        return ""


VERSION: Final = _version()

tracer: Final = trace.get_tracer(SCOPE, VERSION, schema_url=SCHEMA_URL)

_IS_SET_BY_ENVIRONMENT: Final = OTEL_PYTHON_TRACER_PROVIDER in os.environ

_NO_PROVIDERS: Final = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)


def has_provider() -> bool:
    """Whether a tracer provider was set: without one, this is all that tracing costs a request, twice."""
    # `get_tracer_provider` searches the environment in each call while no provider is set.
    return getattr(trace, "_TRACER_PROVIDER", trace) is not None or _IS_SET_BY_ENVIRONMENT


def is_recording() -> bool:
    """Whether spans started here would be recorded: an SDK is installed, and the parent is sampled.

    The parent need not record any more: instrumentations end a request's span with the response, before hooks and
    background tasks run. A remote parent never records here. Without a parent the SDK's sampler decides.
    """
    if not has_provider() or isinstance(trace.get_tracer_provider(), _NO_PROVIDERS):
        return False
    parent = trace.get_current_span().get_span_context()
    return not parent.is_valid or parent.trace_flags.sampled


def recording_span() -> Span | None:
    """The current span if it records: around the middleware, it is the request's span."""
    if not has_provider():
        return None
    span = trace.get_current_span()
    return span if span.is_recording() else None


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
    with tracer.start_as_current_span(
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


# -- retries


@contextmanager
def retry_span(attempt: int, delay_s: float, conflict: DataError, *, is_traced: bool) -> Generator[None]:
    """A span around the wait before a retry.

    Args:
        attempt: Number of attempts that have failed.
        delay_s: Seconds until the next attempt.
        conflict: The error of the last attempt.
        is_traced: Whether tracing is enabled.
    """
    if not is_traced or not is_recording():
        yield
        return
    attributes: dict[str, AttributeValue] = {
        RETRY_ATTEMPT: attempt,
        RETRY_DELAY_MS: round(delay_s * 1000, 3),
        ERROR_KIND: conflict.kind.value,
    }
    if conflict.sqlstate is not None:
        attributes[DB_STATUS_CODE] = conflict.sqlstate
    with tracer.start_as_current_span("retry", attributes=attributes):
        yield


def note_attempts(span: Span, attempts: int, outcome: str) -> None:
    """Record on a request's span how many attempts it took, and whether the last one succeeded."""
    span.set_attribute(RETRY_ATTEMPT, attempts)
    span.set_attribute(RETRY_OUTCOME, outcome)


# -- hooks


@contextmanager
def hook_span(
    event: str, name: str, *, is_traced: bool, within: Context | None = None
) -> Generator[Callable[[BaseException], None]]:
    """A span around a hook, current while the hook runs; yields the function that marks it as failed.

    Args:
        event: The event that the hook runs on.
        name: The hook's name.
        is_traced: Whether tracing is enabled.
        within: The context of the hook's transaction; None uses the current span as the parent.
    """
    if not is_traced or (within is None and not is_recording()):
        yield _ignore
        return

    def fail(error: BaseException) -> None:
        span.add_event(HOOK_FAILED, {ERROR_TYPE: type(error).__name__})
        span.set_attribute(ERROR_TYPE, type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))

    # Of an exception only the class is recorded: its text may quote data.
    with tracer.start_as_current_span(
        event,
        context=within,
        attributes={HOOK_EVENT: event, HOOK: name},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield fail


def _ignore(_: BaseException) -> None:
    """Does nothing: there is no span to mark."""


# -- attributes of servers and failures


def server_attributes(*, host: str, port: int, namespace: str, system: str = "postgresql") -> dict[str, AttributeValue]:
    """A server's attributes, by OpenTelemetry's database conventions; a port of 0 is left out."""
    found: dict[str, AttributeValue] = {DB_SYSTEM: system, DB_NAMESPACE: namespace, SERVER_ADDRESS: host}
    if port:
        found[SERVER_PORT] = port
    return found


def cause_of(error: BaseException) -> str:
    """The value of `error.type`: `deadline`, `client_disconnected`, a SQLSTATE, a kind, or an exception's class."""
    if isinstance(error, ClientDisconnected):
        return "client_disconnected"
    if not isinstance(error, DataError):
        return type(error).__name__
    if error.kind is DataErrorKind.TIMEOUT:
        return "deadline"
    return error.sqlstate or error.kind.value


def reason_of(error: BaseException) -> str:
    """Why an exception rolls back, in words; without its text, which may quote data."""
    if isinstance(error, ClientDisconnected):
        return "the client has disconnected"
    if isinstance(error, DataError) and error.kind is DataErrorKind.TIMEOUT:
        return "the deadline has passed"
    return f"{type(error).__name__} was raised"


def fail_span(span: Span, error: BaseException) -> None:
    """Mark a span as failed with its cause, without the error's text, which may quote data."""
    cause = cause_of(error)
    span.set_attribute(ERROR_TYPE, cause)
    if isinstance(error, DataError):
        span.set_attribute(ERROR_KIND, error.kind.value)
        if error.sqlstate is not None:
            span.set_attribute(DB_STATUS_CODE, error.sqlstate)
        if error.constraint is not None:
            span.set_attribute(CONSTRAINT, error.constraint)
    span.set_status(Status(StatusCode.ERROR, cause))


def note_problem(span: Span, error: DataError, reference: str | None = None) -> None:
    """Record on a request's span the error that it is answered with, and the reference of the problem document."""
    if not span.is_recording():
        return
    span.set_attribute(ERROR_KIND, error.kind.value)
    span.set_attribute(ERROR_TYPE, cause_of(error))
    if error.sqlstate is not None:
        span.set_attribute(DB_STATUS_CODE, error.sqlstate)
    if reference is not None:
        span.set_attribute(REFERENCE, reference)
