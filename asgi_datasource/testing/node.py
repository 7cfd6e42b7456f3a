"""One server of a cluster for async code: every call runs in a worker thread."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

from psycopg.rows import TupleRow

from .binaries import Binaries, ClusterError, RunAs, run
from .ports import HOST
from .server import Parameters, Query, Server, ServerState, StopMode
from .settings import Setting
from .template import ORDINARY_ROLE, SUPERUSER


class Node:
    """One server of a cluster: the primary or a replica.

    All faults are undone when the cluster ends: a frozen server is thawed, a killed one removed.

    Attributes:
        name: `primary`, `r1`, `r2`: the role at the start, even after a promotion.
        blocking: The same server for code without an event loop.
        upstream: The node that it streams from; None for a primary.
    """

    def __init__(self, server: Server, *, binaries: Binaries, user: RunAs, upstream: Node | None = None) -> None:
        self.name = server.name
        self.blocking = server
        self.upstream = upstream
        self._binaries = binaries
        self._user = user

    def __repr__(self) -> str:
        role = "primary" if self.upstream is None else f"replica of {self.upstream.name}"
        return f"<{type(self).__name__} {self.name} ({role}) {self.state.value} port={self.port}>"

    @property
    def host(self) -> str:
        """The address it listens on."""
        return HOST

    @property
    def port(self) -> int:
        """Its port; constant across restarts."""
        return self.blocking.port

    @property
    def state(self) -> ServerState:
        """Its state; a server that ended by itself is STOPPED."""
        return self.blocking.state

    @property
    def pid(self) -> int | None:
        """The pid of its postmaster; None if it is not running."""
        return self.blocking.pid

    @property
    def log(self) -> str:
        """Its complete log so far."""
        return self.blocking.log

    def url(self, dbname: str = "postgres", user: str = ORDINARY_ROLE, **parameters: str | int) -> str:
        """A connection string for libpq, password included (see `Server.url`)."""
        return self.blocking.url(dbname, user, **parameters)

    # -- faults ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it and wait until it accepts connections; after `kill` it recovers first."""
        await asyncio.to_thread(self.blocking.start)

    async def stop(self, mode: StopMode = "fast", *, wait: bool = True, timeout_s: float = 30.0) -> None:
        """Stop it as `pg_ctl stop -m mode` does (see `Server.stop`)."""
        await asyncio.to_thread(self.blocking.stop, mode, wait=wait, timeout_s=timeout_s)

    async def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it."""
        await asyncio.to_thread(self.blocking.restart, mode)

    async def kill(self) -> None:
        """Send SIGKILL to all its processes at once, as in a power failure."""
        await asyncio.to_thread(self.blocking.kill)

    async def freeze(self) -> None:
        """Send SIGSTOP to all its processes: sockets stay open, the kernel acknowledges data, no process answers."""
        await asyncio.to_thread(self.blocking.freeze)

    async def thaw(self) -> None:
        """Send SIGCONT to all its processes; does nothing if it is not frozen."""
        await asyncio.to_thread(self.blocking.thaw)

    async def terminate_backends(self, dbname: str | None = None) -> int:
        """Terminate all client sessions (57P01), wait until they have ended, and return their number."""
        return await asyncio.to_thread(self.blocking.terminate_backends, dbname)

    async def configure(self, **settings: Setting | None) -> None:
        """Change settings, reload, and wait until the running server shows them (see `Server.configure`)."""
        await asyncio.to_thread(lambda: self.blocking.configure(**settings))

    # -- replication ----------------------------------------------------------------------------------------------

    async def pause_replay(self) -> None:
        """Pause replay, and wait until nothing more is replayed: reads are stale from then on."""
        await asyncio.to_thread(self.blocking.pause_replay)

    async def resume_replay(self) -> None:
        """Resume replay."""
        await asyncio.to_thread(self.blocking.resume_replay)

    async def delay_replay(self, milliseconds: int) -> None:
        """Replay every commit this much later than it was made; 0 disables the delay (`recovery_min_apply_delay`)."""
        await self.configure(recovery_min_apply_delay=f"{milliseconds}ms")

    async def promote(self) -> None:
        """Promote this replica, on a new timeline; other replicas do not change their upstream (see `follow`)."""
        if not await self.value("select pg_promote(true, 30)"):
            raise ClusterError(f"server {self.name!r} was not promoted:\n{self.log[-2000:]}")
        self.upstream = None

    async def follow(self, primary: Node, *, rebuild: bool = False) -> None:
        """Stream from this primary from now on; a stopped server is started.

        Args:
            primary: The new primary, after its `promote`.
            rebuild: Replace the data with a copy of the primary's (`pg_basebackup`). A former primary is always
                rebuilt, because it may have commits that the new one does not have. A replica needs it only if it had
                received more than the new primary.
        """
        await asyncio.to_thread(self._follow, primary, rebuild=rebuild)

    async def wal_position(self) -> str:
        """Its WAL position, written (primary) or replayed (standby), as PostgreSQL prints it: 0/3000148."""
        return await asyncio.to_thread(self.blocking.wal_position)

    async def is_standby(self) -> bool:
        """Whether it is in recovery."""
        return await asyncio.to_thread(self.blocking.is_standby)

    # -- queries --------------------------------------------------------------------------------------------------

    async def sql(
        self,
        query: Query,
        parameters: Parameters | None = None,
        *,
        dbname: str = "postgres",
        user: str = SUPERUSER,
    ) -> list[TupleRow]:
        """Run SQL on a new connection, by default as the superuser (see `Server.sql`)."""
        return await asyncio.to_thread(self.blocking.sql, query, parameters, dbname=dbname, user=user)

    async def value(self, query: Query, parameters: Parameters | None = None, *, dbname: str = "postgres") -> Any:
        """The first column of the first row; None without a row."""
        return await asyncio.to_thread(self.blocking.value, query, parameters, dbname=dbname)

    # -- internals ------------------------------------------------------------------------------------------------

    def stream_from(self, primary: Node) -> None:
        """Configure its upstream and the replication slot, which the primary must have by the time it starts."""
        self.upstream = primary
        self.blocking.make_standby()
        url = primary.blocking.url("postgres", SUPERUSER, application_name=self.name)
        # libpq's replication connection ignores the database; a URL is one of its two notations.
        self.blocking.set_quietly(primary_conninfo=url, primary_slot_name=self.name)

    def add_slot(self, name: str) -> None:
        """Create a replica's replication slot, so that its WAL is kept while it is away."""
        self.blocking.sql(
            "select pg_create_physical_replication_slot(%(name)s, true) "
            "where not exists (select 1 from pg_replication_slots where slot_name = %(name)s)",
            {"name": name},
        )

    def _follow(self, primary: Node, *, rebuild: bool) -> None:
        primary.add_slot(self.name)
        self.blocking.stop()
        if rebuild or self.upstream is None:
            self._copy_from(primary)
        self.stream_from(primary)
        self.blocking.start()

    def _copy_from(self, primary: Node) -> None:
        data_dir = self.blocking.data_dir
        shutil.rmtree(data_dir)
        data_dir.mkdir(mode=0o700)
        self._user.give(data_dir)
        program = self._binaries.program("pg_basebackup")
        where = ["-D", str(data_dir), "-h", HOST, "-p", str(primary.port), "-U", SUPERUSER]
        run(
            self._user,
            [program, *where, "--checkpoint=fast", "--no-sync", "--wal-method=stream"],
            # Not as an argument: all users of the machine can read those.
            variables={"PGPASSWORD": primary.blocking.password(SUPERUSER)},
        )
