"""What becomes of a transaction where one is asked for: a decision without I/O.

Source: Spring Framework reference, "Transaction Propagation"; the names are Spring's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Propagation(StrEnum):
    """How an annotated function, or a block, relates to the transaction around it."""

    REQUIRED = "required"
    """The one around it; where there is none, one of its own."""
    REQUIRES_NEW = "requires_new"
    """One of its own, always; the one around it waits, and keeps its connection: this takes a second one."""
    NESTED = "nested"
    """A savepoint in the one around it; where there is none, one of its own."""
    MANDATORY = "mandatory"
    """The one around it; where there is none, an error."""
    SUPPORTS = "supports"
    """The one around it; where there is none, each statement by itself."""
    NOT_SUPPORTED = "not_supported"
    """Each statement by itself; the one around it waits, and keeps its connection."""
    NEVER = "never"
    """Each statement by itself; where there is one around it, an error."""


BARE: Final = frozenset({Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER})
"""Those that ask for no transaction where there is none."""


class SurroundingTransaction(StrEnum):
    """What surrounds the place where it is asked for."""

    NOTHING = "nothing"
    """Each statement commits by itself."""
    OFFERED = "offered"
    """Nothing asks for a transaction, but the first write opens the request's: a GET without annotation."""
    PENDING = "pending"
    """A transaction that its first write opens."""
    OPEN = "open"
    """A transaction that is open, or that its first statement opens, whatever that is."""
    READ_ONLY = "read_only"
    """A READ ONLY transaction."""


class PropagationAction(StrEnum):
    """What to do."""

    JOIN = "join"
    """Use the transaction around it, which ends where it ends."""
    SAVEPOINT = "savepoint"
    """A part of the transaction around it that can be undone alone."""
    OWN = "own"
    """A transaction of its own, ended here; what is around it waits."""
    AS_IS = "as_is"
    """Nothing changes: each statement commits by itself."""
    ALONE = "alone"
    """Each statement commits by itself, beside the transaction around it, which waits."""
    REFUSE = "refuse"
    """An error."""


_J, _S, _O, _I, _A, _X = (
    PropagationAction.JOIN,
    PropagationAction.SAVEPOINT,
    PropagationAction.OWN,
    PropagationAction.AS_IS,
    PropagationAction.ALONE,
    PropagationAction.REFUSE,
)

TABLE: Final[
    dict[
        Propagation,
        tuple[PropagationAction, PropagationAction, PropagationAction, PropagationAction, PropagationAction],
    ]
] = {
    #                          nothing, offered, pending, open, read_only
    Propagation.REQUIRED: (_O, _J, _J, _J, _J),
    Propagation.REQUIRES_NEW: (_O, _O, _O, _O, _O),
    Propagation.NESTED: (_O, _S, _S, _S, _S),
    Propagation.MANDATORY: (_X, _X, _J, _J, _J),
    Propagation.SUPPORTS: (_I, _I, _J, _J, _J),
    Propagation.NOT_SUPPORTED: (_I, _A, _A, _A, _A),
    Propagation.NEVER: (_I, _A, _X, _X, _X),
}
"""The step for each propagation; a row's columns are in the order of `SurroundingTransaction`."""

_COLUMNS: Final = tuple(SurroundingTransaction)


def decide(propagation: Propagation, around: SurroundingTransaction, *, read_only: bool = False) -> PropagationAction:
    """What to do where a transaction is asked for.

    Args:
        propagation: How it is asked for.
        around: What surrounds the place.
        read_only: Nothing in it may write. Where the transaction around it is not open yet, its reads are a snapshot of
            their own, so that they hold a replica for as long as they last, and the primary not at all.
    """
    step = TABLE[propagation][_COLUMNS.index(around)]
    if (
        read_only
        and around in (SurroundingTransaction.OFFERED, SurroundingTransaction.PENDING)
        and step in (PropagationAction.JOIN, PropagationAction.SAVEPOINT)
    ):
        return PropagationAction.OWN
    return step
