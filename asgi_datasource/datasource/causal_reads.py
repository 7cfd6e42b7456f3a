"""What the server of one read has to prove: that it has all that its client has seen before.

The question where the server is goes in front of the read, in the same round trip. A replica that is behind has
answered in vain: its rows are dropped, it is asked until it has caught up or patience is over, and then the next
server is tried. The primary, at last, has everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ..drivers.protocol import Connection, Exchange, Server
from ..drivers.statements import Envelope
from ..routing import Freshness
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from ..transaction.control_statements import ASK_POSITION
from .router import Attempt, Router

FIRST_PAUSE_S: Final = 0.001
LAST_PAUSE_S: Final = 0.01
"""Seconds between two questions whether a replica has caught up: they double from the first to the last."""

READ: Final = Envelope(is_read=True)
"""A read that nothing has to be proved for."""

_PROVED: Final = Envelope(is_read=True, between=(ASK_POSITION,))
_BINDING: Final = Envelope(is_read=True, closing=(ASK_POSITION,))
_PROVED_BINDING: Final = Envelope(is_read=True, between=(ASK_POSITION,), closing=(ASK_POSITION,))


class CausalRead:
    """What one read has to be shown, and what of it binds the client's next ones.

    Args:
        router: The session's.
        past: What its client has seen.
        freshness: How fresh the read has to be.

    Attributes:
        attempt: What the read has met so far.
        binds: Whether the client must not see an older state afterwards.
        asked: What went around the read the last time that it was sent.
    """

    __slots__ = ("_client_history", "_router", "asked", "attempt", "binds")

    def __init__(self, router: Router, client_history: ClientHistory, freshness: Freshness, attempt: Attempt) -> None:
        self._router = router
        self._client_history = client_history
        self.asked = READ
        self.attempt = attempt
        self.binds = client_history.is_monotonic(freshness)

    def envelope(self, server: Server, connection: Connection) -> Envelope:
        """What goes around the read on this connection."""
        if self._router.must_prove(server, connection, self.attempt):
            self.asked = _PROVED_BINDING if self.binds else _PROVED
        else:
            self.asked = _BINDING if self.binds else READ
        return self.asked

    def is_met(self, exchange: Exchange, server: Server, connection: Connection) -> bool:
        """Whether the server has shown, in the round trip of the read, that it has what it takes.

        Also where the read has failed: what a server that is behind does not know yet may be the reason.
        """
        if self.asked.between and not exchange.is_lost and not exchange.timed_out and exchange.was_answered(0):
            return self._router.proves(server, connection, self.attempt, exchange.values(1))
        return True

    def note(self, exchange: Exchange, index: int, server: Server) -> None:
        """The read has worked: its client must not see an older state afterwards.

        Args:
            exchange: The read's.
            index: Where the last question stands in it.
            server: The server that answered.
        """
        if self.binds:
            self.note_position(exchange.values(index), server)

    def note_position(self, answer: Sequence[str | None] | None, server: Server) -> None:
        """Where the server was after something was read."""
        # What is not known is not fresh: until the client has seen something that is known, the primary answers it.
        self._client_history.note(self._router.seen_at(answer, server) or NOWHERE)

    async def is_met_before(self, server: Server, connection: Connection, deadline: float | None) -> bool:
        """Ask before a transaction begins, whose snapshot is taken with its first question.

        A server that has told over this connection that it has enough is not asked again.
        """
        if not self._router.must_prove(server, connection, self.attempt):
            return True
        return await self._ask(server, connection, deadline) or await self.catches_up(server, connection, deadline)

    async def catches_up(self, server: Server, connection: Connection, deadline: float | None) -> bool:
        """Ask a replica that is behind until it has caught up; for as long as patience lasts, all servers together."""
        attempt = self.attempt
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        while attempt.patience_s > 0:
            if deadline is not None and loop.time() >= deadline:
                return False
            began_at = loop.time()
            await asyncio.sleep(min(pause_s, attempt.patience_s))
            pause_s = min(LAST_PAUSE_S, pause_s * 2)
            has_it = await self._ask(server, connection, deadline)
            attempt.patience_s -= loop.time() - began_at
            if has_it:
                return True
            if connection.closed:
                return False
        return False

    async def _ask(self, server: Server, connection: Connection, deadline: float | None) -> bool:
        exchange = await connection.exchange((ASK_POSITION,), deadline=deadline)
        if exchange.error is not None:
            return False
        return self._router.proves(server, connection, self.attempt, exchange.values(0))
