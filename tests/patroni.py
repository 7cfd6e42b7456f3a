"""A real Patroni cluster: Debian's Patroni and etcd, with the embedded PostgreSQL's programs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from asgi_datasource.testing.binaries import environment, find_binaries, run_as
from asgi_datasource.testing.keeper import signal_tree
from asgi_datasource.testing.ports import reserve_port
from tests.haproxy import listens

SCOPE: Final = "shop"
PASSWORD: Final = "only for this test"
START_LIMIT_S: Final = 60.0


class Member:
    """One server with its Patroni.

    Attributes:
        name: Its name.
        port: PostgreSQL's port.
        rest_port: The port of Patroni's REST interface.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.port, self._reservation = reserve_port()
        self.rest_port, self._rest_reservation = reserve_port()
        self.data_dir = folder / name / "data"
        self.file = folder / f"{name}.json"
        self.log = folder / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None

    def release_ports(self) -> None:
        """Change the owner of the files to the user of the programs."""
        self._reservation.close()
        self._rest_reservation.close()

    async def says(self, path: str) -> int:
        """The status of its REST API; 0 without a response."""

        def ask() -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}{path}", timeout=2) as response:
                    return int(response.status)
            except urllib.error.HTTPError as error:
                return error.code
            except OSError:
                return 0

        return await asyncio.to_thread(ask)

    @property
    def server_pid(self) -> int:
        """The process id of its postmaster."""
        return int((self.data_dir / "postmaster.pid").read_text().split()[0])

    def kill_server(self) -> None:
        """Send SIGKILL to PostgreSQL; Patroni keeps running."""
        signal_tree(self.server_pid, signal.SIGKILL)


class Patroni:
    """Its members."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    async def leader(self, *, but: Member | None = None, limit_s: float = START_LIMIT_S) -> Member:
        """Wait for a primary other than `but`."""
        async with asyncio.timeout(limit_s):
            while True:
                for member in self.members:
                    if member is not but and await member.says("/primary") == 200:
                        return member
                await asyncio.sleep(0.1)

    async def follows(self, member: Member, *, as_what: str = "/replica", limit_s: float = START_LIMIT_S) -> None:
        """Wait until this server is a running replica; with `/synchronous`, one that can be promoted without loss."""
        async with asyncio.timeout(limit_s):
            while await member.says(as_what) != 200:
                await asyncio.sleep(0.1)


def program_of(name: str, package: str) -> str:
    """The path of one of Debian's programs."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")
    assert found is not None, f"these tests need {name}: apt-get install {package}"
    return found


@asynccontextmanager
async def patroni(names: tuple[str, ...] = ("n1", "n2")) -> AsyncIterator[Patroni]:
    """Run a Patroni cluster during the block; all servers stop with it."""
    user = run_as()
    with TemporaryDirectory(prefix="ads-patroni-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        folder.chmod(0o755)
        user.give(folder)
        async with AsyncExitStack() as stack:
            etcd_port = await stack.enter_async_context(_etcd(folder))
            members = [Member(member, folder) for member in names]
            for member in members:
                (folder / member.name).mkdir(mode=0o700)
                user.give(folder / member.name)
                member.file.write_text(json.dumps(_settings(member, etcd_port)))
                user.give(member.file)
                member.release_ports()
            stack.push_async_callback(_end, members)
            for member in members:
                with member.log.open("wb") as log:
                    member.process = await asyncio.create_subprocess_exec(
                        program_of("patroni", "patroni"),
                        str(member.file),
                        stdout=log,
                        stderr=log,
                        cwd="/",
                        env=environment(),
                        user=user.switch_uid,
                        group=user.switch_gid,
                        extra_groups=user.switch_groups,
                        start_new_session=True,
                    )
            cluster = Patroni(members)
            try:
                leader = await cluster.leader()
                for member in members:
                    if member is not leader:
                        await cluster.follows(member, as_what="/synchronous")
            except TimeoutError:
                logs = "\n".join(f"{member.name}: {member.log.read_text()[-3000:]}" for member in members)
                raise AssertionError(f"Patroni did not start\n{logs}") from None
            yield cluster


async def _end(members: list[Member]) -> None:
    for member in members:
        process = member.process
        if process is not None and process.returncode is None:
            # PostgreSQL is Patroni's child, or was left by it.
            signal_tree(process.pid, signal.SIGKILL)
            await process.wait()
        try:
            member.kill_server()
        except (OSError, ValueError, IndexError):
            continue


@asynccontextmanager
async def _etcd(folder: Path) -> AsyncIterator[int]:
    client, client_reservation = reserve_port()
    peer, peer_reservation = reserve_port()
    client_reservation.close()
    peer_reservation.close()
    urls = [f"http://127.0.0.1:{port}" for port in (client, peer)]
    process = await asyncio.create_subprocess_exec(
        program_of("etcd", "etcd-server"),
        *("--data-dir", str(folder / "etcd"), "--name", "one", "--unsafe-no-fsync"),
        *("--listen-client-urls", urls[0], "--advertise-client-urls", urls[0]),
        *("--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1]),
        *("--initial-cluster", f"one={urls[1]}"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await listens(client)
        yield client
    finally:
        process.kill()
        await process.wait()


def _settings(member: Member, etcd_port: int) -> dict[str, Any]:
    accounts = {
        role: {"username": role_name, "password": PASSWORD}
        for role, role_name in (("superuser", "postgres"), ("replication", "replicator"))
    }
    return {
        "scope": SCOPE,
        "name": member.name,
        "restapi": {"listen": f"127.0.0.1:{member.rest_port}", "connect_address": f"127.0.0.1:{member.rest_port}"},
        "etcd3": {"hosts": [f"127.0.0.1:{etcd_port}"]},
        "bootstrap": {
            "dcs": {
                "ttl": 20,
                "loop_wait": 1,
                "retry_timeout": 3,
                "synchronous_mode": True,
                # A dead primary is not restarted first: a replica is promoted at once.
                "primary_start_timeout": 0,
                "master_start_timeout": 0,
                "postgresql": {
                    "use_pg_rewind": True,
                    "parameters": {"wal_log_hints": "on", "hot_standby": "on", "fsync": "off"},
                },
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{member.port}",
            "connect_address": f"127.0.0.1:{member.port}",
            "data_dir": str(member.data_dir),
            "bin_dir": str(find_binaries(16).bin_dir),
            "pgpass": str(member.data_dir.parent / "pgpass"),
            "authentication": accounts,
            "parameters": {"unix_socket_directories": "", "shared_buffers": "16MB", "max_connections": 100},
            "pg_hba": ["host all all 127.0.0.1/32 md5", "host replication all 127.0.0.1/32 md5"],
        },
    }
