"""The way of a connection out and back: borrow, check, record, return.

psycopg's pool owns the connections (`owned_pool.py`). But every way out of it and back goes through its lock and, where
a caller waits, through a condition and a task of its own: most of what a short statement costs under load. So
connections in use go round in front of it: one that comes back is handed to the first caller who waits, or lies at hand
for the next. What lies at hand unused goes back to psycopg's pool, which then closes what it has too many of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Protocol

from psycopg_pool import PoolClosed, PoolTimeout

from ...concurrency.fair_queue import FairQueue, Share
from ...concurrency.limits import Line, Priority
from ...errors import DataError, DataErrorKind
from ...routing import CircuitBreaker, Health
from ..protocol import PoolKeeper, TenantIdentity
from ..settings import Reset, ServerSettings
from .connection import PsycopgConnection, is_same
from .owned_pool import OwnedPool
from .saturation import Saturation

SWEEP_S: Final = 1.0
"""Seconds after which a connection at hand that was not used goes back to psycopg's pool."""

FETCH_LIMIT_S: Final = 1.0
"""Seconds after which psycopg's pool is asked anew for those who wait: only then does it try again to make one."""

SHORTEST_WAIT_S: Final = 0.001
"""psycopg's pool fails at once, also with a free connection at hand, when it may not wait at all."""


class GaveUp(Exception):
    """Raised when waiting has become pointless: no connection can be made."""


class Displaced(Exception):
    """Raised when a caller of a higher priority takes the place in a full queue."""


class PoolHost(Protocol):
    """The server that the pool belongs to."""

    label: str
    breaker: CircuitBreaker

    def spawn(self, work: Coroutine[Any, Any, Any], /) -> asyncio.Task[Any]:
        """Start a task that the server puts an end to."""
        ...

    async def reclaim(self, connection: PsycopgConnection, /) -> None:
        """Bring a connection to rest, or cut it, and give it back."""
        ...

    async def await_trial(self, timeout_s: float, /) -> None:
        """The server is down: wait for the end of the one attempt to reach it; raises `DataError` where it fails."""
        ...

    async def is_alive(self, connection: PsycopgConnection, deadline: float | None, /) -> bool:
        """Ask the server over a connection that was just borrowed."""
        ...

    def no_connection(self, error: BaseException, timeout_s: float, waiting: int, /) -> DataError | None:
        """The error of a caller who got no connection; None where another attempt may still reach the server."""
        ...


class HandOver:
    """Connections on their way from one borrower to the next, in front of psycopg's pool.

    Args:
        owned: psycopg's pool; open.
        max_size: Connections that it makes at most.
        spawn: Starts a task that the pool's owner puts an end to.
    """

    def __init__(
        self, owned: OwnedPool, *, max_size: int, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    ) -> None:
        self._owned = owned
        self._max_size = max_size
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self.at_hand: list[PsycopgConnection] = []
        self.unused = 0
        """How many of those at hand, from the first, were not used since the last sweep."""
        self._line: Line[asyncio.Future[PsycopgConnection]] = Line()
        self._waiting: dict[asyncio.Future[PsycopgConnection], float] = {}
        """Those who wait, and the event-loop time at which each gives up; in the line there may also be some that have
        left."""
        self._alarm: asyncio.TimerHandle | None = None
        """Rings for the first who gives up: one for all, because hardly anybody ever does."""
        self._held = 0
        """Connections that are out of psycopg's pool: lent, or at hand."""
        self._fetches: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._keeps_none = False

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        return len(self._waiting)

    # Out

    def take_at_hand(self, tenant: TenantIdentity | None) -> PsycopgConnection:
        """Take one that lies at hand; there is one.

        First the last one that has served this tenant, then one that has served none, then the one that was used
        longest ago: the tenants that come often keep theirs.
        """
        at_hand = self.at_hand
        fresh = 0
        for index in range(len(at_hand) - 1, -1, -1):
            served = at_hand[index].tenant
            if served is tenant or (
                served is not None and tenant is not None and served.name == tenant.name and is_same(served, tenant)
            ):
                break
            if served is None:
                fresh = index
        else:
            index = fresh
        connection = at_hand.pop(index)
        if len(at_hand) < self.unused:
            self.unused = len(at_hand)
        return connection

    async def take(
        self, give_up_at: float, priority: Priority, tenant: TenantIdentity | None = None
    ) -> PsycopgConnection:
        """Take a connection, which may have been lost meanwhile.

        Args:
            give_up_at: Event-loop time at which the wait ends.
            priority: Who is served first of those who wait.
            tenant: Gets a connection that it was the last to have, where one lies at hand.

        Raises:
            TimeoutError: None was free by then.
            Displaced: The place in the queue was given to another caller.
            GaveUp: None can be made.
            psycopg_pool.PoolClosed: The pool was closed.
        """
        if self.at_hand:
            return self.take_at_hand(tenant)
        if self._owned.has_idle and not self._waiting:
            connection = await self._owned.getconn(max(SHORTEST_WAIT_S, give_up_at - self._loop.time()))
            self._note_fetched(connection)
            return connection
        if self._is_closed:
            # The wait of a caller who comes only now would have no end.
            raise PoolClosed("the pool is closed")
        waiter: asyncio.Future[PsycopgConnection] = self._loop.create_future()
        self._line.append(waiter, priority)
        self._waiting[waiter] = give_up_at
        if self._alarm is None or give_up_at < self._alarm.when():
            self._set_alarm(give_up_at)
        if len(self._fetches) < self._max_size - self._held:
            self._fetch_for_those_who_wait()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed over while its borrower was being cancelled: to the next one.
                self.give(waiter.result())
            self._waiting.pop(waiter, None)
            self._line.strip(self._has_left)
            raise

    def displace(self, priority: Priority) -> bool:
        """Make room in a full queue for a caller of this priority: the last one of the lowest priority loses its place.

        Returns:
            Whether there is room now.
        """
        for rank in Priority:
            while rank < priority and self._line.count(rank):
                waiter = self._line.last(rank)
                self._line.remove(waiter)
                if waiter in self._waiting:
                    # It may just have been cancelled: then its place is free as well.
                    del self._waiting[waiter]
                    if not waiter.done():
                        waiter.set_exception(Displaced())
                    return True
        return False

    def give_up(self) -> None:
        """No connection can be made: end all waits."""
        self._end_waits(GaveUp())
        for fetch in self._fetches:
            fetch.cancel()

    # Back

    def give(self, connection: PsycopgConnection) -> None:
        """Take a connection back, which is idle or closed. Never waits."""
        if connection.closed or self._is_closed or self._loop.time() >= connection.due_at:
            self._owned.expire(connection)
            self._return(connection)
            return
        while self._waiting and self._line:
            waiter = self._line.pop()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self._keeps_none:
            self._return(connection)
            return
        self.at_hand.append(connection)
        if self._sweep is None:
            self.unused = 0
            self._sweep = self._loop.call_later(SWEEP_S, self._return_unused)

    def forget(self, connection: PsycopgConnection) -> None:
        """A connection was lost: where it lies at hand psycopg's pool replaces it."""
        if connection in self.at_hand:
            self.at_hand.remove(connection)
            self.unused = min(self.unused, len(self.at_hand))
            self._return(connection)

    def retire(self) -> None:
        """Keep none at hand from now on: what no caller waits for goes back to psycopg's pool."""
        self._keeps_none = True
        self._return_all()

    def close(self) -> None:
        """The pool is being closed: nothing is lent any more."""
        self._is_closed = True
        for timer in (self._sweep, self._alarm):
            if timer is not None:
                timer.cancel()
        self._end_waits(PoolClosed("the pool is closed"))
        for fetch in self._fetches:
            fetch.cancel()
        self._return_all()

    def _return_unused(self) -> None:
        self._sweep = None
        unused, self.at_hand = self.at_hand[: self.unused], self.at_hand[self.unused :]
        for connection in unused:
            self._return(connection)
        self.unused = len(self.at_hand)
        if self.at_hand:
            self._sweep = self._loop.call_later(SWEEP_S, self._return_unused)

    def _return_all(self) -> None:
        while self.at_hand:
            self._return(self.at_hand.pop())
        self.unused = 0

    def _return(self, connection: PsycopgConnection) -> None:
        """Give a connection to psycopg's pool."""
        self._held -= 1
        connection.home = None
        rest = self._owned.put_at_once(connection)
        if rest is not None:
            self._spawn(rest)
        if not self._is_closed:
            self._fetch_for_those_who_wait()

    # From psycopg's pool

    def _fetch_for_those_who_wait(self) -> None:
        """Ask psycopg's pool for what it can still give or make; those that are lent come back here by themselves."""
        while len(self._fetches) < min(self.waiting, self._max_size - self._held):
            fetch = self._spawn(self._fetch())
            self._fetches.add(fetch)
            fetch.add_done_callback(self._fetched)

    async def _fetch(self) -> None:
        while self.waiting:
            try:
                connection = await self._owned.getconn(FETCH_LIMIT_S)
            except PoolTimeout:
                continue
            self._note_fetched(connection)
            self.give(connection)
            return

    def _fetched(self, fetch: asyncio.Task[None]) -> None:
        self._fetches.discard(fetch)
        self._owned.forget_who_left()
        if not self._is_closed and not fetch.cancelled() and fetch.exception() is None:
            # For those who came to wait while it was ending.
            self._fetch_for_those_who_wait()

    def _note_fetched(self, connection: PsycopgConnection) -> None:
        self._held += 1
        connection.home = self
        connection.due_at = self._owned.expires_at(connection)

    def _end_waits(self, error: Exception) -> None:
        while self._line:
            waiter = self._line.pop()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                waiter.set_exception(error)

    def _has_left(self, waiter: asyncio.Future[PsycopgConnection]) -> bool:
        """Whether it waits no more, also where its caller has not gone on yet."""
        if waiter.done():
            self._waiting.pop(waiter, None)
        return waiter.done()

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        # Not the context of the one who waits: it rings for others.
        self._alarm = self._loop.call_at(when, self._end_late_waits, context=Context())

    def _end_late_waits(self) -> None:
        self._alarm = None
        now = self._loop.time()
        for waiter in [waiter for waiter, give_up_at in self._waiting.items() if give_up_at <= now]:
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_exception(TimeoutError())
        self._line.strip(self._has_left)
        if self._waiting:
            self._set_alarm(min(self._waiting.values()))


class Pool:
    """Lends the connections of one server.

    Args:
        host: The server.
        settings: How many connections there may be, and how long callers wait.
        keeper: Decides when a pool is open that opens with its first use; None for one that is always open.

    Attributes:
        borrowed: Connections that are lent.
        lendings: How often a connection was lent since the pool was opened.
        hand_over: What lies in front of psycopg's pool; None while the pool is closed.
    """

    def __init__(self, host: PoolHost, settings: ServerSettings, keeper: PoolKeeper | None) -> None:
        self.borrowed = 0
        self.lendings = 0
        self.hand_over: HandOver | None = None
        self.users = 0
        """Callers that have a connection, or are about to; of pools with a keeper."""
        self.label = host.label
        self.settings = settings
        self._host = host
        self._keeper = keeper
        self._owned: OwnedPool | None = None
        self._turns = (
            FairQueue(host.label, capacity=settings.max_size, max_waiting=settings.max_waiting)
            if settings.is_fair
            else None
        )
        self._limits: FairQueue | None = None
        self._saturation = Saturation(self)
        self._follows_tenants = settings.reset is Reset.ON_TENANT_CHANGE
        """Connections remember their tenant, and are reset when another one comes."""
        self._resets_always = settings.reset is Reset.ALWAYS
        if settings.is_pooled:
            self.share_sessions()

    def share_sessions(self) -> None:
        """There is a pooler in between: nothing is known of what has used a session of the server last."""
        self._follows_tenants = False
        self._resets_always = self.settings.reset is not Reset.NEVER

    @property
    def is_open(self) -> bool:
        """Whether connections can be borrowed."""
        return self._owned is not None

    @property
    def owned(self) -> OwnedPool | None:
        """psycopg's pool; None while the pool is closed."""
        return self._owned

    @property
    def size(self) -> int:
        """How many connections there are, also those that are being made."""
        return 0 if self._owned is None else self._owned.size

    @property
    def idle(self) -> int:
        """How many of them could be borrowed at once."""
        return 0 if self._owned is None or self.hand_over is None else self._owned.idle + len(self.hand_over.at_hand)

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        queued = sum(0 if queue is None else queue.waiting for queue in (self._turns, self._limits))
        return queued + (0 if self.hand_over is None else self.hand_over.waiting)

    # Its life

    async def open(self, owned: OwnedPool) -> None:
        """Lend what `owned` has. Returns at once, also when the server cannot be reached."""
        self.borrowed = self.lendings = 0
        self._owned = owned
        self.hand_over = HandOver(owned, max_size=self.settings.max_size, spawn=self._host.spawn)
        await owned.open(wait=False)

    def close(self) -> OwnedPool | None:
        """Lend nothing any more; the caller closes what is returned."""
        owned, self._owned = self._owned, None
        hand_over, self.hand_over = self.hand_over, None
        if hand_over is not None:
            hand_over.close()
        self._saturation.close()
        return owned

    # Out

    def try_borrow(self, share: Share | None = None, tenant: TenantIdentity | None = None) -> PsycopgConnection | None:
        """Borrow a connection that lies at hand; None where the caller would have to wait, or to queue."""
        hand_over = self.hand_over
        if hand_over is None or not hand_over.at_hand or self._host.breaker.health is not Health.CLOSED:
            return None
        if share is not None:
            queue = self._queue_for(share)
            if queue is not None and not queue.enter_at_once(share):
                return None
        elif self._turns is not None:
            return None
        at_hand = hand_over.at_hand
        if not self._follows_tenants:
            tenant = None
        connection = at_hand[-1]
        if connection.tenant is tenant:
            at_hand.pop()
            if len(at_hand) < hand_over.unused:
                hand_over.unused = len(at_hand)
        else:
            connection = hand_over.take_at_hand(tenant)
            connection.serve(tenant)
        if self._resets_always:
            connection.is_unclean = True
        if self._keeper is not None:
            self.users += 1
            connection.is_kept = True
            self._keeper.used(self._host)
        connection.share = share
        connection.is_lent = True
        self.borrowed += 1
        self.lendings += 1
        return connection

    async def borrow(
        self,
        *,
        deadline: float | None,
        must_be_alive: bool = False,
        share: Share | None = None,
        priority: Priority = Priority.NORMAL,
        tenant: TenantIdentity | None = None,
    ) -> PsycopgConnection:
        """Borrow a connection, outside any transaction; arguments and errors as of `Server.acquire`."""
        give_up_at = self._time_to_give_up(deadline)
        queue = None if share is None else self._queue_for(share)
        if queue is not None and share is not None:
            await self._enter(queue, share, give_up_at, priority)
        try:
            if self._keeper is not None:
                await self._have_opened(self._keeper, give_up_at)
            try:
                connection = await self._borrow(
                    deadline,
                    give_up_at,
                    priority,
                    tenant if self._follows_tenants else None,
                    must_be_alive=must_be_alive,
                )
            except BaseException:
                self._rest()
                raise
        except BaseException:
            if queue is not None and share is not None:
                queue.leave(share)
            raise
        if queue is not None:
            connection.share = share
        connection.is_kept = self._keeper is not None
        return connection

    async def _borrow(
        self,
        deadline: float | None,
        give_up_at: float,
        priority: Priority,
        tenant: TenantIdentity | None,
        *,
        must_be_alive: bool,
    ) -> PsycopgConnection:
        host, loop = self._host, asyncio.get_running_loop()
        # The one that there is now: when the pool is closed meanwhile, and opened again, this wait has ended.
        hand_over = self.hand_over
        if hand_over is None:
            raise DataError(DataErrorKind.CONNECTION, f"{host.label}: the pool is not open")
        while True:
            began_at = loop.time()
            if host.breaker.health is not Health.CLOSED and not self.idle:
                await host.await_trial(give_up_at - began_at)
            if 0 < self.settings.max_waiting <= hand_over.waiting and not hand_over.displace(priority):
                self._saturation.refused()
                raise self._queue_is_full()
            try:
                connection = await hand_over.take(give_up_at, priority, tenant)
            except (Displaced, GaveUp, PoolTimeout, TimeoutError, PoolClosed) as error:
                told = self._told(error, give_up_at - began_at, hand_over)
                if told is not None:
                    raise told from (told.__cause__ or error)
                self._time_to_give_up(deadline)
                continue
            self._saturation.served(loop.time() - began_at)
            connection.is_lent = True
            self.borrowed += 1
            self.lendings += 1
            if connection.tenant is not tenant:
                connection.serve(tenant)
            if self._resets_always:
                connection.is_unclean = True
            if not connection.closed and (
                (host.breaker.health is Health.CLOSED and not must_be_alive)
                or await host.is_alive(connection, deadline)
            ):
                return connection
            # Dead before its borrower had it.
            self.give(connection)
            self._time_to_give_up(deadline)

    def _told(self, error: Exception, timeout_s: float, hand_over: HandOver) -> DataError | None:
        """What a caller is told who has got no connection; None where another attempt may still reach the server."""
        if isinstance(error, PoolClosed):
            return DataError(DataErrorKind.CONNECTION, f"{self._host.label}: the pool is closed")
        if isinstance(error, Displaced):
            told: DataError | None = self._queue_is_full()
        else:
            told = self._host.no_connection(error, timeout_s, hand_over.waiting + 1)
        if told is not None and told.kind is DataErrorKind.RESOURCE:
            self._saturation.refused()
        return told

    def _time_to_give_up(self, deadline: float | None) -> float:
        """Event-loop time at which waiting ends.

        Raises:
            DataError: TIMEOUT: the deadline has passed.
        """
        now = asyncio.get_running_loop().time()
        give_up_at = now + self.settings.acquire_timeout_s
        if deadline is None:
            return give_up_at
        if deadline <= now:
            raise DataError(
                DataErrorKind.TIMEOUT,
                f"{self._host.label}: the deadline had passed before a connection was asked for. Give the route a"
                " longer `timeout`",
                is_retryable=False,
            )
        return min(give_up_at, deadline)

    # Admission: tenants that take turns or have limits, and pools that open with their first use

    async def _enter(self, queue: FairQueue, share: Share, give_up_at: float, priority: Priority) -> None:
        if queue.enter_at_once(share):
            return
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            await queue.enter(share, timeout_s=give_up_at - began_at, priority=priority)
        except DataError:
            if queue is self._limits:
                self._saturation.refused_by_limit()
            else:
                self._saturation.refused()
            raise
        self._saturation.served(loop.time() - began_at)

    def _queue_for(self, share: Share) -> FairQueue | None:
        if self._turns is not None:
            return self._turns
        if share.limit is None:
            return None
        if self._limits is None:
            self._limits = FairQueue(self._host.label, capacity=None, max_waiting=self.settings.max_waiting)
        return self._limits

    async def _have_opened(self, keeper: PoolKeeper, give_up_at: float) -> None:
        self.users += 1
        try:
            if self._owned is None:
                await keeper.make_room(self._host, timeout_s=give_up_at - asyncio.get_running_loop().time())
            keeper.used(self._host)
        except BaseException:
            self._rest()
            raise

    def _rest(self) -> None:
        if self._keeper is not None:
            self.users -= 1
            if not self.users:
                self._keeper.rested(self._host)

    # Back

    def give(self, connection: PsycopgConnection) -> None:
        """Take back a connection that is idle or closed. Never waits."""
        if not connection.is_lent:
            return
        if connection.needs_reset and not connection.closed:
            self._host.spawn(self._host.reclaim(connection))
            return
        connection.is_lent = False
        self.borrowed -= 1
        use = connection.use
        if use is not None:
            connection.use = None
            use.end()
        if connection.home is not None:
            connection.home.give(connection)
        # Behind the hand-over: a tenant that is let in now finds the connection there.
        share = connection.share
        if share is not None:
            connection.share = None
            queue = self._turns or self._limits
            if queue is not None:
                queue.leave(share)
        if connection.is_kept:
            connection.is_kept = False
            self._rest()

    def _queue_is_full(self) -> DataError:
        return DataError(
            DataErrorKind.RESOURCE,
            f"{self._host.label}: {self.settings.max_waiting} are waiting for a connection already. Raise pool.max_size"
            " or pool.max_waiting, or shorten transactions",
        )
