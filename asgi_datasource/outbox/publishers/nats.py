"""NATS JetStream: a message is published once a stream has stored it, and repetitions are dropped by its id."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from nats.aio.client import Client
from nats.errors import BadSubjectError, MaxPayloadError
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from ..entry import OutboxEntry
from ..protocols import Refused, Unreachable
from .cloud_events import headers_of
from .keyed import KeyedPublisher

logger = logging.getLogger("asgi_datasource.outbox")

CONNECT_LIMIT_S: Final = 3
ANSWER_LIMIT_S: Final = 5.0


class NatsPublisher(KeyedPublisher):
    """Publishes to the subject of the topic's name.

    Args:
        url: The servers, separated by commas.
    """

    system = "nats"

    def __init__(self, url: str) -> None:
        self._servers = [part.strip() for part in url.split(",")]
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def send(self, entry: OutboxEntry) -> None:
        """Publish, and wait until the stream has stored it."""
        stream = JetStreamContext(await self._connected(), timeout=ANSWER_LIMIT_S)
        headers = headers_of(entry, "ce-") | {"Nats-Msg-Id": entry.idempotency_key, "content-type": entry.content_type}
        try:
            await stream.publish(entry.topic, entry.data, headers=headers)
        except (MaxPayloadError, BadSubjectError, ValueError) as error:
            raise Refused(f"{type(error).__name__}: the message cannot be sent to this subject") from error
        except NoStreamResponseError as error:
            await self._look_for_stream(stream, entry.topic)
            raise Refused("no stream captures this subject") from error
        except APIError as error:
            refusal = f"JetStream: {error.description or error.code}"
            if error.code is not None and 400 <= error.code < 500:
                raise Refused(refusal) from error
            raise Unreachable(refusal) from error
        except (NatsError, OSError, TimeoutError) as error:
            raise Unreachable(f"NATS: {type(error).__name__}") from error

    async def _look_for_stream(self, stream: JetStreamContext, topic: str) -> None:
        """No stream has answered: raise `Unreachable` where there is one, or nobody can tell."""
        try:
            await stream.find_stream_name_by_subject(topic)
        except NotFoundError:
            return
        except (NatsError, OSError, TimeoutError) as error:
            raise Unreachable("NATS: JetStream does not answer") from error
        raise Unreachable("NATS: the stream does not answer")

    async def _connected(self) -> Client:
        async with self._lock:
            if self._client is None or self._client.is_closed:
                # A lost connection is made anew by the next message.
                try:
                    async with asyncio.timeout(CONNECT_LIMIT_S * len(self._servers)):
                        client = Client()
                        await client.connect(  # pyright: ignore[reportUnknownMemberType] - its options have no types
                            self._servers,
                            name="asgi-datasource outbox",
                            connect_timeout=CONNECT_LIMIT_S,
                            # Each server is tried twice, at once; then the circuit sets the pace.
                            allow_reconnect=False,
                            max_reconnect_attempts=1,
                            reconnect_time_wait=0,
                            error_cb=_note,
                        )
                        self._client = client
                except (NatsError, OSError, TimeoutError) as error:
                    raise Unreachable(f"NATS: {type(error).__name__}") from error
            return self._client

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            await client.close()


async def _note(error: Any) -> None:
    logger.debug("NATS: %s", type(error).__name__)
