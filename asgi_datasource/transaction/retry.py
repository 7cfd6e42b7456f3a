"""When losing against another transaction is worth another attempt, and how long to wait before it."""

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
    """Whether a transaction has failed because it lost against another one."""
    return isinstance(error, DataError) and error.sqlstate in CONFLICTS


def backoff_s(attempt: int) -> float:
    """Seconds to wait before another attempt: doubling, and spread so that the losers do not meet again.

    Args:
        attempt: How many have failed.
    """
    ceiling = min(LAST_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - not for security
