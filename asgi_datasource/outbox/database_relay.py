"""The relay of one database: reads its lanes, has batches published side by side, and writes down what became of them.

One task talks to the database (`run`); each lane with entries has a task that publishes them. No transaction is open
while anything is published. What was published is acknowledged in the round trip that reads the next entries.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from ..errors import DataError
from .circuit import Circuit
from .entry import OutboxEntry
from .lanes import LANES, LEASE_S, MARGIN_S, RENEW_S, Acknowledgement, Group, HeldGroups, LaneStore, Refusal, Site
from .metrics import RelayMeasure
from .protocols import SKIPPED, Batch, OutboxPublisher, Outcome, OutcomeKind
from .stats import RelayStats
from .vacuum import END_IT, held_back

logger = logging.getLogger("asgi_datasource.outbox")

CHANNEL: Final = "asgi_datasource_outbox"
"""What coalesced notifications are sent on."""

FIRST_POLL_S: Final = 0.2
LONGEST_POLL_S: Final = 5.0
PUBLISH_LIMIT_S: Final = 60.0
"""Seconds that publishing a batch may take; then its destination counts as away."""
STOP_LIMIT_S: Final = 10.0
"""Seconds that a batch under way has to end when the relay is stopped."""
MEASURE_EVERY_S: Final = 15.0
TEND_EVERY_S: Final = 3600.0
RECONNECT_FIRST_S: Final = 0.2
RECONNECT_LONGEST_S: Final = 5.0

SUSPECT_AFTER: Final = 5
"""How often a message may find its destination away, while others pass meanwhile, before it counts as refused."""
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 3600.0

MAX_REASON: Final = 500
"""Most characters of a reason that are stored."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What the configuration says of relays.

    Attributes:
        batch: Most entries of a lane that are read at once.
        lease_s, renew_s: How long a lease lasts, and how often it is renewed.
        max_attempts: How often a refused message is tried before it is dead.
        holds_dead: A dead message holds its key.
        keep_days: Days that published entries are kept; None deletes them.
        listens: Listens for notifications of other processes; not through a pooler.
        connections: Most connections of the relay.
        first_retry_s: The first pause of a refused message; each is twice the one before.
        is_traced: Each message that is sent gets a span, where the process records spans.
    """

    batch: int = 100
    lease_s: float = LEASE_S
    renew_s: float = RENEW_S
    max_attempts: int = 12
    holds_dead: bool = False
    keep_days: int | None = None
    listens: bool = False
    connections: int = 8
    first_retry_s: float = FIRST_RETRY_S
    is_traced: bool = False


class DatabaseRelay:
    """Delivers the events of one database, beside other relays.

    Args:
        site: The database.
        publisher: Where events go.
        circuit: Whether that is there.
        settings: What the configuration says.
        stats: Is told of what happens.
        owner: The relay's id; every process has its own.
        may_leave: Whether to leave as soon as there is nothing to do, for another database.
        measure: Records what is sent; None where metrics are disabled.
    """

    def __init__(
        self,
        site: Site,
        publisher: OutboxPublisher,
        *,
        circuit: Circuit | None = None,
        settings: RelaySettings | None = None,
        stats: RelayStats | None = None,
        owner: UUID | None = None,
        may_leave: Callable[[], bool] = lambda: False,
        measure: RelayMeasure | None = None,
    ) -> None:
        self.site = site
        self._settings = settings or RelaySettings()
        self._publisher = publisher
        self._circuit = circuit or Circuit()
        self.stats = stats or RelayStats(site.name)
        self.store = LaneStore(
            site,
            owner or uuid4(),
            lease_s=self._settings.lease_s,
            keep_days=self._settings.keep_days,
            holds_dead=self._settings.holds_dead,
        )
        self._may_leave = may_leave
        self._measure = measure
        self._signal = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stop_by = float("inf")
        self._is_fresh = False
        """Something may have been committed since all lanes were read."""
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._dirty: set[int] = set()
        """Lanes that may have more entries."""
        self._held: dict[int, frozenset[Group]] = {}
        self._held_due: dict[int, float] = {}
        self._acknowledged = Acknowledgement()
        self._suspects: dict[tuple[int, int], tuple[int, int]] = {}
        self._poll_s = FIRST_POLL_S
        self._poll_at = self._renew_at = self._measure_at = self._tend_at = 0.0
        self._is_idle = False
        self._reconnect_s = RECONNECT_FIRST_S
        self._probe_lane = 0

    # -- from outside

    def wake(self) -> None:
        """Something was committed in this process, or by another one that has said so."""
        self._is_fresh = True
        self._signal.set()

    def stop(self) -> None:
        """Read no more; what is under way is acknowledged, and the lanes are given back."""
        if not self._is_stopping:
            self._stopped.set()
            self._stop_by = time.monotonic() + STOP_LIMIT_S
            self._signal.set()

    async def run(self) -> None:
        """Deliver until `stop`, or until there is nothing to do and it may leave."""
        try:
            while not self._is_over:
                try:
                    await self._step()
                except (DataError, OSError) as error:
                    await self._recover(error)
        finally:
            await self._end()

    # -- the loop

    @property
    def _is_stopping(self) -> bool:
        return self._stopped.is_set()

    @property
    def _is_over(self) -> bool:
        if self._busy or self._has_news:
            return self._is_stopping and time.monotonic() >= self._stop_by
        return self._is_stopping or (self._is_idle and not self._is_fresh and self._may_leave())

    @property
    def _has_news(self) -> bool:
        what = self._acknowledged
        return bool(what.done or what.held or what.held_done or what.refused or what.groups)

    async def _step(self) -> None:
        """One round trip, and the wait for a reason for the next."""
        store = self.store
        if not store.is_connected:
            await self._connect()
        now = time.monotonic()
        if now >= self._renew_at:
            await self._renew()
        await self._watch(now)
        lanes, held_lanes = self._lanes_to_read(now)
        news = self._acknowledged if self._has_news else None
        if news is None and not lanes and not held_lanes:
            await self._wait()
            return
        self._acknowledged = Acknowledgement()
        try:
            entries, held, groups = await store.turn(news, lanes, held_lanes, self._settings.batch)
        except BaseException:
            if news is not None:
                self._acknowledged = _merge(news, self._acknowledged)
            self._circuit.cancel_probe()
            self._dirty.update(lanes)
            raise
        self._reconnect_s = RECONNECT_FIRST_S
        if news is not None:
            self._note_acknowledged(news)
        if groups is not None:
            self._take_groups(groups)
        self._deliver(lanes, entries, held)

    async def _connect(self) -> None:
        await self.store.connect()
        self._renew_at = 0.0
        if self._settings.listens:
            await self.store.listen(CHANNEL, self.wake)
        self._is_fresh = True

    async def _renew(self) -> None:
        store = self.store
        before = set(store.epochs)
        lost = await store.renew(idle=[lane for lane in store.epochs if lane not in self._busy])
        self._renew_at = time.monotonic() + self._settings.renew_s
        self.stats.failure = None
        self._drop(lost)
        self.stats.leases_lost += len(lost)
        self.stats.lanes = len(store.epochs)
        if len(store.epochs) < LANES // store.relays and not self._is_stopping:
            # Another relay has more than its share, and gives the rest back when it renews.
            self._renew_at = time.monotonic() + min(1.0, self._settings.renew_s)
        found = await store.held_groups()
        self._take_groups(found)
        # What was replayed or discarded meanwhile may have left a key without a message to try next.
        self._acknowledged.groups |= found.headless
        self._dirty.update(set(store.epochs) - before)

    def _drop(self, lanes: Iterable[int]) -> None:
        """These lanes are another relay's now, or may be."""
        for lane in lanes:
            task = self._busy.pop(lane, None)
            if task is not None:
                task.cancel()
            self._dirty.discard(lane)
            self._held.pop(lane, None)

    def _lanes_to_read(self, now: float) -> tuple[list[int], list[int]]:
        if self._is_stopping:
            return [], []
        own = self.store.epochs
        if self._is_fresh or now >= self._poll_at:
            if not self._is_fresh:
                self._poll_s = min(LONGEST_POLL_S, 1.5 * self._poll_s)
            self._is_fresh = False
            self._poll_at = now + self._poll_s
            self._dirty.update(own)
        if not self._circuit.admit():
            return [], []
        lanes = [lane for lane in self._dirty if lane in own and lane not in self._busy]
        held = [lane for lane, due in self._held_due.items() if due <= now and lane in own and lane not in self._busy]
        if not lanes and not held:
            self._circuit.cancel_probe()
            return [], []
        self._dirty.difference_update(lanes)
        return lanes, held

    def _take_groups(self, found: HeldGroups) -> None:
        now = time.monotonic()
        self._held = dict(found.lanes)
        self._held_due = {lane: now + due_s for lane, due_s in found.due_in_s.items()}
        for lane, group in self._acknowledged.new_groups:
            self._held[lane] = self._held.get(lane, frozenset()) | {group}

    def _deliver(self, lanes: Sequence[int], entries: Sequence[OutboxEntry], held: Sequence[OutboxEntry]) -> None:
        """Have what was read published, a task a lane."""
        found: dict[int, tuple[list[OutboxEntry], list[OutboxEntry]]] = {}
        for entry in entries:
            found.setdefault(entry.lane, ([], []))[0].append(entry)
        for entry in held:
            found.setdefault(entry.lane, ([], []))[1].append(entry)
            self._held_due.pop(entry.lane, None)
        self._is_idle = not found and not self._busy
        is_probe = self._circuit.state is not self._circuit.state.CLOSED
        if found:
            self._poll_s = FIRST_POLL_S
        elif is_probe:
            self._circuit.cancel_probe()
        order = sorted(found, key=lambda lane: (lane <= self._probe_lane, lane)) if is_probe else list(found)
        for number, lane in enumerate(order):
            main, aside = found[lane]
            if is_probe and number:
                # One batch finds out whether the destination is back; the others are read again.
                self._dirty.add(lane)
                if aside:
                    self._held_due[lane] = 0.0
                continue
            self._probe_lane = lane
            groups = self._held.get(lane)
            if groups:
                passing = [entry for entry in main if entry.group not in groups]
                self._acknowledged.held += [entry.place for entry in main if entry.group in groups]
                main = passing
            self._dirty.add(lane)
            if main or aside:
                self._busy[lane] = asyncio.get_running_loop().create_task(self._publish(lane, main, aside))
            elif is_probe:
                self._circuit.cancel_probe()

    async def _publish(self, lane: int, main: Sequence[OutboxEntry], held: Sequence[OutboxEntry]) -> None:
        epoch = self.store.epochs.get(lane)

        def may_go_on() -> bool:
            store = self.store
            return store.epochs.get(lane) == epoch and time.monotonic() < store.leased_until - MARGIN_S

        batch = Batch([*main, *held], may_go_on, is_traced=self._settings.is_traced, measure=self._measure)
        outcomes: Sequence[Outcome]
        try:
            async with asyncio.timeout(PUBLISH_LIMIT_S):
                outcomes = await self._publisher.publish(batch)
        except asyncio.CancelledError:
            self._circuit.cancel_probe()
            raise
        except TimeoutError:
            outcomes = [Outcome(OutcomeKind.UNREACHABLE, f"no answer within {PUBLISH_LIMIT_S:g} s")] * len(batch)
        except Exception:
            # A fault of the publisher itself says nothing about a message.
            logger.exception("outbox of %s: the publisher has failed", self.site.name)
            outcomes = [Outcome(OutcomeKind.UNREACHABLE, "the publisher has failed")] * len(batch)
        if self._busy.get(lane) is not asyncio.current_task():
            self._circuit.cancel_probe()
            return
        del self._busy[lane]
        self._settle(lane, main, held, outcomes)
        self._signal.set()

    # -- what became of it

    def _settle(
        self, lane: int, main: Sequence[OutboxEntry], held: Sequence[OutboxEntry], outcomes: Sequence[Outcome]
    ) -> None:
        kinds = {outcome.kind for outcome in outcomes}
        if OutcomeKind.PUBLISHED in kinds or OutcomeKind.REFUSED in kinds:
            self._circuit.succeed()
        now = None if self._measure is None else datetime.now(UTC)
        what, refused = self._acknowledged, set[Group]()
        for index, entry in enumerate((*main, *held)):
            is_held = index >= len(main)
            outcome = outcomes[index] if index < len(outcomes) else SKIPPED
            if outcome.kind is OutcomeKind.UNREACHABLE:
                outcome = self._away(entry, outcome)
            if outcome.kind is OutcomeKind.PUBLISHED:
                (what.held_done if is_held else what.done).append(entry.place)
                self.stats.published += 1
                if now is not None and self._measure is not None:
                    self._measure.delayed(self.site.datasource, (now - entry.created_at).total_seconds())
                self._suspects.pop(entry.place, None)
            elif outcome.kind is OutcomeKind.REFUSED:
                refused.add(entry.group)
                if not is_held:
                    what.held.append(entry.place)
                    what.new_groups.add((lane, entry.group))
                what.refused.append(self._refusal(entry, outcome))
                self.stats.refused += 1
            elif entry.group in refused and not is_held:
                what.held.append(entry.place)
            if is_held or entry.group in refused:
                what.groups.add((lane, entry.group))
        if refused:
            self._held[lane] = self._held.get(lane, frozenset()) | refused
        if OutcomeKind.PUBLISHED not in kinds and OutcomeKind.REFUSED not in kinds:
            self._circuit.cancel_probe()

    def _away(self, entry: OutboxEntry, outcome: Outcome) -> Outcome:
        """The destination was away: a reason to wait, unless it is away for this message alone."""
        count, seen = self._suspects.get(entry.place, (0, self._circuit.successes))
        if self._circuit.successes > seen:
            count += 1
        if count >= SUSPECT_AFTER:
            self._suspects.pop(entry.place, None)
            return Outcome(OutcomeKind.REFUSED, f"{outcome.reason}; other messages have passed meanwhile")
        self._suspects[entry.place] = (count, self._circuit.successes)
        if self._circuit.state is not self._circuit.state.OPEN:
            logger.warning(
                "outbox of %s: the destination is away: %s; nothing is lost, and no attempt is counted",
                self.site.name,
                outcome.reason or "it does not answer",
            )
        self._circuit.fail(outcome.reason, outcome.retry_after_s)
        self.stats.unreachable += 1
        return outcome

    def _refusal(self, entry: OutboxEntry, outcome: Outcome) -> Refusal:
        attempts = entry.attempts + 1
        is_dead = attempts >= self._settings.max_attempts
        reason = (outcome.reason or "the destination refused it")[:MAX_REASON].replace("\x00", "")
        delay_s = min(LONGEST_RETRY_S, self._settings.first_retry_s * 2.0 ** (attempts - 1))
        if outcome.retry_after_s is not None:
            delay_s = max(delay_s, min(LONGEST_RETRY_S, outcome.retry_after_s))
        log = logger.error if is_dead else logger.warning
        log(
            "outbox of %s: event %s of the topic %s was refused (attempt %d of %d%s): %s",
            self.site.name,
            entry.event_id,
            entry.topic,
            attempts,
            self._settings.max_attempts,
            ", dead: see `asgi-datasource outbox dead list`" if is_dead else "",
            reason,
        )
        return entry.place, "dead" if is_dead else "retry", attempts, delay_s, reason

    def _note_acknowledged(self, what: Acknowledgement) -> None:
        self.stats.acknowledged += len(what.done) + len(what.held_done)

    # -- waiting, failing, ending

    async def _watch(self, now: float) -> None:
        """Tend the partitions, and measure, when that is due."""
        if now >= self._tend_at and not self._is_stopping:
            self._tend_at = now + TEND_EVERY_S
            await self.store.tend()
        if now >= self._measure_at and not self._is_stopping:
            self._measure_at = now + MEASURE_EVERY_S
            stats = self.stats
            (stats.backlog, stats.oldest_s, stats.held, stats.dead), holders = await self.store.measure()
            stats.measured_at = datetime.now(UTC)
            stats.snapshot_of, stats.snapshot_s = stats.snapshots.note(holders, now)
            if stats.snapshots.warns(stats.snapshot_s) and stats.snapshot_of is not None:
                told = held_back(stats.snapshot_of, stats.snapshot_s)
                logger.warning("outbox of %s: %s. %s", self.site.name, told, END_IT)

    async def _wait(self) -> None:
        """Wait for a commit, the end of a batch, or the next poll."""
        if self._is_over:
            return
        now = time.monotonic()
        due = [at for lane, at in self._held_due.items() if lane in self.store.epochs and lane not in self._busy]
        until = min(self._renew_at, self._poll_at, self._stop_by, *due)
        if self._circuit.state is not self._circuit.state.CLOSED:
            until = min(self._renew_at, self._stop_by, now + self._circuit.waits_s)
        self._signal.clear()
        if self._has_news or (self._is_fresh and self._circuit.state is self._circuit.state.CLOSED):
            return
        try:
            async with asyncio.timeout(max(0.001, until - now)):
                await self._signal.wait()
        except TimeoutError:
            pass

    async def _recover(self, error: BaseException) -> None:
        """The database did not answer: connect anew, while batches under way go on until their leases end."""
        logger.warning("outbox of %s: %s; the relay connects again", self.site.name, error)
        self.stats.failure = error.message if isinstance(error, DataError) else type(error).__name__
        self.store.disconnect()
        if time.monotonic() >= self.store.leased_until - MARGIN_S:
            self._drop(list(self._busy))
        pause_s = self._reconnect_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._reconnect_s = min(RECONNECT_LONGEST_S, 2 * self._reconnect_s)
        if self._is_stopping:
            # What was published stays in the outbox, and is delivered once more.
            self._stop_by = min(self._stop_by, time.monotonic() + 1.0)
        try:
            async with asyncio.timeout(pause_s):
                await self._stopped.wait()
        except TimeoutError:
            pass

    async def _end(self) -> None:
        tasks = list(self._busy.values())
        self._drop(list(self._busy))
        if tasks:
            await asyncio.wait(tasks)
        try:
            if self.store.is_connected:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await self.store.release_all()
        except (DataError, OSError, TimeoutError) as error:
            logger.warning("outbox of %s: the lanes could not be given back: %s", self.site.name, error)
        finally:
            self.store.disconnect()
            self.stats.lanes = 0


def _merge(first: Acknowledgement, second: Acknowledgement) -> Acknowledgement:
    return Acknowledgement(
        first.done + second.done,
        first.held_done + second.held_done,
        first.held + second.held,
        first.refused + second.refused,
        first.groups | second.groups,
        first.new_groups | second.new_groups,
    )
