"""A relay of the outbox in a process of its own, as `asgi-datasource outbox relay`; it exits with scripts/demo."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from asgi_datasource import compile
from examples.starlette_app import tracing

CONFIG = Path(__file__).with_name("datasource.yaml")


async def relay() -> None:
    """Deliver until SIGTERM, or the end of standard input, which is the exit of the parent process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def parent_is_gone() -> None:
        loop.remove_reader(sys.stdin)
        stopped.set()

    loop.add_reader(sys.stdin, parent_is_gone)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    async with compile(CONFIG).relaying():
        print("ready", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    logging.basicConfig(format="  %(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    # While a server is stopped on the page, relays say so with each attempt; the page shows it.
    logging.getLogger("asgi_datasource.outbox").setLevel(logging.ERROR)
    tracing.set_up()
    asyncio.run(relay())
