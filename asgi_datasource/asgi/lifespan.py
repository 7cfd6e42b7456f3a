"""The lifespan protocol: the registry is open from before the application's start-up until after its shutdown."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError
from ..registry.registry import DataSourceRegistry

logger = logging.getLogger("asgi_datasource.middleware")


class Lifespan:
    """Runs the application's lifespan, opens the registry before its start-up and closes it after its shutdown.

    An application that does not speak lifespan gets one spoken for it, so that the pools are closed all the same.
    """

    def __init__(self, app: ASGIApp, registry: DataSourceRegistry) -> None:
        self._app = app
        self._registry = registry
        self._is_asked = False
        self._is_answered = False
        self._is_started = False
        self._is_refused = False
        self._opened_here = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan protocol (ASGI specification, "Lifespan Protocol")."""

        async def receive_for_app() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._is_asked = True
                try:
                    await self._open()
                except DataError as error:
                    # After an exception alone the server would assume that lifespan is not supported, and would serve.
                    self._is_refused = True
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
            return message

        async def send_from_app(message: Message) -> None:
            if self._is_refused:
                return
            if message["type"].startswith("lifespan.startup."):
                self._is_answered = True
                self._is_started = message["type"] == "lifespan.startup.complete"
                if not self._is_started:
                    await self._close()
            elif message["type"].startswith("lifespan.shutdown."):
                await self._close()
                self._is_started = False
            await send(message)

        try:
            await self._app(scope, receive_for_app, send_from_app)
        except BaseException as error:
            if self._is_refused:
                return
            if self._is_asked or not isinstance(error, Exception):
                await self._close()
                raise
            # It has not even looked at the message: it does not speak lifespan (ASGI specification).
            logger.debug("the application does not support lifespan", exc_info=True)
        if self._is_answered and not self._is_started:
            return
        if self._is_asked and not self._is_answered:
            await send({"type": "lifespan.startup.complete"})
        await self._speak(receive, send)

    async def _speak(self, receive: Receive, send: Send) -> None:
        """Run the rest of the protocol for an application that has returned from it."""
        try:
            while True:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    break
                try:
                    await self._open()
                except DataError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
        finally:
            await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self) -> None:
        registry = self._registry
        if not registry.is_open:
            await registry.open()
            self._opened_here = True
        outbox = registry.compiled.outbox
        if outbox is not None and outbox.relay == "embedded":
            await registry.start_relay()

    async def _close(self) -> None:
        if self._opened_here:
            self._opened_here = False
            await self._registry.close()
