"""The delaying proxy, in a process of its own, so that its CPU does not count for the client or the server.

    python -m benchmarks.proxy HOST PORT DELAY_S

DELAY_S is added to each round trip.
"""

from __future__ import annotations

import asyncio
import sys

from asgi_datasource.testing import FaultProxy
from benchmarks.children import say_ready, until_stdin_ends


async def main(host: str, port: int, delay_s: float) -> None:
    async with FaultProxy(host, port, delay_s=delay_s) as proxy:
        say_ready(port=proxy.port)
        await until_stdin_ends()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
