"""RabbitMQ: persistent messages with publisher confirms; a message that no queue takes comes back and is refused."""

from __future__ import annotations

import asyncio
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError

from ..entry import OutboxEntry
from ..protocols import Refused, Unreachable
from .cloud_events import headers_of
from .keyed import KeyedPublisher

LIMIT_S: Final = 5.0


class RabbitmqPublisher(KeyedPublisher):
    """Publishes with the topic as the routing key.

    Args:
        url: The server.
        exchange: The exchange, which must exist; empty is the default one.
    """

    system = "rabbitmq"

    def __init__(self, url: str, *, exchange: str = "") -> None:
        self._url = url
        self._name = exchange
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchange: AbstractExchange | None = None
        self._lock = asyncio.Lock()

    async def send(self, entry: OutboxEntry) -> None:
        """Publish, and wait for the confirm."""
        exchange = await self._connected()
        message = aio_pika.Message(
            entry.data,
            headers=dict(headers_of(entry, "ce-")),
            content_type=entry.content_type,
            message_id=entry.idempotency_key,
            timestamp=entry.created_at,
            type=entry.topic,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            await exchange.publish(message, entry.topic, mandatory=True, timeout=LIMIT_S)
        except PublishError as error:
            raise Refused("RabbitMQ: no queue takes this routing key") from error
        except DeliveryError as error:
            raise Unreachable("RabbitMQ: the queue does not take messages now") from error
        except (ChannelInvalidStateError, AMQPError, OSError, TimeoutError, RuntimeError) as error:
            await self.close()
            raise Unreachable(f"RabbitMQ: {type(error).__name__}") from error

    async def _connected(self) -> AbstractExchange:
        async with self._lock:
            if (
                self._exchange is not None
                and self._channel is not None
                and not self._channel.is_closed
                and self._connection is not None
                and not self._connection.is_closed
            ):
                return self._exchange
            await self._drop()
            try:
                self._connection = await aio_pika.connect(self._url, timeout=LIMIT_S)
                self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchange = (
                    await self._channel.get_exchange(self._name) if self._name else self._channel.default_exchange
                )
            except (AMQPError, OSError, TimeoutError) as error:
                await self._drop()
                raise Unreachable(f"RabbitMQ: {type(error).__name__}") from error
            return self._exchange

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._channel = self._exchange = None
        if connection is not None and not connection.is_closed:
            await connection.close()

    async def close(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._drop()
