"""One event, as it lies in the outbox and as publishers get it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from ..errors import DataError, DataErrorKind

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"

MAX_NAME: Final = 255
"""Most characters of a topic, which brokers bound, and of a header's name."""
MAX_KEY: Final = 1024
"""Most characters of a key."""


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One event.

    Attributes:
        lane, seq: Where it lies in the outbox: events with one key are in one lane, in the order of `seq`.
        event_id: Its id, by which consumers recognise a repetition.
        tenant: The tenant that it was published for; None without one.
        topic: What has happened.
        key: What it has happened to; the order of deliveries holds for each key of a tenant.
        data: The payload's bytes: JSON, or what was published as bytes.
        content_type: `application/json` or `application/octet-stream`.
        headers: Those of `publish`, and the trace context (`traceparent`, `tracestate`).
        created_at: When it was written.
        source: Where it happened, as CloudEvents name it.
        attempts: How often it was refused before.
    """

    lane: int
    seq: int
    event_id: UUID
    tenant: str | None
    topic: str
    key: str
    data: bytes = field(repr=False)
    content_type: str
    headers: Mapping[str, str] = field(repr=False)
    created_at: datetime
    source: str = "urn:asgi-datasource"
    attempts: int = 0

    @property
    def idempotency_key(self) -> str:
        """The event's id as text, for brokers and consumers that drop repetitions."""
        return str(self.event_id)

    @property
    def place(self) -> tuple[int, int]:
        """Its lane and number: identifies it in its database."""
        return (self.lane, self.seq)

    @property
    def group(self) -> tuple[str | None, str]:
        """What deliveries are in order within: the key, of its tenant."""
        return (self.tenant, self.key)


class Draft(NamedTuple):
    """An event that waits for its COMMIT: the row without what the server fills in."""

    event_id: UUID
    tenant: str | None
    topic: str
    key: str
    data: str | None
    data_bin: bytes | None
    headers: str | None

    def __repr__(self) -> str:
        # Without the payload and the headers: they are data.
        return f"Draft({self.event_id}, topic={self.topic!r})"


def new_id(*, now_ms: int | None = None) -> UUID:
    """A UUID of version 7: ids grow with time, so that indexes on them stay compact.

    Source: RFC 9562, section 5.7.
    """
    stamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    number = (stamp & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10))
    return UUID(int=number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def encode_payload(payload: object, *, topic: str, max_bytes: int) -> tuple[str | None, bytes | None]:
    """The payload as JSON text or as bytes.

    Raises:
        DataError: QUERY: it cannot be written as JSON, or is larger than `max_bytes`.
    """
    if isinstance(payload, bytes | bytearray):
        data = bytes(payload)
        _check_size(len(data), topic, max_bytes)
        return None, data
    try:
        written = payload.model_dump_json().encode() if isinstance(payload, BaseModel) else to_json(payload)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            DataErrorKind.QUERY,
            f"the payload of an event of the topic {topic!r} cannot be written as JSON: it holds a"
            f" {type(payload).__name__} with something that JSON has no form for; publish plain values, a pydantic"
            " model, or bytes",
        ) from error
    _check_size(len(written), topic, max_bytes)
    return written.decode(), None


def _check_size(size: int, topic: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise DataError(
            DataErrorKind.QUERY,
            f"the payload of an event of the topic {topic!r} has {size} bytes, and outbox.max_payload allows"
            f" {max_bytes}; publish a reference to the data instead, or raise outbox.max_payload",
        )


def check_name(value: str, *, what: str, maximum: int = MAX_NAME) -> str:
    """Refuse a topic, key or header that brokers or the table cannot take.

    Raises:
        DataError: QUERY.
    """
    if not value or len(value) > maximum or not value.isprintable():
        raise DataError(DataErrorKind.QUERY, f"the {what} of an event is a text of 1 to {maximum} printable characters")
    return value
