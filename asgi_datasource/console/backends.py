"""What the servers say of the transactions of this process: their state, what they wait for, and who blocks them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..drivers.protocol import Connection, Server
from ..drivers.statements import Statement
from ..errors import DataError

ASK_LIMIT_S: Final = 1.0
"""Seconds that a server has for connecting and answering; a page is not held up by a server that is silent."""

# pg_blocking_pids() locks the lock manager for a moment, so it is called for backends that wait for a lock only.
_BACKENDS: Final = """
select a.pid, a.state, a.wait_event_type, a.wait_event,
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() operator(pg_catalog.-) a.xact_start)::pg_catalog.float8,
    case when a.wait_event_type operator(pg_catalog.=) 'Lock' then pg_catalog.pg_blocking_pids(a.pid) end
from pg_catalog.pg_stat_activity a where a.pid operator(pg_catalog.=) any (%s::pg_catalog.int4[])
"""
_BLOCKERS: Final = """
select a.pid, a.application_name, a.state,
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() operator(pg_catalog.-) a.xact_start)::pg_catalog.float8
from pg_catalog.pg_stat_activity a where a.pid operator(pg_catalog.=) any (%s::pg_catalog.int4[])
"""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A backend that blocks another one.

    Attributes:
        pid: Its process id; 0 is a prepared transaction.
        application: Its `application_name`.
        state: Its state, such as `idle in transaction`; None where the role may not see it.
        age_s: Seconds since its transaction began; None where that is not known.
    """

    pid: int
    application: str | None = None
    state: str | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """A server process of this process's pools.

    Attributes:
        pid: Its process id.
        state: Its state: `active`, `idle in transaction`, ...
        waits_for: What it waits for, as type and event: `Lock transactionid`; None while it runs.
        age_s: Seconds since its transaction began.
        blockers: The backends that block it.
    """

    pid: int
    state: str | None
    waits_for: str | None
    age_s: float | None
    blockers: tuple[Blocker, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one server says of the backends.

    Attributes:
        backends: The backends by process id.
        failure: Why it says nothing; None if it does.
    """

    backends: Mapping[int, Backend]
    failure: str | None = None


def can_tell(server: Server) -> bool:
    """Whether the process ids of its connections are those of one PostgreSQL server, which can be asked for them."""
    return not (server.is_pooled or server.leads_to_several)


async def ask_backends(server: Server, pids: Iterable[int]) -> Answer:
    """Ask a server for backends, over a connection outside its pool: a pool that is exhausted is why one looks.

    Args:
        server: The server.
        pids: The process ids of the backends.
    """
    deadline = asyncio.get_running_loop().time() + ASK_LIMIT_S
    try:
        connection = await server.connect_apart(deadline=deadline, purpose="console")
    except DataError as error:
        return Answer({}, error.message)
    try:
        rows = await _rows(server, connection, _BACKENDS, list(pids), deadline)
        blocking = {pid for row in rows for pid in row[5] or ()}
        found = {pid: Blocker(pid) for pid in blocking}
        if blocking:
            told = await _rows(server, connection, _BLOCKERS, sorted(blocking), deadline)
            found |= {row[0]: Blocker(*row) for row in told}
    except DataError as error:
        return Answer({}, error.message)
    finally:
        await connection.close()
    return Answer({row[0]: _backend(row, found) for row in rows})


async def _rows(
    server: Server, connection: Connection, query: str, pids: Sequence[int], deadline: float
) -> Sequence[tuple[Any, ...]]:
    exchange = await connection.exchange([Statement(query, [pids])], deadline=deadline)
    if exchange.error is not None:
        raise server.error_of(exchange, is_write=False) from exchange.error
    return exchange.answers(0, 1)[0].tuples()


def _backend(row: Sequence[Any], blockers: Mapping[int, Blocker]) -> Backend:
    pid, state, kind, event, age_s, blocking = row
    # ClientRead is no wait of the server's: it waits for the application.
    waits_for = None if kind in (None, "Client") else f"{kind} {event}"
    return Backend(pid, state, waits_for, age_s, tuple([blockers[one] for one in dict.fromkeys(blocking or ())]))
