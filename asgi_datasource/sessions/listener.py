"""Notifications of channels, over a connection of their own that is made anew when it is lost.

Source: PostgreSQL manual, LISTEN and NOTIFY.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from ..drivers.protocol import Connection, Server
from ..drivers.statements import Statement
from ..errors import DataError, DataErrorKind
from .base import closed
from .core import SessionCore

logger = logging.getLogger("asgi_datasource.session")

MAX_WAITING: Final = 10_000
"""Notifications that wait for their consumer; further ones are dropped, and the next one says so."""

MAX_CHANNEL_BYTES: Final = 63
"""PostgreSQL truncates longer names."""

CONNECT_LIMIT_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.1

_TRIED_AGAIN: Final = frozenset(
    # READ_ONLY: a standby refuses LISTEN, and may be about to be promoted.
    {DataErrorKind.CONNECTION, DataErrorKind.TIMEOUT, DataErrorKind.RESOURCE, DataErrorKind.READ_ONLY}
)


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification of a channel.

    Attributes:
        channel: Name of the channel.
        payload: Text of the notification; empty if it has none.
        pid: Process id of the notifying server process; 0 for the one that reports a gap.
        has_gap: Notifications before this one may be missing: the connection was lost, or the consumer was slow. After
            a lost connection, one without payload and with pid 0 reports that as soon as the channels are heard again.
    """

    channel: str
    payload: str
    pid: int
    has_gap: bool = False


class Listener:
    """The notifications of a session's channels, as an async iterator; `DataSession.listen` makes it.

    `async with` listens from its first line on; without it, listening begins with the iteration.
    """

    def __init__(self, session: SessionCore, channels: tuple[str, ...]) -> None:
        session.check_open()
        if not channels:
            raise DataError(DataErrorKind.QUERY, "listen() needs the name of a channel: db.listen('orders')")
        for channel in channels:
            _check_channel(channel)
        self._session = session
        self._channels = channels
        self._server: Server | None = None
        self._connection: Connection | None = None
        self._waiting: deque[Notification] = deque()
        self._has_gap = False
        self._news = asyncio.Event()
        self._is_closed = False

    async def __aenter__(self) -> Listener:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Notification:
        if self._is_closed and self._session.is_open:
            raise StopAsyncIteration
        self._session.check_open()
        if self._connection is None:
            await self._start()
        while not self._waiting:
            if self._connection is None or self._connection.closed:
                await self._reconnect()
                continue
            self._news.clear()
            await self._news.wait()
            self._session.check_open()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Stop listening."""
        self.close()

    # -- as a participant of its session

    @property
    def has_pending(self) -> bool:
        """Never: there is nothing to flush."""
        return False

    async def flush(self) -> None:
        """Nothing to send."""

    def ended(self, *, committed: bool) -> None:
        """Listening is not a part of a transaction."""

    def close(self) -> None:
        """Stop listening; an iteration in progress raises SessionClosed if the session has ended."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.when_gone = None
            connection.cut("the channels are not listened to any more")
        self._news.set()

    # -- the connection

    async def _start(self) -> None:
        session = self._session
        session.check_open()
        if self._server is None:
            self._server = server = session.use_primary()
            if server.is_pooled:
                raise DataError(
                    DataErrorKind.CONFIG,
                    f"{server.full_name}: behind a pooler in transaction mode no channel can be listened to; use a"
                    " datasource whose URL leads to the server itself",
                    server=server.location,
                )
            session.participants = (*session.participants, self)
        await self._connect()

    async def _connect(self) -> None:
        server = self._server
        if server is None:
            raise closed()
        until = asyncio.get_running_loop().time() + CONNECT_LIMIT_S
        deadline = self._session.deadline()
        until = until if deadline is None else min(until, deadline)
        connection = await server.connect_apart(deadline=until, purpose="listen")
        connection.when_gone = self._news.set
        connection.add_notify_handler(self._heard)
        try:
            statements = [Statement(f"listen {_quoted(channel)}", prepare=False) for channel in self._channels]
            exchange = await connection.exchange(statements, deadline=until)
            if exchange.error is not None:
                raise server.error_of(exchange, is_write=False) from exchange.error
            if self._is_closed:
                raise closed()
        except BaseException:
            connection.when_gone = None
            connection.cut("the channels could not be listened to")
            raise
        self._connection = connection

    async def _reconnect(self) -> None:
        """Listen again, to the primary that there is now; until then the channels are silent."""
        session, server = self._session, self._server
        logger.warning(
            "%s: the connection that listens to %s was lost; it is made anew",
            "the server" if server is None else server.label,
            ", ".join(self._channels),
        )
        pause_s = FIRST_PAUSE_S
        while True:
            session.check_open()
            try:
                await self._connect()
                break
            except DataError as error:
                session.check_open()
                if error.kind not in _TRIED_AGAIN:
                    raise
            most_s = FIRST_PAUSE_S if server is None else server.settings.reconnect_pause_s
            self._news.clear()
            try:
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                    await self._news.wait()
            except TimeoutError:
                pause_s = min(most_s, pause_s * 2)
        for channel in self._channels:
            self._waiting.append(Notification(channel, "", 0, has_gap=True))

    def _heard(self, notify: Any) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._has_gap = True
            return
        self._waiting.append(Notification(notify.channel, notify.payload, notify.pid, self._has_gap))
        self._has_gap = False
        self._news.set()


def _check_channel(channel: str) -> None:
    if not channel or "\0" in channel or len(channel.encode("utf-8", "replace")) > MAX_CHANNEL_BYTES:
        raise DataError(
            DataErrorKind.QUERY, f"the name of a channel has 1 to {MAX_CHANNEL_BYTES} bytes without NUL: {channel!r}"
        )


def _quoted(channel: str) -> str:
    return '"' + channel.replace('"', '""') + '"'
