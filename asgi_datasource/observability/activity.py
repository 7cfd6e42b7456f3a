"""What this process has done in the last minutes, and what is under way: the console reads it.

It is recorded only while a console exists. Its size is bounded: counts per slot of `SLOT_S` seconds, for `SLOTS` slots
and `KEPT_TENANTS` tenants of each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from ..errors import DataError, DataErrorKind
from .names import AttributeValue
from .recording import RecordedConnection, RecordedPool, Recorder, SessionRecorder, UseRecorder
from .summary import Analysis

SLOT_S: Final = 10.0
"""Seconds of one slot."""
SLOTS: Final = 90
"""Slots that are kept: 15 minutes."""
KEPT_TENANTS: Final = 100
"""Tenants that a slot keeps, those with the highest load; the others are counted together."""
MOST_TENANTS: Final = 4 * KEPT_TENANTS
"""Tenants that the current slot tells apart before it is reduced to `KEPT_TENANTS`."""
OTHERS: Final = "\x00others"
"""The key of the tenants that are counted together; it is no valid name of a tenant."""

Decision = tuple[AttributeValue, ...]
"""Datasource, node, role and reason."""


@dataclass(slots=True)
class Load:
    """The load of one tenant in a span of time.

    Attributes:
        statements: Statements that a server was chosen for.
        failed: Statements that have failed.
        refused: Requests for a connection that got none in time.
        busy_s: Seconds for which it held connections, all of them together.
        waited_s: Seconds for which it waited for connections.
    """

    statements: int = 0
    failed: int = 0
    refused: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0

    def add(self, other: Load) -> None:
        """Count another one's load here."""
        self.statements += other.statements
        self.failed += other.failed
        self.refused += other.refused
        self.busy_s += other.busy_s
        self.waited_s += other.waited_s

    @property
    def weight(self) -> tuple[float, int]:
        """The order of tenants: by connections held, then by statements."""
        return self.busy_s + self.waited_s, self.statements


@dataclass(slots=True)
class Slot:
    """The counts of one slot.

    Attributes:
        number: Its number: the clock's seconds divided by `SLOT_S`.
        decisions: How often each server was chosen for each reason.
        outcomes: How transactions have ended, by datasource and outcome.
        tenants: The load by tenant; None for requests without a tenant.
    """

    number: int
    decisions: Counter[Decision] = field(default_factory=Counter[Decision])
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    tenants: dict[str | None, Load] = field(default_factory=dict[str | None, Load])

    def reduce(self) -> None:
        """Keep the tenants with the highest load, and count the others together."""
        if len(self.tenants) <= KEPT_TENANTS + 1:
            return
        others = self.tenants.pop(OTHERS, None) or Load()
        ranked = sorted(self.tenants.items(), key=lambda item: item[1].weight, reverse=True)
        for _, load in ranked[KEPT_TENANTS:]:
            others.add(load)
        self.tenants = {**dict(ranked[:KEPT_TENANTS]), OTHERS: others}


class Activity:
    """The activity of one process. Used in its event loop only.

    Args:
        clock: Seconds that only increase.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self._slots: deque[Slot] = deque(maxlen=SLOTS)
        self.current = Slot(int(clock() / SLOT_S))
        """The slot that began last."""
        self.in_flight: dict[int, Held] = {}
        """The connections that are borrowed now."""

    def recorder(self, metrics: Recorder | None) -> ActivityRecorder:
        """A recorder that counts here, and hands everything on to the metrics, if there are any."""
        return ActivityRecorder(self, metrics)

    # -- called by recorders

    def slot(self) -> Slot:
        """The slot of this moment."""
        now = self.clock()
        number = int(now / SLOT_S)
        if number != self.current.number:
            self._turn(number)
        return self.current

    def _turn(self, number: int) -> None:
        """Begin the slot of this number."""
        while self.current.number < number:
            end = (self.current.number + 1) * SLOT_S
            for held in self.in_flight.values():
                # What is held for long counts in each slot in which it is held, not all at its end.
                self._load(self.current, held.tenant).busy_s += held.take_busy_s(end)
            self.current.reduce()
            self._slots.append(self.current)
            following = max(self.current.number + 1, number - SLOTS) if self.in_flight else number
            self.current = Slot(following)
            for held in self.in_flight.values():
                held.counted_to = max(held.counted_to, following * SLOT_S)

    def load_of(self, tenant: str | None) -> Load:
        """The load of a tenant in the current slot, to be added to."""
        return self._load(self.slot(), tenant)

    @staticmethod
    def _load(slot: Slot, tenant: str | None) -> Load:
        found = slot.tenants.get(tenant)
        if found is None:
            if len(slot.tenants) >= MOST_TENANTS:
                slot.reduce()
            found = slot.tenants[tenant] = Load()
        return found

    # -- read by the console

    def recent(self, seconds: float) -> list[Slot]:
        """The slots of the last seconds, oldest first, with the current one."""
        current = self.slot()
        first = current.number - round(seconds / SLOT_S) + 1
        return [*(slot for slot in self._slots if slot.number >= first), current]

    def decisions(self, seconds: float) -> Counter[Decision]:
        """How often each server was chosen for each reason, in the last seconds."""
        found: Counter[Decision] = Counter()
        for slot in self.recent(seconds):
            found.update(slot.decisions)
        return found

    def outcomes(self, seconds: float) -> Counter[tuple[str, str]]:
        """How transactions have ended in the last seconds, by datasource and outcome."""
        found: Counter[tuple[str, str]] = Counter()
        for slot in self.recent(seconds):
            found.update(slot.outcomes)
        return found

    def tenants(self, seconds: float) -> dict[str | None, Load]:
        """The load of each tenant in the last seconds, the highest first; connections that are still held count."""
        found: dict[str | None, Load] = {}
        for slot in self.recent(seconds):
            for tenant, load in slot.tenants.items():
                found.setdefault(tenant, Load()).add(load)
        now = self.clock()
        for held in self.in_flight.values():
            found.setdefault(held.tenant, Load()).busy_s += now - held.counted_to
        return dict(sorted(found.items(), key=lambda item: item[1].weight, reverse=True))


class ActivityRecorder:
    """Makes the recorders of sessions while there is a console.

    Args:
        activity: What is recorded.
        metrics: The metrics, which go on; None without any.
    """

    def __init__(self, activity: Activity, metrics: Recorder | None) -> None:
        self.activity = activity
        self._metrics = metrics

    def measure(self, tenant: str | None, scope: Mapping[str, Any] | None = None) -> SessionActivity:
        """The recorder of a session."""
        metrics = self._metrics
        return SessionActivity(self.activity, tenant, scope, None if metrics is None else metrics.measure(tenant))


class SessionActivity:
    """Records what one session does, for the console."""

    __slots__ = ("activity", "metrics", "reason", "scope", "tenant")

    def __init__(
        self,
        activity: Activity,
        tenant: str | None,
        scope: Mapping[str, Any] | None,
        metrics: SessionRecorder | None,
    ) -> None:
        self.activity = activity
        self.tenant = tenant
        self.scope = scope
        self.metrics = metrics
        self.reason: AttributeValue = ""
        """Why the server of the last statement was chosen."""

    def chose(self, decision: Mapping[str, AttributeValue]) -> None:
        """Count the server chosen for a statement."""
        key = tuple(decision.values())
        slot = self.activity.slot()
        slot.decisions[key] += 1
        load = slot.tenants.get(self.tenant) or self.activity.load_of(self.tenant)
        load.statements += 1
        self.reason = key[-1]
        if self.metrics is not None:
            self.metrics.chose(decision)

    def lent(self, pool: RecordedPool, waited_s: float, connection: RecordedConnection) -> Held:
        """Note a borrowed connection."""
        inner = None if self.metrics is None else self.metrics.lent(pool, waited_s, connection)
        if waited_s:
            self.activity.load_of(self.tenant).waited_s += waited_s
        return Held(self, pool, connection, inner)

    def refused(self, pool: RecordedPool, error: Exception) -> None:
        """Count that no connection could be borrowed in time."""
        if isinstance(error, DataError) and error.kind is DataErrorKind.RESOURCE:
            self.activity.load_of(self.tenant).refused += 1
        if self.metrics is not None:
            self.metrics.refused(pool, error)

    def ran(
        self, pool: RecordedPool, statement: Analysis, took_s: float, failure: BaseException | None, rows: int = -1
    ) -> None:
        """Count a statement that has failed."""
        if failure is not None:
            self.activity.load_of(self.tenant).failed += 1
        if self.metrics is not None:
            self.metrics.ran(pool, statement, took_s, failure, rows)

    def ended(self, datasource: str, outcome: str) -> None:
        """Count the end of a transaction."""
        self.activity.slot().outcomes[datasource, outcome] += 1
        if self.metrics is not None:
            self.metrics.ended(datasource, outcome)

    def used_late(self, datasource: str) -> None:
        """Hand it on."""
        if self.metrics is not None:
            self.metrics.used_late(datasource)


class Held:
    """A connection while it is borrowed.

    Attributes:
        pool: Its server.
        connection: The connection.
        since: When it was borrowed, by the clock of the activity.
        counted_to: The time up to which it is counted as load.
        reason: Why its server was chosen.
    """

    __slots__ = ("_activity", "_inner", "_scope", "connection", "counted_to", "pool", "reason", "since", "tenant")

    def __init__(
        self,
        session: SessionActivity,
        pool: RecordedPool,
        connection: RecordedConnection,
        inner: UseRecorder | None,
    ) -> None:
        activity = self._activity = session.activity
        self._scope = session.scope
        self._inner = inner
        self.tenant = session.tenant
        self.reason = session.reason
        self.pool = pool
        self.connection = connection
        self.since = self.counted_to = activity.clock()
        activity.in_flight[id(self)] = self

    @property
    def route(self) -> str | None:
        """The route of the request, as its framework declares it, never the path that was asked for; None without."""
        return None if self._scope is None else route_of(self._scope)

    def take_busy_s(self, now: float) -> float:
        """The seconds up to this time that are not counted yet; they count as counted from then on."""
        busy_s, self.counted_to = max(0.0, now - self.counted_to), now
        return busy_s

    def end(self) -> None:
        """The connection was returned."""
        activity = self._activity
        if activity.in_flight.pop(id(self), None) is not None:
            if activity.clock() - self.counted_to > SLOT_S:
                activity.slot()
            # Otherwise it counts in the slot that began last, even if that has ended a moment ago.
            load = activity.current.tenants.get(self.tenant) or activity.load_of(self.tenant)
            load.busy_s += activity.clock() - self.counted_to
        if self._inner is not None:
            self._inner.end()


def route_of(scope: Mapping[str, Any]) -> str:
    """Method and route of a request as its framework declares them: `GET /orders/{id}`.

    A path is not shown: it may contain what identifies a person, or a secret such as the token of a link.
    """
    method = str(scope.get("method") or scope.get("type", "")).upper()
    # FastAPI has the route in the scope, Litestar its template, Starlette the endpoint.
    path = getattr(scope.get("route"), "path", None) or scope.get("path_template")
    if path is None:
        endpoint = scope.get("endpoint")
        path = getattr(endpoint, "__qualname__", None) if endpoint is not None else None
    return f"{method} {path}" if path else method
