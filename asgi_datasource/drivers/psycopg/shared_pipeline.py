"""Round trips of several requests' reads in one connection's pipeline, each up to a Sync of its own.

The server runs them in order. Each is a READ ONLY transaction of its own, with its tenant's settings and time limit, so
that a failed read ends at its own Sync and does not affect the next one.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import islice
from time import perf_counter
from typing import Protocol

from psycopg import Error, OperationalError
from psycopg.errors import QueryCanceled

from .pipeline import Pipeline

_WITHDRAWN = "the read was withdrawn from behind a slow one, and runs on another connection"


class ReadsHost(Protocol):
    """The connection that the reads are sent on."""

    def note_read_landed(self, read: Pipeline, /) -> None:
        """The answer to a read is complete."""
        ...


class SharedPipeline:
    """The reads in progress on one connection; the first one is running.

    Args:
        host: The connection.
        first: The read that was in progress when the second one joined it.

    Attributes:
        queue: The reads whose answers are not complete, in the order in which they were sent.
    """

    __slots__ = ("_host", "queue")

    def __init__(self, host: ReadsHost, first: Pipeline) -> None:
        self._host = host
        self.queue: deque[Pipeline] = deque((first,))

    def __repr__(self) -> str:
        return f"<SharedPipeline {len(self.queue)} reads>"

    def receive(self) -> bool:
        """Read the answers that have arrived; returns whether no read is left.

        Raises:
            psycopg.Error: The answers are inconsistent; the connection is unusable.
        """
        queue = self.queue
        while queue:
            read = queue[0]
            if not read.receive():
                return False
            queue.popleft()
            if queue:
                queue[0].began_at = perf_counter()
            self._host.note_read_landed(read)
            if read.error is None:
                # Now, with the settings of its own transaction: those behind it may change them.
                read.load()
            _wake(read)
        return True

    def lose(self, cause: BaseException) -> None:
        """The connection is lost: each read fails by itself, after those whose answers arrived before."""
        with suppress(Error):
            self.receive()
        is_first = True
        while self.queue:
            read = self.queue.popleft()
            read.lose(cause, reads_rest=is_first)
            read.load()
            _wake(read)
            is_first = False

    def expire(self, now: float) -> float | None:
        """Wake the callers whose deadline has passed; returns the next deadline.

        Args:
            now: Event-loop time, including the resolution of its timers.
        """
        following: float | None = None
        for read in self.queue:
            deadline = read.deadline
            if deadline is None:
                continue
            if deadline <= now:
                _wake(read)
            elif following is None or deadline < following:
                following = deadline
        return following

    def withdraw_followers(self) -> None:
        """The first read is slow: the callers behind it run theirs on other connections. The answers are dropped."""
        for read in islice(self.queue, 1, None):
            if read.error is None and not read.waiter.done():
                read.is_withdrawn = True
                read.error = OperationalError(_WITHDRAWN)
                _wake(read)


def give_up(read: Pipeline) -> None:
    """The deadline of a read has passed, and others share its connection: its answer is dropped."""
    read.error = QueryCanceled("canceling statement due to its deadline")
    read.timed_out = True


def _wake(read: Pipeline) -> None:
    waiter = read.waiter
    if not waiter.done():
        waiter.set_result(None)
