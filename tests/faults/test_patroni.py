"""Failover by Patroni (the Debian package): through a list of hosts, and through HAProxy."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from asgi_datasource import DataErrorKind, DataSourceRegistry, compile
from tests.drivers.polling import until
from tests.faults.test_failover import RECONNECT_PAUSE_S, Writes, orders_of
from tests.haproxy import haproxy
from tests.patience import now
from tests.patroni import PASSWORD, Patroni, patroni


def url_of(port: str, **parameters: str) -> str:
    hosts = ",".join(["127.0.0.1"] * len(port.split(",")))
    return make_conninfo(host=hosts, port=port, user="postgres", password=PASSWORD, dbname="postgres", **parameters)


def config_of(url: str, replicas: dict[str, str]) -> dict[str, Any]:
    return {
        "version": 1,
        "datasources": {
            "orders": {
                "primary": {"url": url},
                "replicas": {name: {"url": replica} for name, replica in replicas.items()},
                "pool": {"reconnect_pause": f"{RECONNECT_PAUSE_S:g}s", "connect_timeout": "2s"},
                "routing": {"check_interval": "200ms"},
            }
        },
        "tenants": {"acme": {"datasource": "orders"}},
    }


async def test_writes_resume_after_a_failover_by_patroni() -> None:
    async with patroni() as cluster:
        former = await cluster.leader()
        ports = ",".join(str(member.port) for member in cluster.members)
        members = {member.name: (member.port, member.rest_port) for member in cluster.members}
        replicas = {member.name: url_of(str(member.port)) for member in cluster.members}
        with psycopg.connect(url_of(str(former.port)), autocommit=True) as connection:
            connection.execute("create table orders (id bigint generated always as identity primary key, item text)")
        async with haproxy(members) as port:
            listed = compile(config_of(url_of(ports, target_session_attrs="read-write"), replicas))
            behind = compile(config_of(url_of(str(port)), replicas))
            async with listed, behind:
                await _fail_over(cluster, listed, behind)
        leader = await cluster.leader()
        assert leader is not former


async def _fail_over(cluster: Patroni, *registries: DataSourceRegistry) -> None:
    former = await cluster.leader()
    every = [Writes(registry, prefix=f"{index}: ") for index, registry in enumerate(registries)]
    running = [asyncio.create_task(writes.run()) for writes in every]
    for writes in every:
        await writes.go_on()
    timelines = [orders_of(registry).primary.timeline for registry in registries]
    former.kill_server()
    leader = await cluster.leader(but=former)
    began_at = now()
    for writes in every:
        await writes.go_on()
    assert now() - began_at < RECONNECT_PAUSE_S + 3.0
    # Patroni makes the former primary a replica; it may have commits that no other server received.
    await cluster.follows(former)
    for writes in every:
        await writes.go_on()
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    for registry, before in zip(registries, timelines, strict=True):
        orders = orders_of(registry)
        assert orders.primary.timeline > before
        # Both servers are used: the new primary also by its replica name.
        await until(lambda orders=orders: all(node.is_usable and node.position for node in orders.topology.replicas))
    with psycopg.connect(url_of(str(leader.port)), autocommit=True) as connection:
        kept = {row[0] for row in connection.execute("select item from orders").fetchall()}
    for writes in every:
        assert set(writes.done) <= kept, "an acknowledged write is lost"
        for item, error in writes.refused.items():
            assert error.http_status == 503 or error.kind is DataErrorKind.COMMIT_UNKNOWN, error
            assert error.kind is DataErrorKind.COMMIT_UNKNOWN or item not in kept, f"{item} exists: {error}"
