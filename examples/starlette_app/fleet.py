"""The state of the embedded servers and of the relays, and the commands of the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
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
        self._leader: Node | None = None
        self._picture: dict[str, Any] = {}
        self._taken = 0.0
        self._position = "0/0"
        self._lock = asyncio.Lock()

    @property
    def leader(self) -> Node:
        """The server that takes writes: the primary of the cluster, or the one promoted last."""
        return self._leader or self._cluster.primary

    async def obey(self, action: str, server: str) -> dict[str, Any]:
        """Run a command of the page; returns the new state of servers and relays, or an error."""
        relays = self.relays
        if relays is not None and server in relays.state():
            if (error := await self._run({"kill": relays.kill, "start": relays.start}, action, server)) is not None:
                return {"error": error}
        elif action != "state":
            node = self._cluster.nodes.get(server)
            if node is None:
                return {"error": f"there is no server {server!r}"}
            commands: dict[str, Callable[[Node], Awaitable[None]]] = {
                "stop": Node.stop,
                "start": self.start,
                "pause": Node.pause_replay,
                "resume": Node.resume_replay,
                "promote": self.promote,
            }
            if action == "promote" and (node is self.leader or node.pid is None):
                return {
                    "error": f"{server} {'is the primary' if node is self.leader else 'is stopped: start it first'}"
                }
            if (error := await self._run(commands, action, node)) is not None:
                return {"error": error}
        return {"servers": await self.picture(), "relays": None if relays is None else relays.state()}

    async def _run(
        self, commands: Mapping[str, Callable[[Any], Awaitable[None]]], action: str, on: object
    ) -> str | None:
        if action not in commands:
            return f"there is no action {action!r}"
        async with self._lock:
            await commands[action](on)
            self._taken = 0.0
        return None

    async def start(self, node: Node) -> None:
        """Start a server. After a failover it returns as a standby of the new primary, with a copy of its data."""
        if node is self.leader or node.upstream is self.leader:
            await node.start()
        else:
            await node.follow(self.leader, rebuild=True)

    async def promote(self, node: Node) -> None:
        """Fail over to a running standby: stop the primary, promote, and let the other standbys follow.

        The former primary stays stopped: PostgreSQL would let it take writes that no other server has.
        """
        former = self.leader
        if former.pid is not None:
            await former.stop()
        await node.promote()
        self._leader = node
        others = [one for one in self._cluster.nodes.values() if one not in (node, former) and one.pid is not None]
        await asyncio.gather(*(other.follow(node) for other in others))

    async def picture(self) -> dict[str, Any]:
        """For each server: whether it is up and the primary, whether its replay is paused, its lag in bytes of WAL."""
        async with self._lock:
            if time.monotonic() - self._taken > FRESH_S:
                leader = self.leader
                # First the primary, from whose position the lag is counted.
                state = {leader.name: await self._look(leader)}
                others = [node for node in self._cluster.nodes.values() if node is not leader]
                for node, seen in zip(others, await asyncio.gather(*map(self._look, others)), strict=True):
                    state[node.name] = seen
                self._picture, self._taken = state, time.monotonic()
            return self._picture

    async def _look(self, node: Node) -> dict[str, Any]:
        is_leader = node is self.leader
        seen = {"up": node.pid is not None, "is_primary": is_leader, "paused": False, "lag_bytes": 0}
        if not seen["up"]:
            return seen
        try:
            if is_leader:
                self._position = await node.wal_position()
            else:
                query = "select pg_is_wal_replay_paused(), pg_wal_lsn_diff(%s, pg_last_wal_replay_lsn())"
                paused, behind = (await node.sql(query, [self._position]))[0]
                seen |= {"paused": paused, "lag_bytes": max(0, int(behind or 0))}
        except (psycopg.Error, ClusterError):
            seen["up"] = False
        return seen
