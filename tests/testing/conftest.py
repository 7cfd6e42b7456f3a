"""The fixtures of the library's pytest plugin, and functions to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from asgi_datasource.testing.plugin import pg_cluster, pg_database

__all__ = ["pg_cluster", "pg_cluster_options", "pg_database"]

BOUND_S = 60.0


@pytest.fixture(scope="session")
def pg_cluster_options() -> dict[str, Any]:
    return {"replicas": 2}


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds, at most for a bound."""

    def wait(is_so: Callable[[], bool]) -> None:
        give_up = time.monotonic() + BOUND_S
        while not is_so():
            assert time.monotonic() < give_up, "it did not happen"
            time.sleep(0.01)

    return wait


@pytest.fixture
def soon() -> Callable[[Callable[[], bool]], Any]:
    """The same on the event loop."""

    async def wait(is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not is_so():
                await asyncio.sleep(0.005)

    return wait
