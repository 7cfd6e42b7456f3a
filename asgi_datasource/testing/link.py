"""One connection through the fault proxy: two TCP connections and a queue for each direction between them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from enum import StrEnum
from typing import Final, Protocol, cast

from .protocol import RoundTripCounter

_HIGH_WATER: Final = 1 << 20
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_END: Final = b""
"""Queue item: the sender has closed its side."""


class Direction(StrEnum):
    """Direction of the bytes."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class Owner(Protocol):
    """The proxy as its connections use it."""

    @property
    def target(self) -> tuple[str, int]:
        """The server's address and port."""
        ...

    def opened(self, link: Link) -> None:
        """A client has connected."""

    def closed(self, link: Link) -> None:
        """Both sides of a connection are closed."""

    def is_stopped(self, direction: Direction) -> bool:
        """Whether all connections are stopped in this direction."""
        ...

    def inspect(self, link: Link, data: bytes) -> None:
        """Inspect what a client sent, before it goes to the server."""

    def delay(self, pipe: Pipe, data: bytes) -> bool:
        """Schedule a late delivery if there is a delay; False for delivery at once."""
        ...

    def note_holding(self) -> None:
        """Data is held back."""


class Link:
    """One client's connection and its connection to the server."""

    __slots__ = ("client", "connecting", "counter", "is_cut", "proxy", "server", "to_client", "to_server")

    def __init__(self, proxy: Owner) -> None:
        self.proxy = proxy
        self.counter = RoundTripCounter()
        self.client = Side(self)
        self.server = Side(self)
        self.to_server = Pipe(self, Direction.TO_SERVER, self.client, self.server)
        self.to_client = Pipe(self, Direction.TO_CLIENT, self.server, self.client)
        self.client.outgoing = self.to_server
        self.server.outgoing = self.to_client
        self.connecting: asyncio.Task[None] | None = None
        self.is_cut = False

    @property
    def is_holding(self) -> bool:
        """Whether some of its data is held back."""
        return not self.is_cut and (self.to_server.is_holding or self.to_client.is_holding)

    def opened(self, side: Side) -> None:
        """One side is connected."""
        if side is self.client:
            self.proxy.opened(self)
            if self.is_cut:
                # The proxy is being stopped.
                return
            self.connecting = asyncio.get_running_loop().create_task(self._connect())
            # A callback, because a task that is cancelled before its first step runs no `finally`.
            self.connecting.add_done_callback(self._connected)
        else:
            self.connecting = None
            # Even if the client has gone: the sender of a cancel request need not wait for the answer.
            self.to_server.drain()

    def lost(self, side: Side) -> None:
        """One side is closed: close the other after the remaining data; finish when both are closed."""
        side.outgoing.feed(_END)
        self.settle()

    def settle(self) -> None:
        """Unregister from the proxy once both sides are closed."""
        if self.client.is_lost and self.connecting is None and (self.server.transport is None or self.server.is_lost):
            self.proxy.closed(self)

    def reset(self) -> None:
        """Close both sides with a TCP reset; remaining data is dropped."""
        self.is_cut = True
        if self.connecting is not None:
            self.connecting.cancel()
        self.client.reset()
        self.server.reset()

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy.target)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self.connecting = None
        if not task.cancelled() and task.exception() is not None:
            # The server has refused the connection: close the client's as well.
            self.client.reset()
        if self.is_cut:
            self.server.reset()
            # uvloop reports no end of a connection whose connect was cancelled.
            self.server.is_lost = self.server.is_lost or task.cancelled()
        self.settle()


class Side(asyncio.Protocol):
    """One TCP connection."""

    __slots__ = ("_is_reading", "is_lost", "link", "outgoing", "transport")

    outgoing: Pipe

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self._is_reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not inherit asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.link.opened(self)

    def data_received(self, data: bytes) -> None:
        self.outgoing.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.link.lost(self)

    def pause_writing(self) -> None:
        self._incoming.congest(True)

    def resume_writing(self) -> None:
        self._incoming.congest(False)

    @property
    def _incoming(self) -> Pipe:
        """The pipe whose bytes are written here."""
        return self.link.to_server if self is self.link.server else self.link.to_client

    def read(self, is_wanted: bool) -> None:
        """Resume or pause reading."""
        if self.transport is None or self.is_lost or is_wanted == self._is_reading:
            return
        self._is_reading = is_wanted
        if is_wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def reset(self) -> None:
        """Close with a TCP reset."""
        if self.transport is None or self.is_lost:
            return
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


class Pipe:
    """One direction of a connection: a queue in front of a socket."""

    __slots__ = (
        "_direction",
        "_held",
        "_held_bytes",
        "_is_congested",
        "_link",
        "_sink",
        "_source",
        "is_stopped",
        "late",
    )

    def __init__(self, link: Link, direction: Direction, source: Side, sink: Side) -> None:
        self._link = link
        self._direction = direction
        self._source = source
        self._sink = sink
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_congested = False
        self.is_stopped = False
        self.late = 0
        """Number of delayed pieces in the proxy; later ones must not overtake them."""

    @property
    def is_holding(self) -> bool:
        """Whether data is held back, other than because the server's side is still connecting."""
        return bool(self._held) and (self.is_stopped or self._link.proxy.is_stopped(self._direction))

    def feed(self, data: bytes) -> None:
        """Bytes from the source, or `_END`."""
        if self._direction is Direction.TO_SERVER:
            self._link.counter.from_client(data)
        if not self._link.proxy.delay(self, data):
            self.deliver(data)

    def deliver(self, data: bytes) -> None:
        """Write to the sink, unless the direction is stopped or the sink is not connected yet."""
        proxy = self._link.proxy
        if self._link.is_cut:
            return
        if self._direction is Direction.TO_SERVER:
            proxy.inspect(self._link, data)
        if self._held or self.is_stopped or proxy.is_stopped(self._direction):
            self._keep(data)
            proxy.note_holding()
        elif self._sink.transport is None and self._link.connecting is not None:
            self._keep(data)
        else:
            self._write(data)

    def drain(self) -> None:
        """Write what was held back."""
        if self.is_stopped or self._link.proxy.is_stopped(self._direction) or self._sink.transport is None:
            return
        while self._held:
            self._write(self._held.popleft())
        self._held_bytes = 0
        self._pace()

    def congest(self, is_congested: bool) -> None:
        """The sink's write buffer is full, or has room again."""
        self._is_congested = is_congested
        self._pace()

    def _pace(self) -> None:
        self._source.read(not self._is_congested and self._held_bytes <= _HIGH_WATER)

    def _keep(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        self._pace()

    def _write(self, data: bytes) -> None:
        transport = self._sink.transport
        if transport is None or self._sink.is_lost:
            return
        if not data:
            transport.close()
            return
        if self._direction is Direction.TO_CLIENT:
            # Counted when the client gets it, not when the server sent it: the client sends before that without
            # waiting.
            self._link.counter.from_server(data)
        transport.write(data)
