"""Runs the command line as a program of its own, as a shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended."""

    code: int
    out: str
    err: str


def run(
    *arguments: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None, stdin: str = ""
) -> Ran:
    """Run `python -m asgi_datasource` with arguments.

    Args:
        arguments: What stands behind the program's name.
        cwd: The folder to run in.
        environ: Variables beside those of this process; an empty string takes one away.
        stdin: What it may read.
    """
    variables = {**os.environ, "NO_COLOR": "", "FORCE_COLOR": "", **(environ or {})}
    done = subprocess.run(
        [sys.executable, "-m", "asgi_datasource", *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in variables.items() if value},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
