"""One side behind a real uvicorn, in a process of its own: `python -m benchmarks.serve SIDE URL POOL_SIZE LOOP`."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn

from benchmarks.children import say_ready, until_stdin_ends
from benchmarks.sides import build


async def main(side: str, url: str, pool_size: int) -> None:
    # With an explicit protocol asyncio sets TCP_NODELAY; without it, each response is delayed by 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        build(side, url, pool_size), http="httptools", lifespan="on", log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError(f"{side}: the application did not start")
        await asyncio.sleep(0.01)
    say_ready(port=listening.getsockname()[1])
    await until_stdin_ends()
    server.should_exit = True
    await serving


if __name__ == "__main__":
    loop_factory = None
    if sys.argv[4] == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
