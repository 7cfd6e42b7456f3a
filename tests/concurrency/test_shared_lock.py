"""`SharedLock`: one holder at a time, or several who share, in the order in which they have asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource.concurrency.shared_lock import SharedLock


async def settle() -> None:
    """Let every task come to its next wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_it_is_free_taken_and_free_again() -> None:
    turns = SharedLock()
    assert not turns.is_taken
    assert turns.take()
    assert turns.is_taken
    assert not turns.take()
    assert not turns.take(may_share=True)
    turns.leave()
    assert not turns.is_taken


def test_as_many_share_it_as_may() -> None:
    turns = SharedLock(2)
    assert [turns.take(may_share=True) for _ in range(3)] == [True, True, False]
    assert not turns.take()
    turns.leave()
    assert turns.take(may_share=True)
    turns.leave()
    turns.leave()
    assert turns.take()
    assert not turns.take(may_share=True)


async def test_who_wants_it_alone_waits_for_those_who_share_and_is_not_overtaken() -> None:
    turns = SharedLock(3)
    order: list[str] = []

    async def use(name: str, *, may_share: bool) -> None:
        await turns.wait(may_share=may_share)
        order.append(name)

    assert turns.take(may_share=True)
    tasks = [
        asyncio.create_task(use("alone", may_share=False)),
        asyncio.create_task(use("one", may_share=True)),
        asyncio.create_task(use("two", may_share=True)),
    ]
    await settle()
    assert order == []
    turns.leave()
    await settle()
    assert order == ["alone"]
    turns.leave()
    await settle()
    assert order == ["alone", "one", "two"]
    await asyncio.gather(*tasks)


async def test_sharing_is_asked_for_anew_when_the_turn_comes() -> None:
    is_closed = False
    turns = SharedLock(2, lambda: is_closed)
    assert turns.take()
    waiting = [asyncio.create_task(turns.wait(may_share=True)) for _ in range(2)]
    await settle()
    # Whoever had it has opened a transaction: what comes now runs in it, one after the other.
    is_closed = True
    turns.leave()
    await settle()
    assert [task.done() for task in waiting] == [True, False]
    turns.leave()
    await asyncio.gather(*waiting)


async def test_who_is_cancelled_leaves_the_queue_and_holds_up_nobody() -> None:
    turns = SharedLock(2)
    assert turns.take(may_share=True)
    alone = asyncio.create_task(turns.wait())
    shared = asyncio.create_task(turns.wait(may_share=True))
    await settle()
    assert not shared.done()
    alone.cancel()
    await settle()
    assert shared.done()
    turns.leave()
    turns.leave()
    assert not turns.is_taken


async def test_who_is_cancelled_as_its_turn_comes_gives_it_on() -> None:
    turns = SharedLock()
    assert turns.take()
    first = asyncio.create_task(turns.wait())
    second = asyncio.create_task(turns.wait())
    await settle()
    turns.leave()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await settle()
    assert first.cancelled()
    assert second.done()
    turns.leave()
    assert not turns.is_taken


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 6))), max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_never_more_than_may_and_in_the_end_it_is_free(limit: int, users: list[tuple[bool, int, Any]]) -> None:
    async def run() -> None:
        turns = SharedLock(limit)
        sharing = alone = 0

        async def use(may_share: bool, steps: int) -> None:
            nonlocal sharing, alone
            await turns.wait(may_share=may_share)
            try:
                sharing, alone = sharing + may_share, alone + (not may_share)
                assert (alone, sharing) == (1, 0) or (alone == 0 and 0 < sharing <= limit)
                for _ in range(steps):
                    await asyncio.sleep(0)
            finally:
                sharing, alone = sharing - may_share, alone - (not may_share)
                turns.leave()

        tasks = [asyncio.create_task(use(may_share, steps)) for may_share, steps, _ in users]
        for step in range(7):
            for task, (_, _, cancelled_at) in zip(tasks, users, strict=True):
                if cancelled_at == step:
                    task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert not [result for result in results if isinstance(result, Exception)]
        assert not turns.is_taken

    asyncio.run(run())
