"""The breaker's transition table, for each state and event, and its pauses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_datasource.routing import CircuitBreaker, Event, Health, Pauses

C, O, H = Health.CLOSED, Health.OPEN, Health.HALF_OPEN  # noqa: E741
TABLE = {
    (C, Event.CONNECTED): C,
    (C, Event.FAILED): O,
    (C, Event.TRIAL): C,
    (O, Event.CONNECTED): C,
    (O, Event.FAILED): O,
    (O, Event.TRIAL): H,
    (H, Event.CONNECTED): C,
    (H, Event.FAILED): O,
    (H, Event.TRIAL): H,
}


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_every_event_in_every_state(state: Health, event: Event) -> None:
    breaker = CircuitBreaker()
    breaker.health = state
    assert breaker.apply(event, now=1.0) is (TABLE[state, event] is not state)
    assert breaker.health is TABLE[state, event]
    assert breaker.is_closed is (breaker.health is C)


def test_every_pair_has_a_row() -> None:
    assert TABLE.keys() == {(state, event) for state in Health for event in Event}


def test_the_breaker_knows_when_it_closed_and_counts_failures_until_then() -> None:
    breaker = CircuitBreaker()
    breaker.apply(Event.CONNECTED, now=1.0)
    assert breaker.closed_at is None
    for now in (2.0, 3.0):
        breaker.apply(Event.FAILED, now=now)
        breaker.apply(Event.TRIAL, now=now)
    assert breaker.failures == 2
    breaker.apply(Event.CONNECTED, now=4.0)
    assert (breaker.closed_at, breaker.failures) == (4.0, 0)
    breaker.apply(Event.CONNECTED, now=5.0)
    assert breaker.closed_at == 4.0


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_pauses_double_up_to_a_bound_with_jitter(failures: int, dice: float) -> None:
    pauses = Pauses(first_s=0.2, last_s=2.0)
    assert 0.1 <= pauses.pause_s(failures, dice) <= 2.0
    assert pauses.pause_s(1, 1.0) == 0.2
    assert pauses.pause_s(3, 1.0) == 0.8
    assert pauses.pause_s(60, 0.0) == 1.0
    assert pauses.pause_s(failures, 1.0) > pauses.pause_s(failures, 0.0)
