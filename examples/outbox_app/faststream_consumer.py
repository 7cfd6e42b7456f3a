"""The same consumer with FastStream: `faststream run --factory outbox_app.faststream_consumer:create_app`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from asgi_datasource import DataSourceRegistry, compile
from outbox_app.shop import CONFIG

STREAM, TOPIC, NAME = "ORDERS", "orders.placed", "faststream-mailer"


def make_broker(registry: DataSourceRegistry, url: str) -> NatsBroker:
    """A broker with one subscriber; FastStream acknowledges after the handler, and rejects where that raises."""
    broker = NatsBroker(url)

    @broker.subscriber(
        TOPIC,
        stream=JStream(STREAM, subjects=[TOPIC]),
        durable=NAME,
        pull_sub=PullSub(batch_size=50),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def mail(order: dict[str, Any], message: NatsMessage) -> None:
        async with registry.session(tenant=message.headers["ce-tenantid"]) as db:
            if await db.inbox.once(NAME, message.headers["ce-id"]):
                await db.execute(
                    "insert into mails (order_id, recipient) values (%s, %s)", [order["id"], order["email"]]
                )

    return broker


def create_app() -> FastStream:
    """The application; the registry is open while it runs."""
    registry = compile(CONFIG)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with registry:
            yield

    return FastStream(make_broker(registry, os.environ["NATS_URL"]), lifespan=lifespan)
