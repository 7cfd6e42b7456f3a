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
    lock = SharedLock()
    assert not lock.is_held
    assert lock.try_acquire()
    assert lock.is_held
    assert not lock.try_acquire()
    assert not lock.try_acquire(shared=True)
    lock.release()
    assert not lock.is_held


def test_as_many_share_it_as_may() -> None:
    lock = SharedLock(2)
    assert [lock.try_acquire(shared=True) for _ in range(3)] == [True, True, False]
    assert not lock.try_acquire()
    lock.release()
    assert lock.try_acquire(shared=True)
    lock.release()
    lock.release()
    assert lock.try_acquire()
    assert not lock.try_acquire(shared=True)


async def test_who_wants_it_alone_waits_for_those_who_share_and_is_not_overtaken() -> None:
    lock = SharedLock(3)
    order: list[str] = []

    async def use(name: str, *, shared: bool) -> None:
        await lock.acquire(shared=shared)
        order.append(name)

    assert lock.try_acquire(shared=True)
    tasks = [
        asyncio.create_task(use("alone", shared=False)),
        asyncio.create_task(use("one", shared=True)),
        asyncio.create_task(use("two", shared=True)),
    ]
    await settle()
    assert order == []
    lock.release()
    await settle()
    assert order == ["alone"]
    lock.release()
    await settle()
    assert order == ["alone", "one", "two"]
    await asyncio.gather(*tasks)


async def test_sharing_is_asked_for_anew_when_the_turn_comes() -> None:
    is_closed = False
    lock = SharedLock(2, lambda: is_closed)
    assert lock.try_acquire()
    waiting = [asyncio.create_task(lock.acquire(shared=True)) for _ in range(2)]
    await settle()
    # Whoever had it has opened a transaction: what comes now runs in it, one after the other.
    is_closed = True
    lock.release()
    await settle()
    assert [task.done() for task in waiting] == [True, False]
    lock.release()
    await asyncio.gather(*waiting)


async def test_who_is_cancelled_leaves_the_queue_and_holds_up_nobody() -> None:
    lock = SharedLock(2)
    assert lock.try_acquire(shared=True)
    alone = asyncio.create_task(lock.acquire())
    shared = asyncio.create_task(lock.acquire(shared=True))
    await settle()
    assert not shared.done()
    alone.cancel()
    await settle()
    assert shared.done()
    lock.release()
    lock.release()
    assert not lock.is_held


async def test_who_is_cancelled_as_its_turn_comes_gives_it_on() -> None:
    lock = SharedLock()
    assert lock.try_acquire()
    first = asyncio.create_task(lock.acquire())
    second = asyncio.create_task(lock.acquire())
    await settle()
    lock.release()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await settle()
    assert first.cancelled()
    assert second.done()
    lock.release()
    assert not lock.is_held


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 6))), max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_never_more_than_may_and_in_the_end_it_is_free(limit: int, users: list[tuple[bool, int, Any]]) -> None:
    async def run() -> None:
        lock = SharedLock(limit)
        sharing = alone = 0

        async def use(shared: bool, steps: int) -> None:
            nonlocal sharing, alone
            await lock.acquire(shared=shared)
            try:
                sharing, alone = sharing + shared, alone + (not shared)
                assert (alone, sharing) == (1, 0) or (alone == 0 and 0 < sharing <= limit)
                for _ in range(steps):
                    await asyncio.sleep(0)
            finally:
                sharing, alone = sharing - shared, alone - (not shared)
                lock.release()

        tasks = [asyncio.create_task(use(shared, steps)) for shared, steps, _ in users]
        for step in range(7):
            for task, (_, _, cancelled_at) in zip(tasks, users, strict=True):
                if cancelled_at == step:
                    task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert not [result for result in results if isinstance(result, Exception)]
        assert not lock.is_held

    asyncio.run(run())
