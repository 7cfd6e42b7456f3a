"""One server of a cluster for async code: every call runs in a worker thread, the event loop goes on."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

from psycopg.rows import TupleRow

from .binaries import Binaries, ClusterError, RunAs, run
from .ports import HOST
from .server import Parameters, Query, Server, ServerState, StopMode, until
from .settings import Setting
from .template import ORDINARY_ROLE, SUPERUSER


class Node:
    """One server of a cluster: the primary or a replica.

    Whatever is done to it is undone when the cluster ends: a frozen server is thawed, a killed one removed.

    Attributes:
        name: `primary`, `r1`, `r2`: what it was at the start, also after a promotion.
        blocking: The same server for code without an event loop.
        upstream: The node it streams from; None for a primary.
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
        """Its port, the same after every restart."""
        return self.blocking.port

    @property
    def state(self) -> ServerState:
        """What it is doing; a server that ended by itself is STOPPED."""
        return self.blocking.state

    @property
    def pid(self) -> int | None:
        """The pid of its postmaster; None when it does not run."""
        return self.blocking.pid

    @property
    def log(self) -> str:
        """All that it has logged so far."""
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
        """SIGKILL to every process of it at once, as when its machine loses power."""
        await asyncio.to_thread(self.blocking.kill)

    async def freeze(self) -> None:
        """SIGSTOP to every process of it: sockets stay open, the kernel acknowledges, nobody answers."""
        await asyncio.to_thread(self.blocking.freeze)

    async def thaw(self) -> None:
        """SIGCONT to every process of it; nothing happens when it is not frozen."""
        await asyncio.to_thread(self.blocking.thaw)

    async def terminate_backends(self, dbname: str | None = None) -> int:
        """End every client's session (57P01), wait until they are gone, and tell how many there were."""
        return await asyncio.to_thread(self.blocking.terminate_backends, dbname)

    async def configure(self, **settings: Setting | None) -> None:
        """Change settings, reload, and wait until the running server shows them (see `Server.configure`)."""
        await asyncio.to_thread(lambda: self.blocking.configure(**settings))

    # -- replication ----------------------------------------------------------------------------------------------

    async def pause_replay(self) -> None:
        """Stop replaying what is received, and wait until nothing more is replayed: its rows are stale from now on."""
        await self.sql("select pg_wal_replay_pause()")
        await asyncio.to_thread(
            until,
            lambda: self.blocking.value("select pg_get_wal_replay_pause_state()") == "paused",
            10.0,
            lambda: f"server {self.name!r} did not pause its replay.",
        )

    async def resume_replay(self) -> None:
        """Replay again."""
        await self.sql("select pg_wal_replay_resume()")

    async def delay_replay(self, milliseconds: int) -> None:
        """Replay every commit this much later than it was made; 0 ends it (`recovery_min_apply_delay`)."""
        await self.configure(recovery_min_apply_delay=f"{milliseconds}ms")

    async def promote(self) -> None:
        """Make a primary of this replica, on a new timeline; the others stream on from where they did (`follow`)."""
        if not await self.value("select pg_promote(true, 30)"):
            raise ClusterError(f"server {self.name!r} was not promoted:\n{self.log[-2000:]}")
        self.upstream = None

    async def follow(self, primary: Node, *, rebuild: bool = False) -> None:
        """Stream from this primary from now on; a server that does not run is started.

        Args:
            primary: The new primary, after its `promote`.
            rebuild: Replace its data by a copy of the primary's (`pg_basebackup`), as is always done with a former
                primary: it may hold commits that the new one never saw. A replica only needs it when it had received
                more than the new primary had.
        """
        await asyncio.to_thread(self._follow, primary, rebuild=rebuild)

    async def wal_position(self) -> str:
        """How far its WAL is written (a primary) or replayed (a standby), as PostgreSQL prints it: 0/3000148."""
        return await asyncio.to_thread(self.blocking.wal_position)

    async def is_standby(self) -> bool:
        """Whether it is in recovery."""
        return await asyncio.to_thread(self.blocking.is_standby)

    # -- questions ------------------------------------------------------------------------------------------------

    async def sql(
        self,
        query: Query,
        parameters: Parameters | None = None,
        *,
        dbname: str = "postgres",
        user: str = SUPERUSER,
    ) -> list[TupleRow]:
        """Run SQL on a connection of its own, as the superuser unless told otherwise (see `Server.sql`)."""
        return await asyncio.to_thread(self.blocking.sql, query, parameters, dbname=dbname, user=user)

    async def value(self, query: Query, parameters: Parameters | None = None, *, dbname: str = "postgres") -> Any:
        """The first column of the first row; None when there is no row."""
        return await asyncio.to_thread(self.blocking.value, query, parameters, dbname=dbname)

    # -- inside ---------------------------------------------------------------------------------------------------

    def stream_from(self, primary: Node) -> None:
        """Write down where to stream from, through a slot that the primary must have by the time it starts."""
        self.upstream = primary
        self.blocking.make_standby()
        url = primary.blocking.url("postgres", SUPERUSER, application_name=self.name)
        # libpq's replication connection ignores the database, and a URL is one of its two spellings.
        self.blocking.set_quietly(primary_conninfo=url, primary_slot_name=self.name)

    def add_slot(self, name: str) -> None:
        """Give a replica its replication slot, so that what it needs is kept while it is away."""
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
            # Not among the arguments: every user of the machine can read those.
            variables={"PGPASSWORD": primary.blocking.password(SUPERUSER)},
        )
