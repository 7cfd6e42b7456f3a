"""The request's messages, read ahead to notice a disconnect while the application waits for SQL."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from starlette.types import Message, Receive


class Recorder(Protocol):
    """Records the messages that the application receives, for a retry."""

    def note(self, message: Message, /) -> None:
        """Record a message that the application receives."""
        ...

    def take(self) -> list[Message]:
        """Remove and return the recorded messages."""
        ...


class ReceiveBuffer:
    """Wraps the server's `receive` for the application and a disconnect watcher, without losing messages.

    The watcher reads ahead only the first message, and messages after the end of the body. In between only the
    application reads, which preserves the backpressure of an upload; and there is never more than one pending call of
    the server's `receive`. If the client waits for permission to send the body, the application reads the first message
    as well.

    Args:
        receive: The server's.
        disconnect_after: Event until which `http.disconnect` is withheld from the application; None withholds nothing.
        recorder: Records the messages that the application receives; None records nothing.
    """

    __slots__ = (
        "_fetching",
        "_has_begun",
        "_has_ended",
        "_receive",
        "_stash",
        "_waiting",
        "_wake",
        "disconnect_after",
        "is_gone",
        "is_withheld",
        "recorder",
    )

    def __init__(
        self, receive: Receive, *, disconnect_after: asyncio.Event | None = None, recorder: Recorder | None = None
    ) -> None:
        self.disconnect_after = disconnect_after
        self.recorder = recorder
        self._receive = receive
        self._stash: deque[Message] = deque()
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._has_begun = False
        self._has_ended = False
        self.is_gone = False
        """Whether the client has disconnected."""
        self.is_withheld = False
        """Whether the client sends the body only after `100 Continue`, which the server sends when it is asked for it
        (RFC 9110, section 10.1.1)."""
        self._wake = asyncio.Event()

    async def receive(self) -> Message:
        """The next message, for the application."""
        while True:
            message = await self._next()
            disconnect_after = self.disconnect_after
            if disconnect_after is None or disconnect_after.is_set() or message["type"] != "http.disconnect":
                if self.recorder is not None:
                    self.recorder.note(message)
                return message
            self._stash.appendleft(message)
            await disconnect_after.wait()

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
            # The watcher is reading: take its message. `asyncio.wait` does not pass a cancellation on to its task.
            await asyncio.wait({self._fetching})
        return self._stash.popleft()

    async def wait_for_disconnect(self) -> bool:
        """Wait for `http.disconnect`; called by the watcher.

        Returns:
            True after the disconnect; False if the server's `receive` failed, which the application will see itself.
        """
        while not self.is_gone:
            if self._waiting > 0 or (not self._has_ended if self._has_begun else self.is_withheld):
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
        """Replay the recorded messages to the next attempt."""
        if self.recorder is not None:
            self._stash.extendleft(reversed(self.recorder.take()))
        self.disconnect_after = None

    def close(self) -> None:
        """Stop reading ahead."""
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
