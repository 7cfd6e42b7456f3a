"""The delaying proxy in a process of its own, so that its CPU is nobody's.

    python -m benchmarks.proxy HOST PORT DELAY_S

The delay is of the round trip: a client waits that much longer for each answer.
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
