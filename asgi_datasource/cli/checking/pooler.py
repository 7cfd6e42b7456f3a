"""Detects a pooler and its mode.

A pooler reports a process id of its own at login, which differs from the server's `pg_backend_pid()`. The mode shows in
its behaviour: statement mode refuses transactions; in transaction mode, a client's server connection is given to other
clients whenever it has no open transaction. The detection leaves no state on any server connection.

Source: PgBouncer's documentation, "Features" and `pool_mode`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from ...drivers.control import ControlConnection, open_control
from ...drivers.settings import ServerSettings
from ...errors import DataError
from .facts import PoolerMode

_OTHERS = 3
"""Further clients, so that one of them gets the first client's server connection, whichever the pooler prefers."""


async def find_pooler(probe: ControlConnection, settings: ServerSettings, *, where: str) -> PoolerMode:
    """Detect the pooler between this machine and the server.

    Args:
        probe: A connection.
        settings: The connection settings, for further connections.
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
                # The pool is exhausted: a client waits although the first one has no open transaction. Session mode
                # behaves like this, too, and it is the mode that is assumed.
                break
            if pid in seen:
                return PoolerMode.TRANSACTION
            seen.add(pid)
        try:
            [[again]] = await probe.rows("select pg_backend_pid()")
        except DataError:
            return PoolerMode.TRANSACTION
        return PoolerMode.SESSION if again == first else PoolerMode.TRANSACTION
