"""States of a transaction, and the transitions between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TxState(StrEnum):
    """State of a transaction."""

    UNUSED = "unused"
    """No connection is borrowed yet."""
    ACTIVE = "active"
    DOOMED = "doomed"
    """Only a rollback is possible."""
    COMMITTING = "committing"
    """COMMIT was sent and not answered yet."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    IN_DOUBT = "in_doubt"
    """The connection was lost in COMMITTING; the outcome is being looked up, or stays unknown."""


MOVES: Final[dict[TxState, frozenset[TxState]]] = {
    TxState.UNUSED: frozenset({TxState.ACTIVE, TxState.ROLLED_BACK}),
    TxState.ACTIVE: frozenset({TxState.DOOMED, TxState.COMMITTING, TxState.ROLLED_BACK}),
    TxState.DOOMED: frozenset({TxState.ROLLED_BACK}),
    TxState.COMMITTING: frozenset({TxState.COMMITTED, TxState.ROLLED_BACK, TxState.IN_DOUBT}),
    TxState.IN_DOUBT: frozenset({TxState.COMMITTED, TxState.ROLLED_BACK}),
    TxState.COMMITTED: frozenset(),
    TxState.ROLLED_BACK: frozenset(),
}
"""All valid transitions; any other one is a defect of this library."""


class IllegalMove(RuntimeError):
    """Raised at an invalid transition: a defect of this library."""


def check_move(current: TxState, following: TxState) -> TxState:
    """Return `following` if the transition is valid.

    Raises:
        IllegalMove: It is invalid.
    """
    if following not in MOVES[current]:
        raise IllegalMove(f"a transaction cannot go from {current.value} to {following.value}")
    return following
