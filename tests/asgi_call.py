"""One request without a server: for messages that the tests' servers do not support, and to record each message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Scope


class Call:
    """The server's side of one request.

    Attributes:
        sent: The messages of the application, in order.
    """

    def __init__(
        self,
        method: str = "POST",
        path: str = "/",
        *,
        headers: Sequence[tuple[bytes, bytes]] = ((b"x-tenant", b"acme"),),
        body: bytes = b"",
        on_send: Callable[[Message], None] | None = None,
        **scope: Any,
    ) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": list(headers),
            "server": ("testserver", 80),
            "client": ("testclient", 1),
            "extensions": {},
            **scope,
        }
        self.sent: list[Message] = []
        self._on_send = on_send
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def receive(self) -> Message:
        """The `receive` of a server: waits until there is a message."""
        return await self._messages.get()

    async def send(self, message: Message) -> None:
        """The `send` of a server."""
        self.sent.append(message)
        if self._on_send is not None:
            self._on_send(message)

    def leave(self) -> None:
        """Disconnect the client."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def run(self, app: ASGIApp) -> Call:
        """Call the application."""
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def types(self) -> list[str]:
        """The types of the sent messages."""
        return [message["type"] for message in self.sent]

    @property
    def status(self) -> int:
        """The status of the final response, after informational ones."""
        return next(message["status"] for message in reversed(self.sent) if message["type"] == "http.response.start")

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return b"".join(message.get("body", b"") for message in self.sent)
