"""Multiplexed reads: requests that find no idle connection put their reads into the pipeline of one in use.

Only statement-scoped reads share, because each has its tenant, READ ONLY and its time limit in its own round trip. A
connection is joined only where a request would have waited for one: an idle connection is taken first, a pool grows to
its maximum first, and callers that wait are served in order. Among these, reads at the front get a connection together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NoReturn, Protocol

from psycopg import InterfaceError

from ...concurrency.fair_queue import TenantQuota
from ...observability.query_tags import QueryTag
from ...observability.recording import UseRecorder
from ...routing import Position
from ..protocol import TenantIdentity
from ..statements import Control, Envelope, Params, Query, Statement
from .connection import PsycopgConnection
from .pipeline import Pipeline
from .shared_pipeline import give_up
from .tenant_types import TenantTypes

MIN_SERVER_VERSION: Final = 140000
"""Older servers report settings in the middle of a transaction, to all whose reads share the connection."""

SLOW_S: Final = 30.0
"""Seconds for which a text that has held back others does not share."""

MAX_SLOW: Final = 500
"""Most texts that are known to be slow."""

_ONE_READ: Final = "a shared connection runs one read"

_OTHER_TENANT: Final = 2
"""A read that would begin with a reset for another tenant joins a connection only if that has two reads fewer."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A caller that waits to send one read, on a connection of its own or on a shared one."""

    tenant: TenantIdentity | None


class SharedPool(Protocol):
    """The pool whose connections are shared."""

    borrowed: int
    lendings: int

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        ...

    @property
    def returns(self) -> int:
        """How often a connection, or a part of one, was returned."""
        ...

    def leave(self, share: ReadShare, /) -> None:
        """A read that shares a connection has ended."""
        ...


class ReadShare:
    """One read's part of a connection that several reads share; a `Connection` that runs this read, and nothing else.

    Args:
        sharing: The pool's sharing.
        connection: The shared connection.
        tenant: The tenant that the read runs as; None where sessions are not reset.
    """

    is_shared = True
    shares: Final = 1
    when_gone: Callable[[], None] | None = None

    def __init__(self, sharing: ReadSharing, connection: PsycopgConnection, tenant: TenantIdentity | None) -> None:
        self._sharing = sharing
        self._exchange: Pipeline | None = None
        self.connection = connection
        self.tenant = tenant
        self.quota: TenantQuota | None = None
        self.use: UseRecorder | None = None
        self.tag: QueryTag | None = None
        self.is_over = False
        """It was returned."""
        self.timeline = connection.timeline
        self.incarnation = connection.incarnation
        self.leads_to = connection.leads_to
        self.backend_pid = connection.backend_pid

    def __repr__(self) -> str:
        return f"<ReadShare of {self.connection!r}>"

    @property
    def began_at(self) -> float | None:
        """`perf_counter` time at which the reads in front of it were done; None if there were none."""
        return None if self._exchange is None else self._exchange.began_at

    # The connection

    @property
    def held(self) -> Position | None:
        return self.connection.held

    @held.setter
    def held(self, position: Position | None) -> None:
        self.connection.held = position

    @property
    def closed(self) -> bool:
        return self.connection.closed

    @property
    def is_usable(self) -> bool:
        return False

    @property
    def is_idle(self) -> bool:
        return True

    @property
    def is_in_transaction(self) -> bool:
        return False

    @property
    def has_failed_transaction(self) -> bool:
        return False

    @property
    def is_midway(self) -> bool:
        return False

    @property
    def is_unfinished(self) -> bool:
        """Whether its read may still be in progress."""
        return self._exchange is not None and not self._exchange.has_landed

    def give_back(self) -> None:
        """Return it unused."""
        self._sharing.leave(self)

    # Its read

    def send_one(
        self,
        envelope: Envelope,
        settings: tuple[tuple[str, str], ...],
        query: Query,
        params: Params | None,
        *,
        deadline: float | None,
        now: float,
    ) -> Pipeline | None:
        """Send the read, behind those that are in progress; None if nothing was sent."""
        connection = self.connection
        if not envelope.is_read or (connection.is_busy and not connection.is_open_to_reads):
            return None
        self._sharing.prepare(connection, self.tenant)
        connection.is_joining = True
        tag_of_borrower, connection.tag = connection.tag, self.tag
        try:
            self._exchange = connection.send_one(envelope, settings, query, params, deadline=deadline, now=now)
        finally:
            connection.is_joining = False
            connection.tag = tag_of_borrower
        return self._exchange

    async def finish(self, exchange: Pipeline) -> None:
        """Complete the round trip: after its deadline the rest of the answer is dropped."""
        if not exchange.has_landed and exchange.error is None:
            give_up(exchange)
        exchange.load()

    def stop_sharing(self) -> bool:
        """Whether no other borrower uses the connection: never."""
        return False

    # Nothing else

    def send_controls(self, statements: tuple[Control, ...], *, deadline: float | None) -> Pipeline | None:
        return None

    async def arrival(self, exchange: Pipeline) -> None:
        _refuse()

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> Pipeline:
        _refuse()

    async def stop_statement(self) -> None:
        _refuse()

    def add_notify_handler(self, callback: object, /) -> None:
        _refuse()

    def cut(self, reason: str) -> None:
        """Close the shared connection at once: each of the other reads is run on another one."""
        self.connection.cut(reason)

    async def close(self) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise InterfaceError(_ONE_READ)


class ReadSharing:
    """Which connections of a pool take another read.

    Args:
        pool: The pool.
        max_depth: Most reads on one connection.
        follows_tenants: A session is reset when another tenant comes.
        resets_always: It is reset for each borrower.

    Attributes:
        slow: Texts that have held back others, and the event-loop time until which they do not share.
    """

    def __init__(self, pool: SharedPool, max_depth: int, *, follows_tenants: bool, resets_always: bool) -> None:
        self._pool = pool
        self._max_depth = max_depth
        self._follows_tenants = follows_tenants
        self._resets_always = resets_always
        self.slow: dict[str, float] = {}
        self.now = 0.0
        """Event-loop time of the last search for a connection."""

    def may_share(self, query: str, now: float) -> bool:
        """Whether a read with this text may share a connection."""
        self.now = now
        until = self.slow.get(query)
        if until is None:
            return True
        if until > now:
            return False
        del self.slow[query]
        return True

    @property
    def has_idle(self) -> bool:
        """Whether a connection of the pool is idle."""
        return self._pool.idle > 0

    @property
    def returns(self) -> int:
        """How often a borrower has returned a connection of the pool, or its part of one."""
        return self._pool.returns

    def note_slow(self, query: str) -> None:
        """A read with this text has held back others."""
        if len(self.slow) >= MAX_SLOW:
            self.slow.clear()
        self.slow[query] = self.now + SLOW_S

    def takes_more(self, connection: PsycopgConnection) -> bool:
        """Whether a connection takes another read."""
        return (
            connection.shares + connection.is_owned < self._max_depth
            and (connection.is_open_to_reads or not connection.is_busy)
            and not connection.closed
            and self.now < connection.due_at
        )

    def find(
        self, connections: Sequence[PsycopgConnection], tenant: TenantIdentity | None, types: TenantTypes | None
    ) -> PsycopgConnection | None:
        """The connection with the fewest reads that takes another one; None without any.

        Args:
            connections: Those that are lent.
            tenant: The tenant of the read.
            types: What the read's connection has to convert.
        """
        found, fewest = None, inf
        for connection in connections:
            if (
                connection.is_open_to_reads
                and self.now < connection.due_at
                and not connection.closed
                and connection.types_in_use is types
            ):
                count = connection.shares + connection.is_owned
                if count < self._max_depth:
                    if self._follows_tenants and connection.tenant is not tenant:
                        count += _OTHER_TENANT
                    if count < fewest:
                        found, fewest = connection, count
        return found

    def share(self, connection: PsycopgConnection, tenant: TenantIdentity | None) -> ReadShare:
        """Lend a part of a connection."""
        connection.shares += 1
        self._pool.lendings += 1
        return ReadShare(self, connection, tenant if self._follows_tenants else None)

    def open(self, connection: PsycopgConnection, tenant: TenantIdentity | None) -> ReadShare:
        """Lend parts of an idle connection only; returns the first one."""
        connection.is_owned = False
        connection.is_lent = True
        self._pool.borrowed += 1
        return self.share(connection, tenant)

    def prepare(self, connection: PsycopgConnection, tenant: TenantIdentity | None) -> None:
        """A read of this tenant is about to be sent."""
        if self._follows_tenants and connection.tenant is not tenant:
            connection.serve(tenant)
        if self._resets_always:
            connection.is_unclean = True

    def leave(self, share: ReadShare) -> None:
        """Return a part of a connection."""
        self._pool.leave(share)
