"""One request without a server: for messages that no server at hand can speak, and to see each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Scope


class Call:
    """What a server would hold of one request.

    Attributes:
        sent: Every message that the application has sent, in order.
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
        """As of a server: waits when there is no message."""
        return await self._messages.get()

    async def send(self, message: Message) -> None:
        """As of a server."""
        self.sent.append(message)
        if self._on_send is not None:
            self._on_send(message)

    def leave(self) -> None:
        """The client is gone."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def run(self, app: ASGIApp) -> Call:
        """Call the application."""
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def types(self) -> list[str]:
        """The types of what was sent."""
        return [message["type"] for message in self.sent]

    @property
    def status(self) -> int:
        """The status of the response; the last one, behind informational ones."""
        return next(message["status"] for message in reversed(self.sent) if message["type"] == "http.response.start")

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return b"".join(message.get("body", b"") for message in self.sent)
