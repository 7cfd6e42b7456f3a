"""Lending a pool's connections: the one at hand at once, and from hand to hand where somebody waits.

psycopg's pool makes, replaces and retires connections, and owns them. But every way out of it and back goes through its
lock and, where somebody waits, through a condition and a task of its own: most of what a short statement costs under
load. So connections in use go round here: who gives one back hands it to the first who waits, or leaves it at hand for
the next. What lies at hand unused goes back to the pool, which then closes what it has too many of.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from math import inf
from typing import Any, Final

from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from ...concurrency.limits import Line, Priority
from .connection import PsycopgConnection

SWEEP_S: Final = 1.0
"""Seconds after which a connection at hand that nobody has used goes back to the pool."""

FETCH_LIMIT_S: Final = 1.0
"""Seconds after which the pool is asked anew for those who wait: only then does it try again to make a connection."""


class Pool(AsyncConnectionPool[PsycopgConnection]):
    """psycopg's pool, with a queue that only those are in who wait."""

    @property
    def size(self) -> int:
        """How many connections it has, is making or has lent."""
        return self._nconns

    @property
    def idle(self) -> int:
        """How many lie in it."""
        return len(self._pool)

    @property
    def has_idle(self) -> bool:
        """Whether a connection could be had without waiting."""
        return bool(self._pool)

    def forget_who_left(self) -> None:
        """Strike those from the front of the queue who do not wait any more.

        psycopg's pool does so when a connection comes back. In an outage none does, and its queue would only grow.
        """
        while self._waiting and self._waiting[0].error is not None:
            self._waiting.popleft()

    def _maybe_grow_pool(self) -> None:
        # psycopg's pool also grows with every `check`, that is, with every connection that was lost.
        if self._waiting or self._nconns < self._min_size:
            super()._maybe_grow_pool()

    async def shed(self) -> None:
        """Close the connections that are free, and keep none from now on."""
        async with self._lock:
            free = list(self._pool)
            self._pool.clear()
            self._min_size = self._nconns_min = 0
            self._nconns: int = self._nconns - len(free)
        for connection in free:
            await connection.close()


class GaveUp(Exception):
    """Raised when nobody need wait any longer: no connection can be made."""


class Displaced(Exception):
    """Raised when somebody of a higher priority takes the place in a full queue."""


class Lender:
    """Stands between a pool and those who borrow its connections.

    Args:
        pool: The pool; open.
        max_size: Connections that it makes at most.
        spawn: Starts a task that the pool's owner puts an end to.
    """

    def __init__(
        self, pool: Pool, *, max_size: int, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    ) -> None:
        self._pool = pool
        self._max_size = max_size
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._at_hand: list[PsycopgConnection] = []
        self._unused = 0
        """How many of those at hand, from the first, nobody has used since the last sweep."""
        self._waiters: Line[asyncio.Future[PsycopgConnection]] = Line()
        self._held = 0
        """Connections that are out of the pool: lent, or at hand."""
        self._fetches: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._keeps_none = False
        self._waiting: set[asyncio.Future[PsycopgConnection]] = set()
        """Who waits and has been told nothing yet; in the line there may also be some that have left."""

    @property
    def waiting(self) -> int:
        """How many wait for a connection."""
        return len(self._waiting)

    @property
    def at_hand(self) -> int:
        """How many connections lie at hand."""
        return len(self._at_hand)

    async def take(self, timeout_s: float, priority: Priority = Priority.NORMAL) -> PsycopgConnection:
        """Borrow a connection, which may have been lost meanwhile.

        Args:
            timeout_s: Longest wait, in seconds.
            priority: Who is served first of those who wait.

        Raises:
            TimeoutError: None was free within that.
            Displaced: It has made room in the queue.
            GaveUp: None can be made.
            psycopg_pool.PoolClosed: The pool was closed.
        """
        if self._at_hand:
            return self.take_at_hand()
        pool = self._pool
        if pool.has_idle and not self._waiters:
            connection = await pool.getconn(timeout_s)
            self._note_fetched(connection)
            return connection
        if self._is_closed:
            # Nobody would end the wait of one who comes only now.
            raise PoolClosed("the pool is closed")
        return await self._wait(timeout_s, priority)

    def take_at_hand(self) -> PsycopgConnection:
        """Borrow one that lies at hand; there is one."""
        connection = self._at_hand.pop()
        if len(self._at_hand) < self._unused:
            self._unused = len(self._at_hand)
        return connection

    def displace(self, priority: Priority) -> bool:
        """Make room in a full queue for somebody of this priority: who came last of the lowest one loses its place.

        Returns:
            Whether there is room now.
        """
        for rank in Priority:
            while rank < priority and self._waiters.count(rank):
                waiter = self._waiters.last(rank)
                self._waiters.remove(waiter)
                if waiter in self._waiting:
                    # It may just have been cancelled: then its place is free as well.
                    self._waiting.discard(waiter)
                    if not waiter.done():
                        waiter.set_exception(Displaced())
                    return True
        return False

    def give(self, connection: PsycopgConnection) -> None:
        """Give a connection back, which is idle or closed. Never waits."""
        if connection.closed or self._is_closed or self._loop.time() >= connection.due_at:
            self._return(connection)
            return
        self._hand_over(connection)

    def give_up(self) -> None:
        """No connection can be made: let nobody wait for one."""
        self._end_waits(GaveUp())
        for fetch in self._fetches:
            fetch.cancel()

    def forget(self, connection: PsycopgConnection) -> None:
        """A connection was lost: where it lies at hand the pool replaces it."""
        if connection in self._at_hand:
            self._at_hand.remove(connection)
            self._unused = min(self._unused, len(self._at_hand))
            self._return(connection)

    def retire(self) -> None:
        """Keep none at hand from now on: what nobody waits for goes back to the pool."""
        self._keeps_none = True
        self._return_all()

    def close(self) -> None:
        """The pool is being closed: nobody gets a connection any more."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._end_waits(PoolClosed("the pool is closed"))
        for fetch in self._fetches:
            fetch.cancel()
        self._return_all()

    async def _wait(self, timeout_s: float, priority: Priority) -> PsycopgConnection:
        waiter: asyncio.Future[PsycopgConnection] = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._expire, waiter)
        self._waiters.append(waiter, priority)
        self._waiting.add(waiter)
        self._fetch_for_those_who_wait()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed over while its borrower was being cancelled: to the next one.
                self.give(waiter.result())
            raise
        finally:
            timer.cancel()
            self._waiting.discard(waiter)
            self._waiters.strip(self._has_left)

    def _hand_over(self, connection: PsycopgConnection) -> None:
        waiters = self._waiters
        while waiters:
            waiter = waiters.pop()
            if not waiter.done():
                self._waiting.discard(waiter)
                waiter.set_result(connection)
                return
        if self._keeps_none:
            self._return(connection)
            return
        self._at_hand.append(connection)
        if self._sweep is None:
            self._unused = 0
            self._sweep = self._loop.call_later(SWEEP_S, self._return_unused)

    def _return_unused(self) -> None:
        self._sweep = None
        unused, self._at_hand = self._at_hand[: self._unused], self._at_hand[self._unused :]
        for connection in unused:
            self._return(connection)
        self._unused = len(self._at_hand)
        if self._at_hand:
            self._sweep = self._loop.call_later(SWEEP_S, self._return_unused)

    def _return_all(self) -> None:
        while self._at_hand:
            self._return(self._at_hand.pop())
        self._unused = 0

    def _return(self, connection: PsycopgConnection) -> None:
        """Give a connection to the pool without waiting: `putconn` waits only where the pool's lock is taken."""
        self._held -= 1
        connection.home = None
        giving = self._pool.putconn(connection)
        try:
            waits_for = giving.send(None)
        except StopIteration:
            pass
        else:
            self._spawn(_finish(giving, waits_for))
        if not self._is_closed:
            self._fetch_for_those_who_wait()

    def _fetch_for_those_who_wait(self) -> None:
        """Ask the pool for what it can still give or make; those that are lent come back here by themselves."""
        while len(self._fetches) < min(self.waiting, self._max_size - self._held):
            fetch = self._spawn(self._fetch())
            self._fetches.add(fetch)
            fetch.add_done_callback(self._fetched)

    async def _fetch(self) -> None:
        while self.waiting:
            try:
                connection = await self._pool.getconn(FETCH_LIMIT_S)
            except PoolTimeout:
                continue
            self._note_fetched(connection)
            self.give(connection)
            return

    def _fetched(self, fetch: asyncio.Task[None]) -> None:
        self._fetches.discard(fetch)
        self._pool.forget_who_left()
        if not self._is_closed and not fetch.cancelled() and fetch.exception() is None:
            # For whoever came to wait while it was ending.
            self._fetch_for_those_who_wait()

    def _note_fetched(self, connection: PsycopgConnection) -> None:
        self._held += 1
        connection.home = self
        connection.due_at = getattr(connection, "_expire_at", inf)

    def _end_waits(self, error: Exception) -> None:
        while self._waiters:
            waiter = self._waiters.pop()
            if not waiter.done():
                self._waiting.discard(waiter)
                waiter.set_exception(error)

    def _has_left(self, waiter: asyncio.Future[PsycopgConnection]) -> bool:
        """Whether it waits no more, also where it does not know of that yet."""
        if waiter.done():
            self._waiting.discard(waiter)
        return waiter.done()

    def _expire(self, waiter: asyncio.Future[PsycopgConnection]) -> None:
        if not waiter.done():
            self._waiting.discard(waiter)
            waiter.set_exception(TimeoutError())


async def _finish(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
    """Run on what was started by hand and had to wait after all."""
    return await _go_on(coroutine, waits_for)


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    while True:
        try:
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
                waits_for = coroutine.throw(error)
            else:
                waits_for = coroutine.send(value)
        except StopIteration as done:
            return done.value
