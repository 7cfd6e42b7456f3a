"""Access intent of a statement: read or write."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class AccessIntent(StrEnum):
    """Whether the caller reads or writes. Declared by route, annotation or call, never guessed from the SQL text."""

    READ = "read"
    """May run on a replica; is enforced READ ONLY on every server."""
    WRITE = "write"
    """Runs on the primary, inside a transaction that is committed or rolled back as a whole."""


SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""The safe methods of RFC 9110, section 9.2.1: their statements have read intent by default."""


def intent_of_method(method: str) -> AccessIntent:
    """The default intent of a request's statements, where no call, annotation or rule sets one."""
    return AccessIntent.READ if method in SAFE_METHODS else AccessIntent.WRITE
