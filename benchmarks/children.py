"""Child processes (servers, the proxy) that print a JSON object as their first line when they are ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Run `python -m module arguments` for the block; yields the process id and the JSON object of the first line.

    The child exits when its standard input closes, so it also exits when this process is killed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=Path(__file__).parent.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None  # PIPE above
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), READY_TIMEOUT_S)
        if not line:
            raise RuntimeError(f"{module} {' '.join(arguments[:1])} ended before it was ready (its error is above)")
        yield process.pid, json.loads(line)
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def until_stdin_ends() -> None:
    """In the child: return when the parent closes the pipe or exits."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def say_ready(**facts: object) -> None:
    """In the child: print the first line."""
    print(json.dumps(facts), flush=True)
