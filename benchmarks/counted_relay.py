"""A relay in front of PostgreSQL that counts messages and bytes, for one connection without TLS."""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import Final, Self

from asgi_datasource.testing.protocol import RoundTripCounter

_LENGTH: Final = struct.Struct("!I")
_STATEMENTS: Final = frozenset(b"EQ")


class _Messages:
    """Splits one direction of an open connection into messages; counts them by type."""

    def __init__(self) -> None:
        self._rest = b""
        self.kinds: list[int] = []

    def feed(self, data: bytes) -> None:
        buffer = self._rest + data
        at = 0
        while len(buffer) - at >= 5:
            end = at + 1 + _LENGTH.unpack_from(buffer, at + 1)[0]
            if end > len(buffer):
                break
            self.kinds.append(buffer[at])
            at = end
        self._rest = buffer[at:]


class CountingRelay:
    """Relays connections to a server, and counts what passes after `reset`.

    Args:
        host: The server's address.
        port: The server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._links: set[asyncio.Task[None]] = set()
        self.reset()

    def reset(self) -> None:
        """Count from zero; no request is in progress."""
        self._bytes = {"bytes sent": 0, "bytes received": 0}
        self._sent, self._received = _Messages(), _Messages()
        for counter in getattr(self, "_counters", ()):
            counter.reset()
        self._counters: list[RoundTripCounter] = list(getattr(self, "_counters", ()))

    def figures(self) -> dict[str, int]:
        """Round trips, messages, bytes and statements (`Execute` and `Query` messages) since `reset`."""
        return {
            "round trips": sum(counter.round_trips for counter in self._counters),
            "statements": sum(kind in _STATEMENTS for kind in self._sent.kinds),
            "messages sent": len(self._sent.kinds),
            "messages received": len(self._received.kinds),
            **self._bytes,
        }

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(*self._target)
        counter = RoundTripCounter()
        self._counters.append(counter)
        for source, sink, is_client in ((reader, to_writer, True), (to_reader, writer, False)):
            link = asyncio.create_task(self._forward(source, sink, counter, is_client=is_client))
            self._links.add(link)
            link.add_done_callback(self._links.discard)

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counter: RoundTripCounter, *, is_client: bool
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                (counter.from_client if is_client else counter.from_server)(data)
                self._bytes["bytes sent" if is_client else "bytes received"] += len(data)
                (self._sent if is_client else self._received).feed(data)
                sink.write(data)
        finally:
            sink.close()
