"""`asgi-datasource outbox ...`."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from asgi_datasource.outbox.database_relay import RelaySettings
from tests.cli.run import call
from tests.outbox.delivery import OUTBOX, Destination, held, relaying, until_left, write
from tests.outbox.processes import Sink, relay_process, until_lines, write_config
from tests.world import World


async def command(*arguments: str) -> Any:
    """Run a command in a thread: it has an event loop of its own."""
    return await asyncio.to_thread(call, *arguments)


async def test_the_tables_come_by_a_migration(world: World, tmp_path: Path) -> None:
    config = str(write_config(world, tmp_path))
    await world.sql("drop schema asgi_datasource cascade")
    plan = await command("migrate", "plan", "--config", config)
    assert (plan.code, "pending in 1: orders (outbox)" in plan.out) == (3, True), plan.err
    for count in (1, 0):
        done = await command("migrate", "apply", "--config", config, "--format", "json")
        assert done.code == 0, done.err
        [schema] = json.loads(done.out)["schemas"]
        assert (len(schema["applied"]), schema["schema"], schema["to_version"]) == (count, "asgi_datasource", 1)
    status = await command("migrate", "status", "--config", config)
    assert "orders      outbox  1        1     1        at head" in status.out
    assert await world.sql("select scope, version, name, nsp::int, state from asgi_datasource.migration") == [
        ("asgi_datasource.outbox", 1, "outbox", 0, "applied")
    ]
    async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme") as db:
        await db.outbox.publish("t")
    rights = await world.sql(
        "select privilege_type from information_schema.role_table_grants"
        " where grantee = 'app' and table_name = 'outbox' order by 1"
    )
    assert [row[0] for row in rights] == ["DELETE", "INSERT", "SELECT"]


async def test_a_relay_ends_at_sigterm_with_its_batch_acknowledged(world: World, tmp_path: Path) -> None:
    """Acceptance 8: within a second the batch is acknowledged and the lanes are free."""
    sink = Sink(tmp_path / "sink")
    config = write_config(world, tmp_path)
    async with relay_process(config, sink) as process:
        await write(world, [(f"k{number % 7}", str(number)) for number in range(300)])
        await until_lines(sink, 1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        out, told = await process.communicate()
        took_s = time.monotonic() - began
    assert b"outbox relay: stopping" in told
    assert process.returncode == 0
    published = json.loads(out)["published"]
    assert published == len(sink.lines())
    await until_left(world, 300 - published)
    free = await world.sql("select count(*) from asgi_datasource.outbox_lane where owner is null")
    assert free == [(32,)]
    assert took_s < 5.0, "a second, and the end of a Python process on a busy machine"


async def test_status_and_dead_events(world: World, tmp_path: Path) -> None:
    config = str(write_config(world, tmp_path))
    destination = Destination()
    destination.refuses = lambda entry: entry.key == "bad"
    settings = RelaySettings(max_attempts=1)
    async with world.registry(**OUTBOX) as registry:
        async with relaying(registry, destination, settings=settings):
            await write(world, [("bad", "1"), ("bad", "2"), ("good", "3")])
            await destination.has(1)
            await until_left(world, 2)
        await write(world, [("later", "4")])

        status = await command("outbox", "status", "--config", config, "--format", "json")
        [found] = json.loads(status.out)["databases"]
        assert status.code == 1
        assert (found["database"], found["backlog"], found["held"], found["dead"]) == ("orders", 1, 0, 2)
        table = await command("outbox", "status", "--config", config)
        assert table.out.splitlines()[0].split() == ["DATABASE", "BACKLOG", "OLDEST", "HELD", "DEAD", "LANES", "RELAYS"]

        listed = await command("outbox", "dead", "list", "--config", config, "--format", "json")
        first, second = json.loads(listed.out)["dead"]
        assert (first["topic"], first["key"], first["attempts"], first["error"]) == ("t", "bad", 1, "not this one")
        assert "data" not in first
        assert "bad" in (await command("outbox", "dead", "list", "--config", config)).out

        discarded = await command("outbox", "dead", "discard", second["event_id"], "--config", config)
        assert discarded.code == 0
        replayed = await command("outbox", "dead", "replay", "--all", "--config", config, "--format", "json")
        assert json.loads(replayed.out)["events"] == [first["event_id"]]
        assert await held(world) == [("1", "retry", 0)]

        destination.refuses = lambda _: False
        async with relaying(registry, destination, settings=settings):
            await destination.has(3)
            await until_left(world, 0)
    again = next(entry for entry in destination.entries if entry.data == b"1")
    assert str(again.event_id) == first["event_id"], "a replay keeps the id"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["replay"], "no event is named"),
        (["replay", "seven"], "an event's id is a UUID"),
        (["discard", "00000000-0000-7000-8000-000000000000"], "no dead event has the id"),
    ],
)
async def test_what_cannot_be_done_is_said(world: World, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = await command("outbox", "dead", *arguments, "--config", str(write_config(world, tmp_path)))
    assert done.code == 2
    assert words in done.err


async def test_missing_tables_are_named(world: World, tmp_path: Path) -> None:
    config = str(write_config(world, tmp_path))
    await world.sql("drop schema asgi_datasource cascade")
    done = await command("outbox", "status", "--config", config)
    assert done.code == 2
    assert "migrate apply" in done.err


async def test_a_relay_without_a_publisher_says_so(world: World, tmp_path: Path) -> None:
    path = tmp_path / "datasource.json"
    path.write_text(json.dumps(world.config(outbox={})))
    done = await command("outbox", "relay", "--config", str(path))
    assert done.code == 2
    assert "outbox.publisher" in done.err
