"""Many clients on four worker processes, under every fault of the servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asgi_datasource.testing import EmbeddedCluster
from tests.consistency.history import Outcome, Read, Write, check
from tests.consistency.service import Service, in_phases, report, share_of_replicas

CLIENTS = 16


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    with EmbeddedCluster(replicas=2, settings={"max_connections": 200}) as cluster:
        async with Service.create(cluster, tmp_path) as made:
            yield made


async def test_no_stale_lost_or_undead_data_under_any_fault(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = service.cluster
    r1, r2 = cluster.replicas.values()
    async with service.used(service.config(), clients=CLIENTS, seed=1) as history:
        await asyncio.sleep(1.0)
        await in_phases(
            service,
            history,
            {
                "quiet": lambda: asyncio.sleep(1.0),
                "one paused": lambda: service.pause(2.0, r1),
                "both paused": lambda: service.pause(2.0, r1, r2),
                "one delayed": lambda: service.delay(2.0, r2),
                "one killed": lambda: service.kill(1.0, r1),
                "one frozen": lambda: service.freeze(3.5, r2),
                "one cut off": lambda: service.cut_off(3.5, "r1"),
                "failed over": lambda: service.fail_over(),
            },
            pause_s=0.7,
        )
        service.note("afterwards")
        await asyncio.sleep(2.0)
    await service.repair()
    found = check(history.events, await service.final())
    with capsys.disabled():
        print(f"\n{report(history)}")
    assert not found, str(found)
    assert not [status for status in history.statuses if " 500 " in status and "commit_unknown" not in status]
    late = [event for event in history.events if isinstance(event, Read) and event.phase == "afterwards"]
    done = [event for event in history.events if isinstance(event, Write) and event.outcome is Outcome.DONE]
    assert late
    assert len(done) > 100


async def test_replicas_answer_right_after_writes_by_other_clients(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    # They lag only as much as the machine is busy.
    async with service.used(service.config(wait="2s"), clients=8, seed=2, workers=2) as history:
        await asyncio.sleep(1.5)
        service.note("measured")
        await asyncio.sleep(3.0)
    share = share_of_replicas(history, "measured")
    with capsys.disabled():
        print(f"\n{report(history)}; measured {share:.1%}")
    assert share >= 0.95
    found = check(history.events, await service.final())
    assert not found, str(found)


async def test_stale_reads_are_detected_without_tokens(service: Service) -> None:
    config = service.config()
    del config["consistency"]
    async with service.used(config, clients=8, seed=1, workers=2) as history:
        await asyncio.sleep(1.0)
        await service.pause(1.5, service.cluster.replicas["r1"])
    found = check(history.events, await service.final())
    assert found.stale
    assert found.backward
    counted = found.counts()
    assert [counted[kind] for kind in ("lost", "undead", "imaginary", "forked")] == [0] * 4, str(found)
