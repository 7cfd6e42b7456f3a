"""Each publisher against a real server: CloudEvents in binary mode, refusals, and an outage that costs only time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import aio_pika
import httpcore
import nats
import pytest
from cloudevents.core.bindings import http, kafka, rabbitmq
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis.asyncio import Redis

from asgi_datasource import ConfigError
from asgi_datasource.outbox import OutboxEntry, OutcomeKind
from asgi_datasource.outbox.entry import BINARY, JSON, new_id
from asgi_datasource.outbox.protocols import Batch
from asgi_datasource.outbox.publishers import webhook
from asgi_datasource.outbox.publishers.kafka import KafkaPublisher
from asgi_datasource.outbox.publishers.nats import NatsPublisher
from asgi_datasource.outbox.publishers.rabbitmq import RabbitmqPublisher
from asgi_datasource.outbox.publishers.redis import RedisPublisher
from asgi_datasource.outbox.publishers.webhook import PinnedBackend, WebhookPublisher, is_public
from tests.outbox.brokers import (
    free_port,
    kafka_broker,
    nats_server,
    rabbitmq_starting,
    redis_server,
    until_listening,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


def entry(number: int, *, topic: str = "orders", key: str = "k", data: bytes | None = None) -> OutboxEntry:
    body = json.dumps({"number": number}).encode() if data is None else data
    kind = JSON if data is None else BINARY
    headers = {"traceparent": TRACE, "shop": "north"}
    return OutboxEntry(1, number, new_id(), "acme", topic, key, body, kind, headers, datetime.now(UTC), "urn:test")


def kinds(outcomes: Any) -> list[str]:
    return [outcome.kind.value for outcome in outcomes]


def check_event(event: Any, sent: OutboxEntry) -> None:
    """What the CloudEvents SDK reads is what was published, in the same trace."""
    attributes = event.get_attributes()
    assert (attributes["id"], attributes["source"], attributes["type"]) == (str(sent.event_id), "urn:test", sent.topic)
    assert (attributes["subject"], attributes["partitionkey"], attributes["tenantid"]) == (sent.key, sent.key, "acme")
    assert attributes["traceparent"] == TRACE
    assert int(attributes["sequence"]) == sent.seq
    assert abs((attributes["time"] - sent.created_at).total_seconds()) < 1
    assert event.get_data() == json.loads(sent.data)


async def until_published(publish: Callable[[], Any]) -> None:
    """Publish again until the destination is back."""
    async with asyncio.timeout(30):
        while kinds(await publish()) != ["published"]:
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def rabbit(request: pytest.FixtureRequest) -> Iterator[tuple[int, str, Callable[[], None]] | None]:
    """A RabbitMQ server that starts while the other tests run: its port, its URL, and what kills it."""
    if all(item.name != "test_rabbitmq" for item in request.session.items):
        yield None
        return
    port = free_port()
    with ExitStack() as stack:
        url = stack.enter_context(rabbitmq_starting(port))
        yield port, url, stack.close


async def test_nats(tmp_path: Path) -> None:
    port = free_port()
    publisher = NatsPublisher(f"nats://127.0.0.1:{port}")
    one, two = entry(1), entry(2)
    assert kinds(await publisher.publish(Batch([one, two]))) == ["unreachable", "skipped"]
    async with nats_server(port, tmp_path) as url:
        client = await nats.connect(url)
        stream = client.jetstream()
        await stream.add_stream(name="EVENTS", subjects=["orders.>", "orders"], max_msg_size=10_000)
        assert kinds(await publisher.publish(Batch([one, two, one]))) == ["published"] * 3
        large, nowhere = entry(3, key="large", data=b"x" * 20_000), entry(4, topic="nowhere", key="other")
        assert kinds(await publisher.publish(Batch([large, nowhere, entry(5)]))) == ["refused", "refused", "published"]
        reader = await stream.subscribe("orders", ordered_consumer=True)
        found = [await reader.next_msg(timeout=5) for _ in range(3)]
        assert [json.loads(message.data)["number"] for message in found] == [1, 2, 5], "a repetition is dropped"
        headers = dict(found[0].headers or {})
        assert headers["shop"] == "north"
        check_event(http.from_http_event(http.HTTPMessage(headers, found[0].data)), one)
        await client.close()
    assert kinds(await publisher.publish(Batch([one]))) == ["unreachable"]
    async with nats_server(port, tmp_path):
        await until_published(lambda: publisher.publish(Batch([entry(6)])))
    await publisher.close()


async def test_redis() -> None:
    port = free_port()
    publisher = RedisPublisher(f"redis://127.0.0.1:{port}", max_length=1000)
    one = entry(1)
    assert kinds(await publisher.publish(Batch([one, entry(2)]))) == ["unreachable", "skipped"]
    async with redis_server(port) as url, Redis.from_url(url) as redis:
        assert kinds(await publisher.publish(Batch([one, entry(2)]))) == ["published"] * 2
        await redis.set("taken", "not a stream")
        outcomes = await publisher.publish(Batch([entry(3, topic="taken", key="a"), entry(4, key="b")]))
        assert kinds(outcomes) == ["refused", "published"]
        assert outcomes[0].reason == "Redis: WRONGTYPE"
        found = await redis.xrange("orders")
        fields = {name.decode(): value for name, value in found[0][1].items()}
        headers = {name: value for name, value in fields.items() if name not in ("data", "content_type")}
        headers["content-type"] = fields["content_type"]
        check_event(kafka.from_kafka_event(kafka.KafkaMessage(headers, None, fields["data"])), one)
        await redis.config_set("maxmemory", "1")
        assert kinds(await publisher.publish(Batch([entry(5)]))) == ["unreachable"], "full is not refused"
    assert kinds(await publisher.publish(Batch([one]))) == ["unreachable"]
    await publisher.close()


async def test_kafka() -> None:
    async with kafka_broker(free_port()) as address:
        admin = AdminClient({"bootstrap.servers": address})
        made = admin.create_topics([NewTopic("orders", num_partitions=1, replication_factor=1)])
        await asyncio.to_thread(made["orders"].result, 20)
        publisher = KafkaPublisher(address)
        sent = [entry(number) for number in range(3)]
        assert kinds(await publisher.publish(Batch(sent))) == ["published"] * 3
        outcomes = await publisher.publish(Batch([entry(4, key="large", data=b"x" * 2_000_000), entry(5)]))
        assert kinds(outcomes) == ["refused", "published"]
        consumer = Consumer({"bootstrap.servers": address, "group.id": "test", "auto.offset.reset": "earliest"})
        consumer.assign([TopicPartition("orders", 0, 0)])
        found: list[Any] = []
        async with asyncio.timeout(60):
            while len(found) < 4:
                message = await asyncio.to_thread(consumer.poll, 1.0)
                if message is not None and message.error() is None:
                    found.append(message)
        await asyncio.to_thread(consumer.close)
        assert [json.loads(message.value())["number"] for message in found] == [0, 1, 2, 5]
        assert found[0].key() == b"k"
        headers = dict(found[0].headers())
        check_event(kafka.from_kafka_event(kafka.KafkaMessage(headers, found[0].key(), found[0].value())), sent[0])
        await publisher.close()


async def test_kafka_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_datasource.outbox.publishers.kafka.LIMIT_MS", 300)
    publisher = KafkaPublisher(f"127.0.0.1:{free_port()}")
    assert kinds(await publisher.publish(Batch([entry(1), entry(2)]))) == ["unreachable", "skipped"]
    await publisher.close()


class Receiver:
    """A web server that answers as it is told, and remembers what it got."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        self.requests: list[tuple[dict[str, str], bytes]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append((headers, body))
        writer.write(self.answer)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver, "127.0.0.1", 0)
    async with server:
        yield receiver, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks"


class TestWebhook:
    async def test_what_is_posted(self) -> None:
        async with receiving() as (receiver, url):
            publisher = WebhookPublisher(url, SECRET, allow_private=True)
            one, other = entry(1), entry(2, key="größe 7")
            assert kinds(await publisher.publish(Batch([one, other]))) == ["published"] * 2
            await publisher.close()
        headers, body = next(request for request in receiver.requests if request[0]["webhook-id"] == str(one.event_id))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = hmac.digest(b"0123456789abcdef01234567", signed, hashlib.sha256)
        assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
        check_event(http.from_http_event(http.HTTPMessage(headers, body)), one)
        headers, body = next(request for request in receiver.requests if request[0] is not headers)
        check_event(http.from_http_event(http.HTTPMessage(headers, body)), other)

    @pytest.mark.parametrize(
        ("status", "kind", "retry_after_s"),
        [
            (b"200 OK", OutcomeKind.PUBLISHED, None),
            (b"302 Found\r\nLocation: http://127.0.0.1/", OutcomeKind.REFUSED, None),
            (b"400 Bad Request", OutcomeKind.REFUSED, None),
            (b"410 Gone", OutcomeKind.REFUSED, None),
            (b"429 Too Many Requests\r\nRetry-After: 7", OutcomeKind.UNREACHABLE, 7.0),
            (b"500 Internal Server Error", OutcomeKind.UNREACHABLE, None),
            (b"503 Service Unavailable\r\nRetry-After: soon", OutcomeKind.UNREACHABLE, None),
        ],
    )
    async def test_what_a_status_means(self, status: bytes, kind: OutcomeKind, retry_after_s: float | None) -> None:
        async with receiving() as (receiver, url):
            receiver.answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            publisher = WebhookPublisher(url, SECRET, allow_private=True)
            [outcome] = await publisher.publish(Batch([entry(1)]))
            await publisher.close()
        assert (outcome.kind, outcome.retry_after_s) == (kind, retry_after_s)

    async def test_a_receiver_that_does_not_answer_is_away(self) -> None:
        is_over = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            await writer.wait_closed()
            is_over.set()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            publisher = WebhookPublisher(url, SECRET, allow_private=True, timeout_s=0.1)
            assert kinds(await publisher.publish(Batch([entry(1)]))) == ["unreachable"]
            await publisher.close()
            await is_over.wait()

    async def test_private_addresses_get_nothing(self) -> None:
        async with receiving() as (receiver, url):
            publisher = WebhookPublisher(url.replace("http:", "https:"), SECRET)
            [outcome] = await publisher.publish(Batch([entry(1)]))
            await publisher.close()
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert "not public" in (outcome.reason or "")
        assert receiver.requests == []

    async def test_the_address_that_was_checked_is_the_one_that_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        asked: list[str] = []
        used: list[str] = []

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            return [(2, 1, 6, "", ("93.184.215.14" if len(asked) == 1 else "127.0.0.1", port))]

        async def connect(_: Any, host: str, *__: Any) -> Any:
            used.append(host)
            raise httpcore.ConnectError

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(webhook.httpcore.AnyIOBackend, "connect_tcp", connect)
        with pytest.raises(httpcore.ConnectError):
            await PinnedBackend(allow_private=False).connect_tcp("partner.example", 443)
        assert (asked, used) == (["partner.example"], ["93.184.215.14"])

    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fe80::1%eth0", "fd00::1", "0.0.0.0"),
            *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "224.0.0.1", "100.64.0.1"),
        ],
    )
    def test_addresses_that_are_not_public(self, address: str) -> None:
        assert not is_public(address)
        assert is_public("93.184.215.14")
        assert is_public("2606:4700::1111")

    @pytest.mark.parametrize(
        ("url", "secret", "words"),
        [
            ("http://partner.example/", SECRET, "use https"),
            ("https://user:word@partner.example/", SECRET, "without user"),
            ("partner.example", SECRET, "expected https"),
            ("https://partner.example/", "whsec_short", "24 to 64 bytes"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, url: str, secret: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words) as caught:
            WebhookPublisher(url, secret)
        assert "word@" not in str(caught.value)
        assert secret not in str(caught.value)


def test_ids_are_uuids() -> None:
    assert UUID(entry(1).idempotency_key).version == 7


async def test_rabbitmq(rabbit: tuple[int, str, Callable[[], None]]) -> None:
    port, url, kill = rabbit
    one = entry(1)
    nowhere = RabbitmqPublisher(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    assert kinds(await nowhere.publish(Batch([one, entry(2)]))) == ["unreachable", "skipped"]
    await until_listening(port)
    publisher = RabbitmqPublisher(url)
    async with await connect_rabbitmq(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("orders")
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        await channel.declare_queue("full", arguments=full)
        assert kinds(await publisher.publish(Batch([one, entry(2)]))) == ["published"] * 2
        outcomes = await publisher.publish(Batch([entry(3, topic="nowhere", key="a"), entry(4, key="b")]))
        assert kinds(outcomes) == ["refused", "published"]
        assert "no queue" in (outcomes[0].reason or "")
        outcomes = await publisher.publish(Batch([entry(5, topic="full"), entry(6, topic="full")]))
        assert kinds(outcomes) == ["published", "unreachable"], "a full queue says nothing about the message"
        message = await queue.get()
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.message_id == one.idempotency_key
        headers = {name: str(value) for name, value in message.headers.items()}
        check_event(
            rabbitmq.from_rabbitmq_event(rabbitmq.RabbitMQMessage(headers, message.content_type, message.body)), one
        )
    kill()
    assert kinds(await publisher.publish(Batch([one]))) == ["unreachable"]
    await publisher.close()


async def connect_rabbitmq(url: str) -> aio_pika.abc.AbstractConnection:
    """It listens a moment before it answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await aio_pika.connect(url, timeout=5)
            except (OSError, TimeoutError, aio_pika.exceptions.AMQPError):
                await asyncio.sleep(0.2)
