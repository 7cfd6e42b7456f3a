"""Looks up the outcome of a transaction whose connection was lost during COMMIT.

Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions" (`pg_xact_status`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final

from ..drivers.protocol import Connection, Server
from ..drivers.statements import INCARNATION, Statement
from ..errors import DataError
from .control_statements import Identity, timeline_of

POLL_INTERVAL_S: Final = 0.05
POOL_WAIT_S: Final = 0.1
"""Seconds to wait for a pooled connection before a new one is made."""
GRACE_S: Final = 2.0
"""Seconds for which the COMMIT may go on; then its backend is terminated, so that the outcome is final."""

_INCARNATION_QUERY: Final = Statement(f"select {INCARNATION} as incarnation")
"""Sent in front of the lookup. An error counts as well: a standby gives no incarnation, a primary its timeline."""
_ASK: Final = (
    "select case when pg_catalog.pg_is_in_recovery() then null"
    " else pg_catalog.pg_xact_status(%s::pg_catalog.text::pg_catalog.xid8) end as status"
)
_END_ORPHAN: Final = (
    "select pg_catalog.pg_terminate_backend(pid, 1000) from pg_catalog.pg_stat_activity"
    " where pid operator(pg_catalog.=) %s"
    " and backend_xid operator(pg_catalog.=) %s::pg_catalog.text::pg_catalog.xid8::pg_catalog.xid"
    " and pid operator(pg_catalog.<>) pg_catalog.pg_backend_pid()"
)


class Fate(StrEnum):
    """Outcome of the transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


async def find_fate(server: Server, identity: Identity, *, timeout_s: float) -> Fate:
    """Ask the primary until the outcome is final.

    A transaction that is `in progress` can still commit: after a grace period its backend is terminated. `committed`
    counts only from the same server in the same incarnation: after a crash or a failover transaction ids are reused,
        and
    the status could be that of another transaction.

    Args:
        server: The primary to which the connection was lost.
        identity: The transaction.
        timeout_s: Seconds after which the result is UNKNOWN.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    grace_until = loop.time() + min(GRACE_S, timeout_s / 2)
    while (now := loop.time()) < deadline:
        try:
            async with _line(server, deadline=deadline) as connection:
                newest = max(server.timeline, identity.timeline or 0)
                fate = await _ask(connection, identity, newest, end_orphan=now > grace_until, deadline=deadline)
        except DataError:
            fate = None
        if fate is not None:
            return fate
        await asyncio.sleep(POLL_INTERVAL_S)
    return Fate.UNKNOWN


@asynccontextmanager
async def _line(server: Server, *, deadline: float) -> AsyncGenerator[Connection]:
    """A connection for the lookup: a pooled one if one is free, else a new one.

    The lookup must not queue behind requests that wait for a connection: they may take longer.

    Raises:
        DataError: The server cannot be reached.
    """
    try:
        brief = asyncio.get_running_loop().time() + POOL_WAIT_S
        connection = await server.acquire(deadline=min(brief, deadline) if server.is_up else deadline)
    except DataError:
        if not server.is_up:
            # One trial connection at a time finds out, for all waiters, whether the server is back.
            raise
        connection = await server.connect_apart(deadline=deadline)
        try:
            yield connection
        finally:
            await connection.close()
        return
    try:
        yield connection
    finally:
        await server.reclaim(connection)


async def _ask(
    connection: Connection, identity: Identity, timeline: int, *, end_orphan: bool, deadline: float
) -> Fate | None:
    """Ask once; None while the outcome is not final."""
    if end_orphan:
        await connection.exchange([Statement(_END_ORPHAN, (identity.backend_pid, identity.xid))], deadline=deadline)
    exchange = await connection.exchange([_INCARNATION_QUERY, Statement(_ASK, (identity.xid,))], deadline=deadline)
    identified = exchange.results[0]
    incarnation = None if identified is None else identified.scalar()
    if incarnation is None or timeline_of(incarnation) < timeline:
        # A standby, or a former primary that a failover has left behind: its answer does not count.
        return None
    if exchange.error is not None:
        # 22023: the id is in the server's future, so the transaction was lost in a crash.
        return Fate.ABORTED if getattr(exchange.error, "sqlstate", None) == "22023" else None
    answer = exchange.results[1]
    status = None if answer is None else answer.scalar()
    if status == "aborted":
        return Fate.ABORTED
    if status == "committed":
        return Fate.COMMITTED if incarnation == identity.incarnation else Fate.UNKNOWN
    return None
