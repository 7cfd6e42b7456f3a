"""The request's messages, read ahead so that a client's leaving is noticed while the application waits for SQL."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from starlette.types import Message, Receive


class Recorder(Protocol):
    """Keeps what the application gets, so that it can be handed out again."""

    def note(self, message: Message, /) -> None:
        """The application gets this message."""
        ...

    def take(self) -> list[Message]:
        """What was kept, from the first message on."""
        ...


class ReceiveBuffer:
    """Stands before the server's `receive`: the application and a watcher share it, and no message is lost.

    The watcher leaves the messages to the application while a body is under way, so that an upload's backpressure works
    as before, and while the application itself waits for one, so that the server never has to answer two at a time. It
    reads only the first message ahead, and what comes after the body's end.

    Args:
        receive: The server's.
        tells_from: That the client has left is kept from the application until this has happened; None keeps nothing.
        recorder: Keeps what the application gets; None keeps nothing.
    """

    __slots__ = (
        "_fetching",
        "_has_begun",
        "_has_ended",
        "_receive",
        "_stash",
        "_waiting",
        "_wake",
        "is_gone",
        "recorder",
        "tells_from",
    )

    def __init__(
        self, receive: Receive, *, tells_from: asyncio.Event | None = None, recorder: Recorder | None = None
    ) -> None:
        self.tells_from = tells_from
        self.recorder = recorder
        self._receive = receive
        self._stash: deque[Message] = deque()
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._has_begun = False
        self._has_ended = False
        self.is_gone = False
        """Whether the client has left."""
        self._wake = asyncio.Event()

    async def receive(self) -> Message:
        """The next message, for the application."""
        while True:
            message = await self._next()
            tells_from = self.tells_from
            if tells_from is None or tells_from.is_set() or message["type"] != "http.disconnect":
                if self.recorder is not None:
                    self.recorder.note(message)
                return message
            self._stash.appendleft(message)
            await tells_from.wait()

    async def _next(self) -> Message:
        while not self._stash:
            if self._fetching is None:
                self._waiting += 1
                try:
                    message = await self._receive()
                    self._note(message)
                finally:
                    self._waiting -= 1
                    self._wake.set()
                return message
            # The watcher is reading, and what it gets is ours. `wait` leaves its task alone when we are cancelled.
            await asyncio.wait({self._fetching})
        return self._stash.popleft()

    async def wait_for_disconnect(self) -> bool:
        """Wait until the client is gone, for the watcher.

        Returns:
            Whether it is; False when the server's `receive` failed, which the application will hear of itself.
        """
        while not self.is_gone:
            if self._waiting > 0 or (self._has_begun and not self._has_ended):
                self._wake.clear()
                await self._wake.wait()
                continue
            if self._fetching is None:
                self._fetching = asyncio.get_running_loop().create_task(self._fetch())
            fetching = self._fetching
            await asyncio.wait({fetching})
            if fetching.cancelled() or fetching.exception() is not None:
                return False
        return True

    def rewind(self) -> None:
        """Another attempt: the application gets from the first message on what the last one has got."""
        if self.recorder is not None:
            self._stash.extendleft(reversed(self.recorder.take()))
        self.tells_from = None

    def close(self) -> None:
        """The request is over: stop reading ahead."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetch(self) -> None:
        try:
            message = await self._receive()
        finally:
            self._fetching = None
        self._stash.append(message)
        self._note(message)

    def _note(self, message: Message) -> None:
        self._has_begun = True
        self.is_gone = message["type"] == "http.disconnect"
        if self.is_gone or not message.get("more_body", False):
            self._has_ended = True
        self._wake.set()
