"""A plain consumer on nats-py: `python -m outbox_app.consumer`. It mails the buyer of each order, once."""

from __future__ import annotations

import asyncio
import json
import os

import nats
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingThere

from asgi_datasource import DataSourceRegistry, compile
from outbox_app.shop import CONFIG

STREAM, TOPIC, NAME = "ORDERS", "orders.placed", "mailer"


async def process(registry: DataSourceRegistry, message: Msg) -> None:
    """The mail and the note that the event is processed are one transaction; acknowledged once that is committed."""
    attributes = message.headers or {}
    async with registry.session(tenant=attributes["ce-tenantid"]) as db:
        if await db.inbox.once(NAME, attributes["ce-id"]):
            order = json.loads(message.data)
            await db.execute("insert into mails (order_id, recipient) values (%s, %s)", [order["id"], order["email"]])
    await message.ack()


async def consume(registry: DataSourceRegistry, url: str) -> None:
    """Process what arrives until it is cancelled; what is not acknowledged is delivered again."""
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name=STREAM, subjects=[TOPIC])
        subscription = await stream.pull_subscribe(TOPIC, durable=NAME)
        while True:
            try:
                messages = await subscription.fetch(50, timeout=5)
            except NothingThere:
                continue
            for message in messages:
                await process(registry, message)
    finally:
        await client.close()


async def main() -> None:
    """Consume with the shop's configuration."""
    async with compile(CONFIG) as registry:
        await consume(registry, os.environ["NATS_URL"])


if __name__ == "__main__":
    asyncio.run(main())
