"""The transaction: its options, its states, its end."""

from . import commands
from .annotation import AnnotatedRunner, Frame, current_frame, current_runner, options_of, transactional
from .hooks import Hook, Hooks, WaitingHooks
from .options import Isolation, OutcomeEntry, OutcomeRule, TransactionOptions, parse_isolation
from .state import MOVES, IllegalMove, TxState, check_move
from .unit import LOAN, Transaction, refuse_transaction_command, unexpected_rollback

__all__ = [
    "LOAN",
    "MOVES",
    "AnnotatedRunner",
    "Frame",
    "Hook",
    "Hooks",
    "IllegalMove",
    "Isolation",
    "OutcomeEntry",
    "OutcomeRule",
    "Transaction",
    "TransactionOptions",
    "TxState",
    "WaitingHooks",
    "check_move",
    "commands",
    "current_frame",
    "current_runner",
    "options_of",
    "parse_isolation",
    "refuse_transaction_command",
    "transactional",
    "unexpected_rollback",
]
