"""The section `outbox`: the events that transactions publish, and how they are delivered."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from . import values
from .durations import parse_duration
from .kinds import (
    CallablePath,
    DayCount,
    Duration,
    ExchangeName,
    Flag,
    KafkaServers,
    OutboxAttempts,
    OutboxConnections,
    SecretText,
    ServiceUrl,
    Size,
    SourceUri,
    StreamLength,
)
from .sections import OMISSIBLE, Section
from .sizes import parse_size


class NatsPublisher(Section):
    """NATS JetStream: the subject is the topic, and a stream must capture it."""

    url: ServiceUrl = Field(
        title="URL",
        description="The servers, separated by commas, with user and password where they ask for them.",
        examples=["nats://nats:4222", "${NATS_URL}"],
    )


class KafkaPublisher(Section):
    """Kafka: the topic is the topic, and the key decides the partition."""

    servers: KafkaServers = Field(
        title="Servers",
        description="The brokers to begin with, host:port, separated by commas.",
        examples=["kafka:9092"],
    )
    user: Annotated[SecretText | None, OMISSIBLE] = Field(
        default=None,
        title="User",
        description="The user of SASL/PLAIN over TLS; without it there is no login.",
        examples=["${KAFKA_USER}"],
    )
    password: Annotated[SecretText | None, OMISSIBLE] = Field(
        default=None, title="Password", description="The user's password.", examples=["${KAFKA_PASSWORD}"]
    )


class RabbitmqPublisher(Section):
    """RabbitMQ: the routing key is the topic; a message that no queue takes is refused."""

    url: ServiceUrl = Field(
        title="URL", description="The server, with user and password.", examples=["amqp://app@rabbitmq/", "${AMQP_URL}"]
    )
    exchange: ExchangeName = Field(
        default="",
        title="Exchange",
        description="The exchange, which must exist. Default: the one that routes to the queue of the topic's name.",
        examples=["events"],
    )


class RedisPublisher(Section):
    """Redis Streams: one stream a topic, with the fields ce_* and data."""

    url: ServiceUrl = Field(
        title="URL", description="The server, with user and password.", examples=["redis://redis:6379/0"]
    )
    max_length: Annotated[StreamLength | None, OMISSIBLE] = Field(
        default=None,
        title="Longest stream",
        description="About how many entries a stream keeps; older ones are trimmed. Default: all.",
        examples=[100000],
    )


class WebhookPublisher(Section):
    """Webhooks: POST requests, signed as Standard Webhooks define it."""

    url: ServiceUrl = Field(
        title="URL", description="Where events are posted to.", examples=["https://partner.example/hooks"]
    )
    secret: SecretText = Field(
        title="Secret",
        description="The key of the signatures, as whsec_ and base64, 24 to 64 bytes.",
        examples=["${WEBHOOK_SECRET}"],
    )
    allow_private: Flag = Field(
        default=False,
        title="Private addresses",
        description="Whether the host may have a private, loopback or link-local address, and the URL may be http.",
        examples=[True],
    )
    timeout_s: Duration = Field(
        default=parse_duration("15s"),
        alias="timeout",
        json_schema_extra={"default": "15s"},
        title="Timeout",
        description="How long the receiver may take to answer.",
        examples=["15s"],
    )


PublisherKind = Literal["nats", "kafka", "rabbitmq", "redis", "webhook", "callable"]
PUBLISHERS: Final[tuple[PublisherKind, ...]] = get_args(PublisherKind)
"""The keys of the section publisher; it has exactly one of them."""


class PublisherConfig(Section):
    """Where events go: exactly one of these keys."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [way]} for way in PUBLISHERS]})

    nats: Annotated[NatsPublisher | None, OMISSIBLE] = Field(
        default=None,
        title="NATS JetStream",
        description="Needs the extra nats.",
        examples=[{"url": "nats://nats:4222"}],
    )
    kafka: Annotated[KafkaPublisher | None, OMISSIBLE] = Field(
        default=None, title="Kafka", description="Needs the extra kafka.", examples=[{"servers": "kafka:9092"}]
    )
    rabbitmq: Annotated[RabbitmqPublisher | None, OMISSIBLE] = Field(
        default=None, title="RabbitMQ", description="Needs the extra rabbitmq.", examples=[{"url": "${AMQP_URL}"}]
    )
    redis: Annotated[RedisPublisher | None, OMISSIBLE] = Field(
        default=None,
        title="Redis Streams",
        description="Needs the extra redis.",
        examples=[{"url": "redis://redis:6379/0"}],
    )
    webhook: Annotated[WebhookPublisher | None, OMISSIBLE] = Field(
        default=None,
        title="Webhook",
        description="Needs the extra webhook.",
        examples=[{"url": "https://partner.example/hooks", "secret": "${WEBHOOK_SECRET}"}],
    )
    callable: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Function",
        description=(
            "A function of the application that gets one event, async or not; or an object with an async method"
            " publish(batch)."
        ),
        examples=["shop.events:publish"],
    )

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError("one_key", "expected exactly one key")
        return self

    @property
    def kind(self) -> PublisherKind:
        """The publisher's key."""
        return next(way for way in PUBLISHERS if way in self.model_fields_set)


class OutboxConfig(Section):
    """Events that transactions publish with `db.outbox.publish`, and the relay that delivers them."""

    relay: Annotated[Literal["embedded", "off"], values.word("RelayPlace", "embedded", "off")] = Field(
        default="off",
        title="Relay",
        description=(
            "embedded: every process of the application delivers events, sharing the work. off: `asgi-datasource outbox"
            " relay` does, in processes of its own."
        ),
        examples=["embedded"],
    )
    publisher: Annotated[PublisherConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Publisher",
        description="Where events go. A relay needs it; publishing does not.",
        examples=[{"nats": {"url": "nats://nats:4222"}}],
    )
    source: Annotated[SourceUri | None, OMISSIBLE] = Field(
        default=None,
        title="Source",
        description="The source of the CloudEvents, a URI. Default: urn:asgi-datasource: and the datasource's name.",
        examples=["https://shop.example/orders"],
    )
    max_payload: Size = Field(
        default=parse_size("256KiB"),
        json_schema_extra={"default": "256KiB"},
        title="Largest payload",
        description="publish() refuses a larger payload; most brokers refuse messages above 1 MiB.",
        examples=["256KiB"],
    )
    keep: Annotated[DayCount | None, OMISSIBLE] = Field(
        default=None,
        title="Keep",
        description="How many days delivered events are kept, in partitions of a day. Default: they are deleted.",
        examples=["7d"],
    )
    notify: Annotated[Literal["off", "coalesced"], values.word("OutboxNotify", "off", "coalesced")] = Field(
        default="off",
        title="Notify",
        description=(
            "How relays of other processes hear of an event before their next poll. coalesced: by NOTIFY, at most 20 a"
            " second from each process, never in a request's transaction. off: they poll, each 0.2 to 5 seconds."
        ),
        examples=["coalesced"],
    )
    lease: Annotated[Literal["5s", "15s", "30s", "60s"], values.word("OutboxLease", "5s", "15s", "30s", "60s")] = Field(
        default="15s",
        title="Lease",
        description=(
            "How long the keys of a relay that was killed wait until other relays take them over. A relay that cannot"
            " renew its lease in time, because its process or the database is slow, publishes nothing meanwhile."
            " 5s: for a quiet database near by. 15s: for most. 30s: for a busy one. 60s: for a far or overloaded one."
        ),
        examples=["15s"],
    )
    max_attempts: OutboxAttempts = Field(
        default=12,
        title="Attempts",
        description="How often a message that is refused is tried before it is dead. An outage counts no attempt.",
        examples=[12],
    )
    on_dead: Annotated[Literal["skip", "hold"], values.word("OnDead", "skip", "hold")] = Field(
        default="skip",
        title="Behind a dead message",
        description=(
            "skip: the later events of its key go on. hold: they wait until it is replayed or discarded by"
            " `asgi-datasource outbox dead`."
        ),
        examples=["hold"],
    )
    connections: OutboxConnections = Field(
        default=8,
        title="Connections",
        description="Most connections of each relay; with more databases than that, it visits them in turn.",
        examples=[8],
    )
    warn_age_s: Duration = Field(
        default=parse_duration("1m"),
        alias="warn_age",
        json_schema_extra={"default": "1m"},
        title="Age to warn at",
        description="The health of the outbox is a warning while an event is older than this.",
        examples=["1m"],
    )
