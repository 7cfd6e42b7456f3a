"""The tutorial, followed literally: its files are written and its commands typed, in their order, into one shell.

A line of output on the page is waited for in the terminal; `…` stands for any text. What the page does not say is not
done, with two exceptions: packages are not installed, but looked up in the environment of the tests; and the port is a
free one.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from importlib.metadata import distribution
from pathlib import Path

from asgi_datasource.testing.ports import reserve_port
from tests.docs.samples import ROOT, Sample, blocks

PAGE = "docs/tutorial.md"
LIMIT_S = 60
INSTALLS = ("python3 -m venv ", ". .venv/bin/activate", "pip install ")


class Terminal:
    """A shell, and what it and the programs in its background print."""

    def __init__(self, shell: asyncio.subprocess.Process) -> None:
        self._shell = shell
        self._commands = 0

    async def type(self, command: str, expected: list[str]) -> str:
        """Type a command, and wait for its end; for a program in the background, wait for the expected lines.

        Returns:
            What was printed.
        """
        self._commands += 1
        end = f"end of command {self._commands}"
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}\nprintf '\\n%s\\n' '{end}'\n".encode())
        awaited = [_pattern(end), *(_pattern(line) for line in expected if command.endswith("&"))]
        printed = ""
        async with asyncio.timeout(LIMIT_S):
            while not all(pattern.search(printed) for pattern in awaited):
                printed += await self._read()
        return printed

    async def _read(self) -> str:
        assert self._shell.stdout is not None
        data = await self._shell.stdout.read(65536)
        assert data, "the shell has ended"
        return data.decode()


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(f"^{re.escape(line).replace('…', '.*')}$", re.MULTILINE)


def commands(sample: Sample) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines of output below it."""
    found: list[tuple[str, list[str]]] = []
    for line in sample.text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


def is_installed(command: str) -> bool:
    """Whether the environment of the tests has what a `pip install` line names."""
    return all(distribution(name.partition("[")[0]) for name in shlex.split(command)[2:])


async def test_the_tutorial(tmp_path: Path) -> None:
    port, reservation = reserve_port()
    reservation.close()
    folder = tmp_path
    environ = {
        **{name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME") if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "--norc",
        "-s",
        cwd=tmp_path,
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    terminal = Terminal(shell)
    try:
        for sample in blocks(PAGE):
            text = sample.text.replace("8000", str(port))
            if sample.title is not None:
                path = folder / sample.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                continue
            assert sample.language == "console", f"{sample}: neither a file nor commands"
            for command, expected in commands(sample):
                command = command.replace("8000", str(port))
                expected = [line.replace("8000", str(port)) for line in expected]
                if command.startswith(INSTALLS):
                    assert not command.startswith("pip") or is_installed(command)
                    continue
                printed = await terminal.type(command, expected)
                if command.startswith("cd "):
                    folder /= command.removeprefix("cd ")
                print(f"$ {command}\n{printed}")
                for line in expected:
                    assert _pattern(line).search(printed), f"{sample}: $ {command}\n{printed}\nhas no line\n{line}"
    finally:
        assert shell.stdin is not None
        shell.stdin.write(b"\nkill $(jobs -p) 2>/dev/null; wait\n")
        shell.stdin.close()
        await asyncio.wait_for(shell.wait(), LIMIT_S)
