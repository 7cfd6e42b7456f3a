"""One PostgreSQL server: its directory, its settings, its process. Blocking; `node.py` is the same for async code."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final, Literal
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from . import keeper
from .binaries import Binaries, ClusterError, RunAs, environment
from .ports import HOST, reserve_port
from .settings import Setting, base_settings, render
from .template import ORDINARY_ROLE, SUPERUSER

StopMode = Literal["fast", "smart", "immediate"]
Query = str | sql.SQL | sql.Composed
Parameters = Sequence[object] | Mapping[str, object]

POLL_S: Final = 0.005
_STOP_SIGNALS: Final[dict[str, int]] = {"fast": signal.SIGINT, "smart": signal.SIGTERM, "immediate": signal.SIGQUIT}


class ServerState(StrEnum):
    """State of a server, as far as this process has changed it."""

    STOPPED = "stopped"
    RUNNING = "running"
    FROZEN = "frozen"  # every process of it is stopped by SIGSTOP; its sockets stay open
    STOPPING = "stopping"  # a smart stop that waits for its clients


_MOVES: Final[dict[ServerState, frozenset[ServerState]]] = {
    ServerState.STOPPED: frozenset({ServerState.RUNNING}),
    ServerState.RUNNING: frozenset({ServerState.FROZEN, ServerState.STOPPING, ServerState.STOPPED}),
    ServerState.FROZEN: frozenset({ServerState.RUNNING, ServerState.STOPPED}),
    ServerState.STOPPING: frozenset({ServerState.STOPPED}),
}


class Server:
    """One PostgreSQL server of a cluster.

    Its port is reserved for as long as the object is in use, even while the server is stopped: connects are then
    refused, and no other program gets the port.
    """

    def __init__(
        self,
        name: str,
        *,
        root: Path,
        binaries: Binaries,
        user: RunAs,
        passwords: dict[str, str],
        settings: Mapping[str, Setting],
    ) -> None:
        self.name = name
        self.data_dir = root / name
        self.log_file = root / f"{name}.log"
        self.port, self._reservation = reserve_port()
        self._binaries = binaries
        self._user = user
        self._passwords = passwords
        self._defaults: dict[str, Setting] = {
            **base_settings(binaries.major),
            **settings,
            "port": self.port,
        }
        self._settings = dict(self._defaults)
        self._state = ServerState.STOPPED
        self._process: subprocess.Popen[bytes] | None = None
        # Async callers use a thread pool; a cancelled call may still be running when the next one starts.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state.value} port={self.port}>"

    @property
    def state(self) -> ServerState:
        """Its state. A process that has ended for any reason is STOPPED."""
        if self._state is not ServerState.STOPPED and self._process is not None and self._process.poll() is not None:
            self._move(ServerState.STOPPED)
        return self._state

    @property
    def pid(self) -> int | None:
        """The pid of its postmaster; None if it is not running."""
        return None if self._process is None or self.state is ServerState.STOPPED else self._process.pid

    @property
    def log(self) -> str:
        """Its complete log so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def url(self, dbname: str = "postgres", user: str = ORDINARY_ROLE, **parameters: str | int) -> str:
        """A connection string for libpq, password included.

        Args:
            dbname: The database.
            user: `app`, an ordinary role subject to row security; `postgres`, the superuser; or one made by
                `create_role`.
            parameters: Additional libpq parameters, such as `application_name` or `connect_timeout`.

        Raises:
            ClusterError: The cluster does not know this role's password.
        """
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        credentials = f"{quote(user, safe='')}:{quote(self.password(user), safe='')}"
        return f"postgresql://{credentials}@{HOST}:{self.port}/{quote(dbname, safe='')}{query}"

    def password(self, user: str) -> str:
        """The password of a role made by the cluster.

        Raises:
            ClusterError: The cluster does not know this role's password.
        """
        if user not in self._passwords:
            raise ClusterError(f"no password known for role {user!r}: make it with `create_role`.")
        return self._passwords[user]

    # -- life cycle -----------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process and return at once; see `wait_ready`."""
        with self._lock:
            if self.state is not ServerState.STOPPED:
                raise ClusterError(f"server {self.name!r} is {self.state.value}: it cannot be started.")
            if self._process is not None:
                # Only the postmaster was killed.
                keeper.end_stragglers(self.data_dir)
            self._write_settings()
            with self.log_file.open("ab") as log:
                self._process = self._spawn(log)
            self._move(ServerState.RUNNING)

    def wait_ready(self, *, timeout_s: float = 30.0) -> None:
        """Wait until it accepts connections (a replica: until it can be read).

        Raises:
            ClusterError: It has ended, or is not ready in time; the message contains the end of its log.
        """
        process = self._process
        if process is None:
            raise ClusterError(f"server {self.name!r} was never started.")
        give_up = time.monotonic() + timeout_s
        while keeper.server_status(self.data_dir, process.pid) != "ready":
            if process.poll() is not None:
                raise ClusterError(f"server {self.name!r} did not start:\n{self._log_end()}")
            if time.monotonic() > give_up:
                raise ClusterError(f"server {self.name!r} is not ready after {timeout_s} s:\n{self._log_end()}")
            time.sleep(POLL_S)

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Start it and wait until it accepts connections."""
        with self._lock:
            self.launch()
            self.wait_ready(timeout_s=timeout_s)

    def stop(self, mode: StopMode = "fast", *, wait: bool = True, timeout_s: float = 30.0) -> None:
        """Stop it as `pg_ctl stop -m mode` does.

        Args:
            mode: `fast` ends the sessions; `immediate` also skips the checkpoint, like a crash; `smart` waits for the
                clients to disconnect, and refuses new ones.
            wait: False returns at once, for a smart stop with connected clients.
            timeout_s: Seconds to wait.

        Raises:
            ClusterError: It is still running after `timeout_s`.
        """
        with self._lock:
            process = self._process
            if process is None or self.state is ServerState.STOPPED:
                return
            self.thaw()
            process.send_signal(_STOP_SIGNALS[mode])
            if self._state is ServerState.RUNNING:
                self._move(ServerState.STOPPING)
        if not wait:
            return
        # Without the lock: a smart stop may take long, and must not block `kill`.
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"server {self.name!r} still runs {timeout_s} s after a {mode} stop; a smart stop waits for the "
                f"clients: close them, or stop with mode 'fast'.\n{self._log_end()}"
            ) from None

    def restart(self, mode: StopMode = "fast", *, timeout_s: float = 30.0) -> None:
        """Stop and start it; applies settings that need a restart."""
        self.stop(mode, timeout_s=timeout_s)
        self.start(timeout_s=timeout_s)

    def kill(self) -> None:
        """Send SIGKILL to all its processes at once, as in a power failure. `start` recovers it."""
        with self._lock:
            process = self._process
            if process is None or self.state is ServerState.STOPPED:
                return
            keeper.signal_tree(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """Send SIGSTOP to all its processes: sockets stay open, the kernel acknowledges data, no process answers."""
        with self._lock:
            if self.state is ServerState.FROZEN:
                return
            process = self._running()
            keeper.signal_tree(process.pid, signal.SIGSTOP)
            self._move(ServerState.FROZEN)

    def thaw(self) -> None:
        """Send SIGCONT to all its processes; does nothing if it is not frozen."""
        with self._lock:
            if self.state is ServerState.FROZEN and self._process is not None:
                keeper.signal_tree(self._process.pid, signal.SIGCONT)
                self._move(ServerState.RUNNING)

    def remove(self) -> None:
        """Kill it, release its port and remove its data."""
        with self._lock:
            if self._process is not None:
                keeper.end_server(self.data_dir)
                if self._process.poll() is None:
                    self._process.kill()
                self._process.wait()
            self._reservation.close()
            shutil.rmtree(self.data_dir, ignore_errors=True)

    # -- settings -------------------------------------------------------------------------------------------------

    def configure(self, **settings: Setting | None) -> None:
        """Change settings of `postgresql.conf`, reload, and wait until the running server shows them.

        Settings that need a restart take effect at the next one. `None` restores the default.
        """
        with self._lock:
            self.set_quietly(**settings)
            if self.state is not ServerState.RUNNING:
                return
            before = self._loaded_at()
            self._running().send_signal(signal.SIGHUP)
            until(
                lambda: self._loaded_at() != before,
                10.0,
                lambda: f"server {self.name!r} did not reload its settings:\n{self._log_end()}",
            )

    def set_quietly(self, **settings: Setting | None) -> None:
        """Change settings of `postgresql.conf` for the next start or reload."""
        with self._lock:
            for name, value in settings.items():
                if value is not None:
                    self._settings[name] = value
                elif name in self._defaults:
                    self._settings[name] = self._defaults[name]
                else:
                    self._settings.pop(name, None)
            self._write_settings()

    def make_standby(self) -> None:
        """Make it start as a standby; a promotion undoes this."""
        marker = self.data_dir / "standby.signal"
        marker.touch(mode=0o600)
        self._user.give(marker)

    # -- queries --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connect(
        self, dbname: str = "postgres", *, user: str = SUPERUSER
    ) -> Generator[psycopg.Connection[TupleRow], None, None]:
        """A connection in autocommit mode, closed at the end of the block."""
        with psycopg.connect(self.url(dbname, user, connect_timeout=10), autocommit=True) as connection:
            yield connection

    def sql(
        self,
        query: Query,
        parameters: Parameters | None = None,
        *,
        dbname: str = "postgres",
        user: str = SUPERUSER,
    ) -> list[TupleRow]:
        """Run SQL on a new connection in autocommit mode.

        Args:
            query: One statement, or several when there are no parameters.
            parameters: Values for `%s` or `%(name)s`.
            dbname: The database.
            user: The role; by default the superuser.

        Returns:
            The rows of the last statement that returned any.
        """
        with self.connect(dbname, user=user) as connection:
            cursor = connection.execute(query.encode() if isinstance(query, str) else query, parameters)
            rows: list[TupleRow] = []
            more: bool | None = True
            while more:
                if cursor.description is not None:
                    rows = cursor.fetchall()
                more = cursor.nextset()
            return rows

    def value(self, query: Query, parameters: Parameters | None = None, *, dbname: str = "postgres") -> Any:
        """The first column of the first row; None without a row."""
        rows = self.sql(query, parameters, dbname=dbname)
        return rows[0][0] if rows else None

    def pause_replay(self) -> None:
        """Pause replay, and wait until nothing more is replayed: reads are stale from then on."""
        self.sql("select pg_wal_replay_pause()")
        until(
            lambda: self.value("select pg_get_wal_replay_pause_state()") == "paused",
            10.0,
            lambda: f"server {self.name!r} did not pause its replay.",
        )

    def resume_replay(self) -> None:
        """Resume replay."""
        self.sql("select pg_wal_replay_resume()")

    def is_standby(self) -> bool:
        """Whether it is in recovery."""
        return bool(self.value("select pg_is_in_recovery()"))

    def wal_position(self) -> str:
        """Its WAL position, written (primary) or replayed (standby), as PostgreSQL prints it: 0/3000148."""
        return str(
            self.value(
                "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end"
            )
        )

    def wait_replayed(self, position: str, *, timeout_s: float = 30.0) -> None:
        """Wait until this replica has replayed this position.

        Raises:
            ClusterError: It has not after `timeout_s`: it is paused, delayed or cut off.
        """
        with self.connect() as connection:

            def has_replayed() -> bool:
                row = connection.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)).fetchone()
                return row is not None and bool(row[0])

            until(
                has_replayed,
                timeout_s,
                lambda: (
                    f"server {self.name!r} has not replayed {position} after {timeout_s} s: it is at "
                    f"{self.wal_position()}, its replay {self.value('select pg_get_wal_replay_pause_state()')}, has "
                    f"received {self.value('select pg_last_wal_receive_lsn()')}, and its receiver is "
                    f"{self.value('select status from pg_stat_wal_receiver')}."
                ),
            )

    def terminate_backends(self, dbname: str | None = None) -> int:
        """Terminate all client sessions, as an administrator would (57P01), and wait until they have ended.

        Args:
            dbname: Only sessions in this database.

        Returns:
            Number of terminated sessions.
        """
        ended = self.sql(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where backend_type = 'client backend' and pid <> pg_backend_pid() "
            "and (%(db)s::text is null or datname = %(db)s)",
            {"db": dbname},
        )
        return len(ended)

    # -- internals ------------------------------------------------------------------------------------------------

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [self._binaries.program("postgres"), "-D", str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(),
                # Ctrl-C in a terminal goes to the foreground group: the tests end first, then the servers.
                start_new_session=True,
                user=self._user.switch_uid,
                group=self._user.switch_gid,
                extra_groups=self._user.switch_groups,
            )
        except OSError as error:
            raise ClusterError(f"cannot run PostgreSQL as uid {self._user.uid}: {error}.") from error

    def _move(self, state: ServerState) -> None:
        if state not in _MOVES[self._state]:
            raise ClusterError(f"server {self.name!r}: no way from {self._state.value} to {state.value}.")
        self._state = state

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self.state is not ServerState.RUNNING:
            raise ClusterError(f"server {self.name!r} is {self.state.value}; this needs it running.")
        return self._process

    def _write_settings(self) -> None:
        file = self.data_dir / "postgresql.conf"
        # Written to a new file and renamed: the server may read it at any time.
        draft = self.data_dir / "postgresql.conf.new"
        draft.touch(mode=0o600)
        draft.write_text(render(self._settings), encoding="utf-8")
        self._user.give(draft)
        draft.replace(file)

    def _loaded_at(self) -> object:
        return self.value("select pg_conf_load_time()")

    def _log_end(self) -> str:
        return self.log[-3000:]


def until(is_done: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]) -> None:
    """Poll until the condition holds.

    Raises:
        ClusterError: It did not within `timeout_s`; the message is the complaint.
    """
    give_up = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > give_up:
            raise ClusterError(complaint())
        time.sleep(POLL_S)
