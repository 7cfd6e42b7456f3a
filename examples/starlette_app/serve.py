"""The desk's own process: uvicorn on a socket that scripts/demo hands over; it ends when scripts/demo ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Final

import uvicorn
import uvloop

GRACE_S: Final = 5
"""Seconds that requests in flight have to end once the server is asked to stop."""


async def serve(fd: int) -> None:
    """Serve until SIGINT, SIGTERM, or the end of standard input: the parent process is gone then."""
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
    # The library says once that a server is down; the pool would say it again with every attempt.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    uvloop.run(serve(int(sys.argv[1])))
