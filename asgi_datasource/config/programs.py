"""Secrets that a program tells: run without a shell, for a bounded time, with a bounded answer."""

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
    """Raised when a program tells no secret; its words say why, and nothing of what it printed."""


def ask_program(arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> str:
    """Run a program and return what it prints, without the line break at its end.

    Its standard error is thrown away: it may hold what the secret is made of. It runs in a process group of its own,
    all of which is ended when the time is over.

    Args:
        arguments: The program and its arguments.
        folder: Where it runs.
        environ: Its environment.

    Raises:
        ProgramFailed: It could not be started, failed, printed too much or no text, or took longer than
            `COMMAND_TIMEOUT_S`.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the file names it, and whoever loads the file has allowed it
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
    """What the program prints, to its end."""
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
    """End the program with all that it has started, should it still run."""
    if process.stdout is not None:
        process.stdout.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
