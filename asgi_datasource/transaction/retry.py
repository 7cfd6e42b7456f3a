"""Retry after conflicts between transactions: when, and after which delay."""

from __future__ import annotations

import random
from typing import Final, TypeGuard

from ..errors import DataError

CONFLICTS: Final = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: the same work in a new transaction may succeed.

Source: PostgreSQL manual, "Serialization Failure Handling".
"""

FIRST_DELAY_S: Final = 0.01
LAST_DELAY_S: Final = 0.5


def is_conflict(error: BaseException | None) -> TypeGuard[DataError]:
    """Whether a transaction has failed because of a conflict with another one."""
    return isinstance(error, DataError) and error.sqlstate in CONFLICTS


def backoff_s(attempt: int) -> float:
    """Delay before the next attempt in seconds: exponential, with jitter so that competitors do not collide again.

    Args:
        attempt: Number of failed attempts.
    """
    ceiling = min(LAST_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - not for security
