"""The options of a statement: annotation, route rule and HTTP method combined into one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..concurrency.limits import ConcurrencyLimit
from ..concurrency.priority_queue import Priority
from ..observability.metrics import Metrics
from ..observability.query_tags import TagOptions
from ..observability.recording import Recorder
from ..observability.session_trace import TraceOptions
from ..routing import ANY_FRESHNESS, AccessIntent, Consistency, Freshness, intent_of_method
from ..routing.consistency.client_history import TokenPolicy
from ..transaction import BARE, Isolation, OutcomeRule, Terms, TransactionOptions
from .context import Frame
from .options import options_of


class CommitScope(StrEnum):
    """When a write outside of annotations and blocks is committed."""

    SESSION = "session"
    """At the end of the session: one transaction, committed when the response starts."""
    ANNOTATED = "annotated"
    """At the end of the session on annotated routes; elsewhere each statement commits by itself."""
    STATEMENT = "statement"
    """Each statement commits by itself: a websocket's session would hold its transaction for hours."""


@dataclass(frozen=True, slots=True, eq=False)
class RouteRule:
    """The settings of one rule of `routes`; a route's annotation takes precedence.

    Attributes:
        options: The transaction's options; None if the rule sets none.
        is_transactional: The rule sets `read_only`, `isolation`, `propagation` or `retry`, and acts like an annotation.
        intent: Intent of statements without an explicit one; None takes it from the method.
        freshness: Required freshness of reads.
        priority: Priority when requests wait for connections.
        concurrency_limit: Bound on the matching requests in progress; None sets no bound.
        datasource: The datasource of the session; None for the tenant's own.
    """

    options: TransactionOptions | None = None
    is_transactional: bool = False
    intent: AccessIntent | None = None
    freshness: Freshness = ANY_FRESHNESS
    priority: Priority = Priority.NORMAL
    concurrency_limit: ConcurrencyLimit | None = None
    datasource: str | None = None


NO_RULE: Final = RouteRule()


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """The configuration's settings for all sessions.

    Attributes:
        commit_scope: When a write outside of annotations and blocks is committed.
        deadline_s: Seconds from a request's start to the end of its COMMIT; None is no limit.
        rollback_on: Statuses that roll back, unless the annotation or the rule overrides them.
        commit_timeout_s: Seconds that COMMIT may take without a deadline.
        doubt_timeout_s: Seconds to determine the outcome of a COMMIT whose connection was lost.
        is_traced: Whether spans are created.
        trace_options: What the spans contain.
        tags: How statements are tagged; None where they are not.
        metrics: The instruments; None when metrics are disabled.
        recorder: Makes the recorders of sessions: the metrics, or the console's activity around them.
        retry: Retries of a request after a serialization failure or a deadlock.
        retry_body_limit: Largest request body that is kept for a retry, in bytes.
        max_parallel: Reads of one request that may run in parallel.
        allows_multiple_writers: Whether two sessions of one request may both write.
        tokens: Causal-consistency tokens; None when they are disabled.
        lanes: Cached lanes by rule, method and endpoint.
    """

    commit_scope: CommitScope = CommitScope.SESSION
    deadline_s: float | None = 30.0
    rollback_on: OutcomeRule = OutcomeRule(frozenset(range(400, 600)))
    commit_timeout_s: float = 30.0
    doubt_timeout_s: float = 5.0
    is_traced: bool = True
    trace_options: TraceOptions = TraceOptions()
    tags: TagOptions | None = None
    metrics: Metrics | None = None
    recorder: Recorder | None = None
    retry: int = 0
    retry_body_limit: int = 1 << 20
    max_parallel: int = 1
    allows_multiple_writers: bool = False
    tokens: TokenPolicy | None = None
    lanes: dict[tuple[RouteRule, str, object], Lane] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lanes", {})
        if self.recorder is None:
            object.__setattr__(self, "recorder", self.metrics)


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """The default options of a request's statements.

    Cached for each combination of rule, method and endpoint that occurs.

    Attributes:
        intent: Read or write.
        reads_only: Writes are refused.
        freshness: Required freshness of reads.
        terms: The terms of the request's transaction.
        is_demanded: An annotation, a rule or a writing method asks for the transaction.
        timeout_s: Seconds from the start of the request to its deadline; None sets no limit.
        endpoint: The annotation of the matched endpoint.
        rule: The first rule of `routes` that matches the request.
        retries: Retries of the request after a serialization failure or a deadlock.
        outcomes: Cache: whether a response commits, by status.
        begins_plainly: The first write opens the request's transaction, with a plain BEGIN.
        streams: The response may start while the snapshot of its route is still open.
    """

    intent: AccessIntent
    reads_only: bool
    freshness: Freshness
    terms: Terms
    is_demanded: bool
    timeout_s: float | None
    endpoint: TransactionOptions | None
    rule: RouteRule
    retries: int
    outcomes: dict[int, bool] = field(default_factory=dict[int, bool])
    begins_plainly: bool = field(init=False)
    streams: bool = field(init=False)

    def __post_init__(self) -> None:
        options = self.endpoint or self.rule.options
        object.__setattr__(self, "streams", options is not None and options.stream)
        terms = self.terms
        plainly = terms.is_shared and terms.isolation is None and not (terms.read_only or terms.deferrable)
        object.__setattr__(self, "begins_plainly", plainly and not self.reads_only)


MAX_LANES: Final = 4096
"""Lanes that one policy caches: an application has some hundred endpoints, and may create some dynamically."""


def add_lane(policy: SessionPolicy, rule: RouteRule, method: str, endpoint: object) -> Lane:
    """Create and cache the lane of a rule, a method and an endpoint.

    Args:
        policy: The configuration's defaults; holds the cache.
        rule: The first rule of `routes` that matches the request.
        method: The request's method.
        endpoint: The matched endpoint, which may be annotated; None if it is unknown.
    """
    if len(policy.lanes) >= MAX_LANES:
        policy.lanes.clear()
    options = None if endpoint is None else options_of(endpoint, method)
    lane = policy.lanes[rule, method, endpoint] = make_lane(policy, rule, method, options)
    return lane


def make_lane(policy: SessionPolicy, rule: RouteRule, method: str, endpoint: TransactionOptions | None) -> Lane:
    """Combine the endpoint's annotation, the rule and the method, in that order of precedence."""
    route = endpoint or rule.options
    intent = _intent_of_route(endpoint, rule, method)
    layers = (layer.retry for layer in (endpoint, rule.options) if layer is not None)
    return Lane(
        intent=intent,
        reads_only=route is not None and route.read_only,
        freshness=rule.freshness,
        terms=_terms_of_route(policy, rule, endpoint, route),
        is_demanded=endpoint is not None or rule.is_transactional or intent is AccessIntent.WRITE,
        timeout_s=timeout_of(policy, rule, endpoint),
        endpoint=endpoint,
        rule=rule,
        retries=next((retry for retry in layers if retry is not None), policy.retry),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a statement without explicit ones.

    Attributes:
        intent: Read or write.
        reads_only: Writes are refused.
        freshness: Required freshness of reads.
        terms: The terms of the request's transaction.
        is_demanded: An annotation, a rule or a writing method asks for the transaction.
        deadline: Event-loop time of the deadline; None without a limit.
    """

    intent: AccessIntent
    reads_only: bool
    freshness: Freshness
    terms: Terms
    is_demanded: bool
    deadline: float | None


def make_plan(lane: Lane, frame: Frame | None, started: float | None) -> Plan:
    """Combine the options of the request with those of the innermost annotated function or block.

    Args:
        lane: The options of the request.
        frame: The innermost annotated function or block; None outside of any.
        started: Event-loop time at which the request began; None outside requests.
    """
    deadline = None if started is None or lane.timeout_s is None else started + lane.timeout_s
    if frame is None:
        return Plan(lane.intent, lane.reads_only, lane.freshness, lane.terms, lane.is_demanded, deadline)
    if frame.deadline is not None:
        deadline = frame.deadline if deadline is None else min(deadline, frame.deadline)
    return Plan(
        intent=lane.intent if frame.intent is None else frame.intent,
        reads_only=frame.reads_only,
        freshness=lane.freshness,
        terms=lane.terms,
        is_demanded=frame.is_transactional or lane.is_demanded,
        deadline=deadline,
    )


def opening(terms: Terms, freshness: Freshness) -> tuple[AccessIntent, Freshness]:
    """The intent and freshness by which the server of a transaction is chosen.

    Args:
        terms: The terms of the transaction.
        freshness: Required freshness of the request's reads.
    """
    intent = AccessIntent.READ if terms.read_only else AccessIntent.WRITE
    # A standby has no serializable transactions (PostgreSQL manual, "Hot Standby").
    return intent, _STRONG if terms.isolation is Isolation.SERIALIZABLE else freshness


_STRONG: Final = Freshness(Consistency.STRONG)


def timeout_of(policy: SessionPolicy, rule: RouteRule, endpoint: TransactionOptions | None) -> float | None:
    """The timeout of a request, in seconds: its annotation's, else its rule's, else the default."""
    if endpoint is not None and endpoint.timeout_s is not None:
        return endpoint.timeout_s
    if rule.options is not None and rule.options.timeout_s is not None:
        return rule.options.timeout_s
    return policy.deadline_s


def _intent_of_route(endpoint: TransactionOptions | None, rule: RouteRule, method: str) -> AccessIntent:
    if endpoint is not None and endpoint.read_only:
        return AccessIntent.READ
    if endpoint is not None and endpoint.propagation not in BARE:
        return AccessIntent.WRITE
    if rule.intent is not None:
        return rule.intent
    if rule.options is not None and rule.options.read_only:
        return AccessIntent.READ
    return intent_of_method(method)


def _terms_of_route(
    policy: SessionPolicy, rule: RouteRule, endpoint: TransactionOptions | None, route: TransactionOptions | None
) -> Terms:
    is_shared = policy.commit_scope is CommitScope.SESSION or (
        policy.commit_scope is CommitScope.ANNOTATED and (endpoint is not None or rule.is_transactional)
    )
    if route is None:
        return _SHARED if is_shared else _BY_STATEMENT
    layers = [layer for layer in (endpoint, rule.options) if layer is not None]
    return Terms(
        is_shared=is_shared and route.propagation not in BARE,
        read_only=route.read_only,
        isolation=next((layer.isolation for layer in layers if layer.isolation is not None), None),
        deferrable=route.deferrable,
    )


_SHARED: Final = Terms(is_shared=True)
_BY_STATEMENT: Final = Terms(is_shared=False)
