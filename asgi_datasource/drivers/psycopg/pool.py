"""Borrowing and returning connections.

psycopg_pool owns the connections (`owned_pool.py`), but each use of it takes its lock and, for a caller that waits, a
condition and a task: under load most of the cost of a short statement. So connections in use circulate in front of it:
a returned connection goes to the first caller that waits, or is kept for the next one. Connections that stay unused go
back to psycopg_pool, which closes its surplus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Protocol, cast

from psycopg_pool import PoolClosed, PoolTimeout

from ...concurrency.fair_queue import FairQueue, TenantQuota
from ...concurrency.priority_queue import Priority, PriorityQueue
from ...errors import DataError, DataErrorKind
from ...routing import CircuitBreaker, Health
from ..protocol import PoolKeeper, TenantIdentity
from ..settings import Reset, ServerSettings
from .connection import PsycopgConnection, is_same
from .owned_pool import OwnedPool
from .read_sharing import MIN_SERVER_VERSION, Asker, ReadShare, ReadSharing
from .saturation import Saturation
from .tenant_types import TenantTypes, TypeRegistry

SWEEP_S: Final = 1.0
"""Seconds after which a kept connection that was not used goes back to psycopg_pool."""

FETCH_LIMIT_S: Final = 1.0
"""Seconds after which psycopg_pool is asked again for waiting callers: it tries a failed connect again only then."""

SHORTEST_WAIT_S: Final = 0.001
"""With a timeout of zero psycopg_pool fails at once, even if a connection is free."""


class GaveUp(Exception):
    """Raised when no connection can be made, so that there is nothing to wait for."""


class Displaced(Exception):
    """Raised when a caller of a higher priority takes the place in a full queue."""


class PoolHost(Protocol):
    """The server as its pool uses it."""

    label: str
    full_name: str
    breaker: CircuitBreaker

    def spawn(self, work: Coroutine[Any, Any, Any], /) -> asyncio.Task[Any]:
        """Start a task that ends with the server."""
        ...

    async def reclaim(self, connection: PsycopgConnection, /) -> None:
        """Bring a connection back to idle, or close it, and return it."""
        ...

    async def await_trial(self, timeout_s: float, /) -> None:
        """The server is down: await the trial connection; raises `DataError` if it fails."""
        ...

    async def is_alive(self, connection: PsycopgConnection, deadline: float | None, /) -> bool:
        """Check a borrowed connection."""
        ...

    def error(self, kind: DataErrorKind, text: str, /, *, is_retryable: bool | None = None) -> DataError:
        """An error of the server."""
        ...

    def no_connection(
        self, error: BaseException, timeout_s: float, waiting: int, /, *, is_stuck: bool, late_s: float
    ) -> DataError | None:
        """The error of a caller that got no connection; None if another attempt may still reach the server.

        Args:
            error: What has ended the wait.
            timeout_s: Longest wait, in seconds.
            waiting: Number of callers that waited.
            is_stuck: No connection was returned during the wait.
            late_s: Seconds by which the event loop noticed the end of the wait late.
        """
        ...


class HandOver:
    """Passes connections from one borrower to the next, in front of psycopg_pool.

    Args:
        owned: The open psycopg_pool.
        max_size: Its maximum size.
        spawn: Starts a task that ends with the pool's owner.
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
        """Number of kept connections, from the first one, that were not used since the last sweep."""
        self.sharing: ReadSharing | None = None
        """Which connections take another read; None where reads do not share."""
        self._askers: dict[asyncio.Future[PsycopgConnection | ReadShare], Asker] = {}
        """The waiting callers that may share a connection."""
        self._line: PriorityQueue[asyncio.Future[PsycopgConnection | ReadShare]] = PriorityQueue()
        self._waiting: dict[asyncio.Future[PsycopgConnection | ReadShare], float] = {}
        """The waiting callers, and the event-loop time at which each gives up. The queue may also contain callers that
        have given up."""
        self._alarm: asyncio.TimerHandle | None = None
        """One timer for the first caller that gives up, because that is rare."""
        self._held: list[PsycopgConnection] = []
        """Connections taken from psycopg_pool: borrowed or kept."""
        self._fetches: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._keeps_none = False

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a connection."""
        return len(self._waiting)

    # Borrowing

    def take_at_hand(self, tenant: TenantIdentity | None) -> PsycopgConnection:
        """Take a kept connection; there must be one.

        Preferred are the last one that this tenant had, then one that no tenant had, then the least recently used one.
        """
        at_hand = self.at_hand
        fresh = index = 0
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
        self,
        give_up_at: float,
        priority: Priority,
        tenant: TenantIdentity | None = None,
        asker: Asker | None = None,
    ) -> PsycopgConnection | ReadShare:
        """Take a connection; it may have been lost in the meantime.

        Args:
            give_up_at: Event-loop time at which the wait ends.
            priority: Order of service among callers that wait.
            tenant: Gets a connection that it had last, if one is at hand.
            asker: A read that may share a connection.

        Raises:
            TimeoutError: None was free by then.
            Displaced: Another caller took the place in the queue.
            GaveUp: No connection can be made.
            psycopg_pool.PoolClosed: The pool was closed.
        """
        if self.at_hand:
            return self.take_at_hand(tenant)
        if self._owned.has_idle and not self._waiting:
            connection = await self._owned.getconn(max(SHORTEST_WAIT_S, give_up_at - self._loop.time()))
            self._note_fetched(connection)
            return connection
        if self._is_closed:
            # A wait that starts now would never end.
            raise PoolClosed("the pool is closed")
        waiter: asyncio.Future[PsycopgConnection | ReadShare] = self._loop.create_future()
        if asker is not None:
            self._askers[waiter] = asker
        self._line.append(waiter, priority)
        self._waiting[waiter] = give_up_at
        if self._alarm is None or give_up_at < self._alarm.when():
            self._set_alarm(give_up_at)
        if len(self._fetches) < self._max_size - len(self._held):
            self._fetch_for_those_who_wait()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Passed to this caller while it was being cancelled: pass it on.
                given = waiter.result()
                if isinstance(given, ReadShare):
                    given.give_back()
                else:
                    self.give(given)
            self._waiting.pop(waiter, None)
            self._line.prune(self._has_left)
            raise
        finally:
            if asker is not None:
                self._askers.pop(waiter, None)

    def displace(self, priority: Priority) -> bool:
        """Make room in a full queue for a caller of this priority: the newest caller of the lowest priority is refused.

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

    # Returning

    def give(self, connection: PsycopgConnection) -> None:
        """Take back a connection that is idle or closed. Never waits."""
        if connection.closed or self._is_closed or self._loop.time() >= connection.due_at:
            self._owned.expire(connection)
            self._return(connection)
            return
        while self._waiting and self._line:
            waiter = self._line.pop()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                sharing, asker = self.sharing, self._askers.get(waiter)
                if sharing is None or asker is None or self._next_asker() is None or connection.sharing is None:
                    waiter.set_result(connection)
                else:
                    waiter.set_result(sharing.open(connection, asker.tenant))
                    self.invite(connection)
                return
        if self._keeps_none:
            self._return(connection)
            return
        self.at_hand.append(connection)
        if self._sweep is None:
            self.unused = 0
            self._sweep = self._loop.call_later(SWEEP_S, self._return_unused, context=Context())

    @property
    def shares(self) -> int:
        """Number of reads that share a connection, beside the connection's owner."""
        return sum([connection.shares - (not connection.is_owned) for connection in self._held])

    def find_shared(
        self, query: str, tenant: TenantIdentity | None, types: TenantTypes | None
    ) -> PsycopgConnection | None:
        """A connection that a read can join, where it would have to wait for one to be returned; None without one.

        Args:
            query: The read's text.
            tenant: Its tenant.
            types: The types whose values it has to convert.
        """
        sharing = self.sharing
        if (
            sharing is None
            or self._waiting
            or self._keeps_none
            or len(self._held) < self._max_size
            or not sharing.may_share(query, self._loop.time())
        ):
            return None
        return sharing.find(self._held, tenant, types)

    def invite(self, connection: PsycopgConnection) -> None:
        """Lend parts of a shared connection to the reads at the front of the line."""
        sharing = self.sharing
        if sharing is None or self._is_closed or self._keeps_none:
            return
        sharing.now = self._loop.time()
        while sharing.takes_more(connection) and (asker := self._next_asker()) is not None:
            waiter = self._line.pop()
            self._waiting.pop(waiter, None)
            waiter.set_result(sharing.share(connection, asker.tenant))

    def _next_asker(self) -> Asker | None:
        """The read at the front of the line; None if there is no caller, or another one."""
        while self._line:
            waiter = self._line.first
            if not waiter.done():
                return self._askers.get(waiter)
            self._line.pop()
            self._waiting.pop(waiter, None)
        return None

    def forget(self, connection: PsycopgConnection) -> None:
        """A connection was lost: if it is kept here, psycopg_pool replaces it."""
        if connection in self.at_hand:
            self.at_hand.remove(connection)
            self.unused = min(self.unused, len(self.at_hand))
            self._return(connection)

    def retire(self) -> None:
        """From now on, return connections that no caller waits for to psycopg_pool."""
        self._keeps_none = True
        self._return_all()

    def close(self) -> None:
        """The pool is being closed: lend no more connections."""
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
            self._sweep = self._loop.call_later(SWEEP_S, self._return_unused, context=Context())

    def _return_all(self) -> None:
        while self.at_hand:
            self._return(self.at_hand.pop())
        self.unused = 0

    def _return(self, connection: PsycopgConnection) -> None:
        """Return a connection to psycopg_pool."""
        self._held.remove(connection)
        connection.home = connection.sharing = None
        rest = self._owned.put_at_once(connection)
        if rest is not None:
            self._spawn(rest)
        if not self._is_closed:
            self._fetch_for_those_who_wait()

    # Connections from psycopg_pool

    def _fetch_for_those_who_wait(self) -> None:
        """Ask psycopg_pool for the connections that it can still give or make, for waiting callers."""
        while len(self._fetches) < min(self.waiting, self._max_size - len(self._held)):
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
            # For callers that arrived while it was ending.
            self._fetch_for_those_who_wait()

    def _note_fetched(self, connection: PsycopgConnection) -> None:
        self._held.append(connection)
        connection.home = self
        if connection.server_version >= MIN_SERVER_VERSION:
            connection.sharing = self.sharing
        connection.due_at = self._owned.expires_at(connection)

    def _end_waits(self, error: Exception) -> None:
        while self._line:
            waiter = self._line.pop()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                waiter.set_exception(error)

    def _has_left(self, waiter: asyncio.Future[PsycopgConnection | ReadShare]) -> bool:
        """Whether a caller has stopped waiting, even if its task has not resumed yet."""
        if waiter.done():
            self._waiting.pop(waiter, None)
        return waiter.done()

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        # A context of its own: the timer does not belong to the caller that starts it.
        self._alarm = self._loop.call_at(when, self._end_late_waits, context=Context())

    def _end_late_waits(self) -> None:
        self._alarm = None
        now = self._loop.time()
        for waiter in [waiter for waiter, give_up_at in self._waiting.items() if give_up_at <= now]:
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_exception(TimeoutError())
        self._line.prune(self._has_left)
        if self._waiting:
            self._set_alarm(min(self._waiting.values()))


class Pool:
    """Lends the connections of one server.

    Args:
        host: The server.
        settings: Number of connections and timeouts.
        keeper: Decides when the pool is open; None for a pool that is always open.

        Attributes:
        borrowed: Number of borrowed connections.
        lendings: Number of times a connection was borrowed since the pool was opened.
        hand_over: Passes connections between borrowers; None while the pool is closed.
    """

    def __init__(self, host: PoolHost, settings: ServerSettings, keeper: PoolKeeper | None) -> None:
        self.borrowed = 0
        self.lendings = 0
        self.hand_over: HandOver | None = None
        self.users = 0
        """Callers that have a connection or are about to borrow one; for pools with a keeper."""
        self.label = host.label
        self.settings = settings
        self._host = host
        self._keeper = keeper
        self._owned: OwnedPool | None = None
        self._turns = (
            FairQueue(host.full_name, capacity=settings.max_size, max_waiting=settings.max_waiting)
            if settings.is_fair
            else None
        )
        self._limits: FairQueue | None = None
        self.types = TypeRegistry(settings.types, host.label) if settings.types else None
        """Converts values of the datasource's types; None without any."""
        self._saturation = Saturation(self)
        self._follows_tenants = settings.reset is Reset.ON_TENANT_CHANGE
        """Connections remember their tenant, and are reset when another one comes."""
        self._resets_always = settings.reset is Reset.ALWAYS
        self._multiplexes = settings.max_depth > 1 and not settings.is_fair
        """Reads share connections where they would have to wait for one. Fair queues admit one borrower for each."""
        if settings.is_pooled:
            self.share_sessions()

    def share_sessions(self) -> None:
        """Reset in every transaction: behind a pooler, the previous user of a server session is unknown."""
        self._follows_tenants = self._multiplexes = False
        self._resets_always = self.settings.reset is not Reset.NEVER
        hand_over = self.hand_over
        if hand_over is not None:
            hand_over.sharing = None

    @property
    def is_open(self) -> bool:
        """Whether connections can be borrowed."""
        return self._owned is not None

    @property
    def owned(self) -> OwnedPool | None:
        """The psycopg_pool; None while the pool is closed."""
        return self._owned

    @property
    def size(self) -> int:
        """Number of connections, including those that are being made."""
        return 0 if self._owned is None else self._owned.size

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        return 0 if self._owned is None or self.hand_over is None else self._owned.idle + len(self.hand_over.at_hand)

    @property
    def returns(self) -> int:
        """How often a connection, or a part of one, was returned."""
        return self.lendings - self.borrowed - (0 if self.hand_over is None else self.hand_over.shares)

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a connection."""
        queued = sum(0 if queue is None else queue.waiting for queue in (self._turns, self._limits))
        return queued + (0 if self.hand_over is None else self.hand_over.waiting)

    # Life cycle

    async def open(self, owned: OwnedPool) -> None:
        """Start lending the connections of `owned`. Returns at once, even if the server cannot be reached."""
        self.borrowed = self.lendings = 0
        self._owned = owned
        self.hand_over = hand_over = HandOver(owned, max_size=self.settings.max_size, spawn=self._host.spawn)
        if self._multiplexes:
            hand_over.sharing = ReadSharing(
                self,
                self.settings.max_depth,
                follows_tenants=self._follows_tenants,
                resets_always=self._resets_always,
            )
        await owned.open(wait=False)

    def close(self) -> OwnedPool | None:
        """Stop lending; the caller closes the returned pool."""
        owned, self._owned = self._owned, None
        hand_over, self.hand_over = self.hand_over, None
        if hand_over is not None:
            hand_over.close()
        self._saturation.close()
        return owned

    def abandon(self) -> None:
        """The event loop is closed: close the pool without it."""
        self._owned = self.hand_over = self._limits = None
        self.borrowed = self.users = 0
        if self._turns is not None:
            settings = self.settings
            self._turns = FairQueue(self._host.full_name, capacity=settings.max_size, max_waiting=settings.max_waiting)
        self._saturation = Saturation(self)

    # Borrowing

    def try_borrow(
        self, quota: TenantQuota | None = None, tenant: TenantIdentity | None = None, read: str | None = None
    ) -> PsycopgConnection | ReadShare | None:
        """Borrow an idle connection; None where the caller would have to wait or to queue.

        Args:
            quota, tenant: The tenant that it counts for, and the one that it is borrowed for.
            read: Text of the one read that it is borrowed for: it may be shared with other reads. None for all else.
        """
        hand_over = self.hand_over
        if hand_over is None or not hand_over.at_hand or self._host.breaker.health is not Health.CLOSED:
            if read is None or hand_over is None or hand_over.sharing is None or hand_over.at_hand:
                return None
            return self._try_share(hand_over, quota, tenant, read)
        types = self.types
        known = None
        if types is not None:
            known = types.known(tenant)
            if known is None:
                return None
        if quota is not None:
            queue = self._queue_for(quota)
            if queue is not None and not queue.try_enter(quota):
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
        if known is not None:
            connection.use_types(known)
        connection.quota = quota
        connection.is_lent = True
        self.borrowed += 1
        self.lendings += 1
        return connection

    def _try_share(
        self, hand_over: HandOver, quota: TenantQuota | None, tenant: TenantIdentity | None, read: str
    ) -> ReadShare | None:
        """Borrow a part of a connection that other reads use."""
        known = None if self.types is None else self.types.known(tenant)
        if (self.types is not None and known is None) or self._host.breaker.health is not Health.CLOSED:
            return None
        connection = hand_over.find_shared(read, tenant, known)
        if connection is None:
            return None
        queue = None if quota is None else self._queue_for(quota)
        if queue is not None and quota is not None and not queue.try_enter(quota):
            return None
        share = cast("ReadSharing", hand_over.sharing).share(connection, tenant)
        if queue is not None:
            share.quota = quota
        return share

    async def borrow(
        self,
        *,
        deadline: float | None,
        must_be_alive: bool = False,
        quota: TenantQuota | None = None,
        priority: Priority = Priority.NORMAL,
        tenant: TenantIdentity | None = None,
        read: str | None = None,
    ) -> PsycopgConnection | ReadShare:
        """Borrow a connection, outside any transaction; arguments and errors as in `Server.acquire`."""
        give_up_at = self._time_to_give_up(deadline)
        queue = None if quota is None else self._queue_for(quota)
        if queue is not None and quota is not None:
            await self._enter(queue, quota, give_up_at, priority)
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
                    asker=None if read is None or must_be_alive else self._asker(tenant, read),
                )
                if self.types is not None and isinstance(connection, PsycopgConnection):
                    await self._prepare_types(self.types, connection, tenant, deadline)
            except BaseException:
                self._rest()
                raise
        except BaseException:
            if queue is not None and quota is not None:
                queue.leave(quota)
            raise
        if queue is not None:
            connection.quota = quota
        if self._keeper is not None:
            self._keep(connection)
        return connection

    def _keep(self, connection: PsycopgConnection | ReadShare) -> None:
        """Count a borrowed connection as in use: a shared one once."""
        lent = connection.connection if isinstance(connection, ReadShare) else connection
        if lent.is_kept:
            self._rest()
        lent.is_kept = True

    def _asker(self, tenant: TenantIdentity | None, read: str) -> Asker | None:
        """A caller that may share a connection; None if it may not."""
        sharing = None if self.hand_over is None else self.hand_over.sharing
        if sharing is None or self.types is not None or not sharing.may_share(read, asyncio.get_running_loop().time()):
            return None
        return Asker(tenant)

    async def _prepare_types(
        self, types: TypeRegistry, connection: PsycopgConnection, tenant: TenantIdentity | None, deadline: float | None
    ) -> None:
        """Have a borrowed connection convert the types of its tenant."""
        known = types.known(tenant)
        if known is None:
            try:
                known = await types.learn(connection, tenant, deadline)
            except BaseException:
                self._host.spawn(self._host.reclaim(connection))
                raise
        connection.use_types(known)

    async def _borrow(
        self,
        deadline: float | None,
        give_up_at: float,
        priority: Priority,
        tenant: TenantIdentity | None,
        *,
        must_be_alive: bool,
        asker: Asker | None,
    ) -> PsycopgConnection | ReadShare:
        host, loop = self._host, asyncio.get_running_loop()
        # The current one: if the pool is closed and opened again in the meantime, this wait ends.
        hand_over = self.hand_over
        if hand_over is None:
            raise host.error(DataErrorKind.CONNECTION, "the pool is not open")
        while True:
            began_at = loop.time()
            if host.breaker.health is not Health.CLOSED and not self.idle:
                await host.await_trial(give_up_at - began_at)
            if 0 < self.settings.max_waiting <= hand_over.waiting and not hand_over.displace(priority):
                self._saturation.refused()
                raise self._queue_is_full()
            lendings = self.lendings
            try:
                connection = await hand_over.take(give_up_at, priority, tenant, asker)
            except (Displaced, GaveUp, PoolTimeout, TimeoutError, PoolClosed) as error:
                told = self._told(
                    error,
                    give_up_at - began_at,
                    hand_over,
                    is_stuck=self.lendings == lendings,
                    late_s=loop.time() - give_up_at,
                )
                if told is not None:
                    raise told from (told.__cause__ or error)
                self._time_to_give_up(deadline)
                continue
            self._saturation.served(loop.time() - began_at)
            if isinstance(connection, ReadShare):
                return connection
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
            # Lost before the borrower received it.
            self.give(connection)
            self._time_to_give_up(deadline)

    def _told(
        self, error: Exception, timeout_s: float, hand_over: HandOver, *, is_stuck: bool, late_s: float
    ) -> DataError | None:
        """The error of a caller that got no connection; None if another attempt may still reach the server."""
        if isinstance(error, PoolClosed):
            return self._host.error(DataErrorKind.CONNECTION, "the pool is closed")
        if isinstance(error, Displaced):
            told: DataError | None = self._queue_is_full()
        else:
            told = self._host.no_connection(error, timeout_s, hand_over.waiting + 1, is_stuck=is_stuck, late_s=late_s)
        if told is not None and told.kind is DataErrorKind.RESOURCE:
            self._saturation.refused(late_s)
        return told

    def _time_to_give_up(self, deadline: float | None) -> float:
        """Event-loop time at which the wait ends.

        Raises:
            DataError: TIMEOUT: the deadline has passed.
        """
        now = asyncio.get_running_loop().time()
        give_up_at = now + self.settings.acquire_timeout_s
        if deadline is None:
            return give_up_at
        if deadline <= now:
            raise self._host.error(
                DataErrorKind.TIMEOUT,
                "the deadline had passed before a connection was asked for. Give the route a longer `timeout`",
                is_retryable=False,
            )
        return min(give_up_at, deadline)

    # Admission: turns and limits of tenants, and pools that are opened on first use

    async def _enter(self, queue: FairQueue, quota: TenantQuota, give_up_at: float, priority: Priority) -> None:
        if queue.try_enter(quota):
            return
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            await queue.enter(quota, timeout_s=give_up_at - began_at, priority=priority)
        except DataError:
            if queue is self._limits:
                self._saturation.refused_by_limit()
            else:
                self._saturation.refused()
            raise
        self._saturation.served(loop.time() - began_at)

    def _queue_for(self, quota: TenantQuota) -> FairQueue | None:
        if self._turns is not None:
            return self._turns
        if quota.limit is None:
            return None
        if self._limits is None:
            self._limits = FairQueue(self._host.full_name, capacity=None, max_waiting=self.settings.max_waiting)
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

    # Returning

    def give(self, connection: PsycopgConnection | ReadShare) -> None:
        """Take back a connection that is idle or closed, or a part of a shared one. Never waits."""
        if connection.shares:
            self._leave_to_others(connection)
            return
        connection = cast("PsycopgConnection", connection)
        if not connection.is_lent:
            return
        connection.is_open_to_reads = False
        if (connection.needs_reset or connection.has_dropped_reads) and not connection.closed:
            self._host.spawn(self._host.reclaim(connection))
            return
        types = self.types
        if types is not None and connection.types_generation != connection.plans.generation:
            connection.types_generation = connection.plans.generation
            types.forget()
        connection.is_lent = False
        self.borrowed -= 1
        use = connection.use
        if use is not None:
            connection.use = None
            use.end()
        if connection.tag is not None:
            connection.tag = None
        if connection.home is not None:
            connection.home.give(connection)
        # After the hand-over, so that a tenant admitted now finds the connection there.
        quota = connection.quota
        if quota is not None:
            connection.quota = None
            queue = self._turns or self._limits
            if queue is not None:
                queue.leave(quota)
        if connection.is_kept:
            connection.is_kept = False
            self._rest()

    def _leave_to_others(self, connection: PsycopgConnection | ReadShare) -> None:
        """Take back a part of a shared connection, or the connection of the read that was there first."""
        if isinstance(connection, ReadShare):
            self.leave(connection)
        elif connection.is_owned:
            connection.is_owned = False
            connection.has_dropped_reads = True
            use, connection.use = connection.use, None
            if use is not None:
                use.end()
            self._leave_quota(connection)
            self._invite(connection)

    def leave(self, share: ReadShare) -> None:
        """A read that shares a connection has ended."""
        if share.is_over:
            return
        share.is_over = True
        connection = share.connection
        connection.shares -= 1
        use, share.use = share.use, None
        if use is not None:
            use.end()
        self._leave_quota(share)
        if share.is_unfinished:
            connection.has_dropped_reads = True
        if connection.shares or connection.is_owned:
            self._invite(connection)
            return
        connection.is_owned = True
        connection.is_open_to_reads = False
        self.give(connection)

    def _invite(self, connection: PsycopgConnection) -> None:
        hand_over = self.hand_over
        if hand_over is not None and hand_over.waiting:
            hand_over.invite(connection)

    def _leave_quota(self, borrowed: PsycopgConnection | ReadShare) -> None:
        quota, borrowed.quota = borrowed.quota, None
        queue = self._turns or self._limits
        if quota is not None and queue is not None:
            queue.leave(quota)

    def _queue_is_full(self) -> DataError:
        return self._host.error(
            DataErrorKind.RESOURCE,
            f"{self.settings.max_waiting} are waiting for a connection already. Raise pool.max_size"
            " or pool.max_waiting, or shorten transactions",
        )
