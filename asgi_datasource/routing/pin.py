"""The read-after-write pin of one request."""

from __future__ import annotations

import time


class ReadAfterWritePin:
    """A flag of one request: the first write sets it, and all later reads of the request go to the primary.

    It lives on the request's session object, so a write in a child task pins the whole request. It is never cleared: a
    commit in the middle of the request does not make a replica any fresher.
    """

    __slots__ = ("lsn", "pinned_at")

    def __init__(self) -> None:
        self.pinned_at: float | None = None
        """Event-loop time of the first write; None before it."""
        self.lsn: str | None = None
        """LSN of the request's last commit that wrote, as PostgreSQL prints it (`0/3000148`)."""

    @property
    def is_set(self) -> bool:
        """Whether the request has written."""
        return self.pinned_at is not None

    @property
    def age_ms(self) -> float | None:
        """Milliseconds since the first write, or None."""
        return None if self.pinned_at is None else (time.monotonic() - self.pinned_at) * 1000

    def set(self) -> None:
        """Set the flag."""
        if self.pinned_at is None:
            self.pinned_at = time.monotonic()

    def __repr__(self) -> str:
        return f"ReadAfterWritePin(is_set={self.is_set}, lsn={self.lsn!r})"
