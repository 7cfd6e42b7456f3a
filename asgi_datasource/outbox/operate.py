"""What operators ask of an outbox: how much waits, what is dead, and what to do with that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from ..drivers.protocol import Connection, Result
from ..drivers.statements import Statement
from . import statements as sql
from .lanes import Site

LIMIT_S: Final = 30.0
"""Seconds that connecting, and each answer, may take."""


@dataclass(frozen=True, slots=True)
class Status:
    """How much one outbox has to do.

    Attributes:
        database: Its name.
        backlog: Events that wait, counted up to 100,000.
        oldest_s: Age of the oldest of them in seconds.
        held: Events of keys of which one was refused.
        dead: Events that were refused too often.
        lanes: Lanes that a relay owns, of 32.
        relays: How many relays own them.
    """

    database: str
    backlog: int
    oldest_s: float
    held: int
    dead: int
    lanes: int
    relays: int


@dataclass(frozen=True, slots=True)
class DeadEvent:
    """One event that was refused too often."""

    database: str
    event_id: UUID
    tenant: str | None
    topic: str
    key: str
    attempts: int
    error: str | None
    created_at: datetime


class Operations:
    """One outbox, over one connection; made by `operate`."""

    def __init__(self, site: Site, connection: Connection) -> None:
        self._site = site
        self._connection = connection

    async def _ask(self, *statements: Statement) -> Sequence[Result]:
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        exchange = await self._connection.exchange(statements, deadline=deadline)
        if exchange.error is not None:
            raise self._site.error_of(exchange) from exchange.error
        return exchange.answers(0, len(statements))

    async def status(self) -> Status:
        """How much it has to do."""
        measured, taken = await self._ask(sql.MEASURE, sql.LANES_TAKEN)
        backlog, oldest_s, held, dead = measured.tuples()[0]
        lanes, relays = taken.tuples()[0]
        return Status(self._site.name, backlog, oldest_s or 0.0, held, dead, lanes, relays)

    async def dead(self, *, limit: int) -> list[DeadEvent]:
        """Its dead events, the oldest first."""
        [found] = await self._ask(Statement(sql.DEAD, (limit,)))
        return [DeadEvent(self._site.name, *row) for row in found.tuples()]

    async def replay(self, ids: Sequence[UUID] | None) -> list[UUID]:
        """Have dead events tried again, with the id that they have; None: all of them. The ids of those it had."""
        return await self._change(sql.REPLAY, ids)

    async def discard(self, ids: Sequence[UUID] | None) -> list[UUID]:
        """Delete dead events; None: all of them. The ids of those it had."""
        return await self._change(sql.DISCARD, ids)

    async def _change(self, text: str, ids: Sequence[UUID] | None) -> list[UUID]:
        wanted = None if ids is None else list(ids)
        [found] = await self._ask(Statement(text, (wanted, wanted)))
        return [row[0] for row in found.tuples()]


@asynccontextmanager
async def operate(site: Site) -> AsyncGenerator[Operations]:
    """Connect to an outbox.

    Raises:
        DataError: It cannot be reached, or has no tables.
    """
    connection = await site.connect(asyncio.get_running_loop().time() + LIMIT_S)
    try:
        yield Operations(site, connection)
    finally:
        connection.when_gone = None
        connection.cut("done")
