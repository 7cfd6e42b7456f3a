"""psycopg's pool, which owns the connections: it makes, replaces, shrinks and retires them.

What cannot be done through its public interface stands here alone. Each private name has its reason beside it and a
test in `tests/drivers/test_owned_pool.py`; the versions that were tested are pinned in `pyproject.toml`.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from math import inf
from typing import Any

from psycopg_pool import AsyncConnectionPool

from .connection import PsycopgConnection


class OwnedPool(AsyncConnectionPool[PsycopgConnection]):
    """The pool of one server."""

    @property
    def size(self) -> int:
        """How many connections it has, is making or has given out."""
        return self.get_stats()["pool_size"]

    @property
    def idle(self) -> int:
        """How many lie in it."""
        return self.get_stats()["pool_available"]

    @property
    def has_idle(self) -> bool:
        """Whether a connection could be had without waiting."""
        # `_pool`: `get_stats` copies all its counters, and this is read for each caller that finds none at hand.
        return bool(self._pool)

    def put_at_once(self, connection: PsycopgConnection) -> Coroutine[Any, Any, None] | None:
        """Give a connection back; returns what is left to be awaited, if anything is.

        `putconn` waits only where the pool's lock is taken, so that it can be run to its end at once.
        """
        giving = self.putconn(connection)
        try:
            waits_for = giving.send(None)
        except StopIteration:
            return None
        return _go_on(giving, waits_for)

    def expires_at(self, connection: PsycopgConnection) -> float:
        """Monotonic time at which the pool replaces a connection."""
        # `_expire_at`: a connection that goes round in front of the pool has to come back to it by then.
        return getattr(connection, "_expire_at", inf)

    def expire(self, connection: PsycopgConnection) -> None:
        """Let a connection be replaced as soon as it comes back."""
        connection._expire_at = -inf  # pyright: ignore[reportPrivateUsage]

    def forget_who_left(self) -> None:
        """Strike those from the front of the queue who do not wait any more.

        The pool does so when a connection comes back. In an outage none does, and its queue would only grow.
        """
        while self._waiting and self._waiting[0].error is not None:
            self._waiting.popleft()

    def _maybe_grow_pool(self) -> None:
        # psycopg's pool also grows with every `check`, that is, with every connection that was lost.
        if self._waiting or self._nconns < self._min_size:
            super()._maybe_grow_pool()

    async def shed(self) -> None:
        """Close the connections that are free, and keep none from now on."""
        # `drain` makes new ones in their place, and `resize` leaves those that there are.
        async with self._lock:
            free = list(self._pool)
            self._pool.clear()
            self._min_size = self._nconns_min = 0
            self._nconns: int = self._nconns - len(free)
        for connection in free:
            await connection.close()


async def _go_on(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
    """Run on a coroutine that was started by hand and had to wait after all."""
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
