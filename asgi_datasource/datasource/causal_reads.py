"""Causal reads: a server proves that it has everything that the client has seen.

The position query is sent in front of the read, in the same round trip. If a replica is behind, its rows are dropped
and it is polled until it has caught up or the patience is used up; then the next server is tried. The primary needs no
proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ..drivers.protocol import Connection, Exchange, Server
from ..drivers.statements import Envelope
from ..routing import Freshness
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from ..transaction.control_statements import ASK_POSITION, ASK_SEEN_POSITION
from .router import Attempt, Router

FIRST_PAUSE_S: Final = 0.001
LAST_PAUSE_S: Final = 0.01
"""Seconds between two polls of a replica that is behind: they double from the first to the last."""

QUERY_CANCELED: Final = "57014"
"""SQLSTATE of a statement that its timeout, or a cancel request, has stopped."""

READ: Final = Envelope(is_read=True)
"""The envelope of a read that needs no proof."""

_PROVED: Final = Envelope(is_read=True, between=(ASK_POSITION,))
_BINDING: Final = Envelope(is_read=True, closing=(ASK_SEEN_POSITION,))
_PROVED_BINDING: Final = Envelope(is_read=True, between=(ASK_POSITION,), closing=(ASK_SEEN_POSITION,))


class CausalRead:
    """The position that one read requires, and the lower bound that it sets for the client's later reads.

    Args:
        router: The session's router.
        client_history: The positions that the client has seen; None if only the data's age has to be proved.
        freshness: Required freshness of the read.

    Attributes:
        attempt: State of the read across servers.
        binds: Whether the client must not see an older state afterwards.
        asked: The envelope of the last round trip.
        has_waited: A server was polled until it had caught up, or the patience was used up.
    """

    __slots__ = ("_client_history", "_router", "asked", "attempt", "binds", "has_waited")

    def __init__(
        self, router: Router, client_history: ClientHistory | None, freshness: Freshness, attempt: Attempt
    ) -> None:
        self._router = router
        self._client_history = client_history
        self.asked = READ
        self.attempt = attempt
        self.has_waited = False
        self.binds = client_history is not None and client_history.is_monotonic(freshness)

    def envelope(self, server: Server, connection: Connection) -> Envelope:
        """The envelope of the read on this connection."""
        if self._router.must_prove(server, connection, self.attempt):
            self.asked = _PROVED_BINDING if self.binds else _PROVED
        else:
            self.asked = _BINDING if self.binds else READ
        return self.asked

    def is_met(self, exchange: Exchange, server: Server, connection: Connection) -> bool:
        """Whether the server has proved, in the read's round trip, that it has the required position.

        Checked after a failed read as well: the failure may be due to data that the server has not replayed yet. A read
        that was stopped has failed for its own reason.
        """
        was_stopped = exchange.timed_out or getattr(exchange.error, "sqlstate", None) == QUERY_CANCELED
        if self.asked.between and not exchange.is_lost and not was_stopped and exchange.was_answered(0):
            return self._router.proves(server, connection, self.attempt, exchange.values(1))
        return True

    def note(self, exchange: Exchange, index: int, server: Server) -> None:
        """The read has succeeded: record its position in the client's history.

        Args:
            exchange: The read's round trip.
            index: Index of the position query behind the read.
            server: The server that answered.
        """
        if self.binds:
            self.note_position(exchange.values(index), server)

    def note_position(self, answer: Sequence[str | None] | None, server: Server) -> None:
        """Record the server's position after a read."""
        # After an unknown position, reads go to the primary until the client has seen a known one.
        if self._client_history is not None:
            self._client_history.note(self._router.seen_at(answer, server) or NOWHERE)

    async def is_met_before(self, server: Server, connection: Connection, deadline: float | None) -> bool:
        """Query the position before BEGIN, because the snapshot is taken with the transaction's first statement.

        A server that has proved the position on this connection is not asked again.
        """
        if not self._router.must_prove(server, connection, self.attempt):
            return True
        return await self._ask(server, connection, deadline) or await self.catches_up(server, connection, deadline)

    async def catches_up(self, server: Server, connection: Connection, deadline: float | None) -> bool:
        """Poll a replica that is behind until it has caught up; the patience covers all servers together."""
        attempt = self.attempt
        self.has_waited = True
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
