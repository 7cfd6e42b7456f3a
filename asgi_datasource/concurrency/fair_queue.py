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
from .limits import Line, Priority


@dataclass(frozen=True, slots=True)
class Share:
    """On whose account a connection is borrowed.

    Attributes:
        tenant: The tenant's name; None is whoever has none.
        limit: The most that it may have at a time; None is as many as there are.
    """

    tenant: str | None
    limit: int | None = None


class _Waiter:
    __slots__ = ("admitted", "priority", "share")

    def __init__(self, share: Share, priority: Priority) -> None:
        self.share = share
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
        self._taken = 0
        self._waiting = 0
        self._held: dict[str | None, int] = {}
        self._lines: OrderedDict[str | None, Line[_Waiter]] = OrderedDict()
        """The waiting of each tenant; the tenant in front is next, and goes to the end when it had its turn."""

    def __repr__(self) -> str:
        return f"<FairQueue {self._label}: {self._taken} in, {self._waiting} of {len(self._lines)} tenants waiting>"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting

    def held(self, tenant: str | None) -> int:
        """How many connections a tenant has at the moment."""
        return self._held.get(tenant, 0)

    def enter_at_once(self, share: Share) -> bool:
        """Let a tenant in where it need not wait; whoever is let in calls `leave`."""
        if share.tenant in self._lines or not self._has_room(share):
            return False
        # Those who wait, wait for their own limit: otherwise there would be no room.
        self._admit(share)
        return True

    async def enter(self, share: Share, *, timeout_s: float, priority: Priority = Priority.NORMAL) -> None:
        """Wait until it is this tenant's turn; whoever is let in calls `leave`.

        Raises:
            DataError: RESOURCE: it was not within `timeout_s`, or the queue is full and this one's line is the longest.
        """
        if self.enter_at_once(share):
            return
        self._make_room(share, priority)
        waiter = _Waiter(share, priority)
        self._lines.setdefault(share.tenant, Line()).append(waiter, priority)
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.admitted
        except BaseException as error:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                if waiter.admitted.exception() is not None:
                    raise
                # It was this one's turn in the very moment in which it gave up.
                self.leave(share)
            else:
                self._strike(waiter)
            if isinstance(error, TimeoutError):
                raise self._refusal(share, f"none was free for it within {timeout_s:.1f} s") from None
            raise

    def leave(self, share: Share) -> None:
        """A connection is back: it is the next one's turn."""
        self._taken -= 1
        left = self._held[share.tenant] - 1
        if left:
            self._held[share.tenant] = left
        else:
            del self._held[share.tenant]
        self._serve()

    def _has_room(self, share: Share) -> bool:
        if self._capacity is not None and self._taken >= self._capacity:
            return False
        return share.limit is None or self._held.get(share.tenant, 0) < share.limit

    def _admit(self, share: Share) -> None:
        self._taken += 1
        self._held[share.tenant] = self._held.get(share.tenant, 0) + 1

    def _serve(self) -> None:
        """Let in who can be let in, each tenant one before any gets a second."""
        while self._lines and (self._capacity is None or self._taken < self._capacity):
            served = [name for name, line in self._lines.items() if self._has_room(line.first.share)]
            if not served:
                return
            # Who has least comes first; among equals, whose turn it is.
            tenant = min(served, key=lambda name: (-self._lines[name].highest, self.held(name)))
            line = self._lines[tenant]
            waiter = line.pop()
            self._waiting -= 1
            if line:
                self._lines.move_to_end(tenant)
            else:
                del self._lines[tenant]
            if not waiter.admitted.done():
                self._admit(waiter.share)
                waiter.admitted.set_result(None)

    def _make_room(self, share: Share, priority: Priority) -> None:
        """Refuse somebody where the queue is full: of the lowest priority, the last of the longest line.

        Raises:
            DataError: RESOURCE: it is this one.
        """
        if not 0 < self._max_waiting <= self._waiting:
            return
        lowest = next(
            (rank for rank in Priority if any(line.count(rank) for line in self._lines.values())), Priority.HIGH
        )
        lines = {name: line for name, line in self._lines.items() if line.count(lowest)}
        longest = max(lines, key=lambda name: lines[name].count(lowest))
        own = lines[share.tenant].count(lowest) if share.tenant in lines else 0
        if priority < lowest or (priority is lowest and own + 1 >= lines[longest].count(lowest)):
            raise self._refusal(share, f"{self._waiting} are waiting already")
        last = lines[longest].last(lowest)
        self._strike(last)
        last.admitted.set_exception(self._refusal(last.share, f"{self._waiting} are waiting already"))

    def _strike(self, waiter: _Waiter) -> None:
        line = self._lines.get(waiter.share.tenant)
        if line is None or waiter not in line:
            return
        line.remove(waiter)
        self._waiting -= 1
        if not line:
            del self._lines[waiter.share.tenant]

    def _refusal(self, share: Share, because: str) -> DataError:
        limit = "" if share.limit is None else f" of {share.limit}"
        return DataError(
            DataErrorKind.RESOURCE,
            f"{self._label}: the tenant has {self.held(share.tenant)}{limit} connections in use, and {because}. Raise"
            " its limits.max_connections or pool.max_size, or shorten its transactions",
        )
