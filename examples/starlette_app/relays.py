"""The relays of the demo: processes that can be killed, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from examples.starlette_app.processes import end

NAMES: Final = ("relay 1", "relay 2")
START_TIMEOUT_S: Final = 60.0


class Relays:
    """Two relays that share the work; they start with the block, and end with it.

    Args:
        variables: Environment variables to add.
        log: File for their output; None inherits that of this process.
    """

    def __init__(self, variables: Mapping[str, str], log: Path | None) -> None:
        self._environment = {**os.environ, **variables}
        self._log = log
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Relays:
        try:
            for name in NAMES:
                await self._spawn(name)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*map(end, self._processes.values()))

    def state(self) -> dict[str, Any]:
        """Whether each is running."""
        return {name: {"up": self._is_up(name)} for name in NAMES}

    def _is_up(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.returncode is None

    async def ready(self) -> None:
        """Wait until all of them deliver."""
        await asyncio.gather(*map(self._ready, NAMES))

    async def start(self, name: str) -> None:
        """Start one that is not running; returns once it delivers."""
        if not self._is_up(name):
            await self._spawn(name)
            await self._ready(name)

    async def _spawn(self, name: str) -> None:
        with contextlib.ExitStack() as stack:
            errors = None if self._log is None else stack.enter_context(self._log.open("ab"))
            self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "starlette_app.relay", env=self._environment, start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    async def _ready(self, name: str) -> None:
        process = self._processes[name]
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline() if process.stdout is not None else b""
        if line != b"ready\n":
            raise RuntimeError(f"{name} ended with {await process.wait()}")

    async def kill(self, name: str) -> None:
        """SIGKILL: it gives nothing back, and another one takes its keys over when its lease ends."""
        process = self._processes[name]
        if process.returncode is None:
            process.kill()
            await process.wait()
