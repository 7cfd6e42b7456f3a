"""What folders above this one add to a session, as its users see it.

The registry makes the objects (`SessionOrigin.make_facade`): of those folders, sessions know only these protocols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from uuid import UUID


class EventOutbox(Protocol):
    """`db.outbox`: events that leave when their transaction is committed, and only then."""

    async def publish(
        self,
        topic: str,
        *,
        key: str | None = None,
        payload: object = None,
        headers: Mapping[str, str] | None = None,
        id: UUID | str | None = None,
        ordered: bool = False,
    ) -> UUID:
        """Publish an event with the transaction around.

        It is buffered, and written in the round trip of COMMIT. A rollback drops it; that of a savepoint drops what
        was published inside.

        Args:
            topic: Names what has happened: `orders.placed`. The event's type, and where it goes.
            key: Events with one key arrive in the order of their commits, as long as their transactions write the
                same row, which serialises them. None: the event has no order.
            payload: JSON, a pydantic model, or bytes.
            headers: Further attributes of the message.
            id: The event's id, by which consumers recognise a repetition; None makes one (UUID version 7).
            ordered: Take a lock on `key` until the transaction ends, one round trip, where no row serialises it.

        Returns:
            The event's id.

        Raises:
            DataError: QUERY: there is no transaction here, the payload is too large, or cannot be written as JSON.
                READ_ONLY: the transaction is read only. CONFIG: the configuration has no section `outbox`.
            SessionClosed: The request's response has started.
        """
        ...


class EventInbox(Protocol):
    """`db.inbox`: the events that consumers have processed."""

    async def once(self, consumer: str, event_id: UUID | str) -> bool:
        """Note in the transaction around that a consumer has processed an event.

        Args:
            consumer: Names the consumer; each processes every event once.
            event_id: The event's id.

        Returns:
            True the first time: process it in this transaction. False: it was processed before.

        Raises:
            DataError: QUERY: there is no transaction here. READ_ONLY: the transaction is read only.
        """
        ...
