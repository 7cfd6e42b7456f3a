"""The output of commands: results on standard output, everything else on standard error; colour on terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

_RESET: Final = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Style:
    """The emphasis of text.

    Attributes:
        is_coloured: Whether escape sequences are written.
    """

    is_coloured: bool = False

    def bold(self, text: str) -> str:
        """The most important text."""
        return self._in("1", text)

    def faint(self, text: str) -> str:
        """Secondary text."""
        return self._in("2", text)

    def red(self, text: str) -> str:
        """Errors."""
        return self._in("1;31", text)

    def yellow(self, text: str) -> str:
        """Warnings."""
        return self._in("1;33", text)

    def green(self, text: str) -> str:
        """Success."""
        return self._in("1;32", text)

    def blue(self, text: str) -> str:
        """Hints, and the frame of an excerpt."""
        return self._in("1;34", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}{_RESET}" if self.is_coloured and text else text


PLAIN: Final = Style()


def printable(text: str) -> str:
    """Text from elsewhere without the characters that a terminal takes for commands."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def wants_colour(choice: str, stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """Whether to write colour.

    Args:
        choice: `auto`, `always` or `never`, from the command line.
        stream: The destination.
        environ: The environment; None takes the process's.

    Source: https://no-color.org; CI systems whose logs show colour set `FORCE_COLOR`.
    """
    if choice != "auto":
        return choice == "always"
    variables = os.environ if environ is None else environ
    if variables.get("NO_COLOR"):
        return False
    if variables.get("FORCE_COLOR"):
        return True
    return stream.isatty() and variables.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class Console:
    """The streams of one run.

    Attributes:
        out: The result.
        err: Everything else.
    """

    out: TextIO
    err: TextIO

    def progress(self, text: str) -> None:
        """Print progress; programs that read the result do not see it."""
        print(text, file=self.err, flush=True)

    def confirm(self, question: str) -> bool:
        """Ask on a terminal; without one the answer is no."""
        if not sys.stdin.isatty():
            return False
        print(f"{question} [y/N] ", end="", file=self.err, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def complain(self, text: str) -> None:
        """Print why the command failed."""
        style = Style(wants_colour("auto", self.err))
        print(f"{style.red('error')}: {text}", file=self.err, flush=True)
