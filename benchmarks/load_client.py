"""A small, fast HTTP load generator, for machines without wrk; one thread, one process, keep-alive connections.

    python -m benchmarks.load_client HOST PORT METHOD CLIENTS SECONDS TENANT ITEMS

Each client sends its next request after the complete response to the previous one. Prints one JSON object: `requests`,
`seconds`, `p50_ms`, `p99_ms`, `errors`. It uses sockets without asyncio, because its CPU is taken from the server that
it measures.
"""

from __future__ import annotations

import json
import random
import re
import selectors
import socket
import sys
from time import perf_counter

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class _Client:
    """One keep-alive connection and the response it waits for."""

    __slots__ = ("received", "sent_at", "socket", "wanted")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.wanted = -1
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.received, self.wanted = b"", -1
        self.sent_at = perf_counter()
        self.socket.sendall(request)  # far smaller than a socket's buffer: cannot block

    def has_answer(self) -> bool:
        """Read the available bytes; returns whether the response is complete."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection in the middle of the run")
        self.received = self.received + data if self.received else data
        if self.wanted < 0:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return False
            length = _LENGTH.search(self.received, 0, end)
            if length is None:
                raise ValueError("a response without content-length")
            self.wanted = end + 4 + int(length[1])
        return len(self.received) >= self.wanted


def run(
    host: str, port: int, method: str, clients: int, seconds: float, tenant: str, items: int
) -> dict[str, float | int]:
    """Load the server for `seconds`; returns the figures."""
    order = random.Random(1)  # the same requests in every run, for every side
    headers = f"Host: {host}\r\nX-Tenant: {tenant}\r\nAccept: application/json\r\nUser-Agent: bench\r\n"
    if method == "POST":
        headers += "Content-Length: 0\r\n"
    requests = [f"{method} /items/{order.randint(1, items)} HTTP/1.1\r\n{headers}\r\n".encode() for _ in range(4096)]
    latencies: list[float] = []
    errors = sent = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            client = _Client((host, port))
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(requests[sent % 4096])
            sent += 1
        started = perf_counter()
        until = started + seconds
        now = started
        while now < until:
            for key, _ in selector.select(1.0):
                client = key.data
                if not client.has_answer():
                    continue
                now = perf_counter()
                latencies.append(now - client.sent_at)
                if not client.received.startswith(b"HTTP/1.1 200"):
                    errors += 1
                client.send(requests[sent % 4096])
                sent += 1
            now = perf_counter()
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    latencies.sort()
    return {
        "requests": len(latencies),
        "seconds": now - started,
        "p50_ms": 1000 * latencies[len(latencies) // 2] if latencies else 0.0,
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100] if latencies else 0.0,
        "errors": errors,
    }


if __name__ == "__main__":
    print(
        json.dumps(
            run(
                sys.argv[1],
                int(sys.argv[2]),
                sys.argv[3],
                int(sys.argv[4]),
                float(sys.argv[5]),
                sys.argv[6],
                int(sys.argv[7]),
            )
        )
    )
