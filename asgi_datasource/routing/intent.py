"""What a statement wants: to read or to write."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class AccessIntent(StrEnum):
    """Does the caller read or mutate? Declared by route, annotation or call, never guessed from the SQL text."""

    READ = "read"
    """May be served by a replica; is enforced READ ONLY wherever it lands."""
    WRITE = "write"
    """Runs on the primary, inside a transaction that is committed or rolled back as a whole."""


SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""The safe methods of RFC 9110, section 9.2.1: their statements have read intent unless told otherwise."""


def intent_of_method(method: str) -> AccessIntent:
    """The intent of a request's statements where neither the call, an annotation nor a rule says otherwise."""
    return AccessIntent.READ if method in SAFE_METHODS else AccessIntent.WRITE
