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
_APART: Final = b"application_name\0asgi-datasource "
"""In the start-up packet of connections outside the pools, such as those that poll a server's state."""


class ApplicationProxy(FaultProxy):
    """A proxy that counts the round trips of the application's pools, without those of the library's polls."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._apart: set[Link] = set()
        self._ended: dict[Link, int] = {}

    def application_round_trips(self) -> dict[Link, int]:
        """Round trips by connection, those of pools only; called in the proxy's event loop."""
        return self._ended | {link: link.counter.round_trips for link in self._links if link not in self._apart}

    def inspect(self, link: Link, data: bytes) -> None:
        """Notice connections that are no part of a pool, by their first packet."""
        if _APART in data:
            self._apart.add(link)
        super().inspect(link, data)

    def closed(self, link: Link) -> None:
        """Keep what a connection of the application has counted."""
        if link in self._apart:
            self._apart.remove(link)
        elif link in self._links:
            self._ended[link] = link.counter.round_trips
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

    def round_trips(self) -> dict[Link, int]:
        """Round trips of the application with all servers since the start, by connection."""

        async def count() -> dict[Link, int]:
            found: dict[Link, int] = {}
            for proxy in self.proxies.values():
                found |= proxy.application_round_trips()
            return found

        return self.run(count)

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
