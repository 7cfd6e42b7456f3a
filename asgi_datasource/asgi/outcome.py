"""Whether a response or an exception commits the request's transaction; pure functions.

The first line that applies decides:

    set_rollback_only() was called                                     roll back
    an exception has left the application, and the annotation names it by its `commit_on` or `rollback_on`
    an exception has left the application                              roll back
    an exception has left the route, and the annotation names it       by its `commit_on` or `rollback_on`
    the response has a status that the annotation names                by its `commit_on` or `rollback_on`
    ... that the rule of `routes` names                                by its `commit_on` or `rollback_on`
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
    """How the transaction ends."""

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
    """How the request's transaction ends.

    Args:
        lane: The options of the request: its route's annotation, and the matching rule.
        rollback_on: The statuses that roll back, unless the annotation or the rule overrides them.
        status: The status of the response that starts; None if an exception has left the application.
        error: The exception that has left the application.
        route_verdict: Whether the annotation commits on the exception that has left the route; None if it does not name
            it. An exception handler of the application may have turned that exception into the response.
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
    """Whether an exception becomes a response whose status commits, such as a redirect.

    Args:
        error: The exception; it leaves a function that has joined the transaction.
        options: That function's annotation.
        lane: The options of the request.
        rollback_on: The statuses that roll back, unless the annotation or the rule overrides them.
    """
    if not isinstance(error, HTTPException):
        return False
    return _of_status(error.status_code, options, lane.rule.options, rollback_on) is Outcome.COMMIT


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of a request that failed with a conflict (40001, 40P01), and may be retried.

    Attributes:
        number: The number of the attempt, from 1.
        retries: The most retries.
        has_committed: A part of it has been committed already.
        is_body_too_large: Its body is longer than `retry_body_limit`.
        is_client_gone: The client has disconnected.
        is_late: The deadline would pass before the retry could start.
    """

    number: int
    retries: int
    has_committed: bool = False
    is_body_too_large: bool = False
    is_client_gone: bool = False
    is_late: bool = False

    @property
    def is_exhausted(self) -> bool:
        """Whether all retries are used."""
        return self.number > self.retries

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be retried although retries are left; None if it can."""
        if self.has_committed:
            return "a part of it has been committed already"
        if self.is_body_too_large:
            return "its body is longer than transactions.retry_body_limit"
        if self.is_client_gone:
            return "its client has left"
        return "its deadline is too near" if self.is_late else None
