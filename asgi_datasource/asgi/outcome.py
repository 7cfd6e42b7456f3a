"""What a response, or an exception, does to the request's transaction: decisions without I/O, in one place.

Read from top to bottom, the first line that applies decides:

    set_rollback_only() was called                                     roll back
    an exception has left the application, and the route names it      as `commit_on` or `rollback_on` say
    an exception has left the application                              roll back
    an exception has left the route, and the route names it            as `commit_on` or `rollback_on` say
    the response has a status that the route names                     as `commit_on` or `rollback_on` say
    ... that the rule of `routes` names                                as it says
    ... that `transactions.rollback_on` names (4xx and 5xx)            roll back
    otherwise                                                          commit
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from starlette.exceptions import HTTPException

from ..sessions.policy import Lane
from ..transaction import OutcomeRule, TransactionOptions


class Outcome(StrEnum):
    """What happens to the transaction."""

    COMMIT = "commit"
    ROLLBACK = "rollback"


def decide(
    lane: Lane,
    rollback_on: OutcomeRule,
    *,
    status: int | None = None,
    error: BaseException | None = None,
    route_verdict: bool | None = None,
    is_rollback_only: bool = False,
) -> Outcome:
    """What the end of the application's call does to the transaction.

    Args:
        lane: What holds for the request: the annotation of its route, and the rule that it matches.
        rollback_on: The statuses that roll back where neither says otherwise.
        status: Of the response that starts; None where an exception has left the application.
        error: The exception that has left the application.
        route_verdict: What the route's annotation says of an exception that has left the route; None where it names
            none. A handler of the application may have turned that exception into the response.
        is_rollback_only: `set_rollback_only` was called.
    """
    if is_rollback_only:
        return Outcome.ROLLBACK
    if error is not None:
        commits = None if lane.endpoint is None else lane.endpoint.decides(error)
        return Outcome.COMMIT if commits else Outcome.ROLLBACK
    if route_verdict is not None:
        return Outcome.COMMIT if route_verdict else Outcome.ROLLBACK
    return _of_status(status or 500, lane.endpoint, lane.rule.options, rollback_on)


def _of_status(
    status: int, endpoint: TransactionOptions | None, rule: TransactionOptions | None, rollback_on: OutcomeRule
) -> Outcome:
    for options in (endpoint, rule):
        commits = None if options is None else options.commits(status)
        if commits is not None:
            return Outcome.COMMIT if commits else Outcome.ROLLBACK
    return Outcome.ROLLBACK if status in rollback_on.statuses else Outcome.COMMIT


def tolerates(error: BaseException, options: TransactionOptions, lane: Lane, rollback_on: OutcomeRule) -> bool:
    """Whether an exception is only a way to respond, with a status that commits: a redirect.

    Args:
        error: It leaves a function that has joined the transaction.
        options: That function's annotation.
        lane: What holds for the request.
        rollback_on: The statuses that roll back where nothing says otherwise.
    """
    if not isinstance(error, HTTPException):
        return False
    return _of_status(error.status_code, options, lane.rule.options, rollback_on) is Outcome.COMMIT


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known of a request that has lost against another one, and might run again.

    Attributes:
        number: How often it has run.
        retries: How often it may run again.
        has_committed: A part of it has been committed already.
        is_body_too_large: Its body is longer than what is kept of it.
        is_client_gone: There is nobody left to answer.
        is_late: Its deadline would pass before it could run.
    """

    number: int
    retries: int
    has_committed: bool = False
    is_body_too_large: bool = False
    is_client_gone: bool = False
    is_late: bool = False

    @property
    def is_exhausted(self) -> bool:
        """Whether it has run as often as it may."""
        return self.number > self.retries

    @property
    def obstacle(self) -> str | None:
        """Why it cannot run again although it may; None where it can."""
        if self.has_committed:
            return "a part of it has been committed already"
        if self.is_body_too_large:
            return "its body is longer than transactions.retry_body_limit"
        if self.is_client_gone:
            return "its client has left"
        return "its deadline is too near" if self.is_late else None
