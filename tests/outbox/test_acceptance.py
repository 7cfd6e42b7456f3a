"""The promises of the outbox, each shown from outside. Rollbacks: `test_publish.py`; SIGTERM: `test_commands.py`."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg

from asgi_datasource import DataSourceRegistry
from asgi_datasource import compile as compile_registry
from asgi_datasource.outbox.circuit import Circuit
from asgi_datasource.outbox.database_relay import RelaySettings
from tests.outbox.delivery import OUTBOX, Destination, held, left, relaying, until, until_left, write
from tests.outbox.processes import Sink, relay_process, until_lines, write_config
from tests.outbox.tables import migrate
from tests.pgbouncer import pgbouncer
from tests.world import World

INSERT = "insert into asgi_datasource.outbox (event_id, topic, key, data) values (gen_random_uuid(), 't', %s, %s::json)"


def superuser(world: World, dbname: str | None = None) -> str:
    return world.cluster.primary.url(dbname=dbname or world.dbname, user="postgres")


async def end_leases(world: World) -> None:
    """As if 15 seconds had passed without a sign of any relay."""
    await world.sql(
        "with gone as (delete from asgi_datasource.outbox_relay)"
        " update asgi_datasource.outbox_lane set lease_until = '-infinity'"
    )


async def test_sixteen_writers_in_random_commit_order_lose_nothing(world: World, whole: bool) -> None:
    """Acceptance 2: an id cursor over the same table, at the same time, misses some."""
    per_writer = 150 if whole else 40
    destination, cursor_saw, is_done = Destination(), set[str](), asyncio.Event()
    settings = RelaySettings(keep_days=7)

    async def writer(number: int) -> None:
        chance = random.Random(number)
        async with await psycopg.AsyncConnection.connect(superuser(world)) as connection:
            for index in range(per_writer):
                await connection.execute(INSERT, [f"k{number}", f'"{number}-{index}"'])
                await asyncio.sleep(chance.uniform(0, 0.02))
                await connection.commit()

    async def by_id() -> None:
        """What a poller sees that remembers the highest id."""
        last = 0
        async with await psycopg.AsyncConnection.connect(superuser(world), autocommit=True) as connection:
            while not is_done.is_set():
                rows = await connection.execute(
                    "select seq, data::text from asgi_datasource.outbox where seq > %s"
                    " union all select seq, data::text from asgi_datasource.outbox_sent where seq > %s order by 1",
                    [last, last],
                )
                for seq, data in await rows.fetchall():
                    last = max(last, seq)
                    cursor_saw.add(data)
                await asyncio.sleep(0.001)

    async with world.registry(**OUTBOX) as registry, relaying(registry, destination, settings=settings):
        reader = asyncio.create_task(by_id())
        await asyncio.gather(*(writer(number) for number in range(16)))
        await destination.has(16 * per_writer)
        await until_left(world, 0)
        await asyncio.sleep(0.05)
        is_done.set()
        await reader
    assert len({entry.data for entry in destination.entries}) == 16 * per_writer
    assert len(cursor_saw) < 16 * per_writer, "an id cursor was expected to miss some"


async def test_an_open_transaction_elsewhere_delays_nothing(world: World) -> None:
    """Acceptance 3: transaction ids are the server's, so that a gate on the oldest one would wait for this."""
    destination = Destination()
    async with (
        world.registry(**OUTBOX) as registry,
        relaying(registry, destination) as relay,
        await psycopg.AsyncConnection.connect(superuser(world, "postgres")) as elsewhere,
    ):
        await elsewhere.execute("select pg_current_xact_id()")
        await write(world, [("k", "1")])
        relay.hint(("orders", None))
        began = time.monotonic()
        await destination.has(1)
        assert time.monotonic() - began < 5
        assert elsewhere.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        await elsewhere.rollback()


async def test_relays_that_are_killed_lose_nothing_and_keep_the_order(
    world: World, tmp_path: Path, whole: bool
) -> None:
    """Acceptance 4: what arrives first of each event, arrives in the order of its key."""
    sink = Sink(tmp_path / "sink")
    config = write_config(world, tmp_path, lease="5s")
    kills, count = (8, 4_000) if whole else (1, 600)
    # All leases end with each kill, those of the other relays as well: nothing waits for that of a dead one, and
    # lanes have two relays at a time that believe in them.
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(relay_process(config, sink)) for _ in range(4 if whole else 2)]
        for number in range(0, count, 50):
            await write(world, [(f"k{n % 13}", str(n)) for n in range(number, number + 50)])
            if kills and number % (count // (kills + 1)) < 50 and number:
                kills -= 1
                victim = relays.pop(0)
                victim.send_signal(signal.SIGKILL)
                await victim.wait()
                await end_leases(world)
                relays.append(await stack.enter_async_context(relay_process(config, sink)))
        await until(lambda: len({line[3] for line in sink.lines()}) == count, lambda: f"{len(sink.lines())} arrived")
    first: dict[str, list[int]] = defaultdict(list)
    seen: set[str] = set()
    for _, key, payload, event_id in sink.lines():
        if event_id not in seen:
            seen.add(event_id)
            first[key].append(int(payload))
    assert len(seen) == count
    for numbers in first.values():
        assert numbers == sorted(numbers)


async def test_a_destination_that_is_away_for_half_an_hour_kills_nothing(world: World) -> None:
    """Acceptance 5, by a clock that is set forward."""
    now = [0.0]
    destination = Destination()
    destination.is_away = True
    circuit = Circuit(clock=lambda: now[0])
    async with (
        world.registry(**OUTBOX) as registry,
        relaying(registry, destination, circuit=circuit, settings=RelaySettings(max_attempts=1)) as relay,
    ):
        await write(world, [(f"k{number % 20}", str(number)) for number in range(500)])
        probes = 0
        while now[0] < 1800:
            before = len(destination.tries)
            await until(lambda seen=before: len(destination.tries) > seen)  # type: ignore[misc]
            await until(lambda: circuit.state == "open")
            probes += 1
            now[0] += 60
            relay.hint(("orders", None))
        assert probes >= 30
        assert await held(world) == []
        destination.is_away = False
        now[0] += 60
        relay.hint(("orders", None))
        await destination.has(500)
        await until_left(world, 0)
    for key in range(20):
        numbers = [int(entry.data) for entry in destination.entries if entry.key == f"k{key}"]
        assert numbers == sorted(numbers)


async def test_a_poison_key_lets_the_others_pass(world: World, whole: bool) -> None:
    """Acceptance 6: its first message is refused for ever, and thousands lie behind it."""
    behind = 10_000 if whole else 2_000
    destination = Destination()
    destination.refuses = lambda entry: entry.data == b"0"
    settings = RelaySettings(first_retry_s=0.001, max_attempts=12, holds_dead=True)
    async with world.registry(**OUTBOX) as registry:
        # In the lane of the poison key itself, behind all of its messages.
        await world.sql(
            "insert into asgi_datasource.outbox (event_id, topic, key, data)"
            f" select gen_random_uuid(), 't', 'poison', to_json(n) from generate_series(0, {behind - 1}) n"
        )
        await world.sql(
            "insert into asgi_datasource.outbox (event_id, topic, key, data)"
            " select gen_random_uuid(), 't', 'other' || n, to_json(-n) from generate_series(1, 2000) n"
        )
        async with relaying(registry, destination, settings=settings) as relay:
            await destination.has(2000)
            await until(lambda: sum(entry.data == b"0" for entry in destination.tries) == 12)
            await until(lambda: relay.stats[("orders", None)].refused == 12)
            assert all(entry.key != "poison" for entry in destination.entries)
            await until_left(world, behind)
            [dead] = [row for row in await held(world, "event_id, state") if row[1] == "dead"]
            destination.refuses = lambda _: False
            await world.sql(
                "update asgi_datasource.outbox_held set state = 'retry', attempts = 0, next_at = now()"
                " where state = 'dead'"
            )
            await destination.has(2000 + behind)
            await until_left(world, 0)
    replayed = [entry for entry in destination.entries if entry.key == "poison"]
    assert replayed[0].event_id == dead[0], "a replay keeps the id"
    assert [int(entry.data) for entry in replayed] == list(range(behind))


async def test_a_relay_that_was_paused_past_its_lease_does_nothing_after(world: World, tmp_path: Path) -> None:
    """Acceptance 7: another relay has its lanes meanwhile."""
    sink = Sink(tmp_path / "sink")
    config = write_config(world, tmp_path, lease="5s")
    async with relay_process(config, sink) as paused:
        await write(world, [(str(number), str(number)) for number in range(20)])
        await until_lines(sink, 20)
        await until_left(world, 0)
        paused.send_signal(signal.SIGSTOP)
        await end_leases(world)
        async with relay_process(config, sink) as other:
            await write(world, [(str(number), str(number)) for number in range(20, 60)])
            await until_lines(sink, 60)
            await until_left(world, 0)
            epochs = await world.sql("select distinct owner from asgi_datasource.outbox_lane where owner is not null")
            assert len(epochs) == 1
            paused.send_signal(signal.SIGCONT)
            await write(world, [(str(number), str(number)) for number in range(60, 100)])
            await until_lines(sink, 100)
            await until_left(world, 0)
            lines = sink.lines()
            assert other.pid in {pid for pid, *_ in lines[20:]}
    assert len({event_id for *_, event_id in lines}) == len(lines) == 100, "nothing was delivered twice"


async def test_an_acknowledgement_is_fenced(world: World) -> None:
    """The lanes of a relay that does not know it yet belong to another one: its acknowledgement changes nothing."""
    destination = Destination()
    destination.gate = asyncio.Event()
    async with world.registry(**OUTBOX) as registry, relaying(registry, destination):
        await write(world, [("k", "1")])
        await destination.arrived.wait()
        await world.sql(
            "update asgi_datasource.outbox_lane set owner = gen_random_uuid(), epoch = epoch + 1,"
            " lease_until = now() + interval '1 minute'"
        )
        destination.gate.set()
        await destination.has(1)
        await asyncio.sleep(0.5)
        assert await left(world) == 1


async def deliver(registry: DataSourceRegistry, world: World, count: int) -> None:
    """Have events delivered by a relay whose destination takes everything."""
    destination = Destination()
    await world.sql(
        "insert into asgi_datasource.outbox (event_id, topic, key, data)"
        f" select gen_random_uuid(), 't', n::text, '1' from generate_series(1, {count}) n"
    )
    async with relaying(registry, destination):
        await destination.has(count)
        await until_left(world, 0)


async def test_a_held_snapshot_does_not_stop_delivery(world: World, whole: bool) -> None:
    """Acceptance 9: dead rows cannot be removed meanwhile, and the relay reads past them."""
    count = 200_000 if whole else 10_000
    async with (
        world.registry(**OUTBOX) as registry,
        await psycopg.AsyncConnection.connect(superuser(world)) as holder,
    ):
        await holder.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await holder.execute("select count(*) from asgi_datasource.outbox")
        await deliver(registry, world, count)
        await deliver(registry, world, count)


async def test_through_a_transaction_pooler(world: World) -> None:
    """Acceptance 10: no LISTEN, no lock of a session, and no NOTIFY in a request's transaction."""
    destination = Destination()
    async with pgbouncer(world.url(), size=2) as bouncer:
        config: dict[str, Any] = {"pool": {"pooler": "transaction"}, "urls": {"primary": bouncer.url(world.dbname)}}
        async with (
            world.registry(replicas=(), **config, **OUTBOX) as registry,
            relaying(registry, destination, settings=RelaySettings(renew_s=0.3)),
        ):
            for number in range(50):
                async with registry.session(tenant="acme") as db:
                    await db.execute("insert into orders (item) values (gen_random_uuid())")
                    await db.outbox.publish("t", key="k", payload=number)
            await destination.has(50)
            await until_left(world, 0)
            locks = await world.sql("select count(*) from pg_locks where locktype = 'advisory'")
            assert locks == [(0,)]
    assert [int(data) for data in destination.payloads] == list(range(50))


async def test_databases_of_tenants_are_visited_in_turn(world: World) -> None:
    """More databases than connections: those with a commit come first, every other one in its time."""
    names = [f"{world.dbname}_t{number}" for number in range(3)]
    try:
        for name in names:
            await world.cluster.create_database(name)
            admin = world.cluster.primary.url(dbname=name, user="postgres")
            await migrate(world.cluster.primary.url(dbname=name), admin)
        template = world.cluster.primary.url(dbname="PLACE").replace("PLACE", "{tenant}")
        config = {
            "version": 1,
            "datasources": {"small": {"primary": {"url": template}, "pool": {"min_size": 0, "max_size": 2}}},
            "tenancy": {"resolve": [{"header": "X-Tenant"}]},
            "tenants": {name: {"datasource": "small"} for name in names},
            **OUTBOX,
        }
        destination = Destination()
        settings = RelaySettings(connections=1)
        async with (
            compile_registry(config) as registry,
            relaying(registry, destination, settings=settings, visit_every_s=0.5) as relay,
        ):
            for round_ in range(2):
                for name in names:
                    async with registry.session(tenant=name) as db:
                        await db.outbox.publish("t", payload=round_)
                    relay.hint(("small", name))
            await destination.has(6)
            backends = await world.sql(
                "select count(*) from pg_stat_activity where application_name like '%outbox relay'"
            )
            assert backends[0][0] <= 1
        assert {entry.tenant for entry in destination.entries} == set(names)
    finally:
        for name in names:
            await world.cluster.drop_database(name)
