"""Proxies in front of the servers of a cluster, in a thread of their own, for tests with and without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

from .cluster import EmbeddedCluster
from .link import Link
from .proxy import FaultProxy

T = TypeVar("T")

_HELD_TIMEOUT_S: Final = 30.0
_POLL: Final = b"pg_is_in_recovery"
"""What only the library's polls of a server's state contain: they have connections of their own."""


class ApplicationProxy(FaultProxy):
    """A proxy that counts the round trips of the application, without those of the library's polls."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._polls: set[Link] = set()
        self._polled = 0

    @property
    def application_round_trips(self) -> int:
        """Round trips, without those of polls."""
        return self.round_trips - self._polled - sum(link.counter.round_trips for link in self._polls)

    def inspect(self, link: Link, data: bytes) -> None:
        """Notice connections that poll."""
        if link not in self._polls and _POLL in data:
            self._polls.add(link)
        super().inspect(link, data)

    def closed(self, link: Link) -> None:
        """Keep what a closed poll has counted."""
        if link in self._polls:
            self._polls.remove(link)
            self._polled += link.counter.round_trips
        super().closed(link)


class Network:
    """One proxy for each server of a cluster.

    Args:
        cluster: The servers.

    Attributes:
        proxies: The proxies by the names of the servers.
    """

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ads-network", daemon=True)
        self.proxies: dict[str, ApplicationProxy] = {}

    def start(self) -> None:
        """Listen."""
        self._thread.start()

        async def listen() -> None:
            for name, node in self._cluster.nodes.items():
                proxy = ApplicationProxy(node.host, node.port)
                await proxy.start()
                self.proxies[name] = proxy

        self.run(listen)

    def stop(self) -> None:
        """Close every connection and the ports, and end the thread."""

        async def close() -> None:
            for proxy in self.proxies.values():
                await proxy.stop()

        self.run(close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Run a coroutine function in the thread."""

        async def call() -> T:
            return await function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """The same, and wait for it."""
        return self.submit(function).result(_HELD_TIMEOUT_S)

    @property
    def round_trips(self) -> int:
        """Round trips of the application with all servers since the start."""
        return sum(proxy.application_round_trips for proxy in self.proxies.values())

    @contextmanager
    def cutting(self, server: str, text: bytes, *, is_answer: bool) -> Generator[None, None, None]:
        """Cut the connection that sends a text, within the block.

        Args:
            server: The name of the server.
            text: What the client sends.
            is_answer: The server gets it, and the client gets no answer; otherwise the server does not get it.

        Raises:
            AssertionError: Nothing was sent that contains the text.
        """
        proxy = self.proxies[server]

        async def arm() -> None:
            if is_answer:
                proxy.hold_back(at=text)
            else:
                proxy.hold(at=text)

        async def cut() -> None:
            await proxy.until_held(timeout_s=_HELD_TIMEOUT_S)
            proxy.cut(only_held=True)

        async def disarm() -> None:
            proxy.release()

        self.run(arm)
        cutting = self.submit(cut)
        try:
            yield
            if not cutting.done():
                raise AssertionError(f"nothing that contains {text.decode()} was sent to {server}")
        finally:
            cutting.cancel()
            self.run(disarm)
