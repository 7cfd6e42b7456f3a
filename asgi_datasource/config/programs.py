"""Runs programs that print secrets: without a shell, with bounds on time and output."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, cast

from .limits import COMMAND_TIMEOUT_S, MAX_SECRET_BYTES


class ProgramFailed(Exception):
    """Raised when a program yields no secret; the message gives the reason and none of the output."""


def ask_program(arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> str:
    """Run a program and return its output without the final line break.

    Its standard error is discarded, because it may contain parts of the secret. The program runs in its own process
    group, which is killed at the timeout.

    Args:
        arguments: The program and its arguments.
        folder: The working directory.
        environ: The environment.

    Raises:
        ProgramFailed: The program did not start, failed, printed too much or something other than UTF-8, or took longer
            than `COMMAND_TIMEOUT_S`.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the file names it, and the caller has allowed it
            list(arguments),
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ProgramFailed(f"it cannot be started: {reason}") from None
    try:
        deadline = monotonic() + COMMAND_TIMEOUT_S
        printed = _read(process, deadline)
        status = process.wait(max(0.0, deadline - monotonic()))
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"it took longer than {COMMAND_TIMEOUT_S:g} s") from None
    finally:
        _end(process)
    if status != 0:
        raise ProgramFailed(f"it exited with {status}")
    try:
        return printed.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ProgramFailed("what it prints is not UTF-8") from None


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """The program's whole output."""
    stream = cast("IO[bytes]", process.stdout)
    parts: list[bytes] = []
    length = 0
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - monotonic())):
                raise subprocess.TimeoutExpired(process.args, COMMAND_TIMEOUT_S)
            part = os.read(stream.fileno(), 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
            length += len(part)
            if length > MAX_SECRET_BYTES:
                raise ProgramFailed(f"it prints more than {MAX_SECRET_BYTES // 1024} kB")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program's process group."""
    if process.stdout is not None:
        process.stdout.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
