"""Transaction propagation: what to do where a transaction is requested, as a pure function.

Source: Spring Framework reference, "Transaction Propagation"; the names are Spring's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Propagation(StrEnum):
    """How an annotated function, or a block, relates to the surrounding transaction."""

    REQUIRED = "required"
    """Join the surrounding transaction; without one, open one."""
    REQUIRES_NEW = "requires_new"
    """Always open one; the surrounding transaction is suspended and keeps its connection: this takes a second one."""
    NESTED = "nested"
    """A savepoint in the surrounding transaction; without one, open one."""
    MANDATORY = "mandatory"
    """Join the surrounding transaction; without one, raise an error."""
    SUPPORTS = "supports"
    """Join the surrounding transaction; without one, autocommit."""
    NOT_SUPPORTED = "not_supported"
    """Autocommit; the surrounding transaction is suspended and keeps its connection."""
    NEVER = "never"
    """Autocommit; inside a transaction, raise an error."""


BARE: Final = frozenset({Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER})
"""Propagations that open no transaction where there is none."""


class SurroundingTransaction(StrEnum):
    """State of the surrounding transaction."""

    NOTHING = "nothing"
    """None: autocommit."""
    OFFERED = "offered"
    """The first write opens the request's transaction, without an annotation that requests one: a plain GET."""
    PENDING = "pending"
    """A transaction that its first write opens."""
    OPEN = "open"
    """A transaction that is open, or that its first statement of any kind opens."""
    READ_ONLY = "read_only"
    """A READ ONLY transaction."""


class PropagationAction(StrEnum):
    """What to do where a transaction is requested."""

    JOIN = "join"
    """Use the surrounding transaction, which ends where its owner ends."""
    SAVEPOINT = "savepoint"
    """Set a savepoint in the surrounding transaction, so that this part can be undone alone."""
    OWN = "own"
    """Open a transaction that ends here; a surrounding one is suspended."""
    AS_IS = "as_is"
    """Change nothing: autocommit."""
    ALONE = "alone"
    """Autocommit beside the surrounding transaction, which is suspended."""
    REFUSE = "refuse"
    """Raise an error."""


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
"""The action for each propagation; the columns are in the order of `SurroundingTransaction`."""

_COLUMNS: Final = tuple(SurroundingTransaction)


def decide(propagation: Propagation, around: SurroundingTransaction, *, read_only: bool = False) -> PropagationAction:
    """The action where a transaction is requested.

    Args:
        propagation: The requested propagation.
        around: State of the surrounding transaction.
        read_only: READ ONLY was requested. If the surrounding transaction is not open yet, the reads get a snapshot of
            their own, so that they occupy a replica instead of the primary.
    """
    step = TABLE[propagation][_COLUMNS.index(around)]
    if (
        read_only
        and around in (SurroundingTransaction.OFFERED, SurroundingTransaction.PENDING)
        and step in (PropagationAction.JOIN, PropagationAction.SAVEPOINT)
    ):
        return PropagationAction.OWN
    return step
