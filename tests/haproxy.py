"""A real HAProxy with the settings of Patroni's documentation: one port that leads to the primary."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from asgi_datasource.testing import Node
from asgi_datasource.testing.ports import reserve_port

START_LIMIT_S: Final = 15.0
CHECK_S: Final = 0.2

_SETTINGS: Final = """\
global
    maxconn 500
defaults
    mode tcp
    timeout connect 1s
    timeout client 30m
    timeout server 30m
    timeout check 1s
    retries 0
listen primary
    bind 127.0.0.1:{listen}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter {check_ms}ms fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


@asynccontextmanager
async def haproxy(servers: Mapping[str, tuple[int, int]]) -> AsyncIterator[int]:
    """Run HAProxy; yields its port.

    Args:
        servers: The port of each server, and the HTTP port of its health check.
    """
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program is not None, "these tests need HAProxy: apt-get install haproxy"
    lines = [
        f"    server {name} 127.0.0.1:{port} check port {checked_at}" for name, (port, checked_at) in servers.items()
    ]
    with TemporaryDirectory(prefix="ads-haproxy-") as name:
        listen, reservation = reserve_port()
        file = Path(name) / "haproxy.cfg"
        file.write_text(_SETTINGS.format(listen=listen, check_ms=int(CHECK_S * 1000), servers="\n".join(lines)))
        reservation.close()
        quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
        process = await asyncio.create_subprocess_exec(program, "-db", "-f", str(file), **quiet)
        try:
            await listens(listen)
            assert process.returncode is None, f"haproxy ended with {process.returncode}"
            yield listen
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def listens(port: int, *, limit_s: float = START_LIMIT_S) -> None:
    """Wait until a port accepts connections."""
    async with asyncio.timeout(limit_s):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                    return
            except OSError:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def agents(*nodes: Node) -> AsyncIterator[dict[str, tuple[int, int]]]:
    """HTTP checks whether a server is the primary, like Patroni's REST API; yields the argument of `haproxy`."""
    async with AsyncExitStack() as stack:
        servers: dict[str, tuple[int, int]] = {}
        for node in nodes:
            server = await asyncio.start_server(_agent(node), "127.0.0.1", 0)
            await stack.enter_async_context(server)
            servers[node.name] = (node.port, server.sockets[0].getsockname()[1])
        yield servers


def _agent(node: Node):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        try:
            async with asyncio.timeout(1.0):
                is_primary = node.pid is not None and not await node.is_standby()
        except Exception:
            is_primary = False
        status = "200 OK" if is_primary else "503 Service Unavailable"
        writer.write(f"HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    return answer
