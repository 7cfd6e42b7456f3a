"""The decision table of propagation, pair by pair, against Spring's manual ("Transaction Propagation")."""

from __future__ import annotations

import pytest

from asgi_datasource.transaction import BARE, Propagation, PropagationAction, SurroundingTransaction, decide
from asgi_datasource.transaction.propagation import TABLE

NOTHING, OFFERED, PENDING, OPEN, READ_ONLY = SurroundingTransaction
INSIDE = (PENDING, OPEN, READ_ONLY)

SPRING = {
    # propagation: (without a transaction, inside of one)
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
        # The request's transaction is there to be used, and it is one.
        (Propagation.REQUIRED, PropagationAction.JOIN),
        (Propagation.NESTED, PropagationAction.SAVEPOINT),
        (Propagation.REQUIRES_NEW, PropagationAction.OWN),
        # Nothing has asked for it, so nobody may rely on it, and nobody may be made to use it.
        (Propagation.MANDATORY, PropagationAction.REFUSE),
        (Propagation.SUPPORTS, PropagationAction.AS_IS),
        # Without a unit of work of its own, a write would open it.
        (Propagation.NOT_SUPPORTED, PropagationAction.ALONE),
        (Propagation.NEVER, PropagationAction.ALONE),
    ],
)
def test_a_transaction_that_is_only_offered(propagation: Propagation, step: PropagationAction) -> None:
    assert decide(propagation, OFFERED) is step


@pytest.mark.parametrize("propagation", Propagation)
@pytest.mark.parametrize("around", SurroundingTransaction)
def test_reads_are_a_snapshot_of_their_own_where_nothing_is_open_yet(
    propagation: Propagation, around: SurroundingTransaction
) -> None:
    step, reading = decide(propagation, around), decide(propagation, around, read_only=True)
    if around in (OFFERED, PENDING) and step in (PropagationAction.JOIN, PropagationAction.SAVEPOINT):
        assert reading is PropagationAction.OWN
    else:
        assert reading is step


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(Propagation)
    assert all(len(row) == len(SurroundingTransaction) for row in TABLE.values())
    # Every step is taken somewhere, and what asks for no transaction opens none.
    assert {step for row in TABLE.values() for step in row} == set(PropagationAction)
    assert not any(PropagationAction.OWN in TABLE[propagation] for propagation in BARE)
