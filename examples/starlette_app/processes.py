"""The end of the demo's child processes, which stop when their standard input is closed."""

from __future__ import annotations

import asyncio
from typing import Final

STOP_TIMEOUT_S: Final = 15.0


async def end(process: asyncio.subprocess.Process) -> None:
    """Stop a process, with SIGKILL after a timeout."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
