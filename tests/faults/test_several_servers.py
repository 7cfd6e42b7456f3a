"""Replica URLs that lead to several servers: what is known of one of them is not said of another."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.config import Code
from asgi_datasource.drivers.psycopg.server import PsycopgServer
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.cli.run import call
from tests.drivers.polling import until
from tests.faults.servers import breakable_world, cluster_of
from tests.pgbouncer import pgbouncer
from tests.world import World

MAX_LAG_S = 0.5
CONNECTIONS = 6


class Balancer(FaultProxy):
    """Connects to several servers in turn."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__("127.0.0.1", ports[0])
        self._ports = cycle(ports)

    @property
    def target(self) -> tuple[str, int]:
        return "127.0.0.1", next(self._ports)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with cluster_of(2) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with breakable_world(cluster) as made:
        yield made


def config_of(world: World, url: str, **sections: object) -> dict[str, object]:
    config = world.config(replicas=("r1",), urls={"r1": url}, pool={"min_size": 1, "max_size": CONNECTIONS}, **sections)
    config["datasources"]["orders"]["routing"] = {"max_lag": f"{MAX_LAG_S * 1000:.0f}ms", "check_interval": "50ms"}
    return config


def both(world: World) -> str:
    """One URL for both replicas, of which each connection gets one at random."""
    nodes = world.cluster.replicas.values()
    return make_conninfo(
        world.url("r1"),
        host=",".join("127.0.0.1" for _ in nodes),
        port=",".join(str(node.port) for node in nodes),
        load_balance_hosts="random",
    )


def replica_of(registry: DataSourceRegistry) -> PsycopgServer:
    found = registry.datasources["orders"].servers["r1"]
    assert isinstance(found, PsycopgServer)
    return found


async def fill(registry: DataSourceRegistry) -> None:
    """Have connections to both servers in the pool."""
    replica = replica_of(registry)
    async with asyncio.timeout(20):
        while True:
            connections = [await replica.acquire(deadline=None) for _ in range(CONNECTIONS)]
            is_several = len({connection.leads_to for connection in connections}) > 1
            for connection in connections:
                give_back = replica.release if is_several else replica.discard
                give_back(connection)
            if is_several:
                break
    assert replica.leads_to_several


@pytest.mark.parametrize("snapshot", [False, True])
async def test_no_read_is_older_than_allowed_whichever_server_its_connection_leads_to(
    world: World, *, snapshot: bool
) -> None:
    async with compile(config_of(world, both(world))) as registry:
        await fill(registry)
        nodes: Counter[str] = Counter()

        async def read(oldest: int) -> None:
            async with registry.session("acme", read_only=snapshot) as db:
                count = await db.read.fetch_value("select count(*) from orders")
                assert db.last_route is not None
                nodes[db.last_route.node] += 1
                assert count >= oldest, db.last_route

        for paused in world.cluster.replicas.values():
            await paused.pause_replay()
            written = len(await world.items())
            for number in range(10):
                # What was there `MAX_LAG_S` before a read has to be in it.
                before, written = written, written + 1
                await world.sql(f"insert into orders (item) values ('{paused.name} {number}')")
                await asyncio.sleep(MAX_LAG_S / 2)
                if number >= 3:
                    await asyncio.gather(*(read(before - 2) for _ in range(CONNECTIONS)))
            await paused.resume_replay()
            await world.cluster.caught_up()
        assert nodes["primary"] > 0
        # Once neither is behind, both answer again.
        nodes.clear()

        async def is_back() -> bool:
            await asyncio.gather(*(read(0) for _ in range(CONNECTIONS)))
            return nodes["r1"] > 0

        await until(is_back)


async def test_what_a_pooler_leads_to_is_not_known_also_where_nobody_has_named_it(world: World) -> None:
    secret = {"token": "header", "secret": "s" * 32}
    async with (
        pgbouncer(world.url("r1"), size=3) as bouncer,
        compile(config_of(world, bouncer.url(world.dbname), consistency=secret)) as registry,
    ):
        replica = replica_of(registry)
        async with registry.session("acme") as db:
            await db.execute("insert into orders (item) values ('tea')")
        await world.cluster.caught_up()
        for _ in range(3):
            async with registry.session("acme", token=db.token) as reader:
                assert await reader.read.fetch_value("select count(*) from orders") == 1
        connection = await replica.acquire(deadline=None)
        assert (connection.leads_to, connection.held) == (None, None)
        replica.release(connection)
        assert replica.leads_to_several


async def test_a_server_that_was_restarted_is_one_server(world: World) -> None:
    async with compile(config_of(world, world.url("r1"))) as registry:
        replica = replica_of(registry)

        async def is_one() -> bool:
            async with registry.session("acme") as db:
                await db.read.fetch_value("select 1")
                route = db.last_route
            return route is not None and route.node == "r1" and not replica.leads_to_several

        await until(is_one)
        await world.cluster.replicas["r1"].restart()
        await until(is_one)


async def test_validate_and_check_say_that_a_replica_is_several_servers(world: World, tmp_path: Path) -> None:
    path = tmp_path / "datasource.json"
    async with Balancer([node.port for node in world.cluster.replicas.values()]) as balancer:
        for command, url in (("validate", both(world)), ("check", balancer.through(world.url("r1")))):
            path.write_text(json.dumps(config_of(world, url)))
            assert Code.SEVERAL_SERVERS in (await asyncio.to_thread(call, command, path)).out, command
