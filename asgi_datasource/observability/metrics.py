"""OpenTelemetry metrics, opt-in: the instruments, their recorders, and the one table of their names.

Only `opentelemetry-api` is used. Names follow OpenTelemetry's semantic conventions for database clients where they have
one, and start with `asgi_datasource.` where they have none. Without metrics in the configuration no instrument is
created, and sessions hold None instead of a recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Final, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation

from ..errors import DataError, DataErrorKind
from .names import (
    CONNECTION_STATE,
    DATASOURCE,
    DB_OPERATION,
    DB_QUERY_SUMMARY,
    DB_STATUS_CODE,
    ERROR_TYPE,
    NODE,
    OTHER,
    OUTCOME,
    POOL_NAME,
    SCHEMA_URL,
    TENANT_ID,
    AttributeValue,
)
from .recording import RecordedConnection
from .summary import Analysis
from .tracing import SCOPE, VERSION, cause_of

OPERATION_DURATION: Final = "db.client.operation.duration"
RETURNED_ROWS: Final = "db.client.response.returned_rows"
CONNECTION_COUNT: Final = "db.client.connection.count"
CONNECTION_MAX: Final = "db.client.connection.max"
CONNECTION_IDLE_MAX: Final = "db.client.connection.idle.max"
CONNECTION_IDLE_MIN: Final = "db.client.connection.idle.min"
CONNECTION_PENDING: Final = "db.client.connection.pending_requests"
CONNECTION_TIMEOUTS: Final = "db.client.connection.timeouts"
CONNECTION_CREATE_TIME: Final = "db.client.connection.create_time"
CONNECTION_WAIT_TIME: Final = "db.client.connection.wait_time"
CONNECTION_USE_TIME: Final = "db.client.connection.use_time"
ROUTE_DECISIONS: Final = "asgi_datasource.route.decisions"
REPLICA_LAG: Final = "asgi_datasource.replica.lag"
TRANSACTION_OUTCOMES: Final = "asgi_datasource.transaction.outcomes"
SERVERS_UP: Final = "asgi_datasource.servers.up"
OPEN_POOLS: Final = "asgi_datasource.tenants.open_pools"
CLOSED_USE: Final = "asgi_datasource.session.closed_use"

OTHER_TENANTS: Final = OTHER
"""Label of every tenant beyond the labelled ones."""

MAX_SUMMARIES: Final = 500
"""Statements that metrics tell apart, the first ones; others have no summary, so that generated SQL adds no series."""

_ROWS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Bucket boundaries in rows, as the conventions recommend."""

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bucket boundaries in seconds, as the conventions recommend."""

Attributes = Mapping[str, AttributeValue]


class MeasuredSettings(Protocol):
    """Settings of a pool that are exported."""

    @property
    def min_size(self) -> int:
        """Idle connections that the pool keeps."""
        ...

    @property
    def max_size(self) -> int:
        """Most connections."""
        ...


class MeasuredPool(Protocol):
    """A server's pool as the exporter reads it, from a thread of its own."""

    @property
    def datasource(self) -> str:
        """The datasource's name."""
        ...

    @property
    def name(self) -> str:
        """The server's name."""
        ...

    @property
    def full_name(self) -> str:
        """Datasource and server: `orders.primary`."""
        ...

    @property
    def dimensions(self) -> Attributes:
        """Attributes that identify it in metrics; the same for all tenants' databases of a datasource."""
        ...

    @property
    def settings(self) -> MeasuredSettings:
        """Size of the pool."""
        ...

    @property
    def idle(self) -> int:
        """Idle connections."""
        ...

    @property
    def borrowed(self) -> int:
        """Borrowed connections."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether its circuit breaker is closed."""
        ...


class Source(Protocol):
    """An open registry as metrics exporters read it, from a thread of their own."""

    def open_pools(self) -> Sequence[MeasuredPool]:
        """Every pool that is open and measured."""
        ...

    def open_databases(self) -> Mapping[str, int]:
        """Number of open pools of each datasource that has a database for each tenant."""
        ...

    def lags(self) -> Sequence[tuple[str, str, float]]:
        """Datasource, replica, and the replica's lag in seconds, for replicas whose lag is known."""
        ...


class Metrics:
    """The metrics of one registry.

    Args:
        most_tenants: Number of tenants that get a label of their own, in the order in which they are first served; 0
            for no labels.
    """

    def __init__(self, most_tenants: int) -> None:
        self.most_tenants = most_tenants
        self._instruments = _instruments()
        self._labels: dict[str, Attributes] = {}
        self.summaries: set[str] = set()
        """The summaries that metrics name."""

    def measure(self, tenant: str | None, scope: object = None) -> Measure:
        """The recorder for a session of this tenant."""
        return Measure(self, self._instruments, tenant)

    def label(self, tenant: str | None) -> Attributes:
        """The tenant's attributes; does not assign a label."""
        if not self.most_tenants or tenant is None:
            return _NOBODY
        return self._labels.get(tenant, _OTHERS)

    def admit(self, tenant: str | None) -> Attributes:
        """The attributes of a tenant that is being served; assigns a label while there are any left.

        Unknown names are never served, so that a flood of them uses up no labels.
        """
        if not self.most_tenants or tenant is None:
            return _NOBODY
        known = self._labels.get(tenant)
        if known is None:
            if len(self._labels) >= self.most_tenants:
                return _OTHERS
            known = self._labels[tenant] = {TENANT_ID: tenant}
        return known

    def created(self, pool: MeasuredPool, took_s: float) -> None:
        """Record a new connection."""
        self._instruments.create_time.record(took_s, {POOL_NAME: pool.full_name})


_NOBODY: Final[Attributes] = {}
_OTHERS: Final[Attributes] = {TENANT_ID: OTHER_TENANTS}


class Measure:
    """Records what one session does."""

    __slots__ = ("_instruments", "_label", "_metrics", "_tenant")

    def __init__(self, owner: Metrics, instruments: Instruments, tenant: str | None) -> None:
        self._metrics = owner
        self._instruments = instruments
        self._tenant = tenant
        self._label = owner.label(tenant)

    def chose(self, decision: Attributes) -> None:
        """Record the server chosen for a statement.

        Args:
            decision: Datasource, node, role and reason, by their attribute names.
        """
        self._instruments.decisions.add(1, {**decision, **self._label})

    def lent(self, pool: MeasuredPool, waited_s: float, connection: RecordedConnection | None = None) -> Use:
        """Record a borrowed connection; call `end` of the result when the connection returns."""
        self._label = self._metrics.admit(self._tenant)
        attributes = {POOL_NAME: pool.full_name, **self._label}
        instruments = self._instruments
        if connection is not None and connection.is_shared:
            return SharedUse(instruments.wait_time, instruments.use_time, attributes, waited_s, connection)
        instruments.wait_time.record(waited_s, attributes)
        return Use(instruments.use_time, attributes)

    def refused(self, pool: MeasuredPool, error: Exception) -> None:
        """Record that no connection could be borrowed."""
        if isinstance(error, DataError) and error.kind is DataErrorKind.RESOURCE:
            self._instruments.timeouts.add(1, {POOL_NAME: pool.full_name, **self._label})

    def ran(
        self, pool: MeasuredPool, statement: Analysis, took_s: float, failure: BaseException | None, rows: int = -1
    ) -> None:
        """Record a statement or command that was sent to a server.

        Args:
            pool: The server's pool.
            statement: The statement, or several in one round trip.
            took_s: Seconds until the answer arrived or the wait for it ended.
            failure: The error; None on success.
            rows: Number of rows that a query has returned; -1 if it returns none.
        """
        attributes = {**pool.dimensions, DB_OPERATION: statement.operation, **self._label}
        summaries, summary = self._metrics.summaries, statement.summary
        if summary in summaries:
            attributes[DB_QUERY_SUMMARY] = summary
        elif len(summaries) < MAX_SUMMARIES:
            summaries.add(summary)
            attributes[DB_QUERY_SUMMARY] = summary
        if failure is not None:
            attributes[ERROR_TYPE] = cause_of(failure)
            if isinstance(failure, DataError) and failure.sqlstate is not None:
                attributes[DB_STATUS_CODE] = failure.sqlstate
        self._instruments.duration.record(took_s, attributes)
        if rows >= 0:
            self._instruments.returned_rows.record(rows, attributes)

    def ended(self, datasource: str, outcome: str) -> None:
        """Record the end of a transaction: `committed`, `rolled_back` or `unknown`."""
        self._instruments.outcomes.add(1, {DATASOURCE: datasource, OUTCOME: outcome, **self._label})

    def used_late(self, datasource: str) -> None:
        """Record that a session was used after its end."""
        self._instruments.closed_use.add(1, {DATASOURCE: datasource, **self._label})


class Use:
    """The time between borrowing a connection and returning it."""

    __slots__ = ("_attributes", "_began", "_use_time")

    def __init__(self, use_time: Histogram, attributes: Attributes) -> None:
        self._use_time = use_time
        self._attributes = attributes
        self._began = perf_counter()

    def end(self) -> None:
        """Record that the connection was returned."""
        self._use_time.record(perf_counter() - self._began, self._attributes)


class SharedUse(Use):
    """The use of a connection that other reads share: its wait includes that for the reads in front of it."""

    __slots__ = ("_connection", "_wait_time", "_waited_s")

    def __init__(
        self,
        wait_time: Histogram,
        use_time: Histogram,
        attributes: Attributes,
        waited_s: float,
        connection: RecordedConnection,
    ) -> None:
        super().__init__(use_time, attributes)
        self._wait_time = wait_time
        self._waited_s = waited_s
        self._connection = connection

    def end(self) -> None:
        """Record both times."""
        began_at = self._connection.began_at
        if began_at is not None and began_at > self._began:
            self._waited_s += began_at - self._began
            self._began = began_at
        self._wait_time.record(self._waited_s, self._attributes)
        super().end()


@dataclass(frozen=True, slots=True)
class Instruments:
    """Instruments that are recorded synchronously; the observable ones are read by exporters."""

    duration: Histogram
    returned_rows: Histogram
    create_time: Histogram
    wait_time: Histogram
    use_time: Histogram
    timeouts: Counter
    decisions: Counter
    outcomes: Counter
    closed_use: Counter


_sources: tuple[Source, ...] = ()
"""Open registries with metrics; replaced as a whole, because the exporter's thread reads it."""


def watch(source: Source) -> None:
    """Export a registry's metrics, until `unwatch`."""
    global _sources
    _sources = (*(other for other in _sources if other is not source), source)


def unwatch(source: Source) -> None:
    """Stop exporting a registry's metrics."""
    global _sources
    _sources = tuple(other for other in _sources if other is not source)


@lru_cache(maxsize=1)
def _instruments() -> Instruments:
    """Create the instruments, once in a process: OpenTelemetry cannot unregister an observable instrument."""
    meter = metrics.get_meter(SCOPE, VERSION, schema_url=SCHEMA_URL)

    def seconds(name: str, description: str) -> Histogram:
        return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS)

    def pools(name: str, unit: str, description: str, read: Callable[[MeasuredPool], int]) -> None:
        meter.create_observable_up_down_counter(name, [_of_pools(read)], unit, description)

    meter.create_observable_up_down_counter(
        CONNECTION_COUNT, [_connections], "{connection}", "Connections, by whether they are used"
    )
    pools(CONNECTION_MAX, "{connection}", "Most connections", lambda pool: pool.settings.max_size)
    pools(CONNECTION_IDLE_MAX, "{connection}", "Most connections without use", lambda pool: pool.settings.max_size)
    pools(CONNECTION_IDLE_MIN, "{connection}", "Connections kept without use", lambda pool: pool.settings.min_size)
    pools(CONNECTION_PENDING, "{request}", "Requests that wait for a connection", lambda pool: pool.waiting)
    meter.create_observable_up_down_counter(
        SERVERS_UP, [_servers_up], "{server}", "Servers whose circuit breaker is closed"
    )
    meter.create_observable_up_down_counter(OPEN_POOLS, [_databases], "{pool}", "Pools of tenants' databases, open")
    meter.create_observable_gauge(REPLICA_LAG, [_lags], "s", "How long ago the primary was where the replica is")
    return Instruments(
        duration=seconds(OPERATION_DURATION, "Duration of database client operations"),
        returned_rows=meter.create_histogram(
            RETURNED_ROWS, "{row}", "Rows that a query has returned", explicit_bucket_boundaries_advisory=_ROWS
        ),
        create_time=seconds(CONNECTION_CREATE_TIME, "Time until a new connection was made"),
        wait_time=seconds(CONNECTION_WAIT_TIME, "Time until a connection of the pool was there"),
        use_time=seconds(CONNECTION_USE_TIME, "Time between borrowing a connection and its return"),
        timeouts=meter.create_counter(CONNECTION_TIMEOUTS, "{timeout}", "Requests that got no connection in time"),
        decisions=meter.create_counter(ROUTE_DECISIONS, "{decision}", "Servers chosen, by reason"),
        outcomes=meter.create_counter(TRANSACTION_OUTCOMES, "{transaction}", "Transactions, by how they ended"),
        closed_use=meter.create_counter(CLOSED_USE, "{use}", "Sessions used after their end"),
    )


def _summed(readings: Iterable[tuple[Hashable, Attributes, int]]) -> list[Observation]:
    """Sum the readings by key: the databases of a datasource count together."""
    found: dict[Hashable, tuple[int, Attributes]] = {}
    for key, attributes, value in readings:
        before = found.get(key)
        found[key] = (value if before is None else value + before[0], attributes)
    return [Observation(value, dict(attributes)) for value, attributes in found.values()]


def _pools() -> Iterable[MeasuredPool]:
    return (pool for source in _sources for pool in source.open_pools())


def _of_pools(read: Callable[[MeasuredPool], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return _summed((pool.full_name, {POOL_NAME: pool.full_name}, read(pool)) for pool in _pools())

    return observe


def _connections(_: CallbackOptions) -> Iterable[Observation]:
    return _summed(
        ((pool.full_name, state), {POOL_NAME: pool.full_name, CONNECTION_STATE: state}, count)
        for pool in _pools()
        for state, count in (("idle", pool.idle), ("used", pool.borrowed))
    )


def _servers_up(_: CallbackOptions) -> Iterable[Observation]:
    return _summed(
        ((pool.datasource, pool.name), {DATASOURCE: pool.datasource, NODE: pool.name}, int(pool.is_up))
        for pool in _pools()
    )


def _databases(_: CallbackOptions) -> Iterable[Observation]:
    return _summed(
        (name, {DATASOURCE: name}, count) for source in _sources for name, count in source.open_databases().items()
    )


def _lags(_: CallbackOptions) -> Iterable[Observation]:
    return [
        Observation(lag_s, {DATASOURCE: datasource, NODE: node})
        for source in _sources
        for datasource, node, lag_s in source.lags()
    ]
