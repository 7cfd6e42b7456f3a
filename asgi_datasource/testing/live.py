"""A real uvicorn for an application under test: on a free port, in this event loop or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from types import TracebackType
from typing import Any, Final, Literal, Self

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .ports import HOST

_TICK_S: Final = 0.1
_TICKS: Final = 864000

LoopKind = Literal["asyncio", "uvloop"]


class ServeError(RuntimeError):
    """Raised when an application does not start; the message has the reason."""


class _Uvicorn(uvicorn.Server):
    """A uvicorn without signal handlers that stops at once on request."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()
        self._leave = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn raises SystemExit if the application did not start; in a task that would end the event loop.
            self.should_exit = True
        self.is_up.set()

    async def main_loop(self) -> None:
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % _TICKS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._leave.wait()

    def leave(self) -> None:
        """Stop serving."""
        self.should_exit = True
        self._leave.set()


class RunningServer:
    """A running server with its application.

    Attributes:
        port: The port of 127.0.0.1.
        uvicorn: The uvicorn server; `uvicorn.server_state.connections` are its open connections.
    """

    def __init__(self, port: int, server: uvicorn.Server) -> None:
        self.port = port
        self.uvicorn = server

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, without a trailing slash."""
        return f"http://{HOST}:{self.port}"


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp,
    *,
    lifespan: Literal["auto", "on", "off"] = "auto",
    shutdown_timeout_s: int = 5,
    **options: object,
) -> AsyncGenerator[RunningServer, None]:
    """Serve an application with uvicorn in the running event loop, for the length of the block.

    Args:
        app: The ASGI application.
        lifespan: As uvicorn's option: with `on`, an application without lifespan is an error.
        shutdown_timeout_s: Seconds for requests in progress at the end; then their tasks are cancelled.
        options: Other options of `uvicorn.Config`: `root_path`, `headers`, `ws`, `limit_concurrency`.

    Raises:
        ServeError: The application did not start; the message has the reason.
    """
    failures: list[str] = []
    settings: dict[str, Any] = {
        "lifespan": lifespan,
        "timeout_graceful_shutdown": shutdown_timeout_s,
        # Keep the test run's logging configuration.
        "log_config": None,
        "access_log": False,
        **options,
    }
    server = _Uvicorn(uvicorn.Config(_watch_lifespan(app, failures), **settings))
    # With its protocol, which accepted sockets inherit: asyncio sets TCP_NODELAY on those of TCP only.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, 0))
    port = int(listener.getsockname()[1])
    with listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await _first(serving, server.is_up)
            if server.should_exit or serving.done():
                await serving
                raise ServeError(
                    f"the application did not start: {'; '.join(failures) or 'see the log of uvicorn.error'}"
                )
            yield RunningServer(port, server)
        finally:
            server.leave()
            # Shielded: a second cancellation must not interrupt uvicorn's shutdown with open sockets.
            await asyncio.shield(serving)


async def _first(serving: asyncio.Task[None], is_up: asyncio.Event) -> None:
    waiting = asyncio.create_task(is_up.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _watch_lifespan(app: ASGIApp, failures: list[str]) -> ASGIApp:
    """Wrap the application to record the message of a failed start-up, which uvicorn only logs."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return

        async def noting(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failures.append(message.get("message") or "lifespan.startup.failed")
            await send(message)

        await app(scope, receive, noting)

    return watched


class LiveServer:
    """An application served by uvicorn in a thread, for code without an event loop.

    Args:
        app: The ASGI application.
        loop: Event loop of the thread.
        options: As for `serve`.

    Raises:
        ServeError: The application did not start; the message has the reason.
    """

    def __init__(self, app: ASGIApp, *, loop: LoopKind = "asyncio", **options: Any) -> None:
        self.port = 0
        self._app = app
        self._kind: LoopKind = loop
        self._options = options
        self._thread: threading.Thread | None = None
        self._is_up = threading.Event()
        self._error: BaseException | None = None
        self._stop: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, without a trailing slash."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start, and return when the application is up."""
        self._thread = threading.Thread(target=self._run, name="live-server", daemon=True)
        self._thread.start()
        self._is_up.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        """Stop after the requests in progress."""
        if self._thread is not None:
            self._stop()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory(self._kind)) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits in start()
            self._error = error
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with serve(self._app, **self._options) as running:
            self.port = running.port

            def stop() -> None:
                loop.call_soon_threadsafe(leave.set)

            self._stop = stop
            self._is_up.set()
            await leave.wait()


def _loop_factory(kind: LoopKind) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop
