"""Failover: writes resume on the promoted server, and never reach the former primary again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, compile
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from asgi_datasource.drivers.psycopg import primary_discovery
from asgi_datasource.sessions.listener import Notification
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.polling import until
from tests.faults.servers import cluster_of
from tests.patience import now
from tests.world import World

RECONNECT_PAUSE_S = 1.0
SECRET = "a secret that only the service knows"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A cluster per test: undoing a failover takes longer than starting servers."""
    with cluster_of(2) as servers:
        # With it, a standby reports the timeline that it follows at once (docs/failover.md).
        await servers.primary.sql("grant pg_read_all_stats to app")
        yield await World.make(servers)


def hosts(world: World, *nodes: str, **parameters: Any) -> str:
    """One URL with several hosts."""
    ports = ",".join(str(world.cluster.nodes[node].port) for node in nodes)
    return make_conninfo(world.url(), host=",".join(["127.0.0.1"] * len(nodes)), port=ports, **parameters)


def through_port(world: World, port: int) -> str:
    """The URL of the same database through another port."""
    return make_conninfo(world.url(), port=port)


def config_of(world: World, url: str, *, replicas: tuple[str, ...] = (), **sections: Any) -> dict[str, Any]:
    return world.config(
        replicas=replicas,
        urls={"primary": url},
        pool={"reconnect_pause": f"{RECONNECT_PAUSE_S:g}s", "connect_timeout": "2s"},
        routing={"check_interval": "50ms", "warmup": "1ms"},
        **sections,
    )


def orders_of(registry: DataSourceRegistry) -> ReplicatedDataSource:
    found = registry.datasources["orders"]
    assert isinstance(found, ReplicatedDataSource)
    return found


async def write(registry: DataSourceRegistry, item: str) -> None:
    async with registry.session(tenant="acme", timeout=5.0) as db:
        await db.execute("insert into orders (item) values (%s)", [item])
        await db.execute("notify written")


async def listen(registry: DataSourceRegistry, heard: list[Notification]) -> None:
    async with registry.session(tenant="acme") as db:
        async for notification in db.listen("written"):
            heard.append(notification)


async def read(registry: DataSourceRegistry, token: str | None = None) -> tuple[list[str], str, str]:
    async with registry.session(tenant="acme", token=token) as db:
        items = [row["item"] for row in await db.read.fetch_all("select item from orders order by id")]
        assert db.last_route is not None
        return items, db.last_route.node, db.last_route.reason.value


class Writes:
    """A client that writes continuously, and the outcome of each write."""

    def __init__(self, registry: DataSourceRegistry, prefix: str = "") -> None:
        self._registry = registry
        self._prefix = prefix
        self.done: list[str] = []
        self.refused: dict[str, DataError] = {}

    async def run(self) -> None:
        number = 0
        while True:
            item = f"{self._prefix}item {number}"
            try:
                await write(self._registry, item)
            except DataError as error:
                self.refused[item] = error
                await asyncio.sleep(0.01)
            else:
                self.done.append(item)
            number += 1

    async def go_on(self) -> None:
        """Wait for one more successful write."""
        before = len(self.done)
        await until(lambda: len(self.done) > before)


async def promote(cluster: EmbeddedCluster, name: str, *, followers: tuple[str, ...] = ()) -> None:
    await cluster.nodes[name].promote()
    for follower in followers:
        await cluster.nodes[follower].follow(cluster.nodes[name])


@pytest.mark.parametrize("parameters", [{"target_session_attrs": "read-write"}, {}])
async def test_writes_resume_on_the_promoted_replica_and_never_reach_the_former_primary(
    world: World, parameters: dict[str, str]
) -> None:
    cluster = world.cluster
    await cluster.primary.configure(synchronous_standby_names="r1")
    url = hosts(world, "primary", "r1", **parameters)
    async with compile(config_of(world, url, replicas=("r1", "r2"))) as registry:
        orders = orders_of(registry)
        writes = Writes(registry)
        running = asyncio.create_task(writes.run())
        await writes.go_on()
        heard: list[Notification] = []
        listening = asyncio.create_task(listen(registry, heard))
        await until(lambda: len(heard) > 0)
        await cluster.primary.kill()
        await until(lambda: not orders.primary.is_up)
        await promote(cluster, "r1")
        promoted_at = now()
        await writes.go_on()
        assert now() - promoted_at < RECONNECT_PAUSE_S + 1.0
        # The promoted server's notifications arrive, behind one that reports the gap.
        await until(lambda: any(one.has_gap for one in heard))
        gap = next(index for index, one in enumerate(heard) if one.has_gap)
        await until(lambda: len(heard) > gap + 1)
        listening.cancel()
        assert (orders.primary.port, orders.primary.timeline) == (cluster.nodes["r1"].port, 2)
        assert str(cluster.nodes["r1"].port) in orders.primary.label

        # The former primary returns as a standby, still the first host of the URL.
        await cluster.nodes["r2"].follow(cluster.nodes["r1"])
        await cluster.primary.follow(cluster.nodes["r1"], rebuild=True)
        for _ in range(5):
            await cluster.nodes["r1"].terminate_backends(world.dbname)
            await writes.go_on()
        running.cancel()
        await asyncio.wait((running,))
        # Replicas are used again, including the promoted server by its replica name.
        seen: set[str] = set()

        async def are_both_used() -> bool:
            seen.add((await read(registry))[1])
            return seen >= {"r1", "r2"}

        await until(are_both_used)

    kept = [row[0] for row in await world.sql("select item from acme.orders", node="r1")]
    assert set(writes.done) <= set(kept), "an acknowledged write is lost"
    for item, error in writes.refused.items():
        assert error.http_status == 503 or error.kind is DataErrorKind.COMMIT_UNKNOWN, error
        assert error.kind is DataErrorKind.COMMIT_UNKNOWN or item not in kept, f"{item} exists: {error}"


async def test_a_frozen_primary_that_returns_writable_is_left_by_all_processes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = world.cluster
    url = hosts(world, "primary", "r1")
    knows = compile(config_of(world, url, consistency={"token": "header", "secret": SECRET}))
    alone = compile(config_of(world, url, consistency={"token": "header", "secret": SECRET}))
    asks = compile(config_of(world, url, replicas=("r2",)))
    async with knows, alone, asks:
        for registry in (knows, alone, asks):
            await write(registry, f"before {id(registry)}")
        await cluster.primary.freeze()
        await promote(cluster, "r1")

        async def is_written() -> bool:
            try:
                await write(knows, "after")
            except DataError:
                return False
            return True

        began_at = now()
        await until(is_written)
        # The frozen server costs its timeouts; then all hosts are probed at once.
        assert now() - began_at < 12.0
        await cluster.primary.thaw()
        # The other processes have not noticed: their connections still lead to the writable former primary.
        assert "after" not in (await read(alone))[0]
        async with knows.session(tenant="acme") as db:
            await db.execute("insert into orders (item) values ('own')")
        assert db.token is not None
        assert "own" in (await read(alone, db.token))[0], "the client's token reveals the failover"
        await write(alone, "of another process")
        # A process with replicas learns of it from them.
        await cluster.nodes["r2"].follow(cluster.nodes["r1"])
        await until(lambda: orders_of(asks).primary.timeline == 2)
        await write(asks, "of a third process")
        # A process that starts now compares timelines, whichever comes first; a busy host may need longer.
        monkeypatch.setattr(primary_discovery, "GRACE_S", 5.0)
        async with compile(config_of(world, url)) as fresh:
            await write(fresh, "of a new process")
    expected = {"after", "own", "of another process", "of a third process", "of a new process"}
    kept = {row[0] for row in await world.sql("select item from acme.orders", node="r1")}
    left = {row[0] for row in await world.sql("select item from acme.orders")}
    assert expected <= kept
    assert not expected & left


async def test_an_open_transaction_on_the_former_primary_is_not_committed(world: World) -> None:
    cluster = world.cluster
    async with compile(config_of(world, hosts(world, "primary", "r1"))) as registry:
        with pytest.raises(DataError) as raised:
            async with registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values ('left behind')")
                await promote(cluster, "r1")
                orders_of(registry).primary.hear_of(2)
                await until(lambda: orders_of(registry).primary.timeline == 2)
        assert (raised.value.http_status, raised.value.is_retryable) == (503, True)
        await write(registry, "new")
    assert await world.items() == []
    assert await world.sql("select item from acme.orders", node="r1") == [("new",)]


async def test_a_write_refused_by_a_fenced_primary_is_retried_on_the_new_one(world: World) -> None:
    cluster = world.cluster
    async with compile(config_of(world, hosts(world, "primary", "r1"))) as registry:
        await write(registry, "before")
        await cluster.caught_up()
        await cluster.nodes["r1"].promote()
        # Fencing without stopping the server: sessions continue, but cannot write.
        await cluster.primary.configure(default_transaction_read_only="on")
        await write(registry, "after")
        assert orders_of(registry).primary.port == cluster.nodes["r1"].port
    assert await world.sql("select item from acme.orders", node="r1") == [("before",), ("after",)]


async def test_a_read_only_error_caused_by_the_application_costs_no_connection(world: World) -> None:
    async with compile(config_of(world, world.url())) as registry:
        before = {pid for pid, _ in await world.backends()}
        for _ in range(3):
            with pytest.raises(DataError) as raised:
                async with registry.session(tenant="acme") as db:
                    await db.execute("set transaction read only")
                    await db.execute("insert into orders (item) values ('tea')")
            assert raised.value.sqlstate == "25006"
        assert before <= {pid for pid, _ in await world.backends()}


async def test_a_standby_configured_as_primary_is_unused_until_it_is_promoted(world: World) -> None:
    r1 = world.cluster.nodes["r1"]
    config = config_of(world, world.url("r1"))
    config["datasources"]["orders"]["audit"] = {"on_start": "off"}
    async with compile(config) as registry:
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(DataError, match="it is a standby and takes no writes") as raised:
                await write(registry, "too early")
            assert (raised.value.kind, raised.value.http_status) == (DataErrorKind.CONNECTION, 503)
        assert time.monotonic() - started < 10.0
        assert not orders_of(registry).primary.is_up
        await r1.promote()
        await until(lambda: orders_of(registry).primary.is_up)
        await write(registry, "in time")
    assert await world.sql("select item from acme.orders", node="r1") == [("in time",)]


async def test_positions_of_the_old_timeline_are_proved_up_to_the_fork(world: World) -> None:
    cluster = world.cluster
    url = hosts(world, "primary", "r1")
    config = config_of(world, url, replicas=("r1", "r2"), consistency={"token": "header", "secret": SECRET})
    async with compile(config) as registry:
        orders = orders_of(registry)

        async def place(item: str) -> str:
            async with registry.session(tenant="acme") as db:
                await db.execute("insert into orders (item) values (%s)", [item])
            assert db.token is not None
            return db.token

        shared = await place("shared")
        await cluster.caught_up()
        await until(lambda: all(node.lag_bytes == 0 for node in orders.topology.replicas))
        # A commit that no replica receives.
        for name in ("r1", "r2"):
            await cluster.nodes[name].configure(primary_conninfo="")
        lost = await place("lost")
        await cluster.primary.kill()
        await promote(cluster, "r1", followers=("r2",))

        async def is_written() -> bool:
            try:
                await write(registry, "new")
            except DataError:
                return False
            return True

        await until(is_written)
        # Advance the new timeline beyond the lost position: its LSN alone would count as proof now.
        for number in range(50):
            await write(registry, f"more {number}")
        await until(lambda: all(node.position and node.position.timeline == 2 for node in orders.topology.replicas))
        for _ in range(4):
            items, node, reason = await read(registry, shared)
            assert (items[0], node in ("r1", "r2"), reason) == ("shared", True, "proved")
            items, node, reason = await read(registry, lost)
            assert (node, reason) == ("primary", "behind")
            assert "lost" not in items
