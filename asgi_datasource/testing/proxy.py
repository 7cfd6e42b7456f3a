"""A TCP proxy in front of a PostgreSQL server that counts round trips, adds delay, and breaks connections on demand."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from .link import Direction, Link, Pipe
from .ports import HOST
from .timer import PreciseTimer

T = TypeVar("T")


class FaultProxy:
    """A proxy on a port of 127.0.0.1 that forwards everything until a fault is injected.

    It runs on the event loop that started it, asyncio's or uvloop's. Connect the client to `port`, without TLS if round
    trips are to be counted exactly (see `protocol`).

    Args:
        host: The server's address.
        port: The server's port.
        delay_s: Added to every round trip, half in each direction; accurate to a tenth of a millisecond on Linux. May
            be changed at any time through the attribute of this name.

    Attributes:
        port: Its port.
        accepted: Connections since the start or `reset_counters`, including those of cancel requests.
    """

    def __init__(self, host: str, port: int, *, delay_s: float = 0.0) -> None:
        self.port = 0
        self.accepted = 0
        self.delay_s = delay_s
        self._target = (host, port)
        self._links: set[Link] = set()
        self._listener: socket.socket | None = None
        self._accepting: dict[asyncio.Task[object], socket.socket] = {}
        self._stopped: set[Direction] = set()
        self._armed: dict[Direction, bytes] = {}
        self._late: deque[tuple[float, Pipe, bytes]] = deque()
        self._timer: PreciseTimer | None = None
        self._holding = asyncio.Event()
        self._empty = asyncio.Event()
        self._round_trips = 0
        self._startup_round_trips = 0
        self._requests = 0

    def __repr__(self) -> str:
        host, port = self._target
        return f"<{type(self).__name__} port={self.port} to {host}:{port} connections={self.connections}>"

    # -- life cycle -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._timer = PreciseTimer(loop, self._deliver_due)
        self._listener = socket.create_server((HOST, 0), backlog=512)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        # Not `create_server`, which loses accepted connections if it is closed at that moment, and never closes them.
        loop.add_reader(self._listener.fileno(), self._accept, self._listener)

    async def stop(self) -> None:
        """Close the port and every connection."""
        listener, self._listener = self._listener, None
        if listener is None or self._timer is None:
            return
        asyncio.get_running_loop().remove_reader(listener.fileno())
        listener.close()
        self._timer.close()
        self._timer = None
        self._late.clear()
        if self._accepting:
            await asyncio.wait(self._accepting)
        while self._links:
            self._empty.clear()
            self.cut()
            await self._empty.wait()

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            client.setblocking(False)
            link = Link(self)
            coming = loop.connect_accepted_socket(partial(_same, link.client), client)
            accepting = cast("asyncio.Task[object]", loop.create_task(coming))
            self._accepting[accepting] = client
            accepting.add_done_callback(self._accepted)

    def _accepted(self, accepting: asyncio.Task[object]) -> None:
        client = self._accepting.pop(accepting)
        if accepting.cancelled() or accepting.exception() is not None:
            client.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def through(self, url: str) -> str:
        """The connection string through this proxy: `proxy.through(node.url())`."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        where = f"{HOST}:{self.port}"
        return urlunsplit(parts._replace(netloc=f"{credentials}@{where}" if credentials else where))

    # -- counting -------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._links)

    @property
    def round_trips(self) -> int:
        """Round trips of all clients, without start-up and authentication (see `protocol`)."""
        return self._round_trips + sum(link.counter.round_trips for link in self._links)

    @property
    def startup_round_trips(self) -> int:
        """Round trips of all clients while connecting."""
        return self._startup_round_trips + sum(link.counter.startup_round_trips for link in self._links)

    @property
    def requests(self) -> int:
        """`Query` and `Sync` messages of all clients, which `ReadyForQuery` answers."""
        return self._requests + sum(link.counter.requests for link in self._links)

    def reset_counters(self) -> None:
        """Count from zero."""
        self.accepted = self._round_trips = self._startup_round_trips = self._requests = 0
        for link in self._links:
            link.counter.reset()

    # -- faults ---------------------------------------------------------------------------------------------------

    def hold(self, *, at: bytes | None = None) -> None:
        """Hold back the clients' data until `release`.

        Args:
            at: Start when a client sends these bytes, in upper or lower case, and affect only that connection, from
                that piece on: `hold(at=b"commit")`.
        """
        self._close_gate(Direction.TO_SERVER, at)

    def hold_back(self, *, at: bytes | None = None) -> None:
        """Hold back the server's answers until `release`.

        Args:
            at: Start when a client sends these bytes, and affect only that connection: the server receives them, the
                client gets no answer.
        """
        self._close_gate(Direction.TO_CLIENT, at)

    def freeze(self) -> None:
        """Forward nothing in either direction, on existing and new connections: like an unplugged cable."""
        self._close_gate(Direction.TO_SERVER, None)
        self._close_gate(Direction.TO_CLIENT, None)

    def release(self) -> None:
        """End `hold`, `hold_back` and `freeze`; held data is forwarded in order."""
        self._stopped.clear()
        self._armed.clear()
        for link in tuple(self._links):
            for pipe in (link.to_server, link.to_client):
                pipe.is_stopped = False
                pipe.drain()

    def cut(self, *, only_held: bool = False) -> None:
        """Reset connections on both sides; held data is lost. New connections are forwarded.

        Args:
            only_held: Only connections with held data.
        """
        for link in tuple(self._links):
            if not only_held or link.is_holding:
                link.reset()

    async def until_held(self, *, timeout_s: float = 10.0) -> None:
        """Wait until data is held: with `hold(at=b"commit")`, until a COMMIT was sent.

        Raises:
            TimeoutError: No data was held within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            while not any(link.is_holding for link in self._links):
                self._holding.clear()
                await self._holding.wait()

    # -- internals ------------------------------------------------------------------------------------------------

    def _close_gate(self, direction: Direction, at: bytes | None) -> None:
        if at is None:
            self._stopped.add(direction)
        else:
            self._armed[direction] = at.lower()

    def is_stopped(self, direction: Direction) -> bool:
        """Whether this direction is stopped."""
        return direction in self._stopped

    def note_holding(self) -> None:
        """Data is held back."""
        self._holding.set()

    def inspect(self, link: Link, data: bytes) -> None:
        """Look for the armed bytes in a client's data, and stop its connection there."""
        if self._armed:
            lowered = data.lower()
            for direction, wanted in tuple(self._armed.items()):
                if wanted in lowered:
                    del self._armed[direction]
                    (link.to_server if direction is Direction.TO_SERVER else link.to_client).is_stopped = True

    def delay(self, pipe: Pipe, data: bytes) -> bool:
        """Schedule a late delivery if there is a delay; False for delivery at once."""
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

    def opened(self, link: Link) -> None:
        """A client has connected."""
        self._links.add(link)
        self.accepted += 1
        if self._listener is None:
            # It was accepted while the port was being closed.
            link.reset()

    def closed(self, link: Link) -> None:
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


def _same(value: T) -> T:
    return value
