"""Routing of statements: choose a server and borrow a connection; try the next server if one cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import random
from time import monotonic, time_ns
from typing import Final, Protocol

from ..concurrency.fair_queue import TenantQuota
from ..concurrency.priority_queue import Priority
from ..drivers.protocol import Connection, Exchange, Server
from ..errors import DataError, DataErrorKind
from ..observability import names
from ..observability.query_tags import QueryTag
from ..observability.recording import SessionRecorder
from ..observability.session_trace import RouteTrace, SessionTrace, TransactionTrace
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
    format_lsn,
)
from ..routing.consistency.client_history import ClientHistory
from ..transaction.control_statements import read_position, read_seen_position
from .datasource import DataSource

_TAKES_A_TURN: Final = frozenset({Reason.BALANCED, Reason.PROVED, Reason.FAILOVER, Reason.STALE_OK})
_NOT_BUSY: Final[dict[str, float]] = {}


class TenantSettings(Protocol):
    """The tenant that statements run as."""

    @property
    def name(self) -> str | None:
        """Name of the tenant; None for requests without one."""
        ...

    @property
    def strategy(self) -> str:
        """Isolation strategy of its rows."""
        ...

    @property
    def schema(self) -> str | None:
        """Its own schema; None without one."""
        ...

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Its own settings: names and values."""
        ...

    @property
    def applied(self) -> tuple[tuple[str, str], ...] | None:
        """The result of `apply`; None before its first call."""
        ...

    def apply(self) -> tuple[tuple[str, str], ...]:
        """Settings for each transaction: names and values, as `drivers.statements.Settings` takes them."""
        ...

    @property
    def max_connections(self) -> int | None:
        """Most connections of a server's pool that it may hold at a time; None sets no bound."""
        ...


class Servers(Protocol):
    """The input of a server choice."""

    @property
    def topology(self) -> Topology:
        """State of the servers."""
        ...

    @property
    def turn(self) -> int:
        """Round-robin counter."""
        ...

    @property
    def held(self) -> Mapping[str, Position]:
        """Positions that servers have proved, by name."""
        ...

    def load(self) -> Mapping[str, float]:
        """Load of each server by name."""
        ...


class Choice(Protocol):
    """`choose()`, or a wrapper around it."""

    def __call__(
        self,
        topology: Topology,
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
    """State of one statement across the servers that it is tried on.

    Attributes:
        failed: Servers that could not be reached, or could not run it for a reason of their own.
        behind: Servers that have not replayed what the client has seen.
        losses: How often the connection was lost while it ran. After the first loss, connections are checked before
            use.
        has_met_a_standby: A server that should have been the primary has refused it as a standby.
        has_replanned: It was retried because of a stale prepared statement.
        after: The position that the server must have; None for no requirement.
        patience_s: Seconds for which it may still wait for a replica to catch up.
        error: The last failure, raised when no server is left.
        has_waited: A wait for a connection of a replica has timed out. Another server is then tried only if it has a
            connection to spare, so that overload is refused without further waits.
        route: The span of the last choice, until its server is ready for the statement; None where no span is made.
    """

    failed: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()
    losses: int = 0
    has_met_a_standby: bool = False
    has_replanned: bool = False
    after: Position | None = None
    patience_s: float = 0.0
    error: DataError | None = None
    has_waited: bool = False
    route: RouteTrace | None = None

    def end_route(self, *, is_ready: bool = True) -> None:
        """The server's part before the statement is over, or has failed."""
        route, self.route = self.route, None
        if route is not None:
            route.end(is_ready=is_ready)

    def note(self, name: str, error: DataError) -> None:
        """This server could not be reached, or could not run the statement for a reason of its own."""
        self.failed |= {name}
        self.error = error

    def may_go_on(self, server: Server, exchange: Exchange, error: DataError) -> bool:
        """Whether a retry on another connection is safe, because nothing was committed, and may succeed."""
        if exchange.timed_out:
            return False
        if exchange.is_withdrawn:
            return True
        if exchange.is_lost:
            server.suspect()
            self.losses += 1
            if self.losses == 1:
                # Most likely the connection was lost while it was idle in the pool.
                self.error = error
                return True
            # The connection was alive. Retry once: a statement that crashes its backend, or the server, must not crash
            # all.
            self.note(server.name, error)
            return self.losses == 2
        if is_refusal(error) and not self.has_met_a_standby:
            # A failover behind the connection: new connections are checked before use.
            self.has_met_a_standby = True
            self.error = error
            return True
        if exchange.is_stale_plan and not self.has_replanned:
            self.has_replanned = True
            return True
        if error.kind is DataErrorKind.CONFLICT and server.role is Role.REPLICA:
            # A recovery conflict cancelled the query (PostgreSQL manual, "Handling Query Conflicts").
            self.note(server.name, error)
            return True
        return False


def _has_one_to_spare(server: Server) -> bool:
    """Whether a connection of a server can be had without waiting for another borrower."""
    return not server.waiting and (server.idle > 0 or server.borrowed < server.settings.max_size)


def is_refusal(error: DataError) -> bool:
    """Whether a server that should be the primary has refused a write because it is a standby."""
    return error.sqlstate == "25006" and error.kind is DataErrorKind.CONNECTION


class Router:
    """Chooses servers for the statements of one session."""

    # Defaults on the class: most sessions never set these.
    held: tuple[Server, ...] = ()
    """Servers on which the session holds connections for suspended transactions."""
    last_route: Route | None = None
    """Route of the last statement; None before the first."""
    _pin: ReadAfterWritePin | None = None
    """The caller's pin, or one created on demand."""
    commit_lsn: str | None = None
    """LSN of the session's last commit that wrote."""
    _pinned_at: float | None = None
    _sticky: str | None = None
    _datasource: DataSource
    _tenant: TenantSettings
    _priority: Priority
    trace: SessionTrace | None
    """Makes the session's spans; None where its trace is not sampled."""
    _measure: SessionRecorder | None
    _tag: QueryTag | None = None
    """The comment behind all statements; None for none."""
    client_history: ClientHistory | None
    """Causal-consistency state; None when tokens are disabled."""

    @property
    def pin(self) -> ReadAfterWritePin:
        """The session's pin."""
        pin = self._pin
        if pin is None:
            pin = self._pin = ReadAfterWritePin()
            pin.pinned_at = self._pinned_at
        if self.commit_lsn is not None:
            pin.lsn = self.commit_lsn
        return pin

    async def connect(
        self,
        intent: AccessIntent,
        attempt: Attempt,
        deadline: float | None,
        freshness: Freshness,
        within: TransactionTrace | None = None,
        *,
        read: str | None = None,
    ) -> tuple[Server, Connection]:
        """Choose a server and borrow a connection; try the next server if one cannot be reached.

        Args:
            intent, attempt, freshness: The statement's.
            deadline: Event-loop time at which the wait ends.
            within: The transaction that is opened; its span contains the one of the choice.
            read: Text of the one read that it is borrowed for, as of `Server.acquire`.

        Raises:
            DataError: No server that may run the statement could be reached, or no server may run it.
        """
        while True:
            route = self._choose(intent, attempt, freshness)
            if route is None:
                raise attempt.error or no_eligible_server(self._datasource.topology)
            server = self._datasource.servers[route.node]
            if attempt.has_waited and not _has_one_to_spare(server):
                attempt.failed |= {server.name}
                continue
            self.note_route(route)
            connection = await self._borrow(server, route, attempt, deadline, within, read)
            if connection is None:
                continue
            if self.client_history is None or not await self._is_left_behind(server, connection, attempt, deadline):
                return server, connection
            attempt.end_route(is_ready=False)

    def borrow_at_hand(
        self, intent: AccessIntent, attempt: Attempt, freshness: Freshness, read: str | None = None
    ) -> tuple[Server, Connection, Route] | None:
        """Choose a server and borrow an idle connection; None where the caller would have to wait.

        Nothing is counted until `note_borrowed`: if nothing could be sent, the choice is repeated.
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
            client_history=self.client_history,
            sticky=self._sticky,
        )
        if route is None:
            return None
        server = datasource.servers[route.node]
        limit = self._tenant.max_connections
        quota = None if limit is None and not server.is_fair else TenantQuota(self._tenant.name, limit)
        connection = server.try_acquire(quota, self._tenant, read)
        if connection is None:
            return None
        client_history = self.client_history
        if client_history is not None and 0 < connection.timeline < client_history.timeline:
            # The client has seen a newer timeline: `connect` looks for its primary.
            server.put_back(connection)
            return None
        if self._tag is not None:
            connection.tag = self._tag
        return server, connection, route

    def note_borrowed(self, server: Server, connection: Connection, route: Route) -> None:
        """A statement was sent on a connection of `borrow_at_hand`: count the choice."""
        self.last_route = route
        if route.reason in _TAKES_A_TURN:
            self._datasource.turn += 1
        measure = self._measure
        if measure is not None:
            measure.chose(decision_of(route))
            connection.use = measure.lent(server, 0.0, connection)

    def note_route(self, route: Route) -> None:
        """Count a choice."""
        self.last_route = route
        if route.reason in _TAKES_A_TURN:
            self._datasource.turn += 1
        if self._measure is not None:
            self._measure.chose(decision_of(route))

    async def _is_left_behind(
        self, server: Server, connection: Connection, attempt: Attempt, deadline: float | None
    ) -> bool:
        """Whether the client has seen a newer timeline than this primary writes, and the new primary was found.

        Other processes may notice a failover before this one. If no primary with the newer timeline is found, this one
        is used.
        """
        client_history = self.client_history
        if client_history is None or not 0 < connection.timeline < client_history.timeline:
            return False
        try:
            await server.look_for(client_history.timeline, deadline=deadline)
        except BaseException:
            attempt.end_route(is_ready=False)
            server.release(connection)
            raise
        if connection.timeline >= server.timeline:
            return False
        server.discard(connection)
        return True

    # -- proofs

    def must_prove(self, server: Server, connection: Connection, attempt: Attempt) -> bool:
        """Whether a server must prove the required position; the primary need not."""
        after = attempt.after
        if after is None or server.role is Role.PRIMARY:
            return False
        held = connection.held
        return held is None or not self._datasource.topology.lineage.covers(held, after)

    def needs_age(self, server: Server, attempt: Attempt, freshness: Freshness) -> bool | None:
        """Whether a server has to show that its data is no older than the read allows.

        What the health check knows of a replica holds for the server that it asks, which is another one than
        that of the connection where the URL leads to several.

        Returns:
            None where that cannot be shown: it is not known where the primary was then.
        """
        max_lag_s = freshness.max_lag_s
        if max_lag_s is None:
            max_lag_s = self._datasource.topology.policy.max_lag_s
        if max_lag_s is None:
            return False
        since = self._datasource.position_at(asyncio.get_running_loop().time() - max_lag_s)
        if since is None:
            return None
        after = attempt.after
        if after is None or (after.timeline, after.lsn) < (since.timeline, since.lsn):
            attempt.after = since
        return True

    def proves(
        self, server: Server, connection: Connection, attempt: Attempt, answer: Sequence[str | None] | None
    ) -> bool:
        """Whether the server's answer proves the required position."""
        position = self.position(answer, server)
        after = attempt.after
        if position is None or after is None:
            return False
        if not server.is_pooled and connection.leads_to is not None:
            # Without a pooler, the connection always leads to the same server, whose position only increases.
            connection.held = position
        return self._datasource.topology.lineage.covers(position, after)

    def position(self, answer: Sequence[str | None] | None, server: Server) -> Position | None:
        """A server's position, from its answer and its last known timeline; timeline 0 if that is unknown."""
        position = read_position(answer, standby_timeline=self._standby_timeline(server))
        if position is not None and server.role is Role.REPLICA:
            self._datasource.held[server.name] = position
        return position

    def seen_at(self, answer: Sequence[str | None] | None, server: Server) -> Position | None:
        """Upper bound of what a client has seen in a read with this answer; None if unknown.

        A standby without a health check has an unknown timeline; the primary's is used, which requires no less.
        """
        self.position(answer, server)
        position = read_seen_position(answer, standby_timeline=self._standby_timeline(server))
        if position is None or position.timeline:
            return position
        timeline = self._datasource.servers[self._datasource.topology.primary.name].timeline
        return Position(timeline, position.lsn) if timeline else None

    def _standby_timeline(self, server: Server) -> int:
        known = next((node.position for node in self._datasource.topology.replicas if node.name == server.name), None)
        return 0 if known is None else known.timeline

    # -- results of statements

    def note_read(self, server: Server) -> None:
        """A read succeeded: later reads of the request stay with its server."""
        if server.role is Role.REPLICA:
            self._sticky = server.name

    def note_write(self) -> None:
        """The request writes: from now on its reads go to the primary."""
        if self._pinned_at is None:
            self._pinned_at = monotonic()
            if self._pin is not None:
                self._pin.set()

    def note_transaction(self, server: Server, intent: AccessIntent, *, is_read_only: bool) -> None:
        """Record that a statement uses the open transaction."""
        is_pinned_read = intent is AccessIntent.READ and not is_read_only
        reason = Reason.PINNED if is_pinned_read else Reason.TRANSACTION
        topology = self._datasource.topology
        self.last_route = Route(topology.datasource, intent, server.role, server.name, reason, topology)
        if self._measure is not None:
            self._measure.chose(decision_of(self.last_route))

    def _choose(self, intent: AccessIntent, attempt: Attempt, freshness: Freshness) -> Route | None:
        return find_route(
            self._datasource,
            intent,
            attempt,
            freshness,
            is_pinned=self._pinned_at is not None or (self._pin is not None and self._pin.is_set),
            client_history=self.client_history,
            sticky=self._sticky,
        )

    async def _borrow(
        self,
        server: Server,
        route: Route,
        attempt: Attempt,
        deadline: float | None,
        within: TransactionTrace | None,
        read: str | None = None,
    ) -> Connection | None:
        """A connection; None when the server cannot be reached and another one may be."""
        if self.held:
            self._check_second_connection(server)
        trace, measure = self.trace, self._measure
        started_ns = 0 if trace is None else time_ns()
        started = monotonic() if trace is not None or measure is not None else 0.0
        limit = self._tenant.max_connections
        quota = TenantQuota(self._tenant.name, limit) if limit is not None or server.is_fair else None
        try:
            connection = await server.acquire(
                deadline=deadline,
                must_be_alive=attempt.losses > 0,
                quota=quota,
                priority=self._priority,
                tenant=self._tenant,
                read=read,
            )
        except DataError as error:
            if measure is not None:
                measure.refused(server, error)
            if trace is not None:
                traced = self.trace_route(trace, route, attempt, within, started_ns, monotonic() - started)
                trace.fail(traced.span, error)
                traced.span.end()
            if error.kind is DataErrorKind.RESOURCE and server.role is Role.REPLICA and quota is None:
                # Its connections may hang on a server that has fallen silent a moment ago.
                attempt.has_waited = True
            elif error.kind is not DataErrorKind.CONNECTION:
                raise
            attempt.note(server.name, error)
            return None
        except BaseException as error:
            if trace is not None:
                traced = self.trace_route(trace, route, attempt, within, started_ns, monotonic() - started)
                trace.fail(traced.span, error)
                traced.span.end()
            raise
        if self._tag is not None:
            connection.tag = self._tag
        if measure is not None:
            connection.use = measure.lent(server, monotonic() - started, connection)
        if trace is not None:
            now = monotonic()
            connecting_s = _connecting_s(connection, started, now)
            attempt.route = self.trace_route(trace, route, attempt, within, started_ns, now - started, connecting_s)
        return connection

    def _check_second_connection(self, server: Server) -> None:
        """Refuse to wait for a connection that only this session itself could return.

        Raises:
            DataError: CONFIG: the session holds all connections.
        """
        limit = self._tenant.max_connections
        most = server.settings.max_size if limit is None else min(limit, server.settings.max_size)
        if self.held.count(server) >= most:
            raise DataError(
                DataErrorKind.CONFIG,
                f"{server.full_name}: a transaction that waits for this one holds the last of {most} connection(s), so"
                " it would wait for ever. Raise pool.max_size, or do without requires_new and not_supported here",
            )

    def trace_route(
        self,
        trace: SessionTrace,
        route: Route,
        attempt: Attempt,
        within: TransactionTrace | None,
        started_ns: int,
        waited_s: float = 0.0,
        connecting_s: float = 0.0,
    ) -> RouteTrace:
        """Make the span of a choice; arguments as of `SessionTrace.route`."""
        attributes: dict[str, names.AttributeValue] = {
            **decision_of(route),
            names.INTENT: route.intent.value,
            names.CANDIDATES: _candidates(route.topology),
            **_lag_of(route),
        }
        pin = None if self._pin is None and self._pinned_at is None else self.pin
        if pin is not None and pin.age_ms is not None:
            attributes[names.PIN_AGE_MS] = round(pin.age_ms, 3)
            if pin.lsn is not None:
                attributes[names.PIN_LSN] = pin.lsn
        is_asked = route.reason is Reason.PROVED
        if attempt.after is not None and route.intent is AccessIntent.READ:
            attributes[names.REQUIRED_LSN] = format_lsn(attempt.after.lsn)
        return trace.route(
            str(route),
            attributes,
            within=within,
            is_asked=is_asked,
            started_ns=started_ns,
            waited_s=waited_s,
            connecting_s=connecting_s,
        )

    def note_proof(self, attempt: Attempt, server: Server, proof: str, waited_s: float = 0.0) -> None:
        """Record on the span of the choice whether its server has proved its state.

        Args:
            attempt: The statement's state.
            server: The server.
            proof: `met`, `waited` or `failed`.
            waited_s: Seconds of waiting for it to catch up.
        """
        route = attempt.route
        if route is not None:
            held = self._datasource.held.get(server.name)
            route.prove(proof, waited_s, None if held is None else format_lsn(held.lsn))
            attempt.end_route()


@lru_cache(maxsize=64)
def _candidates(topology: Topology) -> tuple[str, ...]:
    return topology.describe()


def _connecting_s(connection: Connection, started: float, now: float) -> float:
    """The seconds of a wait for a connection in which that connection was made; 0 for an older one."""
    # Drivers need not tell when they have connected.
    connected_at: float = getattr(connection, "connected_at", 0.0)
    if connected_at < started:
        return 0.0
    connect_s: float = getattr(connection, "connect_s", 0.0)
    return min(now - started, now - connected_at + connect_s)


def _lag_of(route: Route) -> dict[str, names.AttributeValue]:
    """The known lag of the chosen replica, and how old its data may be at most."""
    if route.role is Role.PRIMARY:
        return {}
    found: dict[str, names.AttributeValue] = {}
    for node in route.topology.replicas:
        if node.name == route.node:
            if node.lag_s is not None:
                found[names.LAG_MS] = round(node.lag_s * 1000, 3)
            if node.fresh_at is not None:
                found[names.LAG_AGE_MS] = round((asyncio.get_running_loop().time() - node.fresh_at) * 1000, 3)
    return found


def decision_of(route: Route) -> Mapping[str, names.AttributeValue]:
    """A routing decision as attributes of spans and metrics."""
    return _decision(route.datasource, route.node, route.role, route.reason)


@lru_cache(maxsize=1024)
def _decision(datasource: str, node: str, role: Role, reason: Reason) -> Mapping[str, names.AttributeValue]:
    return {
        names.DATASOURCE: datasource,
        names.NODE: node,
        names.ROLE: role.value,
        names.REASON: reason.value,
    }


def find_route(
    servers: Servers,
    intent: AccessIntent,
    attempt: Attempt,
    freshness: Freshness,
    *,
    is_pinned: bool,
    client_history: ClientHistory | None,
    sticky: str | None,
    choice: Choice = choose,
) -> Route | None:
    """Choose the server for a statement, given the servers' current state.

    Args:
        servers: The servers to choose from.
        intent: The statement's intent.
        attempt: The statement's state; receives the position that the server must have.
        freshness: Required freshness of a read.
        is_pinned: The request has written.
        client_history: The positions that its client has seen; None when tokens are disabled.
        sticky: Name of the replica that answered the request's earlier reads.
        choice: Chooses; `explain` passes a wrapper that records the arguments.
    """
    topology = servers.topology
    policy = topology.policy
    max_lag_s = freshness.max_lag_s
    if client_history is not None and not client_history.is_blank and intent is AccessIntent.READ:
        if attempt.after is None:
            attempt.patience_s = client_history.wait_s
        attempt.after = client_history.needed(freshness)
    return choice(
        topology,
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


def no_eligible_server(topology: Topology) -> DataError:
    """The error of a read that no server may answer in its current state."""
    return DataError(
        DataErrorKind.CONNECTION,
        f"datasource {topology.datasource!r}: no server may answer this read ({', '.join(topology.describe())}). Allow"
        " more with routing.max_lag, or with routing.no_replica",
    )
