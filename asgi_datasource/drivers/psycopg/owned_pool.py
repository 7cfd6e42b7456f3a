"""The psycopg_pool that owns the connections: it makes, replaces, shrinks and retires them.

Everything that its public interface does not offer is in this file. Each private name has its reason beside it and a
test in `tests/drivers/test_owned_pool.py`; `pyproject.toml` pins the tested versions.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Coroutine, Generator
from math import inf
from typing import Any, Final

from psycopg_pool import AsyncConnectionPool

from ...observability.decision_log import is_first
from .connection import PsycopgConnection
from .socket import ConnectGivenUp

QUIET_S: Final = 60.0
"""Seconds between two warnings of a pool with the same text: it repeats them with each attempt to connect."""


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record of psycopg_pool is to be shown.

    Not a connect that the end of its pool has interrupted, or a connection that was cut on purpose; and each warning of
    one of our pools once in `QUIET_S`: that the server is down is logged once, when its circuit breaker opens.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    for argument in arguments:
        if isinstance(argument, ConnectGivenUp) or (isinstance(argument, PsycopgConnection) and argument.was_cut):
            return False
    if record.levelno != logging.WARNING or not arguments or arguments[0] not in _names:
        return True
    return is_first(("psycopg.pool", arguments[0], record.msg), QUIET_S)


_names: Final[set[object]] = set()
"""The names of our pools."""


logging.getLogger("psycopg.pool").addFilter(is_news)


class OwnedPool(AsyncConnectionPool[PsycopgConnection]):
    """The pool of one server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _names.add(self.name)

    @property
    def size(self) -> int:
        """Number of connections that it holds, is making or has given out."""
        return self.get_stats()["pool_size"]

    @property
    def idle(self) -> int:
        """Number of connections in it."""
        return self.get_stats()["pool_available"]

    @property
    def has_idle(self) -> bool:
        """Whether a connection is available without a wait."""
        # `_pool`: `get_stats` copies all counters, and this is read for each caller that finds no kept connection.
        return bool(self._pool)

    def put_at_once(self, connection: PsycopgConnection) -> Coroutine[Any, Any, None] | None:
        """Return a connection; returns a coroutine for the rest of the work, if there is any.

        `putconn` waits only while the pool's lock is taken; otherwise it completes without the event loop.
        """
        giving = self.putconn(connection)
        try:
            waits_for = giving.send(None)
        except StopIteration:
            return None
        return _go_on(giving, waits_for)

    def expires_at(self, connection: PsycopgConnection) -> float:
        """Monotonic time at which the pool replaces a connection."""
        # `_expire_at`: a connection that circulates in front of the pool must be back by then.
        return getattr(connection, "_expire_at", inf)

    def expire(self, connection: PsycopgConnection) -> None:
        """Have a connection replaced at its return."""
        connection._expire_at = -inf  # pyright: ignore[reportPrivateUsage]

    def forget_who_left(self) -> None:
        """Drop clients from the front of the queue that do not wait any more.

        The pool does so when a connection returns. In an outage none does, and its queue would only grow.
        """
        while self._waiting and self._waiting[0].error is not None:
            self._waiting.popleft()

    def _maybe_grow_pool(self) -> None:
        # psycopg_pool also grows with every `check`, that is, with every connection that was lost.
        if self._waiting or self._nconns < self._min_size:
            super()._maybe_grow_pool()

    async def shed(self) -> None:
        """Close the idle connections, and keep none from now on."""
        # `drain` makes new ones in their place, and `resize` keeps the existing ones.
        async with self._lock:
            free = list(self._pool)
            self._pool.clear()
            self._min_size = self._nconns_min = 0
            self._nconns: int = self._nconns - len(free)
        for connection in free:
            await connection.close()


async def _go_on(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
    """Continue a coroutine that was started by hand and had to wait."""
    await _steps(coroutine, waits_for)


@types.coroutine
def _steps(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
                waits_for = coroutine.throw(error)
            else:
                waits_for = coroutine.send(value)
        except StopIteration:
            return
