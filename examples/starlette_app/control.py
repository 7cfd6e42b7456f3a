"""Forward commands of the page (stop a replica, pause its replay) to the process that owns the servers.

`scripts/demo` owns the embedded servers and listens on a Unix socket that only its user can open. It starts the
application, which forwards commands to the socket, as one line of JSON in each direction. Without `scripts/demo` the
application has neither the socket nor these routes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

SOCKET: Final = "DESK_CONTROL_SOCKET"
"""Environment variable that names the socket."""

Order = dict[str, Any]


class ControlClient:
    """The application's end of the socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def ask(self, order: Order) -> Order:
        """Send one command and wait for its result.

        Raises:
            HTTPException: 502, when the socket is closed.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            raise HTTPException(502, "scripts/demo does not answer") from None
        try:
            writer.write(json.dumps(order).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        if not line:
            raise HTTPException(502, "scripts/demo does not answer")
        answer: Order = json.loads(line)
        return answer

    async def handle(self, request: Request) -> JSONResponse:
        """POST {"action": "stop", "server": "r1"}."""
        # A page of another origin needs a CORS permission for this header, and does not get it.
        if "x-desk-page" not in request.headers:
            raise HTTPException(403, "send the header X-Desk-Page")
        try:
            given = await request.json()
            order = {"action": str(given["action"]), "server": str(given["server"])}
        except (ValueError, TypeError, KeyError):
            raise HTTPException(400, 'send {"action": "stop", "server": "r1"}') from None
        answer = await self.ask(order)
        return JSONResponse(answer, status_code=400 if "error" in answer else 200)


class ControlServer:
    """The end of the process that owns the servers."""

    def __init__(self, path: Path, obey: Callable[[str, str], Awaitable[Order]]) -> None:
        self._path = path
        self._obey = obey
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ControlServer:
        self._server = await asyncio.start_unix_server(self._talk, self._path)
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            order = json.loads(await reader.readline() or "{}")
            try:
                answer = await self._obey(order.get("action", ""), order.get("server", ""))
            except Exception as error:  # noqa: BLE001  # the error is the result of the command; the demo continues
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
