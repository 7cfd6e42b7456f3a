"""Clients that send requests continuously, and record every response."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.drivers.polling import until


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to one request."""

    status: int
    node: str
    body: str


@dataclass
class Traffic:
    """All responses so far, in order."""

    answers: list[Answer] = field(default_factory=list)

    async def goes_on(self, count: int = 30, *, timeout_s: float = 60.0) -> list[Answer]:
        """Wait for this many more responses, and return them."""
        start = len(self.answers)
        await until(lambda: len(self.answers) >= start + count, timeout_s=timeout_s)
        return self.answers[start:]

    async def reaches(self, *nodes: str, timeout_s: float = 60.0) -> None:
        """Wait until exactly these servers answer."""

        async with asyncio.timeout(timeout_s):
            while {answer.node for answer in await self.goes_on()} != set(nodes):
                pass

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status >= 400]


@asynccontextmanager
async def traffic(
    http: httpx.AsyncClient, path: str, *, method: str = "GET", clients: int = 6
) -> AsyncIterator[Traffic]:
    """Clients that repeat this request until the block ends; the response names its server in `X-Node`."""
    seen = Traffic()
    is_over = asyncio.Event()

    async def send() -> None:
        while not is_over.is_set():
            response = await http.request(method, path)
            seen.answers.append(Answer(response.status_code, response.headers.get("x-node", ""), response.text))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(send())
        try:
            yield seen
        finally:
            is_over.set()
