"""Metrics, opt-in: the instruments, who tells them, and the one table of their names.

Only `opentelemetry-api` is used. Names follow OpenTelemetry's semantic conventions for database clients where they have
one, and start with `asgi_datasource.` where they have none. Where a configuration does not ask for metrics, nothing of
this is made: sessions have `None` in its place.
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
from .tracing import (
    DATASOURCE,
    DB_OPERATION,
    DB_STATUS_CODE,
    ERROR_TYPE,
    NODE,
    OUTCOME,
    TENANT_ID,
    AttributeValue,
)

OPERATION_DURATION: Final = "db.client.operation.duration"
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
OPEN_POOLS: Final = "asgi_datasource.tenants.open_pools"
CLOSED_USE: Final = "asgi_datasource.session.closed_use"

POOL_NAME: Final = "db.client.connection.pool.name"
CONNECTION_STATE: Final = "db.client.connection.state"

OTHER_TENANTS: Final = "_OTHER"
"""Stands for every tenant beyond those that have a label, in the manner of the conventions' own `_OTHER`."""

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bounds of the buckets, as the conventions advise."""

Attributes = Mapping[str, AttributeValue]


class MeasuredSettings(Protocol):
    """What is read of a pool's settings."""

    @property
    def min_size(self) -> int:
        """Connections kept open."""
        ...

    @property
    def max_size(self) -> int:
        """Most connections."""
        ...


class MeasuredPool(Protocol):
    """What is read of a server's pool. The exporter reads it from a thread of its own."""

    @property
    def datasource(self) -> str:
        """The datasource's name."""
        ...

    @property
    def name(self) -> str:
        """The server's."""
        ...

    @property
    def full_name(self) -> str:
        """Both: `orders.primary`."""
        ...

    @property
    def dimensions(self) -> Attributes:
        """What tells it apart on metrics; the same for every tenant's database of a datasource."""
        ...

    @property
    def settings(self) -> MeasuredSettings:
        """How large it is."""
        ...

    @property
    def idle(self) -> int:
        """Connections that lie in it."""
        ...

    @property
    def borrowed(self) -> int:
        """Connections that are lent."""
        ...

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        ...


class Source(Protocol):
    """An open registry, as whoever exports metrics sees it. Read from the exporter's thread."""

    def open_pools(self) -> Sequence[MeasuredPool]:
        """Every pool that is open and measured."""
        ...

    def open_databases(self) -> Mapping[str, int]:
        """How many pools each datasource has open that has a database for each tenant."""
        ...

    def lags(self) -> Sequence[tuple[str, str, float]]:
        """Datasource, replica, and how many seconds it is behind, as far as that is known."""
        ...


class Metrics:
    """What a registry measures.

    Args:
        most_tenants: How many tenants have a label of their own, those that are served first; 0: metrics name none.
    """

    def __init__(self, most_tenants: int) -> None:
        self.most_tenants = most_tenants
        self._instruments = _instruments()
        self._labels: dict[str, Attributes] = {}

    def measure(self, tenant: str | None) -> Measure:
        """What a session of this tenant tells the instruments."""
        return Measure(self, self._instruments, tenant)

    def label(self, tenant: str | None) -> Attributes:
        """How metrics name a tenant that was served before, or has not been yet."""
        if not self.most_tenants or tenant is None:
            return _NOBODY
        return self._labels.get(tenant, _OTHERS)

    def admit(self, tenant: str | None) -> Attributes:
        """How metrics name a tenant that is being served: one of the first gets a label.

        A name that leads nowhere is never served, so that a flood of those takes no label from anybody.
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
        """A connection was made."""
        self._instruments.create_time.record(took_s, {POOL_NAME: pool.full_name})


_NOBODY: Final[Attributes] = {}
_OTHERS: Final[Attributes] = {TENANT_ID: OTHER_TENANTS}


class Measure:
    """What one session tells the instruments."""

    __slots__ = ("_instruments", "_label", "_metrics", "_tenant")

    def __init__(self, owner: Metrics, instruments: Instruments, tenant: str | None) -> None:
        self._metrics = owner
        self._instruments = instruments
        self._tenant = tenant
        self._label = owner.label(tenant)

    def chose(self, decision: Attributes) -> None:
        """A server was chosen for a statement.

        Args:
            decision: Datasource, node, role and reason, by their names.
        """
        self._instruments.decisions.add(1, {**decision, **self._label})

    def lent(self, pool: MeasuredPool, waited_s: float) -> Use:
        """A connection was borrowed; tell the answer when it comes back."""
        self._label = self._metrics.admit(self._tenant)
        attributes = {POOL_NAME: pool.full_name, **self._label}
        self._instruments.wait_time.record(waited_s, attributes)
        return Use(self._instruments.use_time, attributes)

    def refused(self, pool: MeasuredPool, error: DataError) -> None:
        """No connection was to be had."""
        if error.kind is DataErrorKind.RESOURCE:
            self._instruments.timeouts.add(1, {POOL_NAME: pool.full_name, **self._label})

    def ran(self, pool: MeasuredPool, operation: str, took_s: float, failure: BaseException | None) -> None:
        """A server was asked for something.

        Args:
            pool: The server's.
            operation: `SELECT`, `COMMIT`; never more of a statement.
            took_s: Seconds until the answer was there, or nobody waited for it any more.
            failure: What came of it; None where it worked.
        """
        attributes = {**pool.dimensions, DB_OPERATION: operation, **self._label}
        if isinstance(failure, DataError):
            attributes[ERROR_TYPE] = failure.sqlstate or failure.kind.value
            if failure.sqlstate is not None:
                attributes[DB_STATUS_CODE] = failure.sqlstate
        elif failure is not None:
            attributes[ERROR_TYPE] = type(failure).__name__
        self._instruments.duration.record(took_s, attributes)

    def ended(self, datasource: str, outcome: str) -> None:
        """A transaction is over: `committed`, `rolled_back` or `unknown`."""
        self._instruments.outcomes.add(1, {DATASOURCE: datasource, OUTCOME: outcome, **self._label})

    def used_late(self, datasource: str) -> None:
        """Somebody used the session after its end."""
        self._instruments.closed_use.add(1, {DATASOURCE: datasource, **self._label})


class Use:
    """From the borrowing of a connection to its return."""

    __slots__ = ("_attributes", "_began", "_use_time")

    def __init__(self, use_time: Histogram, attributes: Attributes) -> None:
        self._use_time = use_time
        self._attributes = attributes
        self._began = perf_counter()

    def end(self) -> None:
        """It is back."""
        self._use_time.record(perf_counter() - self._began, self._attributes)


@dataclass(frozen=True, slots=True)
class Instruments:
    """What is recorded where it happens; the others are asked by whoever exports them."""

    duration: Histogram
    create_time: Histogram
    wait_time: Histogram
    use_time: Histogram
    timeouts: Counter
    decisions: Counter
    outcomes: Counter
    closed_use: Counter


_sources: tuple[Source, ...] = ()
"""The registries that are open and measured; replaced as a whole, for another thread reads it."""


def watch(source: Source) -> None:
    """Let whoever exports metrics read a registry, until `unwatch`."""
    global _sources
    _sources = (*(other for other in _sources if other is not source), source)


def unwatch(source: Source) -> None:
    """It is not open any more."""
    global _sources
    _sources = tuple(other for other in _sources if other is not source)


@lru_cache(maxsize=1)
def _instruments() -> Instruments:
    """Make the instruments, once in a process: what is observed can not be taken away again."""
    meter = metrics.get_meter("asgi_datasource", schema_url="https://opentelemetry.io/schemas/1.33.0")

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
    meter.create_observable_up_down_counter(OPEN_POOLS, [_databases], "{pool}", "Pools of tenants' databases, open")
    meter.create_observable_gauge(REPLICA_LAG, [_lags], "s", "How long ago the primary was where the replica is")
    return Instruments(
        duration=seconds(OPERATION_DURATION, "Duration of database client operations"),
        create_time=seconds(CONNECTION_CREATE_TIME, "Time until a new connection was made"),
        wait_time=seconds(CONNECTION_WAIT_TIME, "Time until a connection of the pool was there"),
        use_time=seconds(CONNECTION_USE_TIME, "Time between borrowing a connection and its return"),
        timeouts=meter.create_counter(CONNECTION_TIMEOUTS, "{timeout}", "Requests that got no connection in time"),
        decisions=meter.create_counter(ROUTE_DECISIONS, "{decision}", "Servers chosen, by reason"),
        outcomes=meter.create_counter(TRANSACTION_OUTCOMES, "{transaction}", "Transactions, by how they ended"),
        closed_use=meter.create_counter(CLOSED_USE, "{use}", "Sessions used after their end"),
    )


def _summed(readings: Iterable[tuple[Hashable, Attributes, int]]) -> list[Observation]:
    """One observation for each key: the databases of a datasource count together."""
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
