"""Whose turn it is at a pool that several tenants share: a queue for each tenant, and turns between tenants.

A tenant that wants much waits behind itself: whoever has least comes first, and among equals they take turns. When the
queue is full, it is the tenant with the longest line that is refused. Priorities go before both.

Pools stay psycopg's. This stands in front of one, lets no more in than it has connections, and so decides who waits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from ..errors import DataError, DataErrorKind
from .limits import Priority, PriorityQueue


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """On whose account a connection is borrowed.

    Attributes:
        tenant: The tenant's name; None is whoever has none.
        limit: The most that it may have at a time; None is as many as there are.
    """

    tenant: str | None
    limit: int | None = None


class _Waiter:
    __slots__ = ("admitted", "priority", "quota")

    def __init__(self, quota: TenantQuota, priority: Priority) -> None:
        self.quota = quota
        self.priority = priority
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class FairQueue:
    """Lets tenants in, one by one and in turn.

    Args:
        label: Names the pool, for messages.
        capacity: How many may be in at a time; None only keeps each tenant to its own limit.
        max_waiting: How many may wait in all; 0 sets no bound.
    """

    def __init__(self, label: str, *, capacity: int | None, max_waiting: int) -> None:
        self._label = label
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._admitted = 0
        self._waiting = 0
        self._in_use: dict[str | None, int] = {}
        self._queues: OrderedDict[str | None, PriorityQueue[_Waiter]] = OrderedDict()
        """The waiting of each tenant; the tenant in front is next, and goes to the end when it had its turn."""

    def __repr__(self) -> str:
        return f"<FairQueue {self._label}: {self._admitted} in, {self._waiting} of {len(self._queues)} tenants waiting>"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting

    def in_use(self, tenant: str | None) -> int:
        """How many connections a tenant has at the moment."""
        return self._in_use.get(tenant, 0)

    def try_enter(self, quota: TenantQuota) -> bool:
        """Let a tenant in where it need not wait; whoever is let in calls `leave`."""
        if quota.tenant in self._queues or not self._has_room(quota):
            return False
        # Those who wait, wait for their own limit: otherwise there would be no room.
        self._admit(quota)
        return True

    async def enter(self, quota: TenantQuota, *, timeout_s: float, priority: Priority = Priority.NORMAL) -> None:
        """Wait until it is this tenant's turn; whoever is let in calls `leave`.

        Raises:
            DataError: RESOURCE: it was not within `timeout_s`, or the queue is full and this one's line is the longest.
        """
        if self.try_enter(quota):
            return
        self._refuse_if_full(quota, priority)
        waiter = _Waiter(quota, priority)
        self._queues.setdefault(quota.tenant, PriorityQueue()).append(waiter, priority)
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.admitted
        except BaseException as error:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                if waiter.admitted.exception() is not None:
                    raise
                # It was this one's turn in the very moment in which it gave up.
                self.leave(quota)
            else:
                self._remove(waiter)
            if isinstance(error, TimeoutError):
                raise self._refused(quota, f"none was free for it within {timeout_s:.1f} s") from None
            raise

    def leave(self, quota: TenantQuota) -> None:
        """A connection is back: it is the next one's turn."""
        self._admitted -= 1
        left = self._in_use[quota.tenant] - 1
        if left:
            self._in_use[quota.tenant] = left
        else:
            del self._in_use[quota.tenant]
        self._admit_next()

    def _has_room(self, quota: TenantQuota) -> bool:
        if self._capacity is not None and self._admitted >= self._capacity:
            return False
        return quota.limit is None or self._in_use.get(quota.tenant, 0) < quota.limit

    def _admit(self, quota: TenantQuota) -> None:
        self._admitted += 1
        self._in_use[quota.tenant] = self._in_use.get(quota.tenant, 0) + 1

    def _admit_next(self) -> None:
        """Let in who can be let in, each tenant one before any gets a second."""
        while self._queues and (self._capacity is None or self._admitted < self._capacity):
            served = [name for name, queue in self._queues.items() if self._has_room(queue.first.quota)]
            if not served:
                return
            # Who has least comes first; among equals, whose turn it is.
            tenant = min(served, key=lambda name: (-self._queues[name].highest, self.in_use(name)))
            queue = self._queues[tenant]
            waiter = queue.pop()
            self._waiting -= 1
            if queue:
                self._queues.move_to_end(tenant)
            else:
                del self._queues[tenant]
            if not waiter.admitted.done():
                self._admit(waiter.quota)
                waiter.admitted.set_result(None)

    def _refuse_if_full(self, quota: TenantQuota, priority: Priority) -> None:
        """Refuse somebody where the queue is full: of the lowest priority, the last of the longest line.

        Raises:
            DataError: RESOURCE: it is this one.
        """
        if not 0 < self._max_waiting <= self._waiting:
            return
        lowest = next(
            (rank for rank in Priority if any(queue.count(rank) for queue in self._queues.values())), Priority.HIGH
        )
        queues = {name: queue for name, queue in self._queues.items() if queue.count(lowest)}
        longest = max(queues, key=lambda name: queues[name].count(lowest))
        own = queues[quota.tenant].count(lowest) if quota.tenant in queues else 0
        if priority < lowest or (priority is lowest and own + 1 >= queues[longest].count(lowest)):
            raise self._refused(quota, f"{self._waiting} are waiting already")
        last = queues[longest].last(lowest)
        self._remove(last)
        last.admitted.set_exception(self._refused(last.quota, f"{self._waiting} are waiting already"))

    def _remove(self, waiter: _Waiter) -> None:
        queue = self._queues.get(waiter.quota.tenant)
        if queue is None or waiter not in queue:
            return
        queue.remove(waiter)
        self._waiting -= 1
        if not queue:
            del self._queues[waiter.quota.tenant]

    def _refused(self, quota: TenantQuota, reason: str) -> DataError:
        limit = "" if quota.limit is None else f" of {quota.limit}"
        return DataError(
            DataErrorKind.RESOURCE,
            f"{self._label}: the tenant has {self.in_use(quota.tenant)}{limit} connections in use, and {reason}. Raise"
            " its limits.max_connections or pool.max_size, or shorten its transactions",
        )
