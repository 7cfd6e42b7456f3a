"""What a span says, in words: the server and why, how old the data, the wait, the outcome, the cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ...observability import names
from ...routing.explain_choice import MEANINGS
from ...routing.topology import Reason
from ..console import printable
from .spans import Event, Span

_HTTP_STATUS_BEFORE: Final = "http.status_code"
"""The name that instrumentations use without OTEL_SEMCONV_STABILITY_OPT_IN."""

_CAUSES: Final[Mapping[str, str]] = {
    "deadline": "the deadline has passed",
    "client_disconnected": "the client has disconnected",
    "connection": "the connection has failed",
    "resource": "a limit is reached",
    "tenant": "the tenant cannot be served",
    "40001": "a serialization failure",
    "40P01": "a deadlock",
    "23502": "a value is missing",
    "23503": "a foreign key is broken",
    "23505": "a unique constraint is broken",
    "23514": "a check is broken",
    "55P03": "a lock was not available",
    "57014": "the statement was cancelled",
}
"""Values of `error.type` in words; SQLSTATEs keep their code behind them."""

_OUTCOMES: Final = {
    "committed": "committed",
    "rolled_back": "rolled back",
    "unknown": "outcome unknown",
    "not_opened": "not opened",
}
_PROOFS: Final = {"met": "proved at once", "waited": "proved after {wait}", "failed": "not proved within {wait}"}
_SQLSTATE_LENGTH: Final = 5
_QUERY_LENGTH: Final = 100
"""Characters of a failed statement that are shown."""


QUESTIONS: Final = (
    "status",
    "tenant",
    "server",
    "reason",
    "staleness",
    "proof",
    "pool_wait",
    "attempt",
    "statement",
    "outcome",
    "cause",
    "hook",
    "events",
    "reference",
)
"""The questions that spans answer, in the order of reading."""


def milliseconds(value: float) -> str:
    """A duration in milliseconds with the precision that matters: `0.12 ms`, `3.4 ms`, `340 ms`, `1.25 s`."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def answers_of(span: Span) -> dict[str, str]:
    """The answers of a span by their question, in the order of reading."""
    found = {question: answer for question, answer in _answers(span) if answer}
    return {question: printable(answer) for question, answer in found.items()}


def _answers(span: Span) -> Iterator[tuple[str, str | None]]:
    yield "status", span.text(names.HTTP_STATUS) or span.text(_HTTP_STATUS_BEFORE)
    yield "tenant", span.text(names.TENANT_ID)
    yield "server", _server(span)
    yield "reason", _reason(span)
    yield "staleness", _staleness(span)
    yield "proof", _proof(span)
    yield "pool_wait", _pool_wait(span)
    yield "attempt", _attempt(span)
    yield "statement", _statement(span)
    outcome = _outcome(span)
    cause = _cause(span)
    yield "outcome", outcome
    yield "cause", None if cause is not None and outcome is not None and cause in outcome else cause
    yield "hook", (span.text(names.HOOK) or "").rpartition("<locals>.")[2]
    yield "events", "; ".join(filter(None, map(_event, span.events)))
    yield "reference", span.text(names.REFERENCE)


def _server(span: Span) -> str | None:
    nodes = span.attributes.get(names.NODES)
    if isinstance(nodes, tuple):
        return ", ".join(map(str, nodes)) or None
    node, role = span.text(names.NODE), span.text(names.ROLE)
    return f"{node} ({role})" if node and role and role != node else node


def _reason(span: Span) -> str | None:
    reason = span.text(names.REASON)
    if reason is None:
        return None
    try:
        return MEANINGS[Reason(reason)]
    except (ValueError, KeyError):
        return reason


def _staleness(span: Span) -> str | None:
    """How old the data of the chosen replica may be; a primary has everything."""
    if names.CANDIDATES not in span.attributes:
        return None
    if span.text(names.ROLE) == "primary":
        return "current"
    age, lag = span.number(names.LAG_AGE_MS), span.number(names.LAG_MS)
    if age is not None:
        return f"data at most {milliseconds(age)} old"
    return "data of unknown age" if lag is None else f"lag of {milliseconds(lag)} at the last check"


def _proof(span: Span) -> str | None:
    required, position = span.text(names.REQUIRED_LSN), span.text(names.REPLICA_LSN)
    proof = span.text(names.PROOF)
    if names.COMMIT_LSN in span.attributes or (required is None and proof is None):
        return None
    wait = milliseconds(span.number(names.PROOF_WAIT_MS) or 0.0)
    said = [] if proof is None else [_PROOFS.get(proof, proof).format(wait=wait)]
    said += [] if required is None else [f"needs {required}"]
    said += [] if position is None else [f"has {position}"]
    return ", ".join(said)


def _pool_wait(span: Span) -> str | None:
    wait = span.number(names.POOL_WAIT_MS)
    if wait is None:
        return None
    connecting = span.number(names.POOL_CONNECT_MS)
    if connecting is None:
        return f"pool {milliseconds(wait)}"
    queue = milliseconds(span.number(names.POOL_QUEUE_MS) or 0.0)
    return f"pool {milliseconds(wait)} (queue {queue}, connecting {milliseconds(connecting)})"


def _attempt(span: Span) -> str | None:
    failed, delay = span.number(names.RETRY_ATTEMPT), span.number(names.RETRY_DELAY_MS)
    if failed is not None and delay is not None:
        return f"attempt {failed:.0f} has failed, next one in {milliseconds(delay)}"
    if failed is not None:
        return f"{failed:.0f} attempts, {(span.text(names.RETRY_OUTCOME) or 'under way').replace('_', ' ')}"
    attempt = span.number(names.ATTEMPT)
    return f"attempt {attempt:.0f}" if attempt is not None and attempt > 1 else None


def _statement(span: Span) -> str | None:
    """Which statement it is, where the name does not say it: a failed one, of a batch, what opened the transaction."""
    query = span.text(names.DB_QUERY_TEXT)
    if span.is_error and query is not None:
        query = " ".join(query.split())
        shown = query if len(query) <= _QUERY_LENGTH else f"{query[: _QUERY_LENGTH - 1]}…"
        failed = span.number(names.BATCH_FAILED)
        return shown if failed is None else f"statement {failed:.0f}: {shown}"
    size, rows = span.number(names.DB_BATCH_SIZE), span.number(names.DB_RETURNED_ROWS)
    if size is not None:
        return f"{size:.0f} statements"
    if rows is not None:
        return f"{rows:.0f} rows"
    begin, propagation = span.text(names.BEGIN), span.text(names.PROPAGATION)
    said = [] if begin in (None, "begin") else [str(begin)]
    said += [] if propagation in (None, "required") else [str(propagation)]
    failed_at = span.text(names.FAILED_AT)
    said += [] if failed_at is None else [f"{failed_at} failed"]
    return ", ".join(said) or None


def _outcome(span: Span) -> str | None:
    savepoint = span.text(names.SAVEPOINT_OUTCOME)
    outcome = span.text(names.OUTCOME) or savepoint
    if outcome is None:
        return None
    text = _OUTCOMES.get(outcome, outcome.replace("_", " "))
    if span.attributes.get(names.COMMIT_IN_DOUBT) is True:
        text = f"connection lost during COMMIT, looked up: {text}"
    position, reason = span.text(names.COMMIT_LSN), span.text(names.ROLLBACK_REASON)
    if position is not None:
        text += f" at {position}"
    return text if not reason else f"{text}: {reason}"


def _cause(span: Span) -> str | None:
    cause = span.text(names.ERROR_TYPE) or span.text(names.DB_STATUS_CODE) or span.text(names.ERROR_KIND)
    if cause is None:
        return "failed" if span.is_error else None
    text = _CAUSES.get(cause)
    said = cause if text is None else f"{text} ({cause})" if len(cause) == _SQLSTATE_LENGTH else text
    constraint = span.text(names.CONSTRAINT)
    return said if constraint is None else f"{said}: {constraint}"


def _event(event: Event) -> str | None:
    if event.name == names.DOOMED:
        return f"doomed: {event.attributes.get(names.ROLLBACK_REASON, 'only a rollback remains')}"
    if event.name == names.RETRY_GIVEN_UP:
        return f"given up after attempt {event.attributes.get(names.RETRY_ATTEMPT, '?')}"
    if event.name == "exception":
        return f"exception {event.attributes.get('exception.type', '')}".rstrip()
    return None
