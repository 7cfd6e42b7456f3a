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
    the server's `receive`.

    Args:
        receive: The server's.
        reads_first: Whether the watcher may read the first message. With `Expect: 100-continue`, a server asks the
            client for the body when it is first called, so the application has to decide that.
        disconnect_after: Event until which `http.disconnect` is withheld from the application; None withholds nothing.
        recorder: Records the messages that the application receives; None records nothing.
    """

    __slots__ = (
        "_fetching",
        "_has_begun",
        "_has_ended",
        "_receive",
        "_waiting",
        "_wake",
        "disconnect_after",
        "is_gone",
        "reads_first",
        "recorder",
        "stash",
    )

    def __init__(
        self,
        receive: Receive,
        *,
        reads_first: bool = True,
        disconnect_after: asyncio.Event | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.reads_first = reads_first
        self.disconnect_after = disconnect_after
        self.recorder = recorder
        self._receive = receive
        self.stash: deque[Message] = deque()
        """Messages that the watcher has read, and the application has not."""
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._has_begun = False
        self._has_ended = False
        self.is_gone = False
        """Whether the client has disconnected."""
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
            self.stash.appendleft(message)
            await disconnect_after.wait()

    async def _next(self) -> Message:
        while not self.stash:
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
        return self.stash.popleft()

    async def wait_for_disconnect(self) -> bool:
        """Wait for `http.disconnect`; called by the watcher.

        Returns:
            True after the disconnect; False if the server's `receive` failed, which the application will see itself.
        """
        while not self.is_gone:
            is_applications = not self._has_ended if self._has_begun else not self.reads_first
            if self._waiting > 0 or is_applications:
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
            self.stash.extendleft(reversed(self.recorder.take()))
        self.disconnect_after = None

    def drop_request(self) -> None:
        """The response is complete: the next message is the server's, which says so, instead of an unread body."""
        self.stash = deque(message for message in self.stash if message["type"] != "http.request")

    def close(self) -> None:
        """Stop reading ahead."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetch(self) -> None:
        try:
            message = await self._receive()
        finally:
            self._fetching = None
        self.stash.append(message)
        self._note(message)

    def _note(self, message: Message) -> None:
        self._has_begun = True
        self.is_gone = message["type"] == "http.disconnect"
        if self.is_gone or not message.get("more_body", False):
            self._has_ended = True
        self._wake.set()
