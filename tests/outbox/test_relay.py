"""The relay: everything that is committed arrives, in the order of each key, whatever happens."""

from __future__ import annotations

import asyncio
import random

import pytest

from asgi_datasource.outbox import database_relay
from asgi_datasource.outbox.circuit import Circuit
from asgi_datasource.outbox.database_relay import RelaySettings
from tests.outbox.delivery import OUTBOX, Destination, held, left, relaying, until, until_left, write
from tests.world import World


async def test_events_arrive_in_the_order_of_their_keys(world: World) -> None:
    destination = Destination()
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination):
        for number in range(200):
            async with registry.session(tenant="acme") as db:
                await db.outbox.publish("orders.placed", key=f"k{number % 9}", payload=number)
        await destination.has(200)
        await until_left(world, 0)
    assert sorted(int(data) for data in destination.payloads) == list(range(200))
    for key in range(9):
        arrived = [int(entry.data) for entry in destination.entries if entry.key == f"k{key}"]
        assert arrived == sorted(arrived)
    entry = destination.entries[0]
    assert (entry.topic, entry.tenant, entry.content_type) == ("orders.placed", "acme", "application/json")
    assert entry.source == "urn:asgi-datasource:orders"
    assert entry.idempotency_key == str(entry.event_id)


async def test_a_late_commit_is_not_missed(world: World) -> None:
    """Its number is lower than that of events that were delivered before."""
    destination = Destination()
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination) as relay:
        reached, may_commit = asyncio.Event(), asyncio.Event()

        async def late() -> None:
            async with registry.session(tenant="acme") as db:
                await db.execute(
                    "insert into asgi_datasource.outbox (event_id, topic, key, data)"
                    " values (gen_random_uuid(), 't', 'k', '0')"
                )
                reached.set()
                await may_commit.wait()

        task = asyncio.create_task(late())
        await reached.wait()
        await write(world, [("k", str(number)) for number in range(1, 200)])
        relay.hint(("orders", None))
        await destination.has(199)
        may_commit.set()
        await task
        relay.hint(("orders", None))
        await destination.has(200)
    assert destination.payloads[-1] == b"0"


async def test_events_of_other_processes_are_polled(world: World) -> None:
    destination = Destination()
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination):
        await write(world, [("a", "1")])
        await destination.has(1)


async def test_a_notification_wakes_a_relay_of_another_process(world: World) -> None:
    destination = Destination()
    async with (
        world.registry(**OUTBOX) as registry,
        relaying(registry, destination, settings=RelaySettings(listens=True)) as relay,
    ):
        await until(lambda: relay.stats[("orders", None)].measured_at is not None)
        await asyncio.sleep(0)
        await write(world, [("a", "1")])
        await world.sql("notify asgi_datasource_outbox")
        await destination.has(1)


async def test_a_batch_stops_when_its_lease_is_about_to_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another relay may have the lane by then, and would deliver in another order."""
    destination = Destination()
    destination.gate = asyncio.Event()
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination):
        await write(world, [("a", "1"), ("a", "2")])
        await destination.arrived.wait()
        with monkeypatch.context() as patch:
            patch.setattr(database_relay, "MARGIN_S", 1e9)
            destination.gate.set()
            await until(lambda: len(destination.entries) == 1)
            for _ in range(10):
                await asyncio.sleep(0)
            assert destination.payloads == [b"1"]
        await destination.has(2)
        await until_left(world, 0)
    assert destination.payloads[-1] == b"2"


async def test_two_relays_share_the_lanes(world: World) -> None:
    first, second = Destination(), Destination()
    settings = RelaySettings(renew_s=0.2)
    async with world.registry(**OUTBOX) as registry, relaying(registry, first, settings=settings) as one:
        stats = one.stats
        await until(lambda: stats[("orders", None)].lanes == 32)
        async with relaying(registry, second, settings=settings) as other:
            await until(lambda: (stats[("orders", None)].lanes, other.stats[("orders", None)].lanes) == (16, 16))
            await write(world, [(str(number), str(number)) for number in range(400)])
            await until_left(world, 0)
            assert first.entries
            assert second.entries
            assert len(first.entries) + len(second.entries) == 400
        await until(lambda: stats[("orders", None)].lanes == 32)


async def test_nothing_is_open_while_something_is_published(world: World) -> None:
    destination = Destination()
    destination.gate = asyncio.Event()
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination):
        await write(world, [("a", "1")])
        await destination.arrived.wait()
        states = await world.sql(
            "select state, backend_xmin from pg_stat_activity where application_name like '%outbox relay'"
        )
        assert states == [("idle", None)]
        destination.gate.set()
        await destination.has(1)


class TestRefusal:
    async def test_its_key_steps_aside_and_the_others_pass(self, world: World) -> None:
        destination = Destination()
        destination.refuses = lambda entry: entry.data == b"1"
        settings = RelaySettings(first_retry_s=30.0)
        async with world.registry(**OUTBOX) as registry, relaying(registry, destination, settings=settings) as relay:
            await write(world, [("bad", "0"), ("bad", "1"), ("bad", "2"), ("good", "3")])
            await destination.has(2)
            await until_left(world, 2)
            await write(world, [("bad", "4"), ("good", "5")])
            relay.hint(("orders", None))
            await destination.has(3)
            await until_left(world, 3)
        assert sorted(destination.payloads) == [b"0", b"3", b"5"]
        assert await held(world) == [("1", "retry", 1), ("2", "waiting", 0), ("4", "waiting", 0)]

    async def test_it_is_tried_again_and_its_key_goes_on(self, world: World) -> None:
        destination = Destination()
        tries = iter([True, True, False])
        destination.refuses = lambda entry: entry.data == b"1" and next(tries)
        settings = RelaySettings(first_retry_s=0.05)
        async with world.registry(**OUTBOX) as registry, relaying(registry, destination, settings=settings):
            await write(world, [("k", str(number)) for number in range(300)])
            await destination.has(300)
            await until_left(world, 0)
            await write(world, [("k", "300")])
            await destination.has(301)
        assert [int(data) for data in destination.payloads] == list(range(301))

    @pytest.mark.parametrize("holds_dead", [False, True])
    async def test_it_is_dead_after_its_attempts(self, world: World, holds_dead: bool) -> None:
        destination = Destination()
        destination.refuses = lambda entry: entry.data == b"1"
        settings = RelaySettings(first_retry_s=0.01, max_attempts=3, holds_dead=holds_dead)
        async with world.registry(**OUTBOX) as registry, relaying(registry, destination, settings=settings):
            await write(world, [("k", "0"), ("k", "1"), ("k", "2")])
            await until_left(world, 2 if holds_dead else 1)
            await until(lambda: [entry.data for entry in destination.tries].count(b"1") == 3)
            if not holds_dead:
                await destination.has(2)
        state = await held(world, "data::text, state, attempts, error")
        assert state[0] == ("1", "dead", 3, "not this one")
        assert destination.payloads == ([b"0"] if holds_dead else [b"0", b"2"])

    async def test_keys_of_tenants_are_apart(self, world: World) -> None:
        destination = Destination()
        destination.refuses = lambda entry: entry.tenant == "acme"
        async with (
            world.registry(**OUTBOX) as registry,
            relaying(registry, destination, settings=RelaySettings(first_retry_s=30.0)),
        ):
            for tenant in ("acme", "globex", "acme", "globex"):
                async with registry.session(tenant=tenant) as db:
                    await db.outbox.publish("t", key="the same")
            await destination.has(2)
            await until_left(world, 2)
        assert {entry.tenant for entry in destination.entries} == {"globex"}


class TestAway:
    async def test_an_outage_counts_no_attempt(self, world: World) -> None:
        destination = Destination()
        destination.is_away = True
        circuit = Circuit(first_pause_s=0.02, longest_pause_s=0.05)
        async with (
            world.registry(**OUTBOX) as registry,
            relaying(registry, destination, settings=RelaySettings(max_attempts=1), circuit=circuit) as relay,
        ):
            await write(world, [(str(number), str(number)) for number in range(50)])
            await until(lambda: len(destination.tries) > 10)
            assert relay.health().status == "warning"
            assert await held(world) == []
            destination.is_away = False
            await destination.has(50)
            await until_left(world, 0)
            assert relay.circuit.state == "closed"
            assert relay.stats[("orders", None)].refused == 0

    async def test_one_message_that_seems_to_find_it_away_does_not_stop_the_others(self, world: World) -> None:
        class Picky(Destination):
            async def send(self, entry):  # type: ignore[no-untyped-def]
                if entry.data == b'"poison"':
                    raise TimeoutError
                await super().send(entry)

        destination = Picky()
        circuit = Circuit(first_pause_s=0.01, longest_pause_s=0.02)
        async with (
            world.registry(**OUTBOX) as registry,
            relaying(registry, destination, circuit=circuit, settings=RelaySettings(first_retry_s=30)) as relay,
        ):
            await write(world, [("bad", '"poison"')])
            for number in range(40):
                await write(world, [(str(number), str(number))])
                relay.hint(("orders", None))
            await destination.has(40)
            await until(lambda: relay.stats[("orders", None)].refused == 1)
            await until_left(world, 1)
        assert (await held(world, "state, error"))[0][0] == "retry"


async def test_a_relay_that_is_stopped_acknowledges_what_is_under_way(world: World) -> None:
    destination = Destination()
    destination.gate = asyncio.Event()
    async with world.registry(**OUTBOX) as registry:
        async with relaying(registry, destination):
            await write(world, [(str(number), str(number)) for number in range(20)])
            await until(lambda: len(destination.tries) == 20)
            asyncio.get_running_loop().call_later(0.1, destination.gate.set)
        assert len(destination.entries) == 20
        assert await left(world) == 0
        free = await world.sql("select count(*) from asgi_datasource.outbox_lane where owner is null")
        assert free == [(32,)]
        assert await world.sql("select count(*) from asgi_datasource.outbox_relay") == [(0,)]


async def test_a_lost_connection_is_made_anew(world: World) -> None:
    destination = Destination()
    numbers = list(range(100))
    random.Random(1).shuffle(numbers)
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination):
        await write(world, [(str(number), str(number)) for number in numbers[:50]])
        await destination.has(50)
        await world.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like '%outbox relay'"
        )
        await write(world, [(str(number), str(number)) for number in numbers[50:]])
        await until_left(world, 0)
    assert {int(data) for data in destination.payloads} == set(range(100))


async def test_what_is_kept_moves_to_the_partition_of_its_day(world: World) -> None:
    destination = Destination()
    settings = RelaySettings(keep_days=7)
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination, settings=settings) as relay:
        await until(lambda: relay.stats[("orders", None)].measured_at is not None)
        await write(world, [("k", str(number)) for number in range(10)])
        await destination.has(10)
        await until_left(world, 0)
        kept = await world.sql("select data::text from asgi_datasource.outbox_sent order by seq")
        assert [int(row[0]) for row in kept] == list(range(10))
        old = "asgi_datasource.outbox_sent_20200101"
        await world.sql(
            f"create table {old} partition of asgi_datasource.outbox_sent"
            " for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
        )
        assert await world.sql("select asgi_datasource.outbox_tend(interval '7 days')") == [(1,)]
        assert await world.sql(f"select to_regclass('{old}')") == [(None,)]
