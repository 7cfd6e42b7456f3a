"""One side of the tournament: `python -m benchmarks.tournament_child SIDE URL POOL_SIZE`.

Each line of standard input is a JSON object, and is answered with one. Its `do` is `load` (with `method`, `path`,
`clients` and `seconds`), `memory` (`requests`) or `sockets` (`sessions`).
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import tracemalloc
from collections.abc import Iterator
from time import perf_counter, process_time
from typing import Any

from benchmarks.children import lines, say_ready
from benchmarks.drive import HEADERS, receive_nothing, request_scope, send_nowhere, started
from benchmarks.sides import build
from benchmarks.sides.asgi import ITEMS, ASGIApp, Message

WARM_UP = 100


async def load(app: ASGIApp, method: str, path: str, clients: int, seconds: float) -> dict[str, float]:
    """Send requests of `clients` at once for some seconds; each sends its next one when the last one is complete."""
    statuses: dict[int, int] = {}
    latencies: list[float] = []
    item = 0

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses[message["status"]] = statuses.get(message["status"], 0) + 1

    stays = asyncio.Event()

    async def client(until: float) -> None:
        nonlocal item
        is_read = False

        async def receive() -> Message:
            nonlocal is_read
            if is_read:
                await stays.wait()  # never set: the client stays until it has its answer
            is_read = True
            return await receive_nothing()

        now = perf_counter()
        while now < until:
            item = item % ITEMS + 1
            is_read = False
            await app(request_scope(method, path.format(item)), receive, send)
            ended = perf_counter()
            latencies.append(ended - now)
            now = ended

    wall, cpu = perf_counter(), process_time()
    await asyncio.gather(*(client(wall + seconds) for _ in range(clients)))
    wall, cpu = perf_counter() - wall, process_time() - cpu
    latencies.sort()
    done = len(latencies)
    return {
        "requests per second": done / wall,
        "requests per CPU second": done / cpu,
        "latency p50": 1000 * latencies[done // 2],
        "latency p99": 1000 * latencies[done * 99 // 100],
        "latency p999": 1000 * latencies[done * 999 // 1000],
        "errors": done - statuses.get(200, 0),
    }


async def memory_in_flight(app: ASGIApp, requests: int) -> dict[str, float]:
    """Python's memory of reads that have begun and wait, most of them for a connection, in kilobytes for each."""
    ended = asyncio.Event()
    waiting = 0

    async def one() -> None:
        nonlocal waiting
        waiting += 1
        await app(request_scope("GET", "/items/1"), receive_nothing, send_nowhere)
        waiting -= 1

    await asyncio.gather(*(one() for _ in range(WARM_UP)))
    with _Traced() as traced:
        tasks = [asyncio.create_task(one()) for _ in range(requests)]
        while waiting < requests * 0.9 and not ended.is_set():
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        found = traced.kilobytes() / max(1, waiting)
        await asyncio.gather(*tasks)
    return {"kB": found}


async def memory_of_sockets(app: ASGIApp, sessions: int) -> dict[str, float]:
    """Python's memory of idle websocket sessions that have run one read each, in kilobytes for each."""
    idle = asyncio.Semaphore(0)
    over = asyncio.Event()

    async def one() -> None:
        messages: Iterator[Message] = iter([{"type": "websocket.connect"}])

        async def receive() -> Message:
            for message in messages:
                return message
            await over.wait()
            return {"type": "websocket.disconnect", "code": 1000}

        async def send(message: Message) -> None:
            if message["type"] == "websocket.send":
                idle.release()

        await app({**request_scope("GET", "/socket"), "type": "websocket", "headers": HEADERS}, receive, send)

    with _Traced() as traced:
        tasks = [asyncio.create_task(one()) for _ in range(sessions)]
        for _ in range(sessions):
            await idle.acquire()
        found = traced.kilobytes() / sessions
        over.set()
        await asyncio.gather(*tasks)
    return {"kB": found}


class _Traced:
    """Traces allocations of Python; memory of libraries in other languages does not count."""

    def __enter__(self) -> _Traced:
        gc.collect()
        tracemalloc.start(1)
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def kilobytes(self) -> float:
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - self._before) / 1000

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()


async def main(side: str, url: str, pool_size: int) -> None:
    async with started(build(side, url, pool_size)) as app:
        say_ready()
        async for line in lines():
            wanted: dict[str, Any] = json.loads(line)
            match wanted.pop("do"):
                case "load":
                    say_ready(**await load(app, **wanted))
                case "memory":
                    say_ready(**await memory_in_flight(app, **wanted))
                case _:
                    say_ready(**await memory_of_sockets(app, **wanted))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
