"""Reads without a web server on one event loop: `python -m benchmarks.loops_child LOOP SIDE URL CALLS`.

Prints one JSON object: microseconds of wall-clock time and CPU of a read, alone and with 32 at once on a pool of 5.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from time import perf_counter, process_time

from benchmarks.drive import receive_nothing, request_scope, send_nowhere, started
from benchmarks.sides import build
from benchmarks.sides.asgi import ITEMS, ASGIApp

POOL_SIZE = 5
WARM_UP = 300


async def _read(app: ASGIApp, calls: int, clients: int) -> tuple[float, float]:
    scopes = iter([request_scope("GET", f"/items/{1 + number % ITEMS}") for number in range(calls)])

    async def client() -> None:
        for scope in scopes:
            await app(scope, receive_nothing, send_nowhere)

    wall, cpu = perf_counter(), process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return (perf_counter() - wall) / calls * 1e6, (process_time() - cpu) / calls * 1e6


async def main(side: str, url: str, calls: int) -> None:
    found: dict[str, float] = {}
    async with started(build(side, url, POOL_SIZE)) as app:
        for name, clients in (("alone", 1), ("32 at once", 32)):
            await _read(app, WARM_UP, clients)
            found[f"{name}, wall"], found[f"{name}, CPU"] = await _read(app, calls, clients)
    print(json.dumps(found))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    loop_factory = None
    if sys.argv[1] == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(sys.argv[2], sys.argv[3], int(sys.argv[4])))
