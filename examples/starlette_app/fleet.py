"""The state of the embedded servers and of the relays, and the commands of the page."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import psycopg

from asgi_datasource.testing import ClusterError, EmbeddedCluster, Node
from examples.starlette_app.relays import Relays

FRESH_S: Final = 0.4
"""Seconds for which the state of the servers is cached."""


class Fleet:
    """A primary and its replicas, and the relays: their state, and the allowed commands.

    Args:
        cluster: The running servers.
    """

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self.relays: Relays | None = None
        self._picture: dict[str, Any] = {}
        self._taken = 0.0
        self._position = "0/0"
        self._lock = asyncio.Lock()

    async def obey(self, action: str, server: str) -> dict[str, Any]:
        """Run a command of the page; returns the new state of servers and relays, or an error."""
        relays = self.relays
        if relays is not None and server in relays.state():
            orders = {"kill": relays.kill, "start": relays.start}
            if action not in orders:
                return {"error": f"there is no action {action!r}"}
            async with self._lock:
                await orders[action](server)
        elif action != "state":
            node = self._cluster.nodes.get(server)
            if node is None:
                return {"error": f"there is no server {server!r}"}
            commands = {
                "stop": node.stop,
                "start": node.start,
                "pause": node.pause_replay,
                "resume": node.resume_replay,
            }
            if action not in commands:
                return {"error": f"there is no action {action!r}"}
            async with self._lock:
                await commands[action]()
                self._taken = 0.0
        return {"servers": await self.picture(), "relays": None if relays is None else relays.state()}

    async def picture(self) -> dict[str, Any]:
        """For each server: whether it is up, whether its replay is paused, and its lag in bytes of WAL."""
        async with self._lock:
            if time.monotonic() - self._taken > FRESH_S:
                primary, replicas = self._cluster.primary, self._cluster.replicas
                state = {"primary": await self._look(primary)}
                for name, answer in zip(
                    replicas, await asyncio.gather(*map(self._look, replicas.values())), strict=True
                ):
                    state[name] = answer
                self._picture, self._taken = state, time.monotonic()
            return self._picture

    async def _look(self, node: Node) -> dict[str, Any]:
        seen = {"up": node.pid is not None, "paused": False, "lag_bytes": 0}
        if not seen["up"]:
            return seen
        try:
            if node is self._cluster.primary:
                self._position = await node.wal_position()
            else:
                query = "select pg_is_wal_replay_paused(), pg_wal_lsn_diff(%s, pg_last_wal_replay_lsn())"
                paused, behind = (await node.sql(query, [self._position]))[0]
                seen |= {"paused": paused, "lag_bytes": max(0, int(behind or 0))}
        except (psycopg.Error, ClusterError):
            seen["up"] = False
        return seen
