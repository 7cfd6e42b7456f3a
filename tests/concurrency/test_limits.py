"""Lines with priorities, gates, and warnings of what happens at a limit: without a server."""

from __future__ import annotations

import asyncio
import logging

import pytest

from asgi_datasource import DataError, DataErrorKind
from asgi_datasource.concurrency import limits
from asgi_datasource.concurrency.fair_queue import FairQueue, Share
from asgi_datasource.concurrency.limits import Gate, Line, Priority, SaturationLog, Strain
from tests.concurrency.test_fair_queue import NOISY, QUIET, end, settle

LOW, NORMAL, HIGH = Priority


def test_the_higher_priority_comes_first_and_equals_in_their_order() -> None:
    line: Line[str] = Line()
    for name, priority in (("a", NORMAL), ("b", LOW), ("c", HIGH), ("d", NORMAL), ("e", HIGH), ("f", LOW)):
        line.append(name, priority)
    assert (len(line), line.highest, line.first) == (6, HIGH, "c")
    assert (line.count(LOW), line.last(LOW)) == (2, "f")
    line.remove("d")
    line.strip("c".__eq__)
    assert [line.pop() for _ in range(len(line))] == ["e", "a", "b", "f"]
    assert not line


def test_a_gate_lets_in_as_many_as_may_be_and_nobody_waits_there() -> None:
    gate = Gate("routes[0] (/x)", 4, advice="Raise it")

    async def refused(priority: Priority) -> DataError:
        with pytest.raises(DataError) as caught:
            gate.enter(priority)
        return caught.value

    async def run() -> None:
        gate.enter(LOW)
        gate.enter(LOW)
        await refused(LOW)
        gate.enter()
        gate.enter()
        error = await refused(NORMAL)
        assert (error.kind, error.http_status, error.is_retryable) == (DataErrorKind.RESOURCE, 503, True)
        assert str(error) == "routes[0] (/x): 4 requests are under way, of 4 that may be. Raise it"
        gate.enter(HIGH)
        assert gate.in_flight.count == 5
        for _ in range(2):
            gate.leave()
            gate.leave()
        gate.enter(LOW)
        gate.leave()
        gate.leave()
        assert gate.in_flight.count == 0

    asyncio.run(run())


def test_low_priority_gets_in_where_only_one_may_be() -> None:
    gate = Gate("x", 1, advice="")
    gate.enter(LOW)
    assert gate.in_flight.count == 1


async def test_a_gate_that_takes_the_place_of_another_one_goes_on_with_its_count() -> None:
    before = Gate("x", 3, advice="")
    before.enter()
    after = Gate("x", 1, advice="", in_flight=before.in_flight)
    with pytest.raises(DataError):
        after.enter()
    before.leave()
    after.enter()


async def test_the_first_is_told_at_once_and_what_follows_together(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INTERVAL_S", 0.05)
    log = SaturationLog(lambda strain: f"{strain}")
    for _ in range(100):
        log.note(refused=True)
    log.note(refused=False)
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
    log.note(refused=True)
    assert caplog.messages[2] == "1 refused"
    log.note(refused=True)
    log.close()
    await asyncio.sleep(0.1)
    assert len(caplog.messages) == 3


def test_the_log_of_one_event_loop_serves_the_next(caplog: pytest.LogCaptureFixture) -> None:
    log = SaturationLog(Strain.__str__)

    async def run() -> None:
        log.note(refused=True)
        log.note(refused=True)

    asyncio.run(run())
    asyncio.run(run())
    assert caplog.messages == ["1 refused", "2 refused"]


async def test_in_turns_the_higher_priority_goes_before_the_tenant_with_less() -> None:
    fair = FairQueue("orders.primary", capacity=1, max_waiting=10)
    assert fair.enter_at_once(QUIET)
    admitted: list[str] = []

    async def enter(name: str, share: Share, priority: Priority) -> None:
        await fair.enter(share, timeout_s=30, priority=priority)
        admitted.append(name)
        fair.leave(share)

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
    assert fair.enter_at_once(QUIET)

    def enter(share: Share, priority: Priority) -> asyncio.Task[None]:
        return asyncio.ensure_future(fair.enter(share, timeout_s=30, priority=priority))

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
