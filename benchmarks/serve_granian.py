"""One side behind granian, in a process of its own: `python -m benchmarks.serve_granian SIDE URL POOL_SIZE LOOP`."""

from __future__ import annotations

import asyncio
import socket
import sys

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from benchmarks.children import say_ready, until_stdin_ends
from benchmarks.sides import build


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def main(side: str, url: str, pool_size: int) -> None:
    port = _free_port()
    server = Server(
        build(side, url, pool_size),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )
    serving = asyncio.create_task(server.serve())
    while True:
        if serving.done():
            serving.result()
            raise RuntimeError(f"{side}: the application did not start")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        break
    say_ready(port=port)
    await until_stdin_ends()
    await server.shutdown()
    await serving


if __name__ == "__main__":
    loop_factory = None
    if sys.argv[4] == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
