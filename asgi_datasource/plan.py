"""What holds for a statement: the annotations, rules and methods in force, folded into one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .routing import ANY_FRESHNESS, AccessIntent, Freshness, intent_of_method
from .transaction import Frame, Isolation, OutcomeRule, TransactionOptions


class CommitScope(StrEnum):
    """What ends a write that no annotation and no block surrounds."""

    SESSION = "session"
    """The end of the session: one transaction for all of it, committed when the response starts."""
    STATEMENT = "statement"
    """Each statement commits by itself."""


@dataclass(frozen=True, slots=True)
class RouteRule:
    """What a rule of the configuration says about the statements of a request; a route's annotation goes before it.

    Attributes:
        options: The transaction's options; None where the rule names none.
        intent: The intent of statements that say nothing themselves; None leaves it to the method.
        freshness: How fresh reads have to be.
    """

    options: TransactionOptions | None = None
    intent: AccessIntent | None = None
    freshness: Freshness = ANY_FRESHNESS


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
        allows_multiple_writers: Whether two sessions of one request may both write.
    """

    commit_scope: CommitScope = CommitScope.SESSION
    deadline_s: float | None = 30.0
    rollback_on: OutcomeRule = OutcomeRule(frozenset(range(400, 600)))
    commit_timeout_s: float = 30.0
    doubt_timeout_s: float = 5.0
    is_traced: bool = True
    traces_statements: bool = True
    shows_tenant: bool = False
    allows_multiple_writers: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What holds for a statement that says nothing itself.

    Attributes:
        intent: Read or write.
        read_only: All reads share one READ ONLY transaction, and nothing may write.
        isolation: None leaves it to the server.
        freshness: How fresh reads have to be.
        is_managed: Writes share one transaction, which the session's owner ends.
        deadline: Event-loop time at which the time is up; None where there is no limit.
    """

    intent: AccessIntent
    read_only: bool
    isolation: Isolation | None
    freshness: Freshness
    is_managed: bool
    deadline: float | None


def make_plan(
    *,
    policy: SessionPolicy,
    rule: RouteRule,
    endpoint: TransactionOptions | None,
    frame: Frame | None,
    method: str,
    started: float | None,
) -> Plan:
    """Fold what is in force: the running function's annotation, the endpoint's, the rule, the method.

    Args:
        policy: The configuration's defaults.
        rule: The first rule of `routes` that matches the request.
        endpoint: The annotation of the matched endpoint.
        frame: The annotated function or block that runs here.
        method: The request's method.
        started: Event-loop time at which the request began; None outside requests.
    """
    route = endpoint or rule.options
    annotation = frame.options if frame is not None else endpoint
    if annotation is not None:
        intent = AccessIntent.READ if annotation.read_only else AccessIntent.WRITE
    elif rule.intent is not None:
        intent = rule.intent
    elif route is not None and route.read_only:
        intent = AccessIntent.READ
    else:
        intent = intent_of_method(method)
    options = annotation or route
    layers = [layer for layer in (annotation, endpoint, rule.options) if layer is not None]
    limits = [] if frame is None or frame.deadline is None else [frame.deadline]
    if started is not None:
        timeouts = (layer.timeout_s for layer in (endpoint, rule.options) if layer is not None)
        timeout_s = next((timeout for timeout in timeouts if timeout is not None), policy.deadline_s)
        if timeout_s is not None:
            limits.append(started + timeout_s)
    return Plan(
        intent=intent,
        read_only=options is not None and options.read_only,
        isolation=next((layer.isolation for layer in layers if layer.isolation is not None), None),
        freshness=rule.freshness,
        is_managed=policy.commit_scope is CommitScope.SESSION or endpoint is not None,
        deadline=min(limits, default=None),
    )
