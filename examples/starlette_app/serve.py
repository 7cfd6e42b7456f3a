"""The desk's process: uvicorn on a socket from scripts/demo; it exits with scripts/demo."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Final

import uvicorn
import uvloop

GRACE_S: Final = 5
"""Seconds for running requests to complete on shutdown."""


async def serve(fd: int) -> None:
    """Serve until SIGINT, SIGTERM, or the end of standard input, which is the exit of the parent process."""
    config = uvicorn.Config(
        "starlette_app.app:app", log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S
    )
    server = uvicorn.Server(config)

    def parent_is_gone() -> None:
        loop.remove_reader(sys.stdin)
        server.should_exit = True

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, parent_is_gone)
    await server.serve(sockets=[socket.socket(fileno=fd)])


if __name__ == "__main__":
    logging.basicConfig(format="  %(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    # The library logs once that a server is down; the pool would log every attempt.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    uvloop.run(serve(int(sys.argv[1])))
