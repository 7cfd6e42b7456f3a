"""A statement's way to a server: choose, borrow, and on to the next while servers cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import random
from time import monotonic, perf_counter
from typing import Final, Protocol

from opentelemetry.trace import Span, SpanContext

from ..concurrency.fair_queue import Share
from ..concurrency.limits import Priority
from ..drivers.protocol import Connection, Exchange, Server
from ..errors import DataError, DataErrorKind
from ..observability import tracing
from ..observability.metrics import Measure
from ..routing import (
    AccessIntent,
    Balance,
    Freshness,
    Position,
    ReadAfterWritePin,
    Reason,
    Role,
    Route,
    Topology,
    choose,
)
from ..routing.consistency.client_history import ClientHistory
from ..transaction.control_statements import read_position
from .datasource import DataSource

_TAKES_A_TURN: Final = frozenset({Reason.BALANCED, Reason.PROVED, Reason.FAILOVER, Reason.STALE_OK})
_NOT_BUSY: Final[dict[str, float]] = {}


class TenantSettings(Protocol):
    """The tenant that statements run as."""

    @property
    def name(self) -> str | None:
        """Its name; None for requests that name none."""
        ...

    @property
    def strategy(self) -> str:
        """How its rows are kept apart."""
        ...

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Applied inside every transaction: names and values."""
        ...

    @property
    def max_connections(self) -> int | None:
        """The most connections that it may have of a server's pool at a time; None is as many as there are."""
        ...


class Servers(Protocol):
    """What a choice is made from."""

    @property
    def picture(self) -> Topology:
        """How they look."""
        ...

    @property
    def turn(self) -> int:
        """Whose turn it is."""
        ...

    @property
    def held(self) -> Mapping[str, Position]:
        """What they have shown to have, by name."""
        ...

    def load(self) -> Mapping[str, float]:
        """How busy each is."""
        ...


class Choice(Protocol):
    """`choose()`, or what stands in front of it."""

    def __call__(
        self,
        picture: Topology,
        intent: AccessIntent,
        /,
        *,
        now: float,
        turn: int,
        dice: float,
        load: Mapping[str, float],
        is_pinned: bool,
        is_strong: bool,
        max_lag_s: float | None,
        after: Position | None,
        patience_s: float,
        sticky: str | None,
        failed: frozenset[str],
        behind: frozenset[str],
        held: Mapping[str, Position],
    ) -> Route | None:
        """Choose; the arguments are those of `choose()`."""
        ...


@dataclass(slots=True)
class Attempt:
    """What one statement has met so far on its way to a server that runs it.

    Attributes:
        failed: Servers that could not be reached, or could not run it for a reason that is their own.
        behind: Servers that do not have what the client has seen.
        losses: How often the connection was lost while it ran. From the first one on connections are looked at before
            they are used.
        has_met_a_standby: A server that should have been the primary has refused it as one that takes no writes.
        has_replanned: It has been run again because of how it had been prepared.
        after: What the server has to have, of all that the client has seen; None asks for nothing.
        patience_s: Seconds for which it may still wait for a replica to catch up.
        error: The last failure, for the caller when no server is left.
    """

    failed: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()
    losses: int = 0
    has_met_a_standby: bool = False
    has_replanned: bool = False
    after: Position | None = None
    patience_s: float = 0.0
    error: DataError | None = None

    def note(self, name: str, error: DataError) -> None:
        """This server could not be reached, or not run the statement for a reason that is its own."""
        self.failed |= {name}
        self.error = error

    def may_go_on(self, server: Server, exchange: Exchange, error: DataError) -> bool:
        """Whether the statement can safely run again on another connection: nothing was committed, and it may help."""
        if exchange.timed_out:
            return False
        if exchange.is_lost:
            server.suspect()
            self.losses += 1
            if self.losses == 1:
                # Most likely it had died in the pool.
                self.error = error
                return True
            # It was alive. Once more elsewhere; what itself ends its backend, or the server, must not end them all.
            self.note(server.name, error)
            return self.losses == 2
        if is_refusal(error) and not self.has_met_a_standby:
            # A failover has taken place behind the connection. New ones are asked before they are used.
            self.has_met_a_standby = True
            self.error = error
            return True
        if exchange.is_stale_plan and not self.has_replanned:
            self.has_replanned = True
            return True
        if error.kind is DataErrorKind.CONFLICT and server.role is Role.REPLICA:
            # Recovery has to go on and cancelled the query (PostgreSQL manual, "Handling Query Conflicts").
            self.note(server.name, error)
            return True
        return False


def is_refusal(error: DataError) -> bool:
    """Whether a server that should be the primary has refused a write as one that takes none."""
    return error.sqlstate == "25006" and error.kind is DataErrorKind.CONNECTION


class Router:
    """Finds the servers for the statements of one session."""

    # Defaults on the class: most sessions never set these.
    held: tuple[Server, ...] = ()
    """Where the session holds connections for transactions that wait for the end of another one of its own."""
    last_route: Route | None = None
    """Where the last statement went and why; None before the first."""
    _pin: ReadAfterWritePin | None = None
    """The caller's own, or made when it was first asked for."""
    commit_lsn: str | None = None
    """WAL position of the session's last commit that wrote."""
    _pinned_at: float | None = None
    _pinned_by: SpanContext | None = None
    _sticky: str | None = None
    _datasource: DataSource
    _tenant: TenantSettings
    _priority: Priority
    _is_traced: bool
    _shows_tenant: bool
    _measure: Measure | None
    past: ClientHistory | None
    """Causal-consistency state; None when tokens are disabled."""

    @property
    def pin(self) -> ReadAfterWritePin:
        """The session's."""
        pin = self._pin
        if pin is None:
            pin = self._pin = ReadAfterWritePin()
            pin.pinned_at = self._pinned_at
        if self.commit_lsn is not None:
            pin.lsn = self.commit_lsn
        return pin

    def serve(self, tenant: TenantSettings) -> None:
        """The session's tenant is known anew: what is borrowed from now on is for it."""
        self._tenant = tenant

    async def connect(
        self, intent: AccessIntent, attempt: Attempt, deadline: float | None, freshness: Freshness
    ) -> tuple[Server, Connection]:
        """Choose a server and borrow a connection of it; on to the next while servers cannot be reached.

        Raises:
            DataError: No server that may run the statement could be reached, or none may.
        """
        while True:
            route = self._choose(intent, attempt, freshness)
            if route is None:
                raise attempt.error or nobody_may(self._datasource.picture)
            self.note_route(route)
            server = self._datasource.servers[route.node]
            connection = await self._borrow(server, route, attempt, deadline)
            if connection is not None and not await self._is_left_behind(server, connection, deadline):
                return server, connection

    def borrow_at_hand(
        self, intent: AccessIntent, attempt: Attempt, freshness: Freshness
    ) -> tuple[Server, Connection, Route] | None:
        """Choose a server and borrow a connection that lies at hand; None where the caller would have to wait.

        Until `note_borrowed`, nothing is counted: the choice is made anew where nothing could be sent.
        """
        if self.held:
            return None
        datasource, pin = self._datasource, self._pin
        route = find_route(
            datasource,
            intent,
            attempt,
            freshness,
            is_pinned=self._pinned_at is not None or (pin is not None and pin.pinned_at is not None),
            past=self.past,
            sticky=self._sticky,
        )
        if route is None:
            return None
        server = datasource.servers[route.node]
        limit = self._tenant.max_connections
        share = None if limit is None and not server.is_fair else Share(self._tenant.name, limit)
        connection = server.try_acquire(share, self._tenant)
        if connection is None:
            return None
        past = self.past
        if past is not None and 0 < connection.timeline < past.timeline:
            # A newer timeline: `connect` looks for its primary.
            server.put_back(connection)
            return None
        return server, connection, route

    def note_borrowed(self, server: Server, connection: Connection, route: Route) -> None:
        """A statement was sent over a connection of `borrow_at_hand`."""
        self.last_route = route
        if route.reason in _TAKES_A_TURN:
            self._datasource.turn += 1
        measure = self._measure
        if measure is not None:
            measure.chose(decision_of(route))
            connection.use = measure.lent(server, 0.0)

    def note_route(self, route: Route) -> None:
        """A server was chosen."""
        self.last_route = route
        if route.reason in _TAKES_A_TURN:
            self._datasource.turn += 1
        if self._measure is not None:
            self._measure.chose(decision_of(route))

    async def _is_left_behind(self, server: Server, connection: Connection, deadline: float | None) -> bool:
        """Whether the client has seen a newer timeline than this primary writes, and its primary was found.

        Other processes may know of a failover before this one. Where no primary is found that writes the newer
        timeline, this one has all that there is.
        """
        past = self.past
        if past is None or not 0 < connection.timeline < past.timeline:
            return False
        try:
            await server.look_for(past.timeline, deadline=deadline)
        except BaseException:
            server.release(connection)
            raise
        if connection.timeline >= server.timeline:
            return False
        server.discard(connection)
        return True

    # -- what a server has to prove

    def must_prove(self, server: Server, connection: Connection, attempt: Attempt) -> bool:
        """Whether a server has yet to show that it has what is asked for; the primary has everything."""
        after = attempt.after
        if after is None or server.role is Role.PRIMARY:
            return False
        held = connection.held
        return held is None or not self._datasource.picture.lineage.covers(held, after)

    def proves(
        self, server: Server, connection: Connection, attempt: Attempt, answer: Sequence[str | None] | None
    ) -> bool:
        """Whether where a server is, as it has just said, is far enough."""
        position = self.position(answer, server)
        after = attempt.after
        if position is None or after is None:
            return False
        if not server.is_pooled:
            # At the other end of this connection is this server for as long as it lasts, and it only goes on from here.
            connection.held = position
        return self._datasource.picture.lineage.covers(position, after)

    def position(self, answer: Sequence[str | None] | None, server: Server) -> Position | None:
        """Where a server is, by what it has answered, and by what else is known of it; timeline 0 is not known."""
        known = next((node.position for node in self._datasource.picture.replicas if node.name == server.name), None)
        position = read_position(answer, standby_timeline=0 if known is None else known.timeline)
        if position is not None and server.role is Role.REPLICA:
            self._datasource.held[server.name] = position
        return position

    def seen_at(self, answer: Sequence[str | None] | None, server: Server) -> Position | None:
        """What a client has seen at most who has read from a server that has answered so; None is not known.

        A standby that nobody has asked yet does not say which timeline it follows. The primary's asks for no less.
        """
        position = self.position(answer, server)
        if position is None or position.timeline:
            return position
        timeline = self._datasource.servers[self._datasource.picture.primary.name].timeline
        return Position(timeline, position.lsn) if timeline else None

    # -- what becomes of statements

    def note_read(self, server: Server) -> None:
        """A read worked: the request's next ones stay with its server."""
        if server.role is Role.REPLICA:
            self._sticky = server.name

    def note_write(self) -> None:
        """The request writes: its reads go to the primary from now on."""
        if self._pinned_at is None:
            self._pinned_at = monotonic()
            if self._is_traced:
                self._pinned_by = tracing.current_span_context()
            if self._pin is not None:
                self._pin.set()

    def note_transaction(self, server: Server, intent: AccessIntent, *, is_read_only: bool) -> None:
        """A statement goes to the transaction that is open already."""
        is_pinned_read = intent is AccessIntent.READ and not is_read_only
        reason = Reason.PINNED if is_pinned_read else Reason.TRANSACTION
        picture = self._datasource.picture
        self.last_route = Route(picture.datasource, intent, server.role, server.name, reason, picture)
        if self._measure is not None:
            self._measure.chose(decision_of(self.last_route))
        if self._is_traced and is_pinned_read:
            self._start_span(self.last_route).end()

    def _choose(self, intent: AccessIntent, attempt: Attempt, freshness: Freshness) -> Route | None:
        return find_route(
            self._datasource,
            intent,
            attempt,
            freshness,
            is_pinned=self._pinned_at is not None or (self._pin is not None and self._pin.is_set),
            past=self.past,
            sticky=self._sticky,
        )

    async def _borrow(
        self, server: Server, route: Route, attempt: Attempt, deadline: float | None
    ) -> Connection | None:
        """A connection, or None when the server cannot be reached and another may be."""
        if self.held:
            self._check_second_connection(server)
        span = self._start_span(route) if self._is_traced else None
        measure = self._measure
        started = perf_counter() if span is not None or measure is not None else 0.0
        try:
            limit = self._tenant.max_connections
            connection = await server.acquire(
                deadline=deadline,
                must_be_alive=attempt.losses > 0,
                share=Share(self._tenant.name, limit) if limit is not None or server.is_fair else None,
                priority=self._priority,
                tenant=self._tenant,
            )
            if measure is not None:
                connection.use = measure.lent(server, perf_counter() - started)
            return connection
        except DataError as error:
            if measure is not None:
                measure.refused(server, error)
            if span is not None:
                tracing.fail_span(span, error)
            if error.kind is not DataErrorKind.CONNECTION:
                raise
            attempt.note(server.name, error)
            return None
        finally:
            if span is not None:
                span.set_attribute(tracing.POOL_WAIT_MS, round((perf_counter() - started) * 1000, 3))
                span.end()

    def _check_second_connection(self, server: Server) -> None:
        """Refuse to wait for a connection that only this very session could give back.

        Raises:
            DataError: CONFIG: it holds all that there are.
        """
        limit = self._tenant.max_connections
        most = server.settings.max_size if limit is None else min(limit, server.settings.max_size)
        if self.held.count(server) >= most:
            raise DataError(
                DataErrorKind.CONFIG,
                f"{server.label}: a transaction that waits for this one holds the last of {most} connection(s), so it"
                " would wait for ever. Raise pool.max_size, or do without requires_new and not_supported here",
            )

    def _start_span(self, route: Route) -> Span:
        attributes: dict[str, tracing.AttributeValue] = {
            **decision_of(route),
            tracing.INTENT: route.intent.value,
            tracing.CANDIDATES: route.candidates,
            tracing.TENANT_STRATEGY: self._tenant.strategy,
        }
        pin = None if self._pin is None and self._pinned_at is None else self.pin
        pin_age_ms, pin_lsn = (None, None) if pin is None else (pin.age_ms, pin.lsn)
        if self._shows_tenant and self._tenant.name is not None:
            attributes[tracing.TENANT_ID] = self._tenant.name
        if pin_age_ms is not None:
            attributes[tracing.PIN_AGE_MS] = round(pin_age_ms, 3)
        if pin_lsn is not None:
            attributes[tracing.PIN_LSN] = pin_lsn
        return tracing.start_route_span(str(route), attributes, pinned_by=self._pinned_by)


def decision_of(route: Route) -> Mapping[str, tracing.AttributeValue]:
    """A routing decision as spans and metrics name it."""
    return _decision(route.datasource, route.node, route.role, route.reason)


@lru_cache(maxsize=1024)
def _decision(datasource: str, node: str, role: Role, reason: Reason) -> Mapping[str, tracing.AttributeValue]:
    return {
        tracing.DATASOURCE: datasource,
        tracing.NODE: node,
        tracing.ROLE: role.value,
        tracing.REASON: reason.value,
    }


def find_route(
    servers: Servers,
    intent: AccessIntent,
    attempt: Attempt,
    freshness: Freshness,
    *,
    is_pinned: bool,
    past: ClientHistory | None,
    sticky: str | None,
    choice: Choice = choose,
) -> Route | None:
    """Choose the server for a statement, as they look now.

    Args:
        servers: Those to choose from.
        intent: What the statement wants.
        attempt: What it has met so far; learns what the server has to have.
        freshness: How fresh a read has to be.
        is_pinned: The request has written.
        past: What its client has seen before; None where nobody looks at that.
        sticky: Name of the replica that the request read from before.
        choice: Chooses; whoever wants to know what was asked stands in front of it.
    """
    picture = servers.picture
    policy = picture.policy
    max_lag_s = freshness.max_lag_s
    if past is not None and not past.is_blank and intent is AccessIntent.READ:
        if attempt.after is None:
            attempt.patience_s = past.wait_s
        attempt.after = past.needed(freshness)
    return choice(
        picture,
        intent,
        now=asyncio.get_running_loop().time(),
        turn=servers.turn,
        dice=random(),  # noqa: S311 - not for security
        load=servers.load() if policy.balance is Balance.LEAST_BUSY else _NOT_BUSY,
        is_pinned=is_pinned,
        is_strong=freshness.is_strong,
        max_lag_s=policy.max_lag_s if max_lag_s is None else max_lag_s,
        after=attempt.after,
        patience_s=attempt.patience_s,
        sticky=sticky,
        failed=attempt.failed,
        behind=attempt.behind,
        held=servers.held,
    )


def nobody_may(picture: Topology) -> DataError:
    """The error of a read that none of the servers may answer as they are."""
    return DataError(
        DataErrorKind.CONNECTION,
        f"datasource {picture.datasource!r}: no server may answer this read ({', '.join(picture.describe())}). Allow"
        " more with routing.max_lag, or with routing.no_replica",
    )
