"""Is there a pooler in between, and in which mode?

A pooler tells its clients a process id of its own, so the server's own answer differs. Which mode it is in shows in
what it does: statement mode refuses a transaction; in transaction mode a client's server connection is another one's as
soon as it has no transaction open. Nothing is set or left behind on any server connection.

Source: PgBouncer's documentation, "Features" and `pool_mode`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from ...drivers.psycopg import ControlConnection, ServerSettings, open_control
from ...errors import DataError
from .facts import PoolerMode

_OTHERS = 3
"""Clients that take what the first one has let go of; whichever connection the pooler prefers, one of them gets it."""


async def find_pooler(probe: ControlConnection, settings: ServerSettings, *, where: str) -> PoolerMode:
    """Find out what stands between this machine and the server.

    Args:
        probe: A connection.
        settings: How the server is reached, for further connections.
        where: Names the server in errors.

    Raises:
        DataError: The server does not answer.
    """
    [[first]] = await probe.rows("select pg_backend_pid()")
    if first == probe.told_pid:
        return PoolerMode.NONE
    try:
        await probe.rows("begin")
    except DataError:
        return PoolerMode.STATEMENT
    await probe.rows("rollback")
    seen: set[int] = {first}
    async with AsyncExitStack() as stack:
        for _ in range(_OTHERS):
            try:
                other = await stack.enter_async_context(open_control(settings, where=where))
                await other.rows("begin")
                [[pid]] = await other.rows("select pg_backend_pid()")
            except DataError:
                # The pool is exhausted. A client of its own that waits, although the first one has nothing open, is
                # what session mode does as well: there is no telling, and session mode promises less.
                break
            if pid in seen:
                return PoolerMode.TRANSACTION
            seen.add(pid)
        try:
            [[again]] = await probe.rows("select pg_backend_pid()")
        except DataError:
            return PoolerMode.TRANSACTION
        return PoolerMode.SESSION if again == first else PoolerMode.TRANSACTION
