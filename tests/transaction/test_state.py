"""The transition table of transaction states, for each pair."""

from __future__ import annotations

import itertools

import pytest

from asgi_datasource.transaction import MOVES, IllegalMove, TxState, check_move

S = TxState
LEGAL = {
    (S.UNUSED, S.ACTIVE),
    (S.UNUSED, S.ROLLED_BACK),
    (S.ACTIVE, S.DOOMED),
    (S.ACTIVE, S.COMMITTING),
    (S.ACTIVE, S.ROLLED_BACK),
    (S.DOOMED, S.ROLLED_BACK),
    (S.COMMITTING, S.COMMITTED),
    (S.COMMITTING, S.ROLLED_BACK),
    (S.COMMITTING, S.IN_DOUBT),
    (S.IN_DOUBT, S.COMMITTED),
    (S.IN_DOUBT, S.ROLLED_BACK),
}


@pytest.mark.parametrize(("current", "following"), list(itertools.product(TxState, TxState)))
def test_each_transition_is_allowed_or_refused(current: TxState, following: TxState) -> None:
    if (current, following) in LEGAL:
        assert check_move(current, following) is following
    else:
        with pytest.raises(IllegalMove, match=f"from {current.value} to {following.value}"):
            check_move(current, following)


def test_every_state_has_a_row() -> None:
    assert set(MOVES) == set(TxState)
