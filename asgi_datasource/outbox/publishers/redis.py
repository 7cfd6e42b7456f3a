"""Redis Streams: one stream a topic, with the fields `ce_*`, `content_type` and `data`, and a field for each header."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from ..entry import OutboxEntry
from ..protocols import Refused, Unreachable
from .cloud_events import headers_of
from .keyed import KeyedPublisher

LIMIT_S: Final = 5.0
_AWAY: Final = (ConnectionError, TimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError, OSError)
"""The server cannot take any message now."""


class RedisPublisher(KeyedPublisher):
    """Appends to the stream of the topic's name.

    Args:
        url: The server.
        max_length: About how many entries a stream keeps; None keeps all.
    """

    system = "redis"

    def __init__(self, url: str, *, max_length: int | None = None) -> None:
        self._redis: Redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - its options are not typed
            url, socket_timeout=LIMIT_S, socket_connect_timeout=LIMIT_S
        )
        self._max_length = max_length

    async def send(self, entry: OutboxEntry) -> None:
        """Append one entry."""
        fields: dict[Any, Any] = {**headers_of(entry, "ce_"), "content_type": entry.content_type, "data": entry.data}
        try:
            await self._redis.xadd(entry.topic, fields, maxlen=self._max_length, approximate=True)
        except _AWAY as error:
            raise Unreachable(f"Redis: {type(error).__name__}") from error
        except ResponseError as error:
            words = str(error).split()
            raise Refused(f"Redis: {words[0] if words else 'refused'}") from error
        except RedisError as error:
            raise Unreachable(f"Redis: {type(error).__name__}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
