"""A real uvicorn in this loop or in a thread, with clean start-up and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from asgi_datasource.testing import LiveServer, ServeError, serve


class Desk:
    """An application that records its calls."""

    def __init__(self, *, fails_with: str | None = None) -> None:
        self.events: list[str] = []
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self._fails_with = fails_with
        self.app = Starlette(
            routes=[
                Route("/", self.hello),
                Route("/slow", self.slow),
                Route("/endless", self.endless),
                Route("/loop", self.loop),
            ],
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if self._fails_with is not None:
            raise RuntimeError(self._fails_with)
        self.events.append("up")
        yield
        self.events.append("down")

    async def hello(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.scope['root_path']}")

    async def slow(self, request: Request) -> PlainTextResponse:
        self.is_asked.set()
        await self.may_answer.wait()
        self.events.append("answered")
        return PlainTextResponse("done")

    async def endless(self, request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            try:
                self.is_asked.set()
                yield b"first"
                await asyncio.Event().wait()
            finally:
                self.events.append("cancelled")

        return StreamingResponse(body())

    async def loop(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(type(asyncio.get_running_loop()).__module__)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: Any) -> Any:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as running:
        yield running


def test_application_is_served_between_its_start_up_and_its_shutdown(runner: Any) -> None:
    async def body() -> None:
        desk = Desk()
        handler = signal.getsignal(signal.SIGINT)
        async with serve(desk.app, root_path="/desk") as server, httpx.AsyncClient(base_url=server.url) as client:
            assert desk.events == ["up"]
            assert (await client.get("/")).text == "hello /desk"
            assert signal.getsignal(signal.SIGINT) is handler
        # The client's connection stays open meanwhile.
        assert desk.events == ["up", "down"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)

    runner.run(body())


def test_answers_are_not_held_back_for_more_data(runner: Any) -> None:
    async def body() -> None:
        async with serve(Desk().app) as server, httpx.AsyncClient(base_url=server.url) as client:
            await client.get("/")
            [connection] = server.uvicorn.server_state.connections
            transport = connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert transport.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    runner.run(body())


def test_running_request_is_answered_before_shutdown(runner: Any) -> None:
    async def body() -> None:
        desk = Desk()
        async with httpx.AsyncClient() as client:
            async with serve(desk.app) as server:
                asked = asyncio.create_task(client.get(f"{server.url}/slow"))
                await desk.is_asked.wait()
                asyncio.get_running_loop().call_later(0.05, desk.may_answer.set)
            assert (await asked).text == "done"
        assert desk.events == ["up", "answered", "down"]

    runner.run(body())


def test_request_that_never_ends_is_cancelled_after_the_shutdown_timeout(runner: Any) -> None:
    async def body() -> None:
        desk = Desk()
        async with httpx.AsyncClient() as client:
            async with serve(desk.app, shutdown_timeout_s=1) as server:
                asked = asyncio.create_task(client.get(f"{server.url}/endless"))
                await desk.is_asked.wait()
            with pytest.raises(httpx.RemoteProtocolError):
                await asked
        assert desk.events[0] == "up"
        assert "cancelled" in desk.events

    runner.run(body())


def test_application_that_fails_to_start_raises_with_its_reason(runner: Any) -> None:
    async def body() -> None:
        with pytest.raises(ServeError, match=r"(?s)the application did not start: .*no database"):
            async with serve(Desk(fails_with="no database").app):
                raise AssertionError("it was served")

    runner.run(body())


def test_error_in_the_block_propagates_and_the_server_shuts_down_cleanly(runner: Any) -> None:
    async def body() -> None:
        desk = Desk()
        with pytest.raises(ZeroDivisionError):
            async with serve(desk.app):
                raise ZeroDivisionError
        assert desk.events == ["up", "down"]

    runner.run(body())


def test_cancelled_block_stops_the_server(runner: Any) -> None:
    async def body() -> None:
        desk = Desk()
        is_up = asyncio.Event()

        async def serving() -> None:
            async with serve(desk.app):
                is_up.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(serving())
        await is_up.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert desk.events == ["up", "down"]

    runner.run(body())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_live_server_runs_in_its_own_thread(loop: Any) -> None:
    desk = Desk()
    threads = threading.active_count()
    with LiveServer(desk.app, loop=loop) as server:
        assert httpx.get(f"{server.url}/").text == "hello "
        assert httpx.get(f"{server.url}/loop").text.startswith(loop)
    assert desk.events == ["up", "down"]
    assert threading.active_count() == threads
    server.stop()


def test_live_server_raises_the_start_up_error_of_the_application() -> None:
    with pytest.raises(ServeError, match="no database"):
        LiveServer(Desk(fails_with="no database").app).start()
