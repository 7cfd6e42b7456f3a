"""The metrics of relays, with `telemetry.metrics`: read from their statistics, and one histogram of delays.

Databases of one datasource are combined: the name of a tenant is on no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation

from ..observability.names import (
    DATASOURCE,
    ERROR_TYPE,
    MESSAGING_DESTINATION,
    MESSAGING_OPERATION,
    MESSAGING_OPERATION_TYPE,
    MESSAGING_SYSTEM,
    OTHER,
    SCHEMA_URL,
)
from ..observability.tracing import SCOPE, VERSION
from .stats import RelayStats

SENT_MESSAGES: Final = "messaging.client.sent.messages"
SEND_DURATION: Final = "messaging.client.operation.duration"

BACKLOG: Final = "asgi_datasource.outbox.backlog"
OLDEST: Final = "asgi_datasource.outbox.oldest"
HELD: Final = "asgi_datasource.outbox.held"
DEAD: Final = "asgi_datasource.outbox.dead"
LANES: Final = "asgi_datasource.outbox.lanes"
PUBLISHED: Final = "asgi_datasource.outbox.published"
FAILED: Final = "asgi_datasource.outbox.failed"
LEASES_LOST: Final = "asgi_datasource.outbox.leases_lost"
SNAPSHOT: Final = "asgi_datasource.outbox.snapshot"
DELAY: Final = "asgi_datasource.outbox.delay"

REASON: Final = "asgi_datasource.outbox.reason"

MAX_TOPICS: Final = 200
"""Topics that metrics tell apart, the first ones."""

_SEND_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Bucket boundaries in seconds, as the conventions recommend."""

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0)


class MeasuredRelay(Protocol):
    """A relay as exporters read it, from a thread of their own."""

    @property
    def numbers(self) -> Mapping[str, tuple[RelayStats, ...]]:
        """The statistics of its databases, by datasource."""
        ...


_relays: tuple[MeasuredRelay, ...] = ()
"""The relays that are measured; replaced as a whole, because exporters read it from another thread."""


class RelayMeasure:
    """Records what a relay sends, message by message."""

    def __init__(self) -> None:
        self._instruments = _instruments()
        self._topics: set[str] = set()

    def delayed(self, datasource: str, delay_s: float) -> None:
        """Record the delay of an event of a datasource, from its insert to the confirmation, in seconds."""
        self._instruments.delay.record(delay_s, {DATASOURCE: datasource})

    def sent(self, system: str, topic: str, took_s: float, failure: str | None) -> None:
        """Record an attempt to send a message.

        Args:
            system: The destination: `nats`.
            topic: The message's topic.
            took_s: Seconds until the destination has answered.
            failure: `refused` or `unreachable`; None on success.
        """
        topics = self._topics
        if topic not in topics:
            if len(topics) < MAX_TOPICS:
                topics.add(topic)
            else:
                topic = OTHER
        attributes = {MESSAGING_SYSTEM: system, MESSAGING_OPERATION: "send", MESSAGING_DESTINATION: topic}
        if failure is not None:
            attributes[ERROR_TYPE] = failure
        self._instruments.sent.add(1, attributes)
        self._instruments.send_duration.record(took_s, {**attributes, MESSAGING_OPERATION_TYPE: "send"})


@dataclass(frozen=True, slots=True)
class Instruments:
    """Instruments that are recorded synchronously; the observable ones are read by exporters."""

    delay: Histogram
    sent: Counter
    send_duration: Histogram


def watch(relay: MeasuredRelay) -> RelayMeasure:
    """Measure a relay until `unwatch`; returns what records the messages that it sends."""
    global _relays
    measure = RelayMeasure()
    _relays = (*(other for other in _relays if other is not relay), relay)
    return measure


def unwatch(relay: MeasuredRelay) -> None:
    """The relay has ended."""
    global _relays
    _relays = tuple(other for other in _relays if other is not relay)


@lru_cache(maxsize=1)
def _instruments() -> Instruments:
    """Create the instruments, once in a process."""
    meter = metrics.get_meter(SCOPE, VERSION, schema_url=SCHEMA_URL)

    def gauge(name: str, unit: str, text: str, read: Callable[[RelayStats], float], *, highest: bool = False) -> None:
        meter.create_observable_gauge(name, [_reading(read, highest=highest)], unit, text)

    def counter(name: str, unit: str, text: str, read: Callable[[RelayStats], float]) -> None:
        meter.create_observable_counter(name, [_reading(read)], unit, text)

    gauge(BACKLOG, "{event}", "Events that wait", lambda stats: stats.backlog)
    gauge(OLDEST, "s", "Age of the oldest event that waits", lambda stats: stats.oldest_s, highest=True)
    gauge(HELD, "{event}", "Events of keys that wait for a refused one", lambda stats: stats.held)
    gauge(DEAD, "{event}", "Events that were refused too often", lambda stats: stats.dead)
    gauge(SNAPSHOT, "s", "Age of the oldest snapshot that keeps dead rows", lambda s: s.snapshot_s, highest=True)
    gauge(LANES, "{lane}", "Lanes that this process owns", lambda stats: stats.lanes)
    counter(PUBLISHED, "{event}", "Events that were published", lambda stats: stats.published)
    counter(LEASES_LOST, "{lease}", "Lanes that were lost to another relay", lambda stats: stats.leases_lost)
    meter.create_observable_counter(FAILED, [_failures], "{event}", "Attempts that failed, by reason")
    return Instruments(
        delay=meter.create_histogram(
            DELAY, "s", "From COMMIT's round trip to the confirmation", explicit_bucket_boundaries_advisory=_BUCKETS
        ),
        sent=meter.create_counter(SENT_MESSAGES, "{message}", "Messages that a relay has tried to send"),
        send_duration=meter.create_histogram(
            SEND_DURATION, "s", "Duration of sending a message", explicit_bucket_boundaries_advisory=_SEND_SECONDS
        ),
    )


def _reading(
    read: Callable[[RelayStats], float], *, highest: bool = False
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        combine = max if highest else sum
        return [
            Observation(combine([read(one) for one in stats]), {DATASOURCE: datasource})
            for datasource, stats in _by_datasource().items()
        ]

    return observe


def _failures(_: CallbackOptions) -> Iterable[Observation]:
    found: list[Observation] = []
    for datasource, stats in _by_datasource().items():
        for reason in ("refused", "unreachable"):
            count = sum(getattr(one, reason) for one in stats)
            found.append(Observation(count, {DATASOURCE: datasource, REASON: reason}))
    return found


def _by_datasource() -> dict[str, list[RelayStats]]:
    found: dict[str, list[RelayStats]] = {}
    for relay in _relays:
        for datasource, stats in relay.numbers.items():
            found.setdefault(datasource, []).extend(stats)
    return {datasource: stats for datasource, stats in found.items() if stats}
