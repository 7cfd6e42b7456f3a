"""Fair admission to a pool that several tenants share: one queue for each tenant, served round-robin.

The tenant with the fewest connections in use is served first; among equals the tenants take turns. When the queue is
full, the tenant with the most waiters is refused. Priorities take precedence over both rules.

psycopg_pool owns the connections. This queue stands in front of it and admits at most `capacity` borrowers, so that
the order of admission is decided here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from ..errors import DataError, DataErrorKind
from .priority_queue import Priority, PriorityQueue


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """The tenant that a borrowed connection counts for, and its limit.

    Attributes:
        tenant: The tenant's name; None for sessions without a tenant.
        limit: Most connections that it may hold at a time; None sets no bound.
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
    """Admits borrowers of a pool, tenant by tenant.

    Args:
        label: Names the pool in messages.
        capacity: Most borrowers at a time; None enforces only the tenants' own limits.
        max_waiting: Most waiters of all tenants together; 0 sets no bound.
    """

    def __init__(self, label: str, *, capacity: int | None, max_waiting: int) -> None:
        self._label = label
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._admitted = 0
        self._waiting = 0
        self._in_use: dict[str | None, int] = {}
        self._queues: OrderedDict[str | None, PriorityQueue[_Waiter]] = OrderedDict()
        """The waiters of each tenant; among equals the first is served, and then moves to the end."""

    def __repr__(self) -> str:
        return f"<FairQueue {self._label}: {self._admitted} in, {self._waiting} of {len(self._queues)} tenants waiting>"

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return self._waiting

    def in_use(self, tenant: str | None) -> int:
        """Number of connections that a tenant holds."""
        return self._in_use.get(tenant, 0)

    def try_enter(self, quota: TenantQuota) -> bool:
        """Admit a borrower if it need not wait; pair True with `leave`."""
        if quota.tenant in self._queues or not self._has_room(quota):
            return False
        # Waiters of other tenants wait for their own limits: if the pool were full, `_has_room` would be false.
        self._admit(quota)
        return True

    async def enter(self, quota: TenantQuota, *, timeout_s: float, priority: Priority = Priority.NORMAL) -> None:
        """Wait for admission; pair a return with `leave`.

        Raises:
            DataError: RESOURCE: not admitted within `timeout_s`, or the queue is full and this tenant waits the most.
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
                # Admitted at the moment in which the wait was cancelled or timed out.
                self.leave(quota)
            else:
                self._remove(waiter)
            if isinstance(error, TimeoutError):
                raise self._refused(quota, f"none was free for it within {timeout_s:.1f} s") from None
            raise

    def leave(self, quota: TenantQuota) -> None:
        """Return a connection and admit the next waiter."""
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
        """Admit waiters while there is room, one tenant at a time."""
        while self._queues and (self._capacity is None or self._admitted < self._capacity):
            served = [name for name, queue in self._queues.items() if self._has_room(queue.first.quota)]
            if not served:
                return
            # The tenant with the fewest connections first; among equals, the one that was served longest ago.
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
        """If the queue is full, refuse the newest waiter of the tenant with the most waiters of the lowest priority.

        Raises:
            DataError: RESOURCE: that waiter would be this one.
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
