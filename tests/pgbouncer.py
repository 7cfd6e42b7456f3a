"""A real PgBouncer before a server, in transaction mode."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from asgi_datasource.testing.binaries import run_as
from asgi_datasource.testing.ports import reserve_port

START_LIMIT_S: Final = 15.0
STOP_LIMIT_S: Final = 10.0

_SETTINGS: Final = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 2000
server_round_robin = 1
stats_period = 3600
log_connections = 0
log_disconnections = 0
"""


@dataclass(frozen=True, slots=True)
class Bouncer:
    """A running PgBouncer."""

    port: int
    user: str

    def url(self, dbname: str) -> str:
        """A connection string for a database through PgBouncer, which requires no password."""
        return f"postgresql://{quote(self.user)}@127.0.0.1:{self.port}/{quote(dbname, safe='{}')}"


@asynccontextmanager
async def pgbouncer(server: str, *, size: int, mode: str = "transaction") -> AsyncIterator[Bouncer]:
    """Run PgBouncer before a server.

    Args:
        server: A connection string of the server, with the password for PgBouncer.
        size: Server connections for each database.
        mode: The pool mode.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program is not None, "these tests need PgBouncer: apt-get install pgbouncer"
    parts = conninfo_to_dict(server)
    user = run_as()
    with TemporaryDirectory(prefix="ads-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        listen, reservation = reserve_port()
        settings = _SETTINGS.format(
            host=parts["host"], port=parts["port"], listen=listen, folder=folder, mode=mode, size=size
        )
        (folder / "pgbouncer.ini").write_text(settings)
        (folder / "users").write_text(f'"{parts["user"]}" "{parts.get("password", "")}"\n')
        reservation.close()
        process = await asyncio.create_subprocess_exec(
            program,
            str(folder / "pgbouncer.ini"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            user=user.switch_uid,
            group=user.switch_gid,
            extra_groups=user.switch_groups,
        )
        try:
            await _answers(listen, process)
            yield Bouncer(listen, str(parts["user"]))
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(STOP_LIMIT_S):
                await process.wait()


async def _answers(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(START_LIMIT_S):
        while True:
            assert process.returncode is None, f"pgbouncer ended with {process.returncode}"
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                    return
            except OSError:
                await asyncio.sleep(0.02)
