"""Runs what is pending: datasources in their order, stage by stage, several tenants at a time.

A round has three parts. Transactional steps run in parallel, each worker with one connection. Steps without a
transaction run one at a time for each database, when no transaction of ours is open there, since CREATE INDEX
CONCURRENTLY waits for all of them. Then migrations of the contract phase may run where every tenant has what is before.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from ..config import StageConfig
from ..errors import DataError, DataErrorKind
from .alembic_engine import AlembicFolder, AlembicMigration, Upgrades
from .files import Migration
from .fleet import Database
from .plan import Trouble
from .steps import ATTEMPTS, RETRIED, Outcome, Run, StepFailed, Worker, apply_step, open_worker
from .survey import Progress, Standing, waits_for

RECONNECTS: Final = 3
"""How often a schema is taken up again whose connection was lost."""
BUSY_PAUSE_S: Final = 0.05
"""Pause before a schema is looked at again that another process migrates."""


@dataclass(slots=True)
class Events:
    """What a run tells while it lasts.

    Attributes:
        began: Is called with the number of schemas that have something pending.
        ended: Is called with each schema when nothing is left to do for it in this run, or when it has failed.
        told: Is called with what is worth a line.
    """

    began: Callable[[int], None] = field(default=lambda _: None)
    ended: Callable[[Progress], None] = field(default=lambda _: None)
    told: Callable[[str], None] = field(default=lambda _: None)


class FanOut:
    """Applies what a survey has found.

    Args:
        run: The run.
        everything: Every schema, those that are not selected included: contract migrations wait for them.
        concurrency: Tenants of a datasource at a time.
        stops_at_error: No other tenant begins after a failure.
        max_failures: No other tenant begins after so many.
        stages: Tenants in an order.
        events: What is told.
        look_again: Surveys schemas again that were absent, because the shared part of their database may have created
            them.
    """

    def __init__(
        self,
        run: Run,
        everything: list[Progress],
        *,
        concurrency: int,
        stops_at_error: bool,
        max_failures: int,
        stages: Sequence[StageConfig],
        events: Events,
        look_again: Callable[[Sequence[Progress]], Awaitable[None]] | None = None,
    ) -> None:
        self.run = run
        self.everything = everything
        self.events = events
        self.failures = 0
        self._look_again = look_again
        self._concurrency = concurrency
        self._limit = 1 if stops_at_error else max_failures
        self._stages = stages
        self._shared: dict[int, list[Progress]] = {}
        """The shared parts of each database, own tables among them."""
        for one in everything:
            if not one.target.tenants:
                self._shared.setdefault(id(one.database), []).append(one)
        self._ended: set[int] = set()
        self._upgrades: Upgrades | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether so many have failed that no other one begins."""
        return self.failures >= self._limit

    async def go(self) -> None:
        """Apply what is pending."""
        try:
            await self._go()
        finally:
            if self._upgrades is not None:
                self._upgrades.close()

    async def _go(self) -> None:
        shared = [one for one in self._selected() if not one.target.tenants]
        await self._advance_all([one for one in shared if one.target.own is not None])
        await self._advance_all([one for one in shared if one.target.own is None])
        await self._find_created(shared)
        for stage, members in self._by_stage():
            failures = self.failures
            await self._advance_all(members)
            if self.failures > failures and stage is not None:
                self.events.told(f"stage {stage}: {self.failures - failures} failed; the stages after it do not begin")
                return
        if self._stages:
            # Contract migrations of the first stages have waited for the last one.
            await self._advance_all(self._selected())

    async def _find_created(self, shared: Sequence[Progress]) -> None:
        """Look again at the schemas that were absent in databases whose shared part has changed."""
        changed = {id(one.database) for one in shared if one.applied and one.target.own is None}
        absent = [
            one
            for one in self.everything
            if id(one.database) in changed and any(finding.trouble is Trouble.ABSENT for finding in one.findings)
        ]
        if absent and self._look_again is not None:
            await self._look_again(absent)

    def _selected(self) -> list[Progress]:
        return [one for one in self.everything if one.is_selected]

    def _by_stage(self) -> Iterable[tuple[str | None, list[Progress]]]:
        left = [one for one in self._selected() if one.target.tenants]
        for stage in self._stages:
            names = None if stage.tenants is None else set(stage.tenants)
            members = [one for one in left if names is None or names.intersection(one.target.tenants)]
            left = [one for one in left if one not in members]
            yield stage.name, members
        if left:
            yield None, left

    # -- rounds

    async def _advance_all(self, members: Sequence[Progress]) -> None:
        """Run what is pending in some schemas, as far as it may run now."""
        while not self.is_stopped:
            before = sum(len(one.pending) for one in members)
            for group in _by_datasource(members):
                await self._in_parallel([one for one in group if self._next(one, transactional=True) is not None])
            for group in _by_datasource(members):
                await self._one_by_one([one for one in group if self._next(one, transactional=False) is not None])
            if sum(len(one.pending) for one in members) == before:
                break
        for one in members:
            self._settle(one)

    def _next(self, one: Progress, *, transactional: bool) -> Migration | None:
        """What may run now in a schema."""
        migration = one.next
        if migration is None or migration.directives.is_transactional is not transactional or self._is_cut_off(one):
            return None
        one.waits_for = waits_for(migration, one, self.everything)
        return migration if one.waits_for is None else None

    def _is_cut_off(self, one: Progress) -> bool:
        """Whether what comes first in its database is not at its head: own tables, then the shared part."""
        if one.target.own is not None:
            return False
        first = (
            other
            for other in self._shared.get(id(one.database), ())
            if (one.target.tenants or other.target.own is not None) and _holds_up(other)
        )
        before = next(first, None)
        one.error = None if before is None else f"the shared part of its database comes first: {before.name}"
        return before is not None

    async def _in_parallel(self, group: Sequence[Progress]) -> None:
        if not group:
            return
        queue = deque(group)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._concurrency, len(group))):
                tasks.create_task(self._work(queue))

    async def _one_by_one(self, group: Sequence[Progress]) -> None:
        """Steps without a transaction: one at a time in each database, several databases at a time."""
        by_database: dict[int, deque[Progress]] = {}
        for one in group:
            by_database.setdefault(id(one.database), deque()).append(one)
        limit = asyncio.Semaphore(self._concurrency)

        async def work(queue: deque[Progress]) -> None:
            async with limit:
                await self._work(queue, transactional=False)

        async with asyncio.TaskGroup() as tasks:
            for queue in by_database.values():
                tasks.create_task(work(queue))

    async def _work(self, queue: deque[Progress], *, transactional: bool = True) -> None:
        """One worker: takes schemas until none is left; its connection stays while they share a database."""
        connection = _Connection(self.run)
        losses: dict[int, int] = {}
        async with connection:
            while queue and not self.is_stopped:
                one = queue.popleft()
                began = perf_counter()
                try:
                    if isinstance(one.folder, AlembicFolder):
                        outcome = await self._upgrade(one.folder, one)
                    else:
                        worker = await connection.to(one.database)
                        outcome = await self._advance(worker, one, transactional=transactional)
                    if outcome is Outcome.BUSY:
                        queue.append(one)
                        await asyncio.sleep(BUSY_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                except StepFailed as failure:
                    self._fail(one, failure.migration, failure.message, failure.sqlstate)
                except DataError as error:
                    await connection.drop()
                    losses[id(one)] = losses.get(id(one), 0) + 1
                    if error.kind is DataErrorKind.CONNECTION and losses[id(one)] <= RECONNECTS:
                        self.events.told(f"{one.name}: {error.message}; connects again")
                        await asyncio.sleep(0.2 * 2 ** losses[id(one)])
                        queue.append(one)
                    else:
                        self._fail(one, one.pending[0], error.message, error.sqlstate)
                finally:
                    one.seconds += perf_counter() - began

    async def _advance(self, worker: Worker, one: Progress, *, transactional: bool) -> Outcome:
        """Run one schema as far as it goes without the other kind of step."""
        while (migration := self._next(one, transactional=transactional)) is not None:
            outcome = await apply_step(worker, one.target, migration)
            if outcome is Outcome.BUSY:
                return outcome
            one.has_run(migration, by_us=outcome is Outcome.APPLIED)
        if one.target.own is not None and not one.pending:
            await one.target.own.grant(worker.admin, one.database.app, one.database.roles)
        if not one.pending:
            self._settle(one)
        return Outcome.APPLIED

    async def _upgrade(self, folder: AlembicFolder, one: Progress) -> Outcome:
        """Have Alembic run all that a schema lacks, in one transaction."""
        pending = [file for file in one.pending if isinstance(file, AlembicMigration)]
        if self._upgrades is None:
            self._upgrades = Upgrades(self._concurrency)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # Branches that are not merged yet have several heads.
                is_all = pending[-1] is folder.versioned(one.target.kind)[-1]
                revision = "heads" if is_all else pending[-1].revision
                is_done = await self._upgrades.run(folder, one.database, one.target, revision, self.run.lock_timeout_s)
            except DataError as error:
                if error.kind is DataErrorKind.CONNECTION:
                    raise
                if error.sqlstate not in RETRIED or attempt == ATTEMPTS:
                    raise StepFailed(pending[0], error.message, sqlstate=error.sqlstate) from error
                await asyncio.sleep(self.run.lock_timeout_s * 2 ** (attempt - 1) * random.uniform(0.7, 1.3))  # noqa: S311
                continue
            if not is_done:
                return Outcome.BUSY
            break
        for file in pending:
            one.has_run(file, by_us=True)
        self._settle(one)
        return Outcome.APPLIED

    def _fail(self, one: Progress, migration: Migration, message: str, sqlstate: str | None) -> None:
        one.failed, one.error, one.sqlstate = migration.label, message, sqlstate
        self.failures += 1
        self._settle(one)
        if self.is_stopped:
            self.events.told(f"{self.failures} failed; no other schema begins")

    def _settle(self, one: Progress) -> None:
        """Tell once that a schema is done with."""
        is_done = not one.pending or one.standing is not Standing.PENDING
        if is_done and (one.applied or one.failed) and id(one) not in self._ended:
            self._ended.add(id(one))
            self.events.ended(one)


class _Connection:
    """A worker's connection: to one database at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stack = AsyncExitStack()
        self._worker: Worker | None = None

    async def __aenter__(self) -> _Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop()

    async def to(self, database: Database) -> Worker:
        """A connection to a database.

        Raises:
            DataError: CONNECTION: it cannot be reached.
        """
        if self._worker is None or self._worker.database is not database:
            await self.drop()
            self._worker = await self._stack.enter_async_context(open_worker(self._run, database))
        return self._worker

    async def drop(self) -> None:
        """Close it."""
        self._worker = None
        await self._stack.aclose()


def _holds_up(shared: Progress) -> bool:
    """Whether what comes after a shared part has to wait for it."""
    if shared.standing in (Standing.FAILED, Standing.REFUSED):
        return True
    return bool(shared.pending) and shared.waits_for is None


def _by_datasource(members: Iterable[Progress]) -> list[list[Progress]]:
    """Schemas by the datasource that they are reached through, in the order of their names."""
    found: dict[str, list[Progress]] = {}
    for one in members:
        found.setdefault(one.database.site.name, []).append(one)
    return [found[name] for name in sorted(found)]
