"""Work that ends although its caller does not wait for it: the outcome, the cancellations, the end of the process."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from asgi_datasource.concurrency.tasks import BackgroundTasks
from tests.drivers.polling import until


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What the event loop had to complain of."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


async def at_once(outcome: object) -> object:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def later(outcome: object) -> object:
    await asyncio.sleep(0.01)
    return await at_once(outcome)


@pytest.mark.parametrize("work", [at_once, later])
async def test_the_caller_gets_the_outcome(work: Any, complaints: list[dict[str, Any]]) -> None:
    background = BackgroundTasks()
    assert await background.run(work("done")) == "done"
    with pytest.raises(KeyError):
        await background.run(work(KeyError("x")))
    assert len(background) == 0
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


@pytest.mark.parametrize("outcome", ["done", KeyError("x")])
async def test_a_caller_that_is_cancelled_leaves_at_once_and_the_work_goes_on(
    outcome: object, complaints: list[dict[str, Any]]
) -> None:
    background = BackgroundTasks()
    may_end = asyncio.Event()
    ended: list[object] = []

    async def work() -> None:
        await may_end.wait()
        ended.append(outcome)
        await at_once(outcome)

    caller = asyncio.create_task(background.run(work()))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (ended, len(background)) == ([], 1)
    may_end.set()
    await until(lambda: ended == [outcome] and len(background) == 0)
    del caller
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_a_caller_that_is_cancelled_once_the_outcome_is_there_is_cancelled(
    complaints: list[dict[str, Any]],
) -> None:
    background = BackgroundTasks()
    may_end = asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        caller.cancel()
        raise KeyError("x")

    caller = asyncio.create_task(background.run(work()))
    await asyncio.sleep(0.01)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await until(lambda: len(background) == 0)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_the_end_of_the_process_waits_for_it_then_cancels_it_and_tells_its_caller() -> None:
    background = BackgroundTasks()
    short = background.spawn(later("done"))
    caller = asyncio.create_task(background.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    assert await background.drain(0.2) == 1
    assert await short == "done"
    with pytest.raises(asyncio.CancelledError):
        await caller
