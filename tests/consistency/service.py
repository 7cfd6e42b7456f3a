"""A service of four processes on real servers, clients with random requests, and faults of the servers."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from psycopg.conninfo import make_conninfo

from asgi_datasource.testing import EmbeddedCluster, FaultProxy, Node
from tests.consistency.history import Final as FinalState
from tests.consistency.history import Outcome, Read, Write, shares
from tests.consistency.worker import TABLES
from tests.faults.servers import proxy_of, repair

DATABASE: Final = "registers"
WORKERS: Final = 4
REGISTERS: Final = 12
TOKEN: Final = "X-Datasource-Token"
SYNCHRONOUS: Final = "ANY 1 (r1, r2, primary)"
"""A commit is acknowledged once another server has received it, so that a failover loses none."""


@dataclass
class History:
    """The recorded operations of all clients."""

    events: list[Write | Read] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Reads that got no rows, by what was being done to the servers."""
    phase: str = "quiet"


class Client:
    """Writes and reads at random, one request at a time, each at a random worker; keeps its token."""

    def __init__(self, number: int, http: httpx.AsyncClient, ports: list[int], history: History, seed: int) -> None:
        self._number = number
        self._http = http
        self._ports = ports
        self._history = history
        self._random = random.Random(f"{seed} {number}")
        self._token: str | None = None
        self._writes = 0

    async def run(self) -> None:
        """Send requests until cancelled."""
        while True:
            # Most clients read more than they write, and read right after a write, when replicas most likely lag.
            if self._random.random() < 0.3:
                await self._write()
            await self._read()
            await asyncio.sleep(self._random.expovariate(1 / 0.05))

    async def _send(self, method: str, path: str) -> httpx.Response | None:
        port = self._random.choice(self._ports)
        headers = {} if self._token is None else {TOKEN: self._token}
        try:
            response = await self._http.request(method, f"http://127.0.0.1:{port}{path}", headers=headers)
        except httpx.HTTPError as error:
            self._history.statuses[f"{method} {type(error).__name__}"] += 1
            if method == "GET":
                self._history.refused[self._history.phase] += 1
            return None
        self._token = response.headers.get(TOKEN, self._token)
        is_json = response.headers["content-type"].endswith("json")
        kind = response.json().get("kind", "") if is_json else "no document"
        self._history.statuses[f"{method} {response.status_code} {kind}".strip()] += 1
        if method == "GET" and response.status_code != 200:
            self._history.refused[self._history.phase] += 1
        return response

    async def _write(self) -> None:
        key = self._random.randrange(REGISTERS)
        name = f"{self._number}-{self._writes}"
        self._writes += 1
        response = await self._send("POST", f"/registers/{key}?id={name}")
        outcome, version = Outcome.FAILED, None
        if response is None:
            outcome = Outcome.UNKNOWN
        elif response.status_code == 201:
            outcome, version = Outcome.DONE, response.json()["version"]
        elif b"commit_unknown" in response.content:
            outcome = Outcome.UNKNOWN
        self._history.events.append(Write(self._number, key, name, outcome, version))

    async def _read(self) -> None:
        phase, began = self._history.phase, len(self._history.events)
        response = await self._send("GET", "/registers")
        if response is None or response.status_code != 200:
            return
        said = response.json()
        versions = {key: (version, name) for key, version, name in said["rows"]}
        self._history.events.append(
            Read(self._number, versions, said["node"], phase, began, is_of_primary=said["takes_writes"])
        )


class Service:
    """The servers, and the configuration of their service."""

    def __init__(self, cluster: EmbeddedCluster, directory: Path, proxies: Mapping[str, FaultProxy]) -> None:
        self.cluster = cluster
        self.proxies = proxies
        self.writer = cluster.primary
        self.note: Callable[[str], None] = lambda _: None
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def create(cls, cluster: EmbeddedCluster, directory: Path) -> AsyncIterator[Service]:
        """Create the registers on a dedicated cluster: faults leave it in a different state."""
        await cluster.create_database(DATABASE)
        await cluster.primary.sql(TABLES, dbname=DATABASE, user="app")
        await cluster.primary.sql("grant pg_read_all_stats to app")
        await cluster.caught_up()
        for node in cluster.nodes.values():
            await node.configure(synchronous_standby_names=SYNCHRONOUS)
        async with AsyncExitStack() as stack:
            proxies = {name: await stack.enter_async_context(proxy_of(node)) for name, node in cluster.replicas.items()}
            yield cls(cluster, directory, proxies)

    def config(self, **consistency: Any) -> dict[str, Any]:
        """Any of the servers may be the primary; two are replicas, behind proxies."""
        nodes = self.cluster.nodes
        primary = make_conninfo(
            self.cluster.primary.url(DATABASE),
            host=",".join(["127.0.0.1"] * len(nodes)),
            port=",".join(str(node.port) for node in nodes.values()),
        )
        replicas = {name: {"url": proxy.through(nodes[name].url(DATABASE))} for name, proxy in self.proxies.items()}
        return {
            "version": 1,
            "datasources": {
                "main": {
                    "primary": {"url": primary},
                    "replicas": replicas,
                    "pool": {"min_size": 1, "max_size": 5, "connect_timeout": "2s", "reconnect_pause": "500ms"},
                    "routing": {"check_interval": "200ms", "warmup": "200ms"},
                }
            },
            "tenancy": {"resolve": [{"fixed": "one"}]},
            "tenants": {"one": {"datasource": "main"}},
            "transactions": {"deadline": "4s"},
            "consistency": {
                "token": "header",
                "secret": "a secret of these four workers",
                # On a busy machine a replica replays late.
                "wait": "300ms",
                "ttl": "10m",
                "monotonic": True,
                **consistency,
            },
        }

    @asynccontextmanager
    async def served(self, config: Mapping[str, Any], *, workers: int = WORKERS) -> AsyncIterator[list[int]]:
        """Run that many worker processes; yield their ports."""
        file = self._directory / "config.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "tests.consistency.worker", str(file)]
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        running = [await asyncio.create_subprocess_exec(*command, **pipes) for _ in range(workers)]
        try:
            ports: list[int] = []
            for worker in running:
                assert worker.stdout is not None
                ports.append(int(await worker.stdout.readline()))
            yield ports
        finally:
            for worker in running:
                assert worker.stdin is not None
                worker.stdin.close()
            for worker in running:
                try:
                    await asyncio.wait_for(worker.wait(), 15)
                except TimeoutError:
                    worker.kill()
                    await worker.wait()

    @asynccontextmanager
    async def used(
        self, config: Mapping[str, Any], *, clients: int, seed: int, workers: int = WORKERS
    ) -> AsyncIterator[History]:
        """Run clients against the service during the block."""
        history = History()
        # uvicorn closes idle connections after 5 s: a request at that moment would be lost.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
        async with (
            self.served(config, workers=workers) as ports,
            httpx.AsyncClient(timeout=15.0, limits=limits) as http,
        ):
            running = [
                asyncio.create_task(Client(number, http, ports, history, seed).run()) for number in range(clients)
            ]

            def note(text: str) -> None:
                history.phase = text

            self.note = note
            try:
                yield history
            finally:
                for task in running:
                    task.cancel()
                await asyncio.wait(running)
                for task in running:
                    if not task.cancelled():
                        task.result()

    async def final(self) -> FinalState:
        """The final state of all registers."""
        # A backend interrupted during COMMIT may need a moment to finish.
        await asyncio.sleep(1.0)
        rows = await self.writer.sql("select id, key, version from writes", dbname=DATABASE)
        return FinalState({name: (key, version) for name, key, version in rows})

    # -- faults

    def standbys(self) -> list[Node]:
        """The servers that stream from the current writer."""
        return [node for node in self.cluster.nodes.values() if node is not self.writer]

    async def pause(self, seconds: float, *nodes: Node) -> None:
        """Pause replay: reads there are stale."""
        for node in nodes:
            await node.pause_replay()
        await asyncio.sleep(seconds)
        for node in nodes:
            await node.resume_replay()

    async def delay(self, seconds: float, node: Node) -> None:
        """Delay replay."""
        await node.delay_replay(400)
        await asyncio.sleep(seconds)
        await node.delay_replay(0)

    async def kill(self, seconds: float, node: Node) -> None:
        """Kill the server, and start it again."""
        await node.kill()
        await asyncio.sleep(seconds)
        await node.start()

    async def freeze(self, seconds: float, node: Node) -> None:
        """Stop all processes of the server, then resume them."""
        await node.freeze()
        await asyncio.sleep(seconds)
        await node.thaw()

    async def cut_off(self, seconds: float, name: str) -> None:
        """Cut the server off from the application; it keeps running and streaming."""
        proxy = self.proxies[name]
        proxy.freeze()
        await asyncio.sleep(seconds)
        proxy.release()
        proxy.cut()

    async def fail_over(self, *, freezes: bool = False) -> None:
        """Fail over from a primary that is killed, or frozen and later resumed as a writable server.

        Promotes the replica that has received the most WAL, as a cluster manager does. The former primary then becomes
        a
        replica.
        """
        former = self.writer
        await (former.freeze() if freezes else former.kill())
        standbys = self.standbys()
        received = {node.name: await received_by(node) for node in standbys}
        standbys.sort(key=lambda node: received[node.name], reverse=True)
        following, *others = standbys
        await following.promote()
        self.writer = following
        for other in others:
            await other.follow(following)
        if freezes:
            await asyncio.sleep(1.0)
            await former.thaw()
            await asyncio.sleep(1.0)
        await former.follow(following, rebuild=True)

    async def repair(self) -> None:
        """Remove all faults."""
        for proxy in self.proxies.values():
            proxy.release()
        await repair(self.cluster)


async def received_by(node: Node) -> int:
    """The WAL position that a standby has received."""
    value = await node.value("select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint")
    return int(value)


Fault = Callable[[], Awaitable[None]]


async def in_phases(service: Service, history: History, phases: Mapping[str, Fault], *, pause_s: float) -> None:
    """Inject faults one after the other, with a pause for recovery in between."""
    for name, fault in phases.items():
        service.note(name)
        began_at = time.monotonic()
        await fault()
        print(f"  {name}: {time.monotonic() - began_at:.1f} s, {len(history.events)} events so far", flush=True)
        service.note(f"after {name}")
        await asyncio.sleep(pause_s)


def report(history: History) -> str:
    """A summary of the recorded operations."""
    writes = Counter(event.outcome.value for event in history.events if isinstance(event, Write))
    return (
        f"reads by {dict(shares(history.events))}, {share_of_replicas(history):.1%} of them on replicas; writes"
        f" {dict(writes)}; answers {dict(history.statuses)}"
    )


def share_of_replicas(history: History, phase: str | None = None) -> float:
    """The share of reads that replicas answered."""
    counted = shares(history.events, phase=phase)
    return sum(count for node, count in counted.items() if node != "primary") / max(1, counted.total())
