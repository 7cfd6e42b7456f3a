"""Child processes (servers, the proxy) that print a JSON object as their first line when they are ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0


Ask = Callable[[str], Awaitable[dict[str, Any]]]
"""Sends a line to a child; returns the JSON object of the line that it answers."""


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Run `python -m module arguments` for the block; yields the process id and the JSON object of the first line.

    The child exits when its standard input closes, so it also exits when this process is killed.
    """
    async with _running(module, *arguments) as (process, facts):
        yield process.pid, facts


@asynccontextmanager
async def answering(module: str, *arguments: str) -> AsyncIterator[Ask]:
    """The same, for a child that answers the lines of its standard input (`lines`)."""
    async with _running(module, *arguments) as (process, _):
        stdin, stdout = cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)

        async def ask(line: str) -> dict[str, Any]:
            stdin.write(f"{line}\n".encode("ascii"))
            answer = await stdout.readline()
            if not answer:
                raise RuntimeError(f"{module} {' '.join(arguments[:1])} has ended (its error is above)")
            found: dict[str, Any] = json.loads(answer)
            return found

        yield ask


@asynccontextmanager
async def _running(module: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
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
        yield process, json.loads(line)
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
    await (await _stdin()).read()


async def lines() -> AsyncIterator[str]:
    """In the child: the lines of standard input, until it ends."""
    reader = await _stdin()
    while line := await reader.readline():
        yield line.decode("ascii")


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def say_ready(**facts: object) -> None:
    """In the child: print the first line, or the answer to a line."""
    print(json.dumps(facts), flush=True)
