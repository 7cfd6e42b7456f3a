"""Transactions: options, propagation, states, hooks, retry and commit outcome."""

from . import control_statements
from .deferred_writes import DeferredWriter, DeferredWrites
from .hooks import DueHooks, Hook, HookEvent, WaitingHooks, call_hook, name_of_hook
from .options import (
    MAX_RETRIES,
    ONE_SNAPSHOT,
    Isolation,
    OutcomeEntry,
    OutcomeRule,
    Terms,
    TransactionOptions,
    parse_isolation,
    parse_propagation,
)
from .propagation import BARE, Propagation, PropagationAction, SurroundingTransaction, decide
from .retry import backoff_s, is_conflict
from .state import MOVES, IllegalMove, TxState, check_move
from .transaction import RAW_SAVEPOINT, Transaction, isolation_refused, refuse_transaction_command, unexpected_rollback

__all__ = [
    "BARE",
    "MAX_RETRIES",
    "MOVES",
    "ONE_SNAPSHOT",
    "RAW_SAVEPOINT",
    "DeferredWriter",
    "DeferredWrites",
    "DueHooks",
    "Hook",
    "HookEvent",
    "IllegalMove",
    "Isolation",
    "OutcomeEntry",
    "OutcomeRule",
    "Propagation",
    "PropagationAction",
    "SurroundingTransaction",
    "Terms",
    "Transaction",
    "TransactionOptions",
    "TxState",
    "WaitingHooks",
    "backoff_s",
    "call_hook",
    "check_move",
    "control_statements",
    "decide",
    "is_conflict",
    "isolation_refused",
    "name_of_hook",
    "parse_isolation",
    "parse_propagation",
    "refuse_transaction_command",
    "unexpected_rollback",
]
