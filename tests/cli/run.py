"""Runs the command line: as a separate process, like a shell, or inside the test's process, which is faster."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from asgi_datasource.cli import main

TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a run."""

    code: int
    out: str
    err: str


def run(
    *arguments: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None, stdin: str = ""
) -> Ran:
    """Run `python -m asgi_datasource` with arguments.

    Args:
        arguments: The arguments after the program's name.
        cwd: The working directory.
        environ: Variables to add; an empty string removes one.
        stdin: The standard input.
    """
    variables = _variables(environ)
    done = subprocess.run(
        [sys.executable, "-m", "asgi_datasource", *map(str, arguments)],
        cwd=cwd,
        env=variables,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def call(*arguments: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> Ran:
    """Run the same inside this process, in a thread, because commands may start an event loop.

    Args:
        arguments: The arguments after the program's name.
        cwd: The working directory.
        environ: Variables to add; an empty string removes one.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, _variables(environ), clear=True),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
        ThreadPoolExecutor(1) as thread,
    ):
        code = thread.submit(_exit_code, [*map(str, arguments)]).result(TIMEOUT_S)
    return Ran(code, out.getvalue(), err.getvalue())


def _exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def _variables(environ: Mapping[str, str] | None) -> dict[str, str]:
    variables = {**os.environ, "NO_COLOR": "", "FORCE_COLOR": "", **(environ or {})}
    return {name: value for name, value in variables.items() if value}
