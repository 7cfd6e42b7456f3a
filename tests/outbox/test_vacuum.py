"""What would let the outbox grow is reported: by `check`, by the relay's health, by its metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import psycopg
import pytest

from asgi_datasource.outbox import vacuum
from asgi_datasource.outbox.health import ask_health
from asgi_datasource.outbox.vacuum import SnapshotWatch
from asgi_datasource.registry.outbox import relay_sites
from tests.cli.run import call
from tests.outbox.delivery import OUTBOX, Destination, relaying, until, write
from tests.world import World


def superuser(world: World) -> str:
    return world.cluster.primary.url(dbname=world.dbname, user="postgres")


def found_by_check(world: World, folder: Path) -> list[tuple[str, str]]:
    """The findings of `check` about the outbox: code and message."""
    path = folder / "datasource.json"
    path.write_text(json.dumps(world.config(replicas=(), **OUTBOX)))
    done = call("check", path, "--format", "json")
    assert done.out, done.err
    found = json.loads(done.out)["diagnostics"]
    return [(each["code"], each["message"]) for each in found if each["code"] in ("ADS119", "ADS120")]


async def test_check_reports_what_lets_the_tables_grow(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_by_check(world, tmp_path) == []
    await world.sql("alter table asgi_datasource.outbox reset (autovacuum_vacuum_scale_factor)")
    await world.sql("alter table asgi_datasource.outbox_held set (autovacuum_enabled = off)")
    monkeypatch.setattr(vacuum, "SNAPSHOT_LIMIT_S", 0.0)
    async with await psycopg.AsyncConnection.connect(superuser(world)) as holder:
        await holder.execute("select pg_current_xact_id()")
        # The age of another role's transaction is visible to those alone that may see it.
        await world.sql("grant pg_read_all_stats to app")
        try:
            found = found_by_check(world, tmp_path)
        finally:
            await world.sql("revoke pg_read_all_stats from app")
    assert [code for code, _ in found] == ["ADS120"] * 3
    told = " ".join(message for _, message in found)
    assert "autovacuum looks too late at asgi_datasource.outbox," in told
    assert "autovacuum is off for asgi_datasource.outbox_held" in told
    assert "holds a snapshot" in told
    await world.sql("drop schema asgi_datasource cascade")
    assert found_by_check(world, tmp_path) == [("ADS119", "orders/primary: the tables of the outbox are missing")]


async def test_a_held_snapshot_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("vacuum", "health"):
        monkeypatch.setattr(f"asgi_datasource.outbox.{module}.SNAPSHOT_LIMIT_S", 0.0)
    monkeypatch.setattr("asgi_datasource.outbox.database_relay.MEASURE_EVERY_S", 0.05)
    async with (
        world.registry(**OUTBOX) as registry,
        await psycopg.AsyncConnection.connect(superuser(world), application_name="a report") as holder,
    ):
        await holder.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await holder.execute("select count(*) from asgi_datasource.outbox")
        await write(world, [("a", "1")])
        with caplog.at_level(logging.WARNING, "asgi_datasource.outbox"):
            async with relaying(registry, Destination()) as relay:
                await until(lambda: relay.health().status == "warning")
                [reason] = relay.health().reasons
                assert reason.startswith("orders: the backend")
                assert "(a report) holds a snapshot" in reason
                await holder.rollback()
                await until(lambda: relay.health().status == "ok")
    assert sum("(a report) holds a snapshot" in record.getMessage() for record in caplog.records) == 1


def test_a_snapshot_counts_from_the_second_look_on() -> None:
    watch = SnapshotWatch()
    assert watch.note([("the backend 7", "100", None)], 0.0) == (None, 0.0)
    assert watch.note([("the backend 7", "100", None)], 15.0) == ("the backend 7", 15.0)
    assert watch.note([("the backend 7", "100", 700.0)], 30.0) == ("the backend 7", 700.0)
    assert watch.warns(700.0)
    assert not watch.warns(715.0)
    assert watch.note([("the backend 8", "120", 900.0)], 45.0) == (None, 0.0)
    assert watch.note([], 60.0) == (None, 0.0)


async def test_a_process_without_a_relay_asks_the_databases(world: World) -> None:
    await write(world, [("a", "1")])
    async with world.registry(**OUTBOX) as registry:
        sites = list(relay_sites(registry.compiled).values())
        health = await ask_health(sites, warn_age_s=0.0)
        assert health.status == "warning"
        assert [reason.partition(":")[0] for reason in health.reasons] == ["orders", "orders"]
        assert "outbox.warn_age" in health.reasons[0]
        assert "no relay runs" in health.reasons[1]
        assert health.as_json()["databases"][0]["backlog"] == 1
        async with relaying(registry, Destination()) as relay:
            await until(lambda: relay.stats[("orders", None)].acknowledged == 1)
            assert (await ask_health(sites, warn_age_s=60.0)).status == "ok"
        await world.sql("drop schema asgi_datasource cascade")
        [reason] = (await ask_health(sites, warn_age_s=60.0)).reasons
        assert "migrate apply" in reason
