"""The lifespan protocol: the registry is open from before the application's start-up until after its shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError
from ..registry.registry import DataSourceRegistry

logger = logging.getLogger("asgi_datasource.middleware")


class Lifespan:
    """Runs the application's lifespan, opens the registry before its start-up and closes it after its shutdown.

    An application that returns without a word gets the protocol spoken for it, so that the pools are closed all the
    same. One that raises before it asks for a message either does not speak lifespan or could not be built: the pools
    are opened, and the server gets the exception, as it would without the middleware.
    """

    def __init__(self, app: ASGIApp, registry: DataSourceRegistry) -> None:
        self._app = app
        self._registry = registry
        self._is_asked = False
        self._is_answered = False
        self._is_started = False
        self._refusal: BaseException | None = None
        """Why the start was refused; or what the server's `send` has raised then: hypercorn ends its start with it."""
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
                    await self._refuse(error, send)
                    raise
            return message

        async def send_from_app(message: Message) -> None:
            if self._refusal is not None:
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

        failure: Exception | None = None
        try:
            await self._app(scope, receive_for_app, send_from_app)
        except BaseException as error:
            if self._refusal is None and (self._is_asked or not isinstance(error, Exception)):
                await self._close()
                raise
            failure = error if isinstance(error, Exception) else None
        if self._refusal is not None:
            # Servers that were told already pass over it; Starlette's test client goes on without it.
            raise self._refusal
        if failure is not None:
            await self._open_beside(failure, receive, send)
            return
        if self._is_answered and not self._is_started:
            return
        if self._is_asked and not self._is_answered:
            await send({"type": "lifespan.startup.complete"})
        await self._speak(receive, send)

    async def _open_beside(self, failure: Exception, receive: Receive, send: Send) -> None:
        """The application has raised before it asked for a message: open the pools, and let the server decide.

        A server that goes on without lifespan says no good-bye: the registry then closes with the event loop.
        """
        logger.info("the application has ended the lifespan protocol with %s: %s", type(failure).__name__, failure)
        await receive()
        try:
            await self._open()
        except DataError as error:
            await self._refuse(error, send)
            raise (self._refusal or error) from None
        raise failure

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

    async def _refuse(self, error: DataError, send: Send) -> None:
        self._refusal = error
        try:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        except BaseException as refusal:  # noqa: BLE001 - raised by `run`, behind the application's own clean-up
            self._refusal = refusal

    async def _open(self) -> None:
        self._opened_here = await _open(self._registry) or self._opened_here

    async def _close(self) -> None:
        if self._opened_here:
            self._opened_here = False
            await self._registry.close()


async def _open(registry: DataSourceRegistry) -> bool:
    """Open a registry in this event loop, and start its embedded relay; False if it was open."""
    is_closed = registry.open_in is not asyncio._get_running_loop()
    if is_closed:
        await registry.open()
    outbox = registry.compiled.outbox
    try:
        if outbox is not None and outbox.relay == "embedded":
            await registry.start_relay()
    except BaseException:
        if is_closed:
            await registry.close()
        raise
    return is_closed


@asynccontextmanager
async def serving(registry: DataSourceRegistry) -> AsyncGenerator[None, None]:
    """Keep the registry open, for a framework that runs no lifespan of its middlewares.

    Raises:
        DataError: It could not be opened.
    """
    is_opened_here = await _open(registry)
    try:
        yield
    finally:
        if is_opened_here:
            await registry.close()


async def refuse_start(error: Exception, receive: Receive, send: Send) -> None:
    """Answer the lifespan protocol for an application that cannot be served: the server ends.

    Args:
        error: Why; its text is the server's last message.
        receive, send: The server's.

    Raises:
        Exception: `error` itself, or what `send` raises.
    """
    await receive()
    await send({"type": "lifespan.startup.failed", "message": str(error) or type(error).__name__})
    raise error.with_traceback(None)
