"""Whose turn it is at a pool that several tenants share."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from asgi_datasource import DataError, DataErrorKind
from asgi_datasource.concurrency.fair_queue import FairQueue, TenantQuota

LONG = 30.0
NOISY, QUIET, THIRD = TenantQuota("noisy"), TenantQuota("quiet"), TenantQuota("third")


def queue(capacity: int | None = 2, *, max_waiting: int = 100) -> FairQueue:
    return FairQueue("orders.primary", capacity=capacity, max_waiting=max_waiting)


async def line_up(fair: FairQueue, *quotas: TenantQuota) -> tuple[list[asyncio.Task[None]], list[str | None]]:
    """Start one task for each share, in this order; the list tells who was let in, in order."""
    admitted: list[str | None] = []

    async def enter(quota: TenantQuota) -> None:
        await fair.enter(quota, timeout_s=LONG)
        admitted.append(quota.tenant)

    tasks = [asyncio.ensure_future(enter(quota)) for quota in quotas]
    await settle()
    return tasks, admitted


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_whoever_finds_room_need_not_wait() -> None:
    fair = queue()
    assert fair.try_enter(NOISY)
    assert fair.try_enter(NOISY)
    assert not fair.try_enter(QUIET)
    fair.leave(NOISY)
    assert fair.try_enter(QUIET)
    assert (fair.in_use("noisy"), fair.in_use("quiet")) == (1, 1)


async def test_tenants_take_turns_however_long_their_lines_are() -> None:
    fair = queue(1)
    assert fair.try_enter(NOISY)
    tasks, admitted = await line_up(fair, *[NOISY] * 5, QUIET, THIRD, QUIET)
    for _ in range(8):
        fair.leave(TenantQuota((["noisy", *admitted])[-1]))
        await settle()
    assert admitted == ["noisy", "quiet", "third", "noisy", "quiet", "noisy", "noisy", "noisy"]
    await end(tasks)


async def test_a_tenant_at_its_limit_waits_while_others_pass() -> None:
    fair = queue(10)
    limited = TenantQuota("noisy", 1)
    assert fair.try_enter(limited)
    tasks, admitted = await line_up(fair, limited, limited, QUIET)
    assert admitted == ["quiet"]
    fair.leave(QUIET)
    await settle()
    assert admitted == ["quiet"]
    fair.leave(limited)
    await settle()
    assert admitted == ["quiet", "noisy"]
    await end(tasks)


async def test_a_full_queue_refuses_the_tenant_with_the_longest_line() -> None:
    fair = queue(1, max_waiting=4)
    assert fair.try_enter(NOISY)
    tasks, admitted = await line_up(fair, *[NOISY] * 4)
    with pytest.raises(DataError, match="4 are waiting already") as caught:
        await fair.enter(NOISY, timeout_s=LONG)
    assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.RESOURCE, 503)
    quiet, entered = await line_up(fair, QUIET, THIRD)
    refused = [task for task in tasks if task.done()]
    assert [type(task.exception()) for task in refused] == [DataError, DataError]
    assert tasks[-1] in refused
    assert fair.waiting == 4
    for _ in range(3):
        fair.leave(TenantQuota((["noisy", *admitted, *entered])[-1]) if not entered else TenantQuota(entered[-1]))
        await settle()
    assert entered == ["quiet", "third"]
    await end([*tasks, *quiet])


async def test_a_full_queue_of_equal_lines_refuses_the_last_caller() -> None:
    fair = queue(1, max_waiting=2)
    assert fair.try_enter(NOISY)
    tasks, _ = await line_up(fair, NOISY, THIRD)
    with pytest.raises(DataError, match="2 are waiting already"):
        await fair.enter(QUIET, timeout_s=LONG)
    assert not any(task.done() for task in tasks)
    await end(tasks)


async def test_waiting_ends_in_time() -> None:
    fair = queue(1)
    assert fair.try_enter(NOISY)
    with pytest.raises(DataError, match="none was free for it within") as caught:
        await fair.enter(QUIET, timeout_s=0.01)
    assert caught.value.kind is DataErrorKind.RESOURCE
    assert fair.waiting == 0
    fair.leave(NOISY)
    assert fair.try_enter(QUIET)


async def test_whoever_is_cancelled_leaves_nothing_behind() -> None:
    fair = queue(1)
    assert fair.try_enter(NOISY)
    tasks, admitted = await line_up(fair, QUIET, THIRD)
    tasks[0].cancel()
    await settle()
    assert fair.waiting == 1
    # Let in and cancelled in the same step: the place goes on to the next.
    fair.leave(NOISY)
    tasks[1].cancel()
    await settle()
    assert admitted == []
    assert fair.waiting == 0
    assert fair.try_enter(NOISY)
    await end(tasks)


async def test_any_order_of_coming_leaving_and_giving_up_keeps_the_counts() -> None:
    chance = random.Random(6)
    fair = queue(3, max_waiting=12)
    inside: Counter[str | None] = Counter()
    most = 0
    limits = {"a": None, "b": 1, "c": 2, "d": None}

    async def one() -> None:
        nonlocal most
        name = chance.choice("aaaabcd")
        quota = TenantQuota(name, limits[name])
        try:
            await fair.enter(quota, timeout_s=chance.choice((0.0005, 0.005, 0.05)))
        except DataError:
            return
        inside[name] += 1
        try:
            most = max(most, inside.total())
            assert limits[name] is None or inside[name] <= limits[name]
            await asyncio.sleep(chance.choice((0, 0.001)))
        finally:
            inside[name] -= 1
            fair.leave(quota)

    for _ in range(60):
        tasks = [asyncio.ensure_future(one()) for _ in range(20)]
        await asyncio.sleep(chance.choice((0, 0.001)))
        for task in chance.sample(tasks, 6):
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    assert most == 3
    assert fair.waiting == 0
    assert all(fair.in_use(name) == 0 for name in limits)
    assert all(fair.try_enter(QUIET) for _ in range(3))
