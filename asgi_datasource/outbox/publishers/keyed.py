"""A publisher that sends one message at a time for each key, and several keys side by side."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Final

from ...observability import names, tracing
from ..entry import OutboxEntry
from ..protocols import SKIPPED, Batch, Outcome, OutcomeKind, Refused, Unreachable

PARALLEL: Final = 64
"""Messages of one batch that are on their way at a time."""


class KeyedPublisher(ABC):
    """Keeps the order of each key: what follows a message that was not published is not sent."""

    parallel = PARALLEL
    system = "callable"
    """What spans of sent messages call the destination: `messaging.system`."""

    @abstractmethod
    async def send(self, entry: OutboxEntry) -> None:
        """Send one message and wait until the destination has confirmed it.

        Raises:
            Refused: The destination does not take this message.
            Unreachable: The destination is away.
        """

    async def close(self) -> None:
        """Close the connection to the destination."""
        return

    async def publish(self, batch: Batch) -> Sequence[Outcome]:
        """Publish a batch; see `OutboxPublisher`."""
        outcomes = [SKIPPED] * len(batch)
        groups: dict[object, list[int]] = {}
        for index, entry in enumerate(batch):
            groups.setdefault(entry.group, []).append(index)
        waiting = iter(groups.values())

        async def work() -> None:
            for indexes in waiting:
                await self._send_group(batch, indexes, outcomes)

        workers = min(self.parallel, len(groups))
        if workers == 1:
            await work()
        else:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(workers):
                    tasks.create_task(work())
        return outcomes

    async def _send_group(self, batch: Batch, indexes: Sequence[int], outcomes: list[Outcome]) -> None:
        for index in indexes:
            if not batch.may_go_on:
                return
            entry, started = batch[index], perf_counter()
            outcome = await attempt(self, entry, is_traced=batch.is_traced)
            outcomes[index] = outcome
            if batch.measure is not None:
                failure = None if outcome.kind is OutcomeKind.PUBLISHED else outcome.kind.value
                batch.measure.sent(self.system, entry.topic, perf_counter() - started, failure)
            if outcome.kind is not OutcomeKind.PUBLISHED:
                return


_PUBLISHED: Final = Outcome(OutcomeKind.PUBLISHED)


async def attempt(publisher: KeyedPublisher, entry: OutboxEntry, *, is_traced: bool) -> Outcome:
    """Send one message, in a span of the trace that it was written in; what became of it."""
    if not is_traced or not tracing.is_recording():
        return await _send(publisher, entry)
    attributes: dict[str, names.AttributeValue] = {
        names.MESSAGING_SYSTEM: publisher.system,
        names.MESSAGING_MESSAGE_ID: entry.idempotency_key,
        names.MESSAGING_BODY_SIZE: len(entry.data),
    }
    with tracing.send_span(entry.topic, entry.headers, attributes) as (headers, fail):
        outcome = await _send(publisher, replace(entry, headers=headers))
        if outcome.kind is not OutcomeKind.PUBLISHED:
            fail(outcome.kind.value)
        return outcome


async def _send(publisher: KeyedPublisher, entry: OutboxEntry) -> Outcome:
    try:
        await publisher.send(entry)
    except Unreachable as error:
        return Outcome(OutcomeKind.UNREACHABLE, str(error) or "the destination is away", error.retry_after_s)
    except Refused as error:
        return Outcome(OutcomeKind.REFUSED, str(error) or "the destination refused it", error.retry_after_s)
    except (OSError, TimeoutError) as error:
        return Outcome(OutcomeKind.UNREACHABLE, type(error).__name__)
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this message
        return Outcome(OutcomeKind.REFUSED, f"{type(error).__name__}: {error}")
    return _PUBLISHED
