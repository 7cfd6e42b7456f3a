"""The transaction: its options, its states, its end."""

from . import commands
from .annotation import Transactional, no_session, options_of, retrying, transactional
from .frames import Frame, SessionRunner, current_frame, current_runner
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
from .propagation import BARE, Around, Propagation, Step, decide
from .retry import backoff_s, is_conflict
from .state import MOVES, IllegalMove, TxState, check_move
from .unit import LOAN, Transaction, isolation_refused, refuse_transaction_command, unexpected_rollback

__all__ = [
    "BARE",
    "LOAN",
    "MAX_RETRIES",
    "MOVES",
    "ONE_SNAPSHOT",
    "Around",
    "DueHooks",
    "Frame",
    "Hook",
    "HookEvent",
    "IllegalMove",
    "Isolation",
    "OutcomeEntry",
    "OutcomeRule",
    "Propagation",
    "SessionRunner",
    "Step",
    "Terms",
    "Transaction",
    "TransactionOptions",
    "Transactional",
    "TxState",
    "WaitingHooks",
    "backoff_s",
    "call_hook",
    "check_move",
    "commands",
    "current_frame",
    "current_runner",
    "decide",
    "is_conflict",
    "isolation_refused",
    "name_of_hook",
    "no_session",
    "options_of",
    "parse_isolation",
    "parse_propagation",
    "refuse_transaction_command",
    "retrying",
    "transactional",
    "unexpected_rollback",
]
