"""`examples/outbox_app` with a real NATS server: each event is processed once, by both consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import nats
import psycopg
import pytest

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.migrate import Migrator, Verdict
from asgi_datasource.testing import EmbeddedCluster, serve
from outbox_app import consumer, faststream_consumer
from outbox_app.shop import CONFIG, create_app
from tests.outbox.brokers import free_port, nats_server

TABLES = CONFIG.with_name("tables.sql")


@asynccontextmanager
async def plainly(registry: DataSourceRegistry, url: str) -> AsyncIterator[None]:
    task = asyncio.create_task(consumer.consume(registry, url))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def by_faststream(registry: DataSourceRegistry, url: str) -> AsyncIterator[None]:
    async with faststream_consumer.make_broker(registry, url) as broker:
        await broker.start()
        yield


@pytest.mark.parametrize("consuming", [plainly, by_faststream])
async def test_each_order_is_mailed_once(cluster: EmbeddedCluster, tmp_path: Path, consuming: Any) -> None:
    name = f"outbox_app_{consuming.__name__}_{free_port()}"
    await cluster.create_database(name)
    url = cluster.primary.url(dbname=name)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for schema in ("acme", "globex"):
            await connection.execute(f"create schema {schema}; set search_path = {schema}; {TABLES.read_text()}")
    try:
        async with nats_server(free_port(), tmp_path) as nats_url:
            await check(name, url, nats_url, consuming)
    finally:
        await cluster.drop_database(name)


async def check(name: str, url: str, nats_url: str, consuming: Any) -> None:
    registry = compile(CONFIG, environ={"ORDERS_URL": url, "NATS_URL": nats_url})
    assert registry.compiled.publishing is not None
    assert (await Migrator(registry.compiled.publishing).apply()).verdict is Verdict.AT_HEAD

    async def mails() -> list[tuple[str, ...]]:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            rows = await connection.execute(
                "select 'acme', recipient from acme.mails"
                " union all select 'globex', recipient from globex.mails order by 2"
            )
            return await rows.fetchall()

    client = await nats.connect(nats_url)
    await client.jetstream().add_stream(name=consumer.STREAM, subjects=[consumer.TOPIC])
    async with (
        serve(create_app(registry)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
        consuming(registry, nats_url),
    ):
        for tenant, email in (("acme", "a@example.com"), ("globex", "b@example.com")):
            placed = await http.post("/orders", headers={"X-Tenant": tenant}, json={"item": "tea", "email": email})
            assert placed.status_code == 201
        reader = await client.jetstream().subscribe(consumer.TOPIC, ordered_consumer=True)
        message = await reader.next_msg(timeout=10)
        again = {name: value for name, value in (message.headers or {}).items() if name.lower() != "nats-msg-id"}
        # The same event once more, as after a crash between the broker's confirmation and the acknowledgement.
        await client.jetstream().publish(consumer.TOPIC, message.data, headers=again)
        state = client.jetstream()

        async def pending() -> int:
            found = await state.consumers_info(consumer.STREAM)
            return sum(one.num_pending + one.num_ack_pending for one in found if one.name.endswith("mailer"))

        async with asyncio.timeout(20):
            while await pending() or len(await mails()) < 2:
                await asyncio.sleep(0.05)
        assert await mails() == [("acme", "a@example.com"), ("globex", "b@example.com")]
    await client.close()
