"""The outcome function in every combination, compared with the order in the module's docstring."""

from __future__ import annotations

import itertools

import pytest
from starlette.exceptions import HTTPException

from asgi_datasource.asgi.outcome import Attempt, Outcome, decide, tolerates
from asgi_datasource.sessions.policy import Lane, RouteRule, SessionPolicy, make_lane
from asgi_datasource.transaction import OutcomeRule, TransactionOptions

DEFAULT = OutcomeRule(frozenset(range(400, 600)))
"""The default of `transactions.rollback_on`."""

SAYS = (None, True, False)
"""What a level decides for the status: nothing, commit, roll back."""

STATUSES = (200, 303, 409, 500)


def options(status: int, says: bool | None, *, error: bool | None = None) -> TransactionOptions:
    """Options with this decision for the status, and for a LookupError."""
    on = {True: (frozenset[int](), ()), False: (frozenset[int](), ())}
    for wanted, entry in ((says, (frozenset({status}), ())), (error, (frozenset[int](), (LookupError,)))):
        if wanted is not None:
            statuses, exceptions = on[wanted]
            on[wanted] = (statuses | entry[0], exceptions + entry[1])  # type: ignore[operator]
    return TransactionOptions(commit_on=OutcomeRule(*on[True]), rollback_on=OutcomeRule(*on[False]))


def lane(endpoint: TransactionOptions | None, rule: TransactionOptions | None) -> Lane:
    return make_lane(SessionPolicy(), RouteRule(rule), "POST", endpoint)


def expected(
    status: int, endpoint: bool | None, rule: bool | None, verdict: bool | None, *, rollback_only: bool
) -> Outcome:
    """The first level with a decision wins."""
    says = [False if rollback_only else None, verdict, endpoint, rule, status < 400]
    return Outcome.COMMIT if next(one for one in says if one is not None) else Outcome.ROLLBACK


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("rollback_only", [False, True])
def test_the_first_level_with_a_decision_decides_for_a_response(status: int, rollback_only: bool) -> None:
    for endpoint, rule, verdict in itertools.product(SAYS, SAYS, SAYS):
        found = decide(
            lane(options(status, endpoint), options(status, rule)),
            DEFAULT,
            status=status,
            route_verdict=verdict,
            is_rollback_only=rollback_only,
        )
        assert found is expected(status, endpoint, rule, verdict, rollback_only=rollback_only), (
            endpoint,
            rule,
            verdict,
        )


@pytest.mark.parametrize("status", STATUSES)
def test_missing_levels_decide_nothing(status: int) -> None:
    commits = Outcome.COMMIT if status < 400 else Outcome.ROLLBACK
    assert decide(lane(None, None), DEFAULT, status=status) is commits
    assert decide(lane(None, None), OutcomeRule(frozenset({status})), status=status) is Outcome.ROLLBACK
    assert decide(lane(None, options(status, True)), DEFAULT, status=status) is Outcome.COMMIT


@pytest.mark.parametrize("rollback_only", [False, True])
@pytest.mark.parametrize("verdict", SAYS)
@pytest.mark.parametrize("says", SAYS)
def test_an_unhandled_exception_commits_only_if_its_route_says_so(
    says: bool | None, verdict: bool | None, rollback_only: bool
) -> None:
    for named, error in ((says, KeyError("a LookupError")), (None, ValueError("not named"))):
        for rule in SAYS:
            found = decide(
                lane(options(200, None, error=says), options(200, rule, error=rule)),
                DEFAULT,
                error=error,
                route_verdict=verdict,
                is_rollback_only=rollback_only,
            )
            assert found is (Outcome.COMMIT if named and not rollback_only else Outcome.ROLLBACK)
    assert decide(lane(None, None), DEFAULT, error=ValueError()) is Outcome.ROLLBACK


@pytest.mark.parametrize("status", STATUSES)
def test_an_http_exception_whose_status_commits_is_tolerated(status: int) -> None:
    for function, rule in itertools.product(SAYS, SAYS):
        found = tolerates(HTTPException(status), options(status, function), lane(None, options(status, rule)), DEFAULT)
        says = [function, rule, status < 400]
        assert found is next(one for one in says if one is not None)
    assert not tolerates(ValueError(), options(status, True), lane(None, None), DEFAULT)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_request_is_retried_at_most_as_often_as_configured(number: int, retries: int) -> None:
    assert Attempt(number, retries).is_exhausted is (number > retries)
    assert Attempt(number, retries).obstacle is None


def test_the_first_obstacle_to_a_retry_is_reported() -> None:
    flags = ("has_committed", "is_body_too_large", "is_client_gone", "is_late")
    reasons = {
        "has_committed": "a part of it has been committed already",
        "is_body_too_large": "its body is longer than transactions.retry_body_limit",
        "is_client_gone": "its client has left",
        "is_late": "its deadline is too near",
    }
    for chosen in itertools.product((False, True), repeat=len(flags)):
        present = dict(zip(flags, chosen, strict=True))
        first = next((reasons[flag] for flag in flags if present[flag]), None)
        assert Attempt(1, 1, **present).obstacle == first
