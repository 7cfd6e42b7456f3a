"""What holds for a statement: the annotations, rules and methods in force, folded into one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..concurrency.limits import ConcurrencyLimit
from ..concurrency.priority_queue import Priority
from ..observability.metrics import Metrics
from ..routing import ANY_FRESHNESS, AccessIntent, Consistency, Freshness, intent_of_method
from ..routing.consistency.client_history import TokenPolicy
from ..transaction import BARE, Isolation, OutcomeRule, Terms, TransactionOptions
from .context import Frame
from .options import options_of


class CommitScope(StrEnum):
    """What ends a write that no annotation and no block surrounds."""

    SESSION = "session"
    """The end of the session: one transaction for all of it, committed when the response starts."""
    ANNOTATED = "annotated"
    """The end of the session where the route is annotated; everywhere else each statement commits by itself."""
    STATEMENT = "statement"
    """Each statement commits by itself: a websocket's session would hold its transaction for hours."""


@dataclass(frozen=True, slots=True, eq=False)
class RouteRule:
    """What a rule of the configuration says about the statements of a request; a route's annotation goes before it.

    Attributes:
        options: The transaction's options; None where the rule names none.
        is_transactional: It asks for a transaction, or for none, as an annotation does.
        intent: The intent of statements that say nothing themselves; None leaves it to the method.
        freshness: How fresh reads have to be.
        priority: Who goes first when connections are scarce.
        concurrency_limit: How many of these requests may be under way; None sets no bound.
    """

    options: TransactionOptions | None = None
    is_transactional: bool = False
    intent: AccessIntent | None = None
    freshness: Freshness = ANY_FRESHNESS
    priority: Priority = Priority.NORMAL
    concurrency_limit: ConcurrencyLimit | None = None


NO_RULE: Final = RouteRule()


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """What the configuration says about every session.

    Attributes:
        commit_scope: What ends a write that nothing surrounds.
        deadline_s: Seconds from a request's start to the end of its COMMIT; None is no limit.
        rollback_on: The statuses that roll back where neither annotation nor rule says otherwise.
        commit_timeout_s: Seconds that COMMIT may take where there is no deadline.
        doubt_timeout_s: Seconds for finding out what became of a COMMIT whose connection was lost.
        is_traced: Whether there are spans.
        traces_statements: Whether statements have spans of their own.
        shows_tenant: Whether the tenant's name stands on them.
        metrics: What is measured; None where nothing is.
        retry: How often a request that has lost against another one is run again.
        retry_body_limit: Bytes of a request's body that are kept for that.
        max_parallel: Reads of one request that may run side by side.
        allows_multiple_writers: Whether two sessions of one request may both write.
        tokens: Read your writes across requests; None where clients carry nothing.
        lanes: What holds for each kind of request, as far as it has occurred.
    """

    commit_scope: CommitScope = CommitScope.SESSION
    deadline_s: float | None = 30.0
    rollback_on: OutcomeRule = OutcomeRule(frozenset(range(400, 600)))
    commit_timeout_s: float = 30.0
    doubt_timeout_s: float = 5.0
    is_traced: bool = True
    traces_statements: bool = True
    shows_tenant: bool = False
    metrics: Metrics | None = None
    retry: int = 0
    retry_body_limit: int = 1 << 20
    max_parallel: int = 1
    allows_multiple_writers: bool = False
    tokens: TokenPolicy | None = None
    lanes: dict[tuple[RouteRule, str, object], Lane] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lanes", {})


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """What holds for the statements of a request that say nothing themselves.

    One is made for each combination of rule, method and endpoint that occurs, and kept: requests only look it up.

    Attributes:
        intent: Read or write.
        reads_only: Nothing may write.
        freshness: How fresh reads have to be.
        terms: What the transaction of the request is.
        is_demanded: The transaction was asked for: by an annotation, a rule, or a method that writes.
        timeout_s: Seconds that a request has from its start; None sets no limit.
        endpoint: The annotation of the matched endpoint.
        rule: The first rule of `routes` that matches the request.
        retries: How often the request is run again when it has lost against another one.
        outcomes: By status, what a response of that status does, as far as it was asked for.
        begins_plainly: The first write opens the request's transaction, with nothing but BEGIN.
        streams: A response may start while the snapshot of its route is still open.
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
"""Lanes that one policy keeps: an application has some hundred endpoints, and may make some on the fly."""


def add_lane(policy: SessionPolicy, rule: RouteRule, method: str, endpoint: object) -> Lane:
    """The lane of a kind of request that has not occurred before.

    Args:
        policy: The configuration's defaults; keeps the lane.
        rule: The first rule of `routes` that matches the request.
        method: The request's method.
        endpoint: The matched endpoint, where one is known; its annotation counts.
    """
    if len(policy.lanes) >= MAX_LANES:
        policy.lanes.clear()
    options = None if endpoint is None else options_of(endpoint, method)
    lane = policy.lanes[rule, method, endpoint] = make_lane(policy, rule, method, options)
    return lane


def make_lane(policy: SessionPolicy, rule: RouteRule, method: str, endpoint: TransactionOptions | None) -> Lane:
    """Fold what is in force: the endpoint's annotation, the rule, the method."""
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
    """What holds for a statement that says nothing itself.

    Attributes:
        intent: Read or write.
        reads_only: Nothing may write.
        freshness: How fresh reads have to be.
        terms: What the transaction of the request is.
        is_demanded: The transaction was asked for: by an annotation, a rule, or a method that writes.
        deadline: Event-loop time at which the time is up; None where there is no limit.
    """

    intent: AccessIntent
    reads_only: bool
    freshness: Freshness
    terms: Terms
    is_demanded: bool
    deadline: float | None


def make_plan(lane: Lane, frame: Frame | None, started: float | None) -> Plan:
    """Fold the annotated function or block that runs here into what holds for the request.

    Args:
        lane: What holds for the request.
        frame: The annotated function or block that runs here.
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
    """What the first statement of a transaction asks of the servers.

    Args:
        terms: What the transaction is.
        freshness: How fresh the request's reads have to be.
    """
    intent = AccessIntent.READ if terms.read_only else AccessIntent.WRITE
    # A standby has no serializable transactions (PostgreSQL manual, "Hot Standby").
    return intent, _STRONG if terms.isolation is Isolation.SERIALIZABLE else freshness


_STRONG: Final = Freshness(Consistency.STRONG)


def timeout_of(policy: SessionPolicy, rule: RouteRule, endpoint: TransactionOptions | None) -> float | None:
    """Seconds that a request has: its annotation's, its rule's, or the default."""
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
