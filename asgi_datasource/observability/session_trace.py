"""The observer of a session: turns what the session does into spans.

A session whose trace is not sampled has None in its place, so that nothing is built for it. The spans of a request:

    POST /orders                        the request's span, of another instrumentation: tenant, nodes, outcome, retries
    ├─ orders → r1 (balanced)           a server is chosen, and the wait for a connection of it
    ├─ SELECT orders                    one round trip
    └─ transaction orders.primary       from BEGIN to the known outcome
       ├─ orders → primary (write)
       ├─ INSERT orders
       ├─ savepoint ads_1
       │  └─ INSERT baskets
       ├─ before_commit
       └─ COMMIT
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context

from ..errors import DataError
from .names import (
    ATTEMPT,
    BATCH_FAILED,
    BEGIN,
    COMMIT_IN_DOUBT,
    COMMIT_LOST,
    COMMIT_LSN,
    DATASOURCE,
    DB_BATCH_SIZE,
    DB_NAMESPACE,
    DB_OPERATION,
    DB_QUERY_SUMMARY,
    DB_QUERY_TEXT,
    DB_RETURNED_ROWS,
    ERROR_TYPE,
    FAILED_AT,
    FETCHES,
    ISOLATION,
    LINKED_FROM,
    NODE,
    NODES,
    OUTCOME,
    POOL_CONNECT_MS,
    POOL_NAME,
    POOL_QUEUE_MS,
    POOL_WAIT_MS,
    PROOF,
    PROOF_WAIT_MS,
    PROPAGATION,
    READ_ONLY,
    REASON,
    REPLICA_LSN,
    REQUIRED_LSN,
    ROLE,
    ROLLBACK_REASON,
    SAVEPOINT,
    SAVEPOINT_OUTCOME,
    TENANT_ID,
    TENANT_STRATEGY,
    AttributeValue,
)
from .summary import Analysis, analyze, combine
from .tracing import cause_of, fail_span, is_recording, note_attempts, reason_of, tracer

Attributes = Mapping[str, AttributeValue]

MAX_COMMITS: Final = 1024
"""Commits of this process that reads can link to."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What the spans of a session contain.

    Attributes:
        statements: Statements have spans of their own.
        text: These have the statement's text, without literals.
        tenant: Spans carry the tenant's name.
    """

    statements: bool = True
    text: bool = True
    tenant: bool = False


class TracedServer(Protocol):
    """A server as spans describe it."""

    @property
    def datasource(self) -> str:
        """The datasource's name."""
        ...

    @property
    def name(self) -> str:
        """The server's name."""
        ...

    @property
    def full_name(self) -> str:
        """Datasource and server: `orders.primary`."""
        ...

    @property
    def role(self) -> str:
        """`primary` or `replica`."""
        ...

    @property
    def attributes(self) -> Attributes:
        """Its address and database, by the conventions."""
        ...


class TracedTenant(Protocol):
    """A tenant as spans describe it."""

    @property
    def name(self) -> str | None:
        """Its name; None for requests without one."""
        ...

    @property
    def strategy(self) -> str:
        """Its isolation: `schema`."""
        ...

    @property
    def schema(self) -> str | None:
        """Its own schema; None without one."""
        ...


class TracedStatement(Protocol):
    """A statement as spans describe it."""

    @property
    def query(self) -> object:
        """The text, or a composed query."""
        ...

    @property
    def text(self) -> str:
        """The text with its placeholders."""
        ...

    @property
    def is_auxiliary(self) -> bool:
        """Whether it only accompanies others, and gets no span."""
        ...


MAX_BASES: Final = 1024
"""Servers and tenants whose common attributes are kept."""

_bases: Final[dict[object, tuple[Attributes, dict[str, AttributeValue]]]] = {}
"""The attributes that all client spans of a tenant on a server have, and the server's own that they were made from."""

logger = logging.getLogger("asgi_datasource.telemetry")

_commits: Final[OrderedDict[str, SpanContext]] = OrderedDict()
"""The COMMIT spans of this process by WAL position, for links from reads that require the position."""


def start_trace(
    options: TraceOptions,
    datasource: str,
    tenant: TracedTenant,
    *,
    request: Span | None,
    attempt: int,
    is_request: bool = False,
) -> SessionTrace | None:
    """The observer of a session that runs its first statement; None where its trace is not sampled.

    Args:
        options: What the spans contain.
        datasource: Name of the session's datasource.
        tenant: The session's tenant.
        request: The request's span; None outside requests, and where it does not record.
        attempt: Number of the request's attempt.
        is_request: The session belongs to a request.
    """
    if not is_recording():
        return None
    root = None
    current = trace.get_current_span()
    if is_request and request is None and getattr(current, "kind", None) is SpanKind.SERVER:
        _warn_of_order()
    if not current.get_span_context().is_valid:
        # Without a parent, each span would be a trace by itself.
        root = tracer.start_span(f"session {datasource}", attributes={DATASOURCE: datasource})
        if not root.is_recording():
            return None
    return SessionTrace(options, datasource, tenant, request=request, attempt=attempt, root=root)


@lru_cache(maxsize=1)
def _warn_of_order() -> None:
    """Warn once in the life of the process: the request's span began inside of the middleware."""
    logger.warning(
        "the request's span begins inside of DataSourceMiddleware, so that it does not show the response that the"
        " client gets where a COMMIT fails or a request runs again: put OpenTelemetry's middleware around"
        " DataSourceMiddleware (instrument the outermost application)"
    )


class SessionTrace:
    """The spans of one session.

    Attributes:
        datasource: Name of the datasource.
        options: What they contain.
        request: The request's span, or that of a session without a parent; None without either.
        attempt: Number of the request's attempt.
        interruption: The error of a deadline or a disconnect that interrupts the session's statements.
        last_commit: The span of the last COMMIT.
    """

    __slots__ = (
        "_nodes",
        "_of_tenant",
        "_outcome",
        "_reason",
        "_root",
        "_root_context",
        "_schema",
        "_tenant_key",
        "attempt",
        "datasource",
        "interruption",
        "last_commit",
        "options",
        "request",
    )

    def __init__(
        self,
        options: TraceOptions,
        datasource: str,
        tenant: TracedTenant,
        *,
        request: Span | None,
        attempt: int,
        root: Span | None,
    ) -> None:
        self.options = options
        self.request = request or root
        self.attempt = attempt
        self.interruption: DataError | None = None
        self.last_commit: SpanContext | None = None
        self.datasource = datasource
        self._root = root
        self._root_context = None if root is None else set_span_in_context(root)
        self._nodes: dict[str, None] = {}
        self._outcome: str | None = None
        self._reason: str | None = None
        self.serve(tenant)

    def serve(self, tenant: TracedTenant) -> None:
        """Describe this tenant from now on."""
        self._schema = tenant.schema
        self._of_tenant: dict[str, AttributeValue] = {TENANT_STRATEGY: str(tenant.strategy)}
        if self.options.tenant and tenant.name is not None:
            self._of_tenant[TENANT_ID] = tenant.name
        self._tenant_key = self._schema, *self._of_tenant.values()

    def parent(self) -> Context | None:
        """The context of the parent of spans outside transactions; None for the current one."""
        if self._root_context is None or trace.get_current_span().get_span_context().is_valid:
            return None
        return self._root_context

    # -- outside transactions

    def route(
        self,
        name: str,
        attributes: Attributes,
        *,
        within: TransactionTrace | None,
        is_asked: bool,
        started_ns: int,
        waited_s: float,
        connecting_s: float,
    ) -> RouteTrace:
        """Make the span of a routing decision, of the wait for a connection, and of the server's proof.

        It is made after the wait, with all that is known by then: the SDK takes longer for each attribute that it is
        given one by one.

        Args:
            name: The decision in short: `orders → primary (pinned)`.
            attributes: The decision and its reason.
            within: The transaction that is opened with it.
            is_asked: The reason is true only once the server has proved it.
            started_ns: When the wait began, in nanoseconds since 1970.
            waited_s: Seconds until a connection was borrowed, or could not be.
            connecting_s: The part of it in which the connection was made; the rest was spent in the queue.
        """
        given = {**attributes, **self._of_tenant, POOL_WAIT_MS: _ms(waited_s)}
        if connecting_s > 0:
            given[POOL_CONNECT_MS] = _ms(connecting_s)
        given[POOL_QUEUE_MS] = _ms(waited_s - connecting_s)
        if is_asked:
            name = name.partition(" (")[0]
            given.pop(REASON, None)
        node = attributes[NODE]
        self._nodes[str(node)] = None
        link = (
            self.last_commit if attributes.get(REASON) == "pinned" else _commits.get(str(attributes.get(REQUIRED_LSN)))
        )
        span = tracer.start_span(
            name,
            self.parent() if within is None else within.context,
            attributes=given,
            links=() if link is None else (Link(link),),
            start_time=started_ns,
        )
        return RouteTrace(span, name, str(attributes[REASON]), is_asked=is_asked)

    def statement(
        self,
        server: TracedServer,
        statements: Sequence[TracedStatement],
        *,
        context: Context | None,
        links: Sequence[Link] = (),
    ) -> Span | None:
        """Start the span of a round trip with statements; None where they get none.

        Args:
            server: The server.
            statements: The statements.
            context: The parent; None for the current one.
            links: Related spans.
        """
        if not self.options.statements:
            return None
        found = analysis_of(statements)
        return None if found is None else self._client_span(server, *found, context, links)

    def query(self, server: TracedServer, text: str, *, started_ns: int) -> Span | None:
        """Make the span of a single statement that was sent already; None where statements get none.

        Args:
            server: The server.
            text: The statement, with its placeholders.
            started_ns: When it was sent, in nanoseconds since 1970.
        """
        if not self.options.statements:
            return None
        return self._client_span(server, analyze(text), 1, self.parent(), started_ns=started_ns)

    def _client_span(
        self,
        server: TracedServer,
        analysis: Analysis,
        count: int,
        context: Context | None,
        links: Sequence[Link] = (),
        *,
        started_ns: int | None = None,
    ) -> Span:
        attributes = {
            **self.base(server),
            DB_QUERY_SUMMARY: analysis.summary,
            DB_OPERATION: analysis.operation,
        }
        if self.options.text:
            attributes[DB_QUERY_TEXT] = analysis.text
        if count > 1:
            attributes[DB_BATCH_SIZE] = count
        return tracer.start_span(analysis.summary, context, SpanKind.CLIENT, attributes, links, started_ns)

    def stream(self, server: TracedServer, query: TracedStatement, context: Context | None) -> StreamTrace | None:
        """Start the span of a server-side cursor, from DECLARE to its end; None where statements get no spans."""
        span = self.statement(server, (query,), context=context)
        return None if span is None else StreamTrace(self, span)

    def begin(self, *, is_requests: bool) -> TransactionTrace:
        """Start the span of a transaction that is about to be opened.

        Args:
            is_requests: It is the transaction of the whole session, not of a block.
        """
        return TransactionTrace(self, is_requests=is_requests)

    def base(self, server: TracedServer) -> dict[str, AttributeValue]:
        """The attributes of all client spans on a server."""
        key = server.full_name, self._tenant_key
        known = _bases.get(key)
        if known is not None and known[0] is server.attributes:
            return known[1]
        schema = self._schema
        base: dict[str, AttributeValue] = {
            **server.attributes,
            DATASOURCE: server.datasource,
            NODE: server.name,
            ROLE: str(server.role),
            POOL_NAME: server.full_name,
            **self._of_tenant,
        }
        if schema is not None:
            base[DB_NAMESPACE] = f"{base[DB_NAMESPACE]}|{schema}"
        if len(_bases) >= MAX_BASES:
            _bases.clear()
        _bases[key] = server.attributes, base
        return base

    def fail(self, span: Span, error: BaseException) -> None:
        """Mark a span as failed; a cancellation has the cause of the session's interruption."""
        fail_span(span, self.cause(error))

    def cause(self, error: BaseException) -> BaseException:
        """The interruption behind a cancellation; other errors are their own cause."""
        return error if isinstance(error, DataError) or self.interruption is None else self.interruption

    # -- the end

    def note_end(self, outcome: str, reason: str | None, *, read_only: bool) -> None:
        """A transaction has ended; read-only ones do not hide the outcome of others."""
        if not read_only or self._outcome is None:
            self._outcome, self._reason = outcome, reason

    def close(self, *, has_lost: bool) -> None:
        """The session ends: describe it on the request's span, while that still records.

        Args:
            has_lost: It has ended with a conflict, so that the request may be retried.
        """
        request = self.request
        if request is not None and request.is_recording():
            found: dict[str, AttributeValue] = {**self._of_tenant, NODES: tuple(self._nodes)}
            if self._outcome is not None:
                found[OUTCOME] = self._outcome
            if self._reason is not None:
                found[ROLLBACK_REASON] = self._reason
            elif self.attempt > 1 and self._outcome is not None:
                # That of an earlier attempt is not the outcome's, and attributes cannot be removed.
                found[ROLLBACK_REASON] = ""
            request.set_attributes(found)
            if self.attempt > 1 and not has_lost:
                note_attempts(request, self.attempt, "settled")
        if self._root is not None:
            self._root.end()


class RouteTrace:
    """The span of a routing decision, until its server has, if required, proved its state."""

    __slots__ = ("_name", "_reason", "is_asked", "span")

    def __init__(self, span: Span, name: str, reason: str, *, is_asked: bool) -> None:
        self.span = span
        self.is_asked = is_asked
        """Whether the proof is pending."""
        self._name = name
        self._reason = reason

    def prove(self, proof: str, waited_s: float, position: str | None) -> None:
        """The server has proved its state, or could not.

        Args:
            proof: `met` at once, `waited`, or `failed`.
            waited_s: Seconds of waiting for it to catch up.
            position: Its last known WAL position.
        """
        self.is_asked = False
        found: dict[str, AttributeValue] = {PROOF: proof}
        if proof != "met":
            found[PROOF_WAIT_MS] = _ms(waited_s)
        if position is not None:
            found[REPLICA_LSN] = position
        if proof != "failed":
            found[REASON] = self._reason
        self.span.set_attributes(found)
        self.span.update_name(f"{self._name} ({'not proved' if proof == 'failed' else self._reason})")

    def end(self, *, is_ready: bool, ended_ns: int | None = None) -> None:
        """The server's part is over.

        Args:
            is_ready: The statement runs there. Where the proof was not asked for, it was given before.
            ended_ns: When it was over, in nanoseconds since 1970; None is now.
        """
        if self.is_asked and is_ready:
            self.span.set_attribute(REASON, self._reason)
            self.span.update_name(f"{self._name} ({self._reason})")
        self.span.end(ended_ns)


class StreamTrace:
    """The span of a server-side cursor."""

    __slots__ = ("_fetches", "_owner", "_rows", "_span")

    def __init__(self, owner: SessionTrace, span: Span) -> None:
        self._owner = owner
        self._span = span
        self._rows = self._fetches = 0

    def fetched(self, rows: int) -> None:
        """A batch of rows has arrived."""
        self._rows += rows
        self._fetches += 1

    def end(self, error: BaseException | None) -> None:
        """The cursor is closed; an error has ended it early. A consumer that stops early is no error."""
        if error is not None and not isinstance(error, GeneratorExit):
            self._owner.fail(self._span, error)
        self._span.set_attribute(DB_RETURNED_ROWS, self._rows)
        self._span.set_attribute(FETCHES, self._fetches)
        self._span.end()


class TransactionTrace:
    """The span of a transaction and those inside it.

    Attributes:
        session: The session's observer.
        span: The transaction's span.
        context: The context in which it is current.
    """

    __slots__ = ("_around", "_found", "_read_only", "_savepoints", "_server", "_span_id", "context", "session", "span")

    def __init__(self, session: SessionTrace, *, is_requests: bool) -> None:
        self.session = session
        request = session.request
        self._around = trace.get_current_span()
        parent = set_span_in_context(request) if is_requests and request is not None else session.parent()
        self.span = tracer.start_span(f"transaction {session.datasource}", parent)
        self.context = set_span_in_context(self.span)
        self._span_id = self.span.get_span_context().span_id
        self._savepoints: list[tuple[str, Span, Context]] = []
        self._server: TracedServer | None = None
        self._read_only = False
        self._found: dict[str, AttributeValue] = {}
        """Attributes that are set at the end, all at once."""

    # -- its beginning

    def connected(self, server: TracedServer, *, begin: str, isolation: str | None, read_only: bool) -> None:
        """BEGIN is about to be sent.

        Args:
            server: The server.
            begin: Text of BEGIN.
            isolation: PostgreSQL's name of the isolation level; None is the server's default.
            read_only: It is READ ONLY.
        """
        self._server = server
        self._read_only = read_only
        while self._savepoints:
            # The savepoints of an attempt on another server.
            self._savepoints.pop()
        found = self._found
        found.update(self.session.base(server))
        found[BEGIN] = begin
        found[READ_ONLY] = read_only
        found[ISOLATION] = isolation or "default"
        self.span.update_name(f"transaction {server.full_name}")

    def describe(self, propagation: str, attempt: int) -> None:
        """Record why it was opened.

        Args:
            propagation: The propagation of the function or block that it belongs to.
            attempt: Number of the attempt; 1 without retries.
        """
        self._found[PROPAGATION] = propagation
        self._found[ATTEMPT] = max(attempt, self.session.attempt)

    def not_opened(self, error: BaseException) -> None:
        """Nothing was opened: no connection, or BEGIN or the settings failed."""
        self.session.fail(self.span, error)
        self.end("not_opened")

    def failed_before(self, part: str) -> None:
        """BEGIN or the settings failed, so that no statement has run.

        Args:
            part: `begin` or `settings`.
        """
        self._found[FAILED_AT] = part

    # -- inside

    def statement(self, statements: Sequence[TracedStatement], *, reason: str | None = None) -> Span | None:
        """Start the span of a round trip with statements.

        Args:
            statements: The statements.
            reason: Why they run here, if no routing decision says so: `pinned`.
        """
        server = self._server
        if server is None:
            return None
        current = trace.get_current_span()
        context: Context | None = self._savepoints[-1][2] if self._savepoints else self.context
        links: tuple[Link, ...] = ()
        parent: SpanContext | None = getattr(current, "parent", None)
        if parent is not None and parent.span_id == self._span_id and not self._savepoints:
            # Inside of a hook of the transaction.
            context = None
        elif current is not self._around and current is not self.session.request and current.is_recording():
            links = (Link(current.get_span_context(), {LINKED_FROM: "caller"}),)
        span = self.session.statement(server, statements, context=context, links=links)
        if span is not None and reason is not None:
            span.set_attribute(REASON, reason)
        return span

    def stream(self, query: TracedStatement) -> StreamTrace | None:
        """Start the span of a server-side cursor."""
        server = self._server
        return None if server is None else self.session.stream(server, query, self.context)

    def command(self, name: str) -> Span:
        """Start the span of COMMIT, ROLLBACK, or of the use of a borrowed connection."""
        base = {} if self._server is None else self.session.base(self._server)
        return tracer.start_span(name, self.context, SpanKind.CLIENT, {**base, DB_OPERATION: name})

    def borrowed(self) -> Span:
        """Start the span of the time in which the application uses the driver's own connection."""
        base = {} if self._server is None else self.session.base(self._server)
        return tracer.start_span("borrowed connection", self.context, SpanKind.CLIENT, base)

    def savepoint(self, name: str) -> None:
        """SAVEPOINT is about to be sent."""
        within = self._savepoints[-1][2] if self._savepoints else self.context
        span = tracer.start_span(f"savepoint {name}", within, attributes={SAVEPOINT: name})
        self._savepoints.append((name, span, set_span_in_context(span)))

    def savepoint_ended(self, name: str, outcome: str, error: BaseException | None = None) -> None:
        """A savepoint, and those inside it, were released or rolled back.

        Args:
            name: The savepoint.
            outcome: `released` or `rolled_back`.
            error: The error that it was rolled back for.
        """
        if all(name != opened for opened, _, _ in self._savepoints):
            return
        while self._savepoints:
            opened, span, _ = self._savepoints.pop()
            span.set_attribute(SAVEPOINT_OUTCOME, outcome)
            if error is not None:
                span.set_attribute(ROLLBACK_REASON, reason_of(error))
            span.end()
            if opened == name:
                return

    # -- its end

    def commit_lost(self, span: Span) -> None:
        """The connection was lost during COMMIT: the outcome is about to be looked up."""
        span.set_attribute(COMMIT_IN_DOUBT, True)
        span.add_event(COMMIT_LOST)

    def committed(self, span: Span, position: str | None) -> None:
        """COMMIT succeeded.

        Args:
            span: The span of COMMIT.
            position: The WAL position that later reads of the client require; None if nothing was written.
        """
        context = span.get_span_context()
        self.session.last_commit = context
        if position is None:
            return
        # Also under the name that it has on the reads that require it: one search finds both.
        found: dict[str, AttributeValue] = {COMMIT_LSN: position, REQUIRED_LSN: position}
        span.set_attributes(found)
        self._found.update(found)
        _commits[position] = context
        if len(_commits) > MAX_COMMITS:
            _commits.popitem(last=False)

    def end(self, outcome: str, reason: str | None = None, error: BaseException | None = None) -> None:
        """The outcome is known.

        Args:
            outcome: `committed`, `rolled_back`, `unknown`, or `not_opened`.
            reason: Why it was rolled back, in words.
            error: The error that it has failed with.
        """
        span = self.span
        if error is not None:
            cause = self.session.cause(error)
            span.set_attribute(ERROR_TYPE, cause_of(cause))
            span.set_status(Status(StatusCode.ERROR, cause_of(cause)))
            reason = reason or reason_of(cause)
        if self._savepoints:
            self.savepoint_ended(self._savepoints[0][0], outcome)
        found = self._found
        found[OUTCOME] = outcome
        if reason is not None:
            found[ROLLBACK_REASON] = reason
        span.set_attributes(found)
        span.end()
        self.session.note_end(outcome, reason, read_only=self._read_only)


def note_failed_statement(span: Span, failed_at: int | None, first: int, count: int) -> None:
    """Record which statement of a round trip has failed.

    Args:
        span: The span of the round trip.
        failed_at: Index of the failed statement in the round trip; None if unknown.
        first: Index of the application's first statement.
        count: Number of the application's statements.
    """
    if failed_at is None:
        return
    if failed_at < first:
        span.set_attribute(FAILED_AT, "settings")
    elif count > 1 and failed_at < first + count:
        span.set_attribute(BATCH_FAILED, failed_at - first + 1)


_BEGIN: Final = Analysis("BEGIN", "BEGIN", "begin")


def description_of(statements: Sequence[TracedStatement]) -> Analysis:
    """The analysis of the statements of a round trip, for metrics; without any, it is BEGIN alone."""
    if not statements:
        return _BEGIN
    found = analysis_of(statements)
    return analyze(statements[0].text) if found is None else found[0]


def analysis_of(statements: Sequence[TracedStatement]) -> tuple[Analysis, int] | None:
    """The analysis of those that are not auxiliary, and their number; None without any."""
    if len(statements) == 1:
        return None if statements[0].is_auxiliary else (analyze(statements[0].text), 1)
    own = [one for one in statements if not one.is_auxiliary]
    if not own:
        return None
    first = analyze(own[0].text)
    if len(own) == 1:
        return first, 1
    if all(one.query is own[0].query for one in own):
        return combine((first, first)), len(own)
    return combine([analyze(one.text) for one in own]), len(own)


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
