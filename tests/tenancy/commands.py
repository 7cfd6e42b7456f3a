"""Commands as processes of their own, forked off one that has everything imported: started at once, and killed.

A fresh interpreter for each takes longer than what most of them do.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg

from asgi_datasource.cli.commands import migrate, tenants
from asgi_datasource.cli.program import main
from tests.cli.run import TIMEOUT_S, Ran

_context = get_context("forkserver")
_context.set_forkserver_preload([__name__, tenants.__name__, migrate.__name__])


async def seed(tenant: Any, connection: psycopg.AsyncConnection[Any]) -> None:
    """A set-up step as an application writes it."""
    await connection.execute("insert into items (name) values (%s)", (f"seed of {tenant.name}",))


class Command:
    """`asgi-datasource ARGUMENTS` in a folder, running."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out, self._err = folder / ".out", folder / ".err"
        self._process = _context.Process(target=_run, args=(folder, arguments, self._out, self._err))
        self._process.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait(self) -> Ran:
        """How it ended."""
        self._process.join(TIMEOUT_S)
        code = self._process.exitcode
        assert code is not None, "it does not end"
        return Ran(code, self._out.read_text(), self._err.read_text())

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join(TIMEOUT_S)


def _run(folder: Path, arguments: tuple[str, ...], out: Path, err: Path) -> None:
    os.chdir(folder)
    with out.open("w") as sys.stdout, err.open("w") as sys.stderr:
        code = main(arguments)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.exit(code)
