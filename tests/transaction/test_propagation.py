"""The decision table of propagation, for each pair, compared with Spring's manual ("Transaction Propagation")."""

from __future__ import annotations

import pytest

from asgi_datasource.transaction import BARE, Propagation, PropagationAction, SurroundingTransaction, decide
from asgi_datasource.transaction.propagation import TABLE

NOTHING, OFFERED, PENDING, OPEN, READ_ONLY = SurroundingTransaction
INSIDE = (PENDING, OPEN, READ_ONLY)

SPRING = {
    # propagation: (outside a transaction, inside one)
    Propagation.REQUIRED: (PropagationAction.OWN, PropagationAction.JOIN),
    Propagation.REQUIRES_NEW: (PropagationAction.OWN, PropagationAction.OWN),
    Propagation.NESTED: (PropagationAction.OWN, PropagationAction.SAVEPOINT),
    Propagation.MANDATORY: (PropagationAction.REFUSE, PropagationAction.JOIN),
    Propagation.SUPPORTS: (PropagationAction.AS_IS, PropagationAction.JOIN),
    Propagation.NOT_SUPPORTED: (PropagationAction.AS_IS, PropagationAction.ALONE),
    Propagation.NEVER: (PropagationAction.AS_IS, PropagationAction.REFUSE),
}


@pytest.mark.parametrize("propagation", Propagation)
def test_without_a_transaction_it_does_what_springs_manual_says(propagation: Propagation) -> None:
    assert decide(propagation, NOTHING) is SPRING[propagation][0]


@pytest.mark.parametrize("around", INSIDE)
@pytest.mark.parametrize("propagation", Propagation)
def test_inside_a_transaction_it_does_what_springs_manual_says(
    propagation: Propagation, around: SurroundingTransaction
) -> None:
    assert decide(propagation, around) is SPRING[propagation][1]


@pytest.mark.parametrize(
    ("propagation", "step"),
    [
        # The request's transaction is available, so these use it.
        (Propagation.REQUIRED, PropagationAction.JOIN),
        (Propagation.NESTED, PropagationAction.SAVEPOINT),
        (Propagation.REQUIRES_NEW, PropagationAction.OWN),
        # No code has opened it, so it is not a surrounding transaction for these.
        (Propagation.MANDATORY, PropagationAction.REFUSE),
        (Propagation.SUPPORTS, PropagationAction.AS_IS),
        # Without a separate unit of work, a write would open it.
        (Propagation.NOT_SUPPORTED, PropagationAction.ALONE),
        (Propagation.NEVER, PropagationAction.ALONE),
    ],
)
def test_a_transaction_that_is_offered_but_not_open(propagation: Propagation, step: PropagationAction) -> None:
    assert decide(propagation, OFFERED) is step


@pytest.mark.parametrize("propagation", Propagation)
@pytest.mark.parametrize("around", SurroundingTransaction)
def test_reads_take_their_own_snapshot_if_no_transaction_is_open(
    propagation: Propagation, around: SurroundingTransaction
) -> None:
    step, reading = decide(propagation, around), decide(propagation, around, read_only=True)
    if around in (OFFERED, PENDING) and step in (PropagationAction.JOIN, PropagationAction.SAVEPOINT):
        assert reading is PropagationAction.OWN
    else:
        assert reading is step


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(Propagation)
    assert all(len(row) == len(SurroundingTransaction) for row in TABLE.values())
    # Every action occurs, and propagations without a transaction open none.
    assert {step for row in TABLE.values() for step in row} == set(PropagationAction)
    assert not any(PropagationAction.OWN in TABLE[propagation] for propagation in BARE)
