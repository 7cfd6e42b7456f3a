"""A real uvicorn around an application, for tests: on a free port, in this event loop or in a thread of its own."""

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
    """Raised when an application does not start up; the message says why."""


class _Uvicorn(uvicorn.Server):
    """A uvicorn that leaves the process's signals alone and stops as soon as it is told to."""

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
            # Its way to say that the application did not start; out of a task, it would end the whole event loop.
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
    """An application that is being served.

    Attributes:
        port: The port of 127.0.0.1.
        uvicorn: The server itself: `uvicorn.server_state.connections` are the open ones.
    """

    def __init__(self, port: int, server: uvicorn.Server) -> None:
        self.port = port
        self.uvicorn = server

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, without a slash at the end."""
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
        lifespan: As uvicorn's: `on` makes an application without lifespan an error.
        shutdown_timeout_s: How long requests in flight may take at the end, before their tasks are cancelled.
        options: More of `uvicorn.Config`'s: `root_path`, `headers`, `ws`, `limit_concurrency`.

    Raises:
        ServeError: The application did not start; the message says why.
    """
    failures: list[str] = []
    settings: dict[str, Any] = {
        "lifespan": lifespan,
        "timeout_graceful_shutdown": shutdown_timeout_s,
        # The test run's logging stays as it is.
        "log_config": None,
        "access_log": False,
        **options,
    }
    server = _Uvicorn(uvicorn.Config(_watch_lifespan(app, failures), **settings))
    listener = socket.socket()
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
            # Shielded: a second cancellation must not stop uvicorn half-way, with its sockets open.
            await asyncio.shield(serving)


async def _first(serving: asyncio.Task[None], is_up: asyncio.Event) -> None:
    waiting = asyncio.create_task(is_up.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _watch_lifespan(app: ASGIApp, failures: list[str]) -> ASGIApp:
    """The application, unchanged but for a note of what its start-up said when it failed; uvicorn only logs that."""

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
    """An application served by uvicorn in a thread of its own, for code without an event loop.

    Args:
        app: The ASGI application.
        loop: Which event loop the thread runs.
        options: As for `serve`.

    Raises:
        ServeError: The application did not start; the message says why.
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
        """`http://127.0.0.1:port`, without a slash at the end."""
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
        """Stop, after the requests in flight."""
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
