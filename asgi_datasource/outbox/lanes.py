"""The store of one database: entries in lanes, of which a relay owns some for as long as it renews their leases."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from ..drivers.protocol import Connection, Exchange, Result
from ..drivers.statements import Statement
from ..errors import DataError
from . import statements as sql
from .entry import BINARY, JSON, OutboxEntry
from .vacuum import HOLDER

LANES: Final = 32
"""How many lanes a database has, and so how many relays can share its work."""
LEASE_S: Final = 15.0
RENEW_S: Final = 5.0
MARGIN_S: Final = 2.0
"""Seconds before the end of its lease from which on a lane publishes nothing more."""
ANSWER_LIMIT_S: Final = 10.0
"""Seconds that the database may take to answer; then its connection is given up."""

Group = tuple[str | None, str]
"""Tenant and key."""

Place = tuple[int, int]
"""Lane and number of an entry."""

Refusal = tuple[Place, str, int, float, str]
"""A refused entry: its place, its state from now on, its attempts, seconds to wait, and why."""

NO_HEADERS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Site:
    """One database with an outbox, as relays reach it.

    Attributes:
        name: Names it in logs, metrics and commands: the datasource, and the tenant where each has a database.
        datasource: The datasource alone, for metrics.
        source: The source of its CloudEvents.
        connect: Connects apart from any pool; takes the event-loop time at which it gives up.
        error_of: Classifies what an exchange has failed with.
    """

    name: str
    datasource: str
    source: str
    connect: Callable[[float], Awaitable[Connection]] = field(repr=False)
    error_of: Callable[[Exchange], DataError] = field(repr=False)


@dataclass(slots=True)
class Acknowledgement:
    """What became of entries, to be written down in one round trip.

    Attributes:
        done: Published, from the outbox.
        held_done: Published, of those that were held.
        held: To step aside, from the outbox: with the group of one that was refused.
        refused: Refused ones, all of them held by then.
        groups: What was held, or may be free now.
        new_groups: What is held from now on: all that lies behind in the outbox steps aside as well.
    """

    done: list[Place] = field(default_factory=list[Place])
    held_done: list[Place] = field(default_factory=list[Place])
    held: list[Place] = field(default_factory=list[Place])
    refused: list[Refusal] = field(default_factory=list[Refusal])
    groups: set[tuple[int, Group]] = field(default_factory=set[tuple[int, Group]])
    new_groups: set[tuple[int, Group]] = field(default_factory=set[tuple[int, Group]])


class LaneStore:
    """The outbox of one database over one connection, as one relay sees it.

    Args:
        site: The database.
        owner: The relay's id.
        lease_s: Seconds that a lease lasts.
        keep_days: Days that published entries are kept; None deletes them.
        holds_dead: A dead message holds its key.
    """

    def __init__(
        self,
        site: Site,
        owner: UUID,
        *,
        lease_s: float = LEASE_S,
        keep_days: int | None = None,
        holds_dead: bool = False,
    ) -> None:
        self.site = site
        self._owner = owner
        self._lease_s = lease_s
        self._keep_days = keep_days
        self._holds_dead = holds_dead
        self._connection: Connection | None = None
        self.epochs: dict[int, int] = {}
        """The lanes that are this relay's, and their epochs."""
        self.leased_until = 0.0
        """Monotonic time until which it surely owns them."""
        self.relays = 1
        """How many relays work on this database."""

    # -- the connection

    @property
    def is_connected(self) -> bool:
        """Whether the connection can be used."""
        connection = self._connection
        return connection is not None and not connection.closed and connection.is_usable

    async def connect(self) -> None:
        """Connect, where it is not connected; raises `DataError`."""
        if not self.is_connected:
            self.disconnect()
            loop = asyncio.get_running_loop()
            self._connection = await self.site.connect(loop.time() + ANSWER_LIMIT_S)

    def disconnect(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.when_gone = None
            connection.cut("the relay has ended")

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call `heard` with each notification of a channel; not through a pooler."""
        if self._connection is not None:
            self._connection.add_notify_handler(lambda _: heard())
            await self._ask(Statement(f'listen "{channel}"', prepare=False))

    async def _ask(self, *statements: Statement) -> Sequence[Result]:
        """Run statements as one transaction, in one round trip."""
        connection = self._connection
        if connection is None:
            raise RuntimeError("the store is not connected")
        deadline = asyncio.get_running_loop().time() + ANSWER_LIMIT_S
        try:
            exchange = await connection.exchange(statements, deadline=deadline)
        except BaseException:
            self.disconnect()
            raise
        if exchange.error is not None:
            raise self.site.error_of(exchange) from exchange.error
        return exchange.answers(0, len(statements))

    # -- lanes

    async def has_work(self) -> bool:
        """Whether there is anything to deliver."""
        [found] = await self._ask(sql.HAS_WORK)
        return bool(found.scalar())

    async def renew(self, *, idle: Iterable[int], most: int = LANES) -> set[int]:
        """Renew the leases, and take or give back lanes, so that each relay has its share.

        Args:
            idle: Lanes that could be given back at once.
            most: Most lanes to have.

        Returns:
            The lanes that were lost since the last time.
        """
        asked_at = time.monotonic()
        _, _, renewed, counted = await self._ask(
            Statement(sql.BEAT, (self._owner, self._lease_s)),
            sql.FORGET_DEAD,
            Statement(sql.RENEW, (self._lease_s, self._owner)),
            sql.COUNT_RELAYS,
        )
        before = set(self.epochs)
        self.epochs = dict(renewed.tuples())
        self.leased_until = asked_at + self._lease_s
        self.relays = max(1, int(counted.scalar() or 1))
        share = min(most, -(-LANES // self.relays))
        lost = before - set(self.epochs)
        surplus = len(self.epochs) - share
        if surplus > 0:
            given = [lane for lane in idle if lane in self.epochs][:surplus]
            if given:
                await self._ask(Statement(sql.RELEASE, (self._owner, given)))
                for lane in given:
                    del self.epochs[lane]
        elif surplus < 0:
            [claimed] = await self._ask(Statement(sql.CLAIM, (self._owner, self._lease_s, -surplus)))
            self.epochs.update(dict(claimed.tuples()))
        return lost

    async def release_all(self) -> None:
        """Give all lanes back."""
        self.epochs = {}
        self.leased_until = 0.0
        await self._ask(Statement(sql.RELEASE_ALL, (self._owner,)), Statement(sql.LEAVE, (self._owner,)))

    # -- entries

    async def turn(
        self,
        acknowledged: Acknowledgement | None,
        lanes: Sequence[int],
        held_lanes: Sequence[int],
        limit: int,
    ) -> tuple[list[OutboxEntry], list[OutboxEntry], HeldGroups | None]:
        """Write down what became of entries, and read the next ones, in one round trip.

        Args:
            acknowledged: What became of entries.
            lanes: The lanes to read.
            held_lanes: The lanes to read due held entries of.
            limit: Most entries of each lane.

        Returns:
            The entries of the lanes; due ones of those that are held; and what is held now, where that may be
            different.
        """
        batch: list[Statement] = [] if acknowledged is None else self._written(acknowledged)
        first = len(batch)
        if lanes:
            batch.append(Statement(sql.READ, (list(lanes), limit)))
        if held_lanes:
            batch.append(Statement(sql.READ_HELD, (list(held_lanes), limit)))
        has_changed = acknowledged is not None and bool(acknowledged.groups)
        if has_changed:
            batch.append(self._held_groups())
        if not batch:
            return [], [], None
        answers = list((await self._ask(*batch))[first:])
        source = self.site.source
        entries = [_entry(row, source) for row in answers.pop(0).tuples()] if lanes else []
        held = [_entry(row, source) for row in answers.pop(0).tuples()] if held_lanes else []
        return entries, held, HeldGroups.of(answers.pop(0)) if has_changed else None

    async def held_groups(self) -> HeldGroups:
        """The groups of its lanes that are held."""
        [found] = await self._ask(self._held_groups())
        return HeldGroups.of(found)

    def _held_groups(self) -> Statement:
        return Statement(sql.HELD_GROUPS, (list(self.epochs), self._holds_dead))

    def _written(self, what: Acknowledgement) -> list[Statement]:
        fence = (list(self.epochs), list(self.epochs.values()), self._owner)
        keeps = self._keep_days is not None
        batch: list[Statement] = []
        if what.done:
            batch.append(
                Statement(sql.ACKNOWLEDGE_AND_KEEP if keeps else sql.ACKNOWLEDGE, (*fence, *_columns(what.done)))
            )
        if what.held:
            batch.append(Statement(sql.HOLD, (*fence, *_columns(what.held))))
        if what.new_groups:
            batch.append(Statement(sql.HOLD_KEYS, (*fence, *_group_columns(what.new_groups))))
        if what.held_done:
            text = sql.ACKNOWLEDGE_HELD_AND_KEEP if keeps else sql.ACKNOWLEDGE_HELD
            batch.append(Statement(text, (*fence, *_columns(what.held_done))))
        if what.refused:
            lanes, seqs = _columns([place for place, *_ in what.refused])
            others = [list(column) for column in zip(*(rest for _, *rest in what.refused), strict=True)]
            batch.append(Statement(sql.REFUSE, (*fence, lanes, seqs, *others)))
        if what.groups:
            batch.append(Statement(sql.PROMOTE, (*fence, *_group_columns(what.groups), self._holds_dead)))
        return batch

    async def measure(self) -> tuple[tuple[int, float, int, int], Sequence[tuple[Any, ...]]]:
        """Backlog, age of the oldest entry in seconds, held and dead entries; and what holds the oldest snapshot."""
        found, holders = await self._ask(sql.MEASURE, Statement(HOLDER))
        backlog, oldest_s, held, dead = found.tuples()[0]
        return (backlog, oldest_s or 0.0, held, dead), holders.tuples()

    async def tend(self) -> None:
        """Make the partitions of kept entries, and drop those that are old enough."""
        if self._keep_days is not None:
            await self._ask(Statement(sql.TEND, (self._keep_days,)))

    # -- the seed's contract: a store without lanes

    async def fetch_pending(self, limit: int) -> Sequence[OutboxEntry]:
        """The oldest committed entries of its lanes, in the order of each key."""
        entries, _, _ = await self.turn(None, list(self.epochs), (), limit)
        return entries

    async def mark_published(self, entries: Sequence[OutboxEntry]) -> int:
        """Take published entries away; repeating it changes nothing. Returns how many were there."""
        [gone] = await self._ask(*self._written(Acknowledgement(done=[entry.place for entry in entries])))
        return gone.rowcount


@dataclass(frozen=True, slots=True)
class HeldGroups:
    """The groups that are held, by lane, and when the first message of one is due.

    Attributes:
        lanes: The groups of each lane.
        due_in_s: Seconds until one is due, by lane.
        headless: Groups in which no message is to be tried next.
    """

    lanes: Mapping[int, frozenset[Group]]
    due_in_s: Mapping[int, float]
    headless: frozenset[tuple[int, Group]] = frozenset()

    @classmethod
    def of(cls, result: Result) -> HeldGroups:
        """Read the answer of `HELD_GROUPS`."""
        lanes: dict[int, set[Group]] = {}
        due: dict[int, float] = {}
        headless: set[tuple[int, Group]] = set()
        for lane, tenant, key, due_in_s in result.tuples():
            lanes.setdefault(lane, set()).add((tenant, key))
            if due_in_s is None:
                headless.add((lane, (tenant, key)))
            else:
                due[lane] = min(due.get(lane, due_in_s), due_in_s)
        return cls({lane: frozenset(groups) for lane, groups in lanes.items()}, due, frozenset(headless))


def _entry(row: Sequence[Any], source: str) -> OutboxEntry:
    lane, seq, event_id, tenant, topic, key, data, data_bin, headers, created_at = row[:10]
    if data_bin is not None:
        body, kind = bytes(data_bin), BINARY
    else:
        body, kind = (b"" if data is None else data.encode()), JSON
    return OutboxEntry(
        lane,
        seq,
        event_id,
        tenant,
        topic,
        key,
        body,
        kind,
        NO_HEADERS if headers is None else json.loads(headers),
        created_at,
        source,
        row[10] if len(row) > 10 else 0,
    )


def _columns(places: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    pairs = list(places)
    return [lane for lane, _ in pairs], [seq for _, seq in pairs]


def _group_columns(groups: Iterable[tuple[int, Group]]) -> tuple[list[int], list[str | None], list[str]]:
    found = list(groups)
    return [lane for lane, _ in found], [group[0] for _, group in found], [group[1] for _, group in found]
