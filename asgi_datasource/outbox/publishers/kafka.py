"""Kafka: an idempotent producer, acknowledged by all in-sync replicas; the key decides the partition."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from ..entry import OutboxEntry
from ..protocols import Refused, Unreachable
from .cloud_events import headers_of
from .keyed import KeyedPublisher

LIMIT_MS: Final = 10_000
"""Milliseconds within which a message is acknowledged, retries of the client included."""

_REFUSED: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._INVALID_ARG,
    }
)
"""Errors that concern the message or its topic; all others say that the brokers are away."""


class KafkaPublisher(KeyedPublisher):
    """Produces to the topic of the topic's name.

    Args:
        servers: The brokers to begin with.
        user, password: Login by SASL/PLAIN over TLS; None logs in nowhere.
    """

    system = "kafka"

    def __init__(self, servers: str, *, user: str | None = None, password: str | None = None) -> None:
        self._settings: dict[str, Any] = {
            "bootstrap.servers": servers,
            "client.id": "asgi-datasource-outbox",
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": LIMIT_MS,
            "socket.connection.setup.timeout.ms": 3_000,
            "linger.ms": 2,
            "logger": _silent(),
        }
        if user is not None:
            self._settings |= {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.username": user,
                "sasl.password": password or "",
            }
        self._producer: Producer | None = None
        self._poller: threading.Thread | None = None
        self._is_closed = threading.Event()

    async def send(self, entry: OutboxEntry) -> None:
        """Produce, and wait for the acknowledgement."""
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[KafkaError | None] = loop.create_future()

        def delivered(error: KafkaError | None, _: Any) -> None:
            loop.call_soon_threadsafe(_resolve, acknowledged, error)

        headers = headers_of(entry, "ce_") | {"content-type": entry.content_type}
        try:
            self._running().produce(
                entry.topic,
                entry.data,
                entry.key.encode(),
                headers=[(name, value.encode()) for name, value in headers.items()],
                on_delivery=delivered,
            )
        except BufferError as error:
            raise Unreachable("Kafka: the queue of the producer is full") from error
        except KafkaException as error:
            raise self._as_failure(error.args[0]) from error
        failure = await acknowledged
        if failure is not None:
            raise self._as_failure(failure)

    def _as_failure(self, error: KafkaError) -> Exception:
        if error.fatal():
            # This producer takes no more messages; the next attempt makes another one.
            self._stop()
        if error.code() in _REFUSED:
            return Refused(f"Kafka: {error.name()}")
        return Unreachable(f"Kafka: {error.name()}")

    def _running(self) -> Producer:
        if self._producer is None:
            self._is_closed = closed = threading.Event()
            self._producer = producer = Producer(self._settings)
            self._poller = threading.Thread(target=_poll, args=(producer, closed), name="outbox kafka", daemon=True)
            self._poller.start()
        return self._producer

    def _stop(self) -> None:
        self._is_closed.set()
        self._producer = None

    async def close(self) -> None:
        """Stop the producer; what it has not delivered stays in the outbox."""
        poller, self._poller = self._poller, None
        self._stop()
        if poller is not None:
            await asyncio.to_thread(poller.join)


def _poll(producer: Producer, closed: threading.Event) -> None:
    while not closed.is_set():
        producer.poll(0.1)
    producer.purge()
    producer.poll(0)


def _resolve(future: asyncio.Future[KafkaError | None], error: KafkaError | None) -> None:
    if not future.done():
        future.set_result(error)


def _silent() -> Any:
    import logging

    logger = logging.getLogger("asgi_datasource.outbox.kafka")
    logger.addHandler(logging.NullHandler())
    return logger
