"""A TCP proxy in front of a PostgreSQL server that counts round trips, adds delay, and breaks connections on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from enum import StrEnum
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import urlsplit, urlunsplit

from .protocol import RoundTripCounter
from .timer import PreciseTimer

HOST: Final = "127.0.0.1"
_HIGH_WATER: Final = 1 << 20
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_END: Final = b""
"""In a queue: the sender has closed its side."""


class Direction(StrEnum):
    """Which way bytes go."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class FaultProxy:
    """A proxy on a port of 127.0.0.1 that passes everything on, until told otherwise.

    Everything happens on the event loop that started it, asyncio's or uvloop's. Point the client at `port`, without TLS
    if round trips are to be counted exactly (see `protocol`).

    Args:
        host: The server's address.
        port: The server's port.
        delay_s: Added to every round trip, half on the way there and half on the way back; exact to a tenth of a
            millisecond on Linux. May be changed at any time through the attribute of this name.

    Attributes:
        port: Where it listens.
        accepted: Connections since the start or `reset_counters`, those of cancel requests among them.
    """

    def __init__(self, host: str, port: int, *, delay_s: float = 0.0) -> None:
        self.port = 0
        self.accepted = 0
        self.delay_s = delay_s
        self._target = (host, port)
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._stopped: set[Direction] = set()
        self._armed: dict[Direction, bytes] = {}
        self._late: deque[tuple[float, _Pipe, bytes]] = deque()
        self._timer: PreciseTimer | None = None
        self._holding = asyncio.Event()
        self._empty = asyncio.Event()
        self._round_trips = 0
        self._startup_round_trips = 0
        self._requests = 0

    def __repr__(self) -> str:
        host, port = self._target
        return f"<{type(self).__name__} port={self.port} to {host}:{port} connections={self.connections}>"

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, on a free port."""
        loop = asyncio.get_running_loop()
        self._timer = PreciseTimer(loop, self._deliver_due)
        self._server = await loop.create_server(lambda: _Link(self).client, HOST, 0, backlog=512)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is None or self._timer is None:
            return
        self._server.close()
        self._server = None
        self._timer.close()
        self._timer = None
        self._late.clear()
        while self._links:
            self._empty.clear()
            self.cut()
            await self._empty.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def through(self, url: str) -> str:
        """The same connection string, by way of this proxy: `proxy.through(node.url())`."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        where = f"{HOST}:{self.port}"
        return urlunsplit(parts._replace(netloc=f"{credentials}@{where}" if credentials else where))

    # -- counting -------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    @property
    def round_trips(self) -> int:
        """How often clients waited for an answer, start-up and authentication aside (see `protocol`)."""
        return self._round_trips + sum(link.counter.round_trips for link in self._links)

    @property
    def startup_round_trips(self) -> int:
        """How often clients waited while they connected."""
        return self._startup_round_trips + sum(link.counter.startup_round_trips for link in self._links)

    @property
    def requests(self) -> int:
        """How many `Query` and `Sync` messages clients sent: what the server answers with `ReadyForQuery`."""
        return self._requests + sum(link.counter.requests for link in self._links)

    def reset_counters(self) -> None:
        """Count from zero."""
        self.accepted = self._round_trips = self._startup_round_trips = self._requests = 0
        for link in self._links:
            link.counter.reset()

    # -- faults ---------------------------------------------------------------------------------------------------

    def hold(self, *, at: bytes | None = None) -> None:
        """Keep what clients send from the server, until `release`.

        Args:
            at: Only once a client sends something that contains these bytes, in upper or lower case, and then only that
                connection, from that piece on: `hold(at=b"commit")`.
        """
        self._close_gate(Direction.TO_SERVER, at)

    def hold_back(self, *, at: bytes | None = None) -> None:
        """Keep the server's answers from the clients, until `release`.

        Args:
            at: Only once a client sends something that contains these bytes, and then only that connection: the server
                gets it, the client never hears of it.
        """
        self._close_gate(Direction.TO_CLIENT, at)

    def freeze(self) -> None:
        """Pass nothing on in either direction, of connections open or new: a cable that was pulled out."""
        self._close_gate(Direction.TO_SERVER, None)
        self._close_gate(Direction.TO_CLIENT, None)

    def release(self) -> None:
        """End `hold`, `hold_back` and `freeze`; what was kept goes out now, in order."""
        self._stopped.clear()
        self._armed.clear()
        for link in tuple(self._links):
            for pipe in (link.to_server, link.to_client):
                pipe.is_stopped = False
                pipe.drain()

    def cut(self, *, only_held: bool = False) -> None:
        """Reset connections on both sides; what was kept is lost. New connections pass.

        Args:
            only_held: Only those of which something is kept back.
        """
        for link in tuple(self._links):
            if not only_held or link.is_holding:
                link.reset()

    async def until_held(self, *, timeout_s: float = 10.0) -> None:
        """Wait until something is kept back: with `hold(at=b"commit")`, until a COMMIT was sent.

        Raises:
            TimeoutError: Nothing was, for `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            while not any(link.is_holding for link in self._links):
                self._holding.clear()
                await self._holding.wait()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _close_gate(self, direction: Direction, at: bytes | None) -> None:
        if at is None:
            self._stopped.add(direction)
        else:
            self._armed[direction] = at.lower()

    def is_stopped(self, direction: Direction) -> bool:
        """Whether nothing may pass this way."""
        return direction in self._stopped

    def note_holding(self) -> None:
        """Something is kept back."""
        self._holding.set()

    def inspect(self, link: _Link, data: bytes) -> None:
        """Look for the armed bytes in what a client sent, and stop its connection where they say so."""
        if self._armed:
            lowered = data.lower()
            for direction, wanted in tuple(self._armed.items()):
                if wanted in lowered:
                    del self._armed[direction]
                    (link.to_server if direction is Direction.TO_SERVER else link.to_client).is_stopped = True

    def delay(self, pipe: _Pipe, data: bytes) -> bool:
        """Deliver later, when there is a delay; False when it can go at once."""
        late = self._late
        if not self.delay_s and not pipe.late:
            return False
        if self._timer is None:
            return True
        due = time.monotonic() + self.delay_s / 2
        late.append((due, pipe, data))
        pipe.late += 1
        if len(late) == 1:
            self._timer.set(due)
        return True

    def _deliver_due(self) -> None:
        late = self._late
        now = time.monotonic()
        while late and late[0][0] <= now:
            _, pipe, data = late.popleft()
            pipe.late -= 1
            pipe.deliver(data)
        if late and self._timer is not None:
            self._timer.set(late[0][0])

    def opened(self, link: _Link) -> None:
        """A client has connected."""
        self._links.add(link)
        self.accepted += 1

    def closed(self, link: _Link) -> None:
        """Both sides of a connection are closed."""
        if link in self._links:
            self._links.remove(link)
            self._round_trips += link.counter.round_trips
            self._startup_round_trips += link.counter.startup_round_trips
            self._requests += link.counter.requests
            if not self._links:
                self._empty.set()

    @property
    def target(self) -> tuple[str, int]:
        """The server's address and port."""
        return self._target


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    __slots__ = ("client", "connecting", "counter", "is_cut", "proxy", "server", "to_client", "to_server")

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.counter = RoundTripCounter()
        self.client = _Side(self)
        self.server = _Side(self)
        self.to_server = _Pipe(self, Direction.TO_SERVER, self.client, self.server)
        self.to_client = _Pipe(self, Direction.TO_CLIENT, self.server, self.client)
        self.client.outgoing = self.to_server
        self.server.outgoing = self.to_client
        self.connecting: asyncio.Task[None] | None = None
        self.is_cut = False

    @property
    def is_holding(self) -> bool:
        """Whether something of it is kept back."""
        return not self.is_cut and (self.to_server.is_holding or self.to_client.is_holding)

    def opened(self, side: _Side) -> None:
        """One side is connected."""
        if side is self.client:
            self.proxy.opened(self)
            self.connecting = asyncio.get_running_loop().create_task(self._connect())
        else:
            self.connecting = None
            # Also when the client has gone already: one that asks for a cancellation need not wait for the answer.
            self.to_server.drain()

    def lost(self, side: _Side) -> None:
        """One side is closed: pass that on, after what it sent; say so when both are."""
        side.outgoing.feed(_END)
        self.settle()

    def settle(self) -> None:
        """Leave the proxy's books once both sides are closed."""
        if self.client.is_lost and self.connecting is None and (self.server.transport is None or self.server.is_lost):
            self.proxy.closed(self)

    def reset(self) -> None:
        """Close both sides with a TCP reset; nothing more passes."""
        self.is_cut = True
        if self.connecting is not None:
            self.connecting.cancel()
        self.client.reset()
        self.server.reset()

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy.target)
        except OSError:
            # What the server would have said to the client itself: refused, and all that is left is to close.
            self.client.reset()
        finally:
            self.connecting = None
            self.settle()


class _Side(asyncio.Protocol):
    """One TCP connection."""

    __slots__ = ("_is_reading", "is_lost", "link", "outgoing", "transport")

    outgoing: _Pipe

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self._is_reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports are not of asyncio's classes.
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
    def _incoming(self) -> _Pipe:
        """What brings the bytes that are written here."""
        return self.link.to_server if self is self.link.server else self.link.to_client

    def read(self, is_wanted: bool) -> None:
        """Go on reading, or let the sender wait."""
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


class _Pipe:
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

    def __init__(self, link: _Link, direction: Direction, source: _Side, sink: _Side) -> None:
        self._link = link
        self._direction = direction
        self._source = source
        self._sink = sink
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_congested = False
        self.is_stopped = False
        self.late = 0
        """Pieces under way in the proxy's delay; a later one must not overtake them."""

    @property
    def is_holding(self) -> bool:
        """Whether something is kept back, and not only because the server's side is still connecting."""
        return bool(self._held) and (self.is_stopped or self._link.proxy.is_stopped(self._direction))

    def feed(self, data: bytes) -> None:
        """Bytes from the source, or `_END`."""
        if self._direction is Direction.TO_SERVER:
            self._link.counter.from_client(data)
        if not self._link.proxy.delay(self, data):
            self.deliver(data)

    def deliver(self, data: bytes) -> None:
        """Hand over to the sink, unless that is stopped or not there yet."""
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
        """Hand over what was kept back."""
        if self.is_stopped or self._link.proxy.is_stopped(self._direction) or self._sink.transport is None:
            return
        while self._held:
            self._write(self._held.popleft())
        self._held_bytes = 0
        self._pace()

    def congest(self, is_congested: bool) -> None:
        """The sink takes no more for now, or takes it again."""
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
        if data is _END:
            transport.close()
            return
        if self._direction is Direction.TO_CLIENT:
            # Counted when the client gets it, not when the server sent it: what it sends meanwhile did not wait.
            self._link.counter.from_server(data)
        transport.write(data)
