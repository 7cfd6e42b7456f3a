"""HTTP/1.1 on the wire, to test for errors that a tolerant client would ignore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import h11

WAIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response.

    Attributes:
        status: Its status.
        headers: Its headers in order, with names in lower case.
        body: Its body.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        return next((value for key, value in self.headers if key == name), None)


class Wire:
    """One keep-alive connection to a server: an additional message after a response precedes the next response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.CLIENT)

    @classmethod
    @asynccontextmanager
    async def connect(cls, port: int) -> AsyncIterator[Wire]:
        """Connect to a port of this machine, and disconnect at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str | bytes, str | bytes]] = (("X-Tenant", "acme"),),
        body: bytes = b"",
    ) -> Answer:
        """Send a request and read its whole response.

        Raises:
            h11.RemoteProtocolError: The data is not exactly one response.
        """
        await self.send(method, target, headers, body)
        return await self.answer()

    async def send(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str | bytes, str | bytes]] = (("X-Tenant", "acme"),),
        body: bytes = b"",
    ) -> None:
        """Send a request."""
        if self._state.our_state is h11.DONE:
            self._state.start_next_cycle()
        fixed: list[tuple[str | bytes, str | bytes]] = [("Host", "test")]
        if body or method == "POST":
            fixed.append(("Content-Length", str(len(body))))
        request = h11.Request(method=method, target=target, headers=[*fixed, *headers])
        parts = [self._state.send(request)]
        if body:
            parts.append(self._state.send(h11.Data(data=body)))
        parts.append(self._state.send(h11.EndOfMessage()))
        await self.send_bytes(b"".join(part for part in parts if part))

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self._writer.write(data)
        await self._writer.drain()

    async def status_line(self) -> bytes:
        """Wait for the first line of the response without reading further; `answer` cannot be called afterwards."""
        return await asyncio.wait_for(self._reader.readline(), WAIT_S)

    async def answer(self) -> Answer:
        """Read a whole response."""
        status, headers, body = 0, list[tuple[str, str]](), bytearray()
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in event.headers]
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, headers, bytes(body))
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the server closed the connection instead of answering")

    async def rest(self) -> bytes:
        """The remaining data until the server closes the connection, including data after the last response."""
        left, _ = self._state.trailing_data
        return left + await asyncio.wait_for(self._reader.read(), WAIT_S)

    def leave(self) -> None:
        """Reset the connection, like a client that has crashed."""
        self._writer.transport.abort()

    async def _event(self) -> object:
        while True:
            event = self._state.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._state.receive_data(await asyncio.wait_for(self._reader.read(65536), WAIT_S))


async def ask_twice(port: int, method: str, target: str) -> tuple[Answer, Answer]:
    """Send a request and then `GET /alive` on the same connection, and check that no other data was sent."""
    async with Wire.connect(port) as wire:
        first = await wire.ask(method, target)
        second = await wire.ask("GET", "/alive", [("X-Tenant", "acme"), ("Connection", "close")])
        assert await wire.rest() == b""
    return first, second
