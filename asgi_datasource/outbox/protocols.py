"""The seams of the outbox: where entries are stored, what publishes them, and what carries them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, overload, runtime_checkable

from .entry import OutboxEntry


class OutcomeKind(StrEnum):
    """What became of one entry."""

    PUBLISHED = "published"
    """The destination has it, and has said so."""
    REFUSED = "refused"
    """The destination does not take this message: its key steps aside, and it is tried again later."""
    UNREACHABLE = "unreachable"
    """The destination is away, or did not answer: nothing is counted against the message."""
    SKIPPED = "skipped"
    """Not tried: an earlier entry of its key was not published, or the lane's lease ends."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry.

    Attributes:
        kind: The outcome.
        reason: Why it was not published; without secrets and without the payload.
        retry_after_s: Seconds that the destination asked to wait.
    """

    kind: OutcomeKind
    reason: str | None = None
    retry_after_s: float | None = None


PUBLISHED: Final = Outcome(OutcomeKind.PUBLISHED)
SKIPPED: Final = Outcome(OutcomeKind.SKIPPED)


class Refused(Exception):
    """Raised by a publisher's function for a message that its destination does not take.

    Args:
        reason: Why; without the payload and without secrets.
        retry_after_s: Seconds that the destination asked to wait.
    """

    def __init__(self, reason: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unreachable(Exception):
    """Raised by a publisher's function when its destination is away: the message is tried again, uncounted.

    Args:
        reason: Why.
        retry_after_s: Seconds that the destination asked to wait.
    """

    def __init__(self, reason: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class SendMeasure(Protocol):
    """Records messages that are sent."""

    def sent(self, system: str, topic: str, took_s: float, failure: str | None) -> None:
        """Record an attempt: the destination, the topic, seconds, and `refused` or `unreachable` if it failed."""
        ...


class Batch(Sequence[OutboxEntry]):
    """Entries of one lane, in order, that may be published as long as the lane's lease lasts.

    Attributes:
        is_traced: Each message that is sent gets a span, where the process records spans.
        measure: Records each message that is sent; None where metrics are disabled.
    """

    __slots__ = ("_entries", "_may_go_on", "is_traced", "measure")

    def __init__(
        self,
        entries: Sequence[OutboxEntry],
        may_go_on: Callable[[], bool] = lambda: True,
        *,
        is_traced: bool = False,
        measure: SendMeasure | None = None,
    ) -> None:
        self._entries = entries
        self._may_go_on = may_go_on
        self.is_traced = is_traced
        self.measure = measure

    @property
    def may_go_on(self) -> bool:
        """Whether the lease still lasts; a publisher asks before each message that it sends."""
        return self._may_go_on()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[OutboxEntry]:
        return iter(self._entries)

    @overload
    def __getitem__(self, index: int) -> OutboxEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[OutboxEntry]: ...
    def __getitem__(self, index: int | slice) -> OutboxEntry | Sequence[OutboxEntry]:
        return self._entries[index]


@runtime_checkable
class OutboxPublisher(Protocol):
    """Hands entries to a destination."""

    async def publish(self, batch: Batch, /) -> Sequence[Outcome]:
        """Publish a batch.

        Entries of one group (`OutboxEntry.group`) go out in their order: behind one that was not published, the
        others of its group are skipped. Raises nothing but a cancellation.

        Returns:
            An outcome for each entry.
        """
        ...

    async def close(self) -> None:
        """Close the connection to the destination."""
        ...


class OutboxStore(Protocol):
    """Where entries lie until they are published."""

    async def fetch_pending(self, limit: int) -> Sequence[OutboxEntry]:
        """The oldest committed entries, in the order of each key."""
        ...

    async def mark_published(self, entries: Sequence[OutboxEntry]) -> int:
        """Take published entries away; repeating it changes nothing. Returns how many were there."""
        ...


class OutboxRelay(Protocol):
    """Carries entries from stores to a publisher."""

    async def start(self) -> None:
        """Begin to deliver."""
        ...

    async def stop(self) -> None:
        """Deliver what is under way, acknowledge it, and give the lanes back."""
        ...
