"""`db.inbox`: the events that consumers have processed, noted in the consumer's own transaction."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from ..drivers.statements import Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent
from ..sessions.core import SessionCore
from ..transaction import SurroundingTransaction
from .entry import check_name
from .writer import explain_missing, read_id

_NOTE: Final = (
    "insert into asgi_datasource.inbox (consumer, event_id, tenant) values (%s, %s, %s) on conflict do nothing"
)


class SessionInbox:
    """`db.inbox` of one session; see `sessions.capabilities.EventInbox`."""

    __slots__ = ("_session",)

    def __init__(self, session: SessionCore) -> None:
        self._session = session

    async def once(self, consumer: str, event_id: UUID | str) -> bool:
        """Note an event as processed; see `sessions.capabilities.EventInbox`.

        Two deliveries at the same time: the second waits for the first one's transaction, and is processed only where
        that is rolled back.
        """
        session = self._session
        check_name(consumer, what="consumer")
        row = (consumer, read_id(event_id), session.tenant.name)
        session.check_open()
        if session.surroundings() is SurroundingTransaction.NOTHING:
            raise DataError(
                DataErrorKind.QUERY,
                "db.inbox.once() belongs to the transaction that processes the event, and there is none here: open"
                " `async with db.transaction():` around both",
            )
        try:
            results = await session.run((Statement(_NOTE, row),), AccessIntent.WRITE)
        except DataError as error:
            explained = explain_missing(error)
            if explained is error:
                raise
            raise explained from error
        return results[0].rowcount == 1
