"""What the server of one read has to prove: that it has all that its client has seen before.

The question where the server is goes in front of the read, in the same round trip. A replica that is behind has
answered in vain: its rows are thrown away, it is asked until it has caught up or patience is over, and then the next
server is tried. The primary, at last, has everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ..drivers.psycopg import ASK_POSITION, Connection, Exchange, PsycopgServer, Result, Statement
from ..routing import Freshness
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from .router import Attempt, Router

FIRST_PAUSE_S: Final = 0.001
LAST_PAUSE_S: Final = 0.01
"""Seconds between two questions whether a replica has caught up: they double from the first to the last."""


class CausalRead:
    """What one read has to be shown, and what of it binds the client's next ones.

    Args:
        router: The session's.
        past: What its client has seen.
        freshness: How fresh the read has to be.
        attempt: What it has met so far.
    """

    __slots__ = ("_attempt", "_is_asked", "_past", "_router", "binds")

    def __init__(self, router: Router, past: ClientHistory, freshness: Freshness, attempt: Attempt) -> None:
        self._router = router
        self._past = past
        self._attempt = attempt
        self._is_asked = False
        self.binds = past.is_monotonic(freshness)
        """Whether the client must not see an older state afterwards."""

    def wrap(
        self, settings: Statement, statements: Sequence[Statement], server: PsycopgServer, connection: Connection
    ) -> tuple[int, list[Statement]]:
        """The round trip of a read with the questions that it takes; and the index of its first statement."""
        self._is_asked = self._router.must_prove(server, connection, self._attempt)
        batch = [settings, ASK_POSITION, *statements] if self._is_asked else [settings, *statements]
        if self.binds:
            batch.append(ASK_POSITION)
        return (2 if self._is_asked else 1), batch

    def is_met(self, exchange: Exchange, server: PsycopgServer, connection: Connection) -> bool:
        """Whether the server has shown, in the round trip of the read, that it has what it takes.

        Also where the read has failed: what a server that is behind does not know yet may be the reason.
        """
        if self._is_asked and not exchange.is_lost and not exchange.timed_out and exchange.results[0] is not None:
            return self._router.proves(server, connection, self._attempt, exchange.results[1])
        return True

    def note(self, exchange: Exchange, server: PsycopgServer, connection: Connection) -> None:
        """The read has worked: its client must not see an older state afterwards."""
        if self.binds:
            self.note_position(exchange.results[-1], server)

    def note_position(self, answer: Result | None, server: PsycopgServer) -> None:
        """Where the server was after something was read."""
        # What is not known is not fresh: until the client has seen something that is known, the primary answers it.
        self._past.note(self._router.seen_at(answer, server) or NOWHERE)

    async def is_met_before(self, server: PsycopgServer, connection: Connection, deadline: float | None) -> bool:
        """Ask before a transaction begins, whose snapshot is taken with its first question.

        A server that has told over this connection that it has enough is not asked again.
        """
        if not self._router.must_prove(server, connection, self._attempt):
            return True
        return await self._ask(server, connection, deadline) or await self.catches_up(server, connection, deadline)

    async def catches_up(self, server: PsycopgServer, connection: Connection, deadline: float | None) -> bool:
        """Ask a replica that is behind until it has caught up; for as long as patience lasts, all servers together."""
        attempt = self._attempt
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

    async def _ask(self, server: PsycopgServer, connection: Connection, deadline: float | None) -> bool:
        exchange = await connection.exchange((ASK_POSITION,), deadline=deadline)
        if exchange.error is not None:
            return False
        return self._router.proves(server, connection, self._attempt, exchange.results[0])
