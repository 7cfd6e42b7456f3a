"""Random programs on a real server do what the model says, and nobody's cancellation makes them lie."""

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

EXAMPLES = int(os.environ.get("ADS_PROGRAMS", "150"))
"""How many programs are tried; `scripts/soak` tries more."""

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
            # Reads see what is committed at once: there is no replica that could be behind.
            registry = world.registry(
                replicas=(), pool={"min_size": 1, "max_size": 8}, transactions={"default": default}
            )
            self.registries[default] = await self._stack.enter_async_context(registry)

    async def close(self) -> None:
        await self._stack.aclose()

    def registry(self, root: Root) -> DataSourceRegistry:
        """Where a program of this root runs."""
        return self.registries["annotated" if root == "annotated" else "request"]

    async def perform(self, root: Root, body: Callable[[DataSession], Awaitable[None]]) -> str | None:
        """Run a body below a root; the class of what came out of it, or of what was answered in its place."""
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
        """What is in the table of a run."""
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
    assert machine.seen.told == model.seen.told
    await assert_whole(stage.registry(root), stage.world)


REQUIRED, NEW, NESTED = Propagation.REQUIRED, Propagation.REQUIRES_NEW, Propagation.NESTED


_settings = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # The database and the registry serve all the programs of a run, which are told apart by a number.
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
def test_programs_do_what_the_model_says(stage: Stage, root: Root, program: Program) -> None:
    stage.run(check(stage, root, program))


async def check_cancelled(stage: Stage, root: Root, program: Program, canceller: Canceller, number: int) -> None:
    """Run a program and cancel it at one of its waits: the hooks tell the truth, and the pool is whole."""
    run = next(_runs)
    machine = Machine(run)

    async def work() -> None:
        # What comes out of it is not what is looked at here.
        await stage.perform(root, lambda db: machine.steps(db, program))

    await cancel_at(number, canceller, work)
    await assert_truth(stage, root, machine, run)


async def assert_truth(stage: Stage, root: Root, machine: Machine, run: int) -> None:
    """What hooks were told is what is in the tables, and the pool is whole."""
    registry = stage.registry(root)
    assert await registry.background.drain(5.0) == 0
    await assert_whole(registry, stage.world)
    rows = await stage.rows(run)
    assert not [row for row, count in rows.items() if count > 1]
    for row, told in machine.seen.told.items():
        # An attempt that was cut short between two of them has told its hooks nothing.
        assert told in ([], ["before"], ["before", "committed"], ["before", "rolled back"], ["rolled back"]), row
        # Where a statement was refused before it was sent, its hooks are there all the same.
        assert (row in rows) == ("committed" in told and row in machine.written), row
    backends = await stage.world.backends()
    assert {state for _, state in backends} <= {"idle"}, backends


@_settings
@given(roots, programs, st.sampled_from(Canceller), st.integers(1, 40))
def test_a_program_cancelled_at_any_wait_tells_the_truth(
    stage: Stage, root: Root, program: Program, canceller: Canceller, number: int
) -> None:
    stage.run(check_cancelled(stage, root, program, canceller, number))


async def check_tasks(stage: Stage, root: Root, together: list[Program], canceller: Canceller, number: int) -> None:
    """Run several programs at once on one session, and cancel them at one of their waits, if they come to it."""
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
def test_programs_of_several_tasks_tell_the_truth_cancelled_or_not(
    stage: Stage, root: Root, together: list[Program], canceller: Canceller, number: int
) -> None:
    stage.run(check_tasks(stage, root, together, canceller, number))
