"""The life of one transaction: its states and the moves between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TxState(StrEnum):
    """Where a transaction stands."""

    UNUSED = "unused"
    """No connection taken yet."""
    ACTIVE = "active"
    DOOMED = "doomed"
    """Only rollback is left."""
    COMMITTING = "committing"
    """COMMIT sent, no answer yet."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    IN_DOUBT = "in_doubt"
    """Connection lost while COMMITTING; being found out, or never to be known."""


MOVES: Final[dict[TxState, frozenset[TxState]]] = {
    TxState.UNUSED: frozenset({TxState.ACTIVE, TxState.ROLLED_BACK}),
    TxState.ACTIVE: frozenset({TxState.DOOMED, TxState.COMMITTING, TxState.ROLLED_BACK}),
    TxState.DOOMED: frozenset({TxState.ROLLED_BACK}),
    TxState.COMMITTING: frozenset({TxState.COMMITTED, TxState.ROLLED_BACK, TxState.IN_DOUBT}),
    TxState.IN_DOUBT: frozenset({TxState.COMMITTED, TxState.ROLLED_BACK}),
    TxState.COMMITTED: frozenset(),
    TxState.ROLLED_BACK: frozenset(),
}
"""Every move that there is; anything else is a defect of ours."""


class IllegalMove(RuntimeError):
    """Raised when a transaction is asked for a move that its state does not have: a defect of this library."""


def check_move(current: TxState, following: TxState) -> TxState:
    """Return `following` where the table has that move.

    Raises:
        IllegalMove: It has not.
    """
    if following not in MOVES[current]:
        raise IllegalMove(f"a transaction cannot go from {current.value} to {following.value}")
    return following
