"""Lines with priorities, gates, and warnings of what happens at a limit: without a server."""

from __future__ import annotations

import asyncio
import logging

import pytest

from asgi_datasource import DataError, DataErrorKind
from asgi_datasource.concurrency import saturation_log
from asgi_datasource.concurrency.fair_queue import FairQueue, TenantQuota
from asgi_datasource.concurrency.limits import ConcurrencyLimit
from asgi_datasource.concurrency.priority_queue import Priority, PriorityQueue
from asgi_datasource.concurrency.saturation_log import SaturationCounts, SaturationLog
from tests.concurrency.test_fair_queue import NOISY, QUIET, end, settle

LOW, NORMAL, HIGH = Priority


def test_the_higher_priority_comes_first_and_equals_in_their_order() -> None:
    queue: PriorityQueue[str] = PriorityQueue()
    for name, priority in (("a", NORMAL), ("b", LOW), ("c", HIGH), ("d", NORMAL), ("e", HIGH), ("f", LOW)):
        queue.append(name, priority)
    assert (len(queue), queue.highest, queue.first) == (6, HIGH, "c")
    assert (queue.count(LOW), queue.last(LOW)) == (2, "f")
    queue.remove("d")
    queue.prune("c".__eq__)
    assert [queue.pop() for _ in range(len(queue))] == ["e", "a", "b", "f"]
    assert not queue


def test_a_gate_lets_in_as_many_as_may_be_and_nobody_waits_there() -> None:
    limit = ConcurrencyLimit("routes[0] (/x)", 4, advice="Raise it")

    async def refused(priority: Priority) -> DataError:
        with pytest.raises(DataError) as caught:
            limit.enter(priority)
        return caught.value

    async def run() -> None:
        limit.enter(LOW)
        limit.enter(LOW)
        await refused(LOW)
        limit.enter()
        limit.enter()
        error = await refused(NORMAL)
        assert (error.kind, error.http_status, error.is_retryable) == (DataErrorKind.RESOURCE, 503, True)
        assert str(error) == "routes[0] (/x): 4 requests are under way, of 4 that may be. Raise it"
        limit.enter(HIGH)
        assert limit.in_flight.count == 5
        for _ in range(2):
            limit.leave()
            limit.leave()
        limit.enter(LOW)
        limit.leave()
        limit.leave()
        assert limit.in_flight.count == 0

    asyncio.run(run())


def test_low_priority_gets_in_where_only_one_may_be() -> None:
    limit = ConcurrencyLimit("x", 1, advice="")
    limit.enter(LOW)
    assert limit.in_flight.count == 1


async def test_a_gate_that_takes_the_place_of_another_one_goes_on_with_its_count() -> None:
    before = ConcurrencyLimit("x", 3, advice="")
    before.enter()
    after = ConcurrencyLimit("x", 1, advice="", in_flight=before.in_flight)
    with pytest.raises(DataError):
        after.enter()
    before.leave()
    after.enter()


async def test_the_first_is_told_at_once_and_what_follows_together(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saturation_log, "INTERVAL_S", 0.05)
    log = SaturationLog(lambda counts: f"{counts}")
    for _ in range(100):
        log.record(refused=True)
    log.record(refused=False)
    assert caplog.messages == ["1 refused"]
    async with asyncio.timeout(5):
        while len(caplog.messages) < 2:
            await asyncio.sleep(0.01)
    assert caplog.messages[1].startswith("99 refused and 1 served after a long wait in ")
    assert {(record.name, record.levelno) for record in caplog.records} == {
        ("asgi_datasource.saturation", logging.WARNING)
    }
    # Then nothing: it is over. The next one is the first again.
    await asyncio.sleep(0.15)
    assert len(caplog.messages) == 2
    log.record(refused=True)
    assert caplog.messages[2] == "1 refused"
    log.record(refused=True)
    log.close()
    await asyncio.sleep(0.1)
    assert len(caplog.messages) == 3


def test_the_log_of_one_event_loop_serves_the_next(caplog: pytest.LogCaptureFixture) -> None:
    log = SaturationLog(SaturationCounts.__str__)

    async def run() -> None:
        log.record(refused=True)
        log.record(refused=True)

    asyncio.run(run())
    asyncio.run(run())
    assert caplog.messages == ["1 refused", "2 refused"]


async def test_in_turns_the_higher_priority_goes_before_the_tenant_with_less() -> None:
    fair = FairQueue("orders.primary", capacity=1, max_waiting=10)
    assert fair.try_enter(QUIET)
    admitted: list[str] = []

    async def enter(name: str, quota: TenantQuota, priority: Priority) -> None:
        await fair.enter(quota, timeout_s=30, priority=priority)
        admitted.append(name)
        fair.leave(quota)

    tasks = [
        asyncio.ensure_future(enter(*who))
        for who in (
            ("quiet low", QUIET, LOW),
            ("noisy normal", NOISY, NORMAL),
            ("quiet normal", QUIET, NORMAL),
            ("noisy high", NOISY, HIGH),
        )
    ]
    await settle()
    fair.leave(QUIET)
    await asyncio.gather(*tasks)
    assert admitted[0] == "noisy high"
    assert set(admitted[1:3]) == {"noisy normal", "quiet normal"}
    assert admitted[3] == "quiet low"
    assert fair.waiting == 0


async def test_a_full_queue_of_tenants_refuses_the_lowest_priority_first() -> None:
    fair = FairQueue("orders.primary", capacity=1, max_waiting=3)
    assert fair.try_enter(QUIET)

    def enter(quota: TenantQuota, priority: Priority) -> asyncio.Task[None]:
        return asyncio.ensure_future(fair.enter(quota, timeout_s=30, priority=priority))

    normal = [enter(NOISY, NORMAL), enter(NOISY, NORMAL)]
    low = enter(QUIET, LOW)
    await settle()
    with pytest.raises(DataError, match="3 are waiting already"):
        await fair.enter(QUIET, timeout_s=30, priority=LOW)
    high = [enter(NOISY, HIGH), enter(QUIET, HIGH)]
    await settle()
    assert isinstance(low.exception(), DataError)
    assert [task.done() for task in normal] == [False, True]
    with pytest.raises(DataError, match="3 are waiting already"):
        await fair.enter(NOISY, timeout_s=30, priority=NORMAL)
    high.append(enter(NOISY, HIGH))
    await settle()
    assert isinstance(normal[0].exception(), DataError)
    # Nobody of lower priority is left: now the longest line loses.
    with pytest.raises(DataError, match="3 are waiting already"):
        await fair.enter(NOISY, timeout_s=30, priority=HIGH)
    assert fair.waiting == 3
    await end(high)
