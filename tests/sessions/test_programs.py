"""Random programs on a real server match the model, and stay consistent under cancellation."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asgi_datasource import DataError, DataSession, DataSourceRegistry, Propagation
from asgi_datasource.testing import EmbeddedCluster
from tests.pools import assert_whole
from tests.sessions.every_await import Canceller, cancel_at
from tests.sessions.programs import (
    Boom,
    Call,
    Catch,
    Doom,
    End,
    Expire,
    Fail,
    Limit,
    Lose,
    Machine,
    Model,
    Program,
    Put,
    Root,
    Savepoint,
    Throw,
    name_of,
    programs,
    roots,
    tasks,
)
from tests.sessions.requests import request
from tests.world import World

EXAMPLES = int(os.environ.get("ADS_PROGRAMS", "60"))
"""The number of examples; `--whole` and `scripts/soak` run more."""

_runs = itertools.count(1)


class Stage:
    """A world with a table for the programs, and a registry for each kind of root."""

    def __init__(self, runner: asyncio.Runner, cluster: EmbeddedCluster) -> None:
        self._runner = runner
        self._cluster = cluster
        self._stack = AsyncExitStack()
        self.world: World
        self.registries: dict[str, DataSourceRegistry] = {}

    def run(self, work: Awaitable[Any]) -> Any:
        async def running() -> Any:
            return await work

        return self._runner.run(running())

    async def open(self) -> None:
        world = self.world = await self._stack.enter_async_context(World.create(self._cluster))
        await world.sql("create table things (run int, number int); alter table things owner to app")
        for default in ("request", "annotated"):
            # Reads see committed data at once: no replica can lag.
            registry = world.registry(
                replicas=(), pool={"min_size": 1, "max_size": 8}, transactions={"default": default}
            )
            self.registries[default] = await self._stack.enter_async_context(registry)

    async def close(self) -> None:
        await self._stack.aclose()

    def registry(self, root: Root) -> DataSourceRegistry:
        """The registry for this kind of root."""
        return self.registries["annotated" if root == "annotated" else "request"]

    async def perform(self, root: Root, body: Callable[[DataSession], Awaitable[None]]) -> str | None:
        """Run `body` under a root; return the class of the exception that left it, or that was answered."""
        registry = self.registry(root)
        try:
            if root == "worker":
                async with registry.session("acme") as db:
                    await body(db)
                return None
            call = await request(registry, body, method="GET" if root == "get" else "POST")
        except (Boom, DataError) as error:
            return name_of(error)
        if call.status == 201:
            return None
        return "unexpected rollback" if b"/other" in call.body or b'"other"' in call.body else "error"

    async def rows(self, run: int) -> Counter[int]:
        """The rows of one run in the table."""
        return Counter(row[0] for row in await self.world.sql(f"select number from things where run = {run}"))


@contextmanager
def staged(cluster: EmbeddedCluster) -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        stage = Stage(runner, cluster)
        stage.run(stage.open())
        try:
            yield stage
        finally:
            stage.run(stage.close())


@pytest.fixture(scope="module")
def stage(cluster: EmbeddedCluster) -> Iterator[Stage]:
    with staged(cluster) as made:
        yield made


async def check(stage: Stage, root: Root, program: Program) -> None:
    """Run a program on both sides and compare."""
    model = Model(root)
    model.run(program)
    run = next(_runs)
    machine = Machine(run)
    error = await stage.perform(root, lambda db: machine.steps(db, program))
    await stage.registry(root).background.drain(5.0)
    assert await stage.rows(run) == Counter(model.committed)
    assert machine.seen.events == model.seen.events
    assert error == model.seen.error
    assert machine.seen.hooks == model.seen.hooks
    await assert_whole(stage.registry(root), stage.world)


REQUIRED, NEW, NESTED = Propagation.REQUIRED, Propagation.REQUIRES_NEW, Propagation.NESTED


_settings = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # All programs of a run share the database and the registry; a number identifies their rows.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_settings
@example("post", (Put(), Catch((Call(REQUIRED, (Put(), Throw())),)), Put()))
@example("post", (Put(), Catch((Call(NESTED, (Put(), Throw())),)), Put()))
@example("post", (Put(), Catch((Call(NEW, (Put(), Fail())),)), Call(NEW, (Put(),)), Throw()))
@example("annotated", (Put(), Call(REQUIRED, (Put(), Lose(2)), retry=2), Throw()))
@example("get", (Call(REQUIRED, (Put(), Limit((Savepoint((Put(), Expire())),)))),))
@example("worker", (Put(), Doom(), Put(), End(commit=False), Put(), End(commit=True), Throw()))
@given(roots, programs)
def test_programs_match_the_model(stage: Stage, root: Root, program: Program) -> None:
    stage.run(check(stage, root, program))


async def check_beside_readers(stage: Stage, root: Root, program: Program) -> None:
    """Run a program while other requests' reads occupy all connections, so that its reads join them."""
    registry = stage.registry(root)

    async def read_on() -> None:
        while True:
            async with registry.session("acme") as db:
                await db.read.fetch_value("select count(*) from orders")

    readers = [asyncio.ensure_future(read_on()) for _ in range(12)]
    try:
        model = Model(root)
        model.run(program)
        run = next(_runs)
        machine = Machine(run)
        error = await stage.perform(root, lambda db: machine.steps(db, program))
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    await registry.background.drain(5.0)
    assert await stage.rows(run) == Counter(model.committed)
    assert (machine.seen.events, error, machine.seen.hooks) == (model.seen.events, model.seen.error, model.seen.hooks)
    await assert_whole(registry, stage.world)


@settings(_settings, max_examples=max(8, EXAMPLES // 8))
@given(roots, programs)
def test_programs_match_the_model_while_reads_share_connections(stage: Stage, root: Root, program: Program) -> None:
    stage.run(check_beside_readers(stage, root, program))


async def check_cancelled(stage: Stage, root: Root, program: Program, canceller: Canceller, number: int) -> None:
    """Run a program and cancel it at one suspension point: the hooks report the truth, and the pool is complete."""
    run = next(_runs)
    machine = Machine(run)

    async def work() -> None:
        # Its result is irrelevant here.
        await stage.perform(root, lambda db: machine.steps(db, program))

    await cancel_at(number, canceller, work)
    await assert_truth(stage, root, machine, run)


async def assert_truth(stage: Stage, root: Root, machine: Machine, run: int) -> None:
    """The hooks that ran match the rows in the table, and the pool is complete."""
    registry = stage.registry(root)
    assert await registry.background.drain(5.0) == 0
    await assert_whole(registry, stage.world)
    rows = await stage.rows(run)
    assert not [row for row, count in rows.items() if count > 1]
    for row, ran in machine.seen.hooks.items():
        # An attempt that was cut short before its retry ran no outcome hook.
        assert ran in ([], ["before"], ["before", "committed"], ["before", "rolled back"], ["rolled back"]), row
        # A statement that was refused before it was sent has hooks, but no row.
        assert (row in rows) == ("committed" in ran and row in machine.written), row
    backends = await stage.world.backends()
    assert {state for _, state in backends} <= {"idle"}, backends


@_settings
@given(roots, programs, st.sampled_from(Canceller), st.integers(1, 40))
def test_hooks_report_the_truth_when_a_program_is_cancelled(
    stage: Stage, root: Root, program: Program, canceller: Canceller, number: int
) -> None:
    stage.run(check_cancelled(stage, root, program, canceller, number))


async def check_tasks(stage: Stage, root: Root, together: list[Program], canceller: Canceller, number: int) -> None:
    """Run several programs concurrently on one session, and cancel them at one suspension point if they reach it."""
    machines = [Machine(next(_runs)) for _ in together]

    async def body(db: DataSession) -> None:
        running = [machine.steps(db, program) for machine, program in zip(machines, together, strict=True)]
        for result in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, Boom | DataError):
                raise result

    async def work() -> None:
        await stage.perform(root, body)

    async with asyncio.timeout(60):
        await cancel_at(number, canceller, work)
        for machine in machines:
            await assert_truth(stage, root, machine, machine.run)


@_settings
@given(roots, tasks, st.sampled_from(Canceller), st.integers(1, 60))
def test_hooks_report_the_truth_for_concurrent_tasks(
    stage: Stage, root: Root, together: list[Program], canceller: Canceller, number: int
) -> None:
    stage.run(check_tasks(stage, root, together, canceller, number))
