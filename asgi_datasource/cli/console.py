"""Where a command speaks: results to standard output, everything else to standard error; colour on terminals."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

_RESET: Final = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Style:
    """How text is emphasised; not at all where nobody could see it.

    Attributes:
        is_coloured: Whether escape sequences are written.
    """

    is_coloured: bool = False

    def bold(self, text: str) -> str:
        """What a reader looks for first."""
        return self._in("1", text)

    def faint(self, text: str) -> str:
        """What stands at the side."""
        return self._in("2", text)

    def red(self, text: str) -> str:
        """Errors."""
        return self._in("1;31", text)

    def yellow(self, text: str) -> str:
        """Warnings."""
        return self._in("1;33", text)

    def green(self, text: str) -> str:
        """What is right."""
        return self._in("1;32", text)

    def blue(self, text: str) -> str:
        """Hints, and the frame around an excerpt."""
        return self._in("1;34", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}{_RESET}" if self.is_coloured and text else text


PLAIN: Final = Style()


def wants_colour(choice: str, stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """Whether to write colour.

    Args:
        choice: `auto`, `always` or `never`, as asked for on the command line.
        stream: Where the text goes.
        environ: The environment; None takes the process's.

    Source: https://no-color.org; `FORCE_COLOR` is what CI systems set whose logs show colour.
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
        out: Takes the result.
        err: Takes everything else.
    """

    out: TextIO
    err: TextIO

    def progress(self, text: str) -> None:
        """Tell a person what is going on; programs that read the result do not see it."""
        print(text, file=self.err, flush=True)

    def complain(self, text: str) -> None:
        """Tell why the command could not do its work."""
        style = Style(wants_colour("auto", self.err))
        print(f"{style.red('error')}: {text}", file=self.err, flush=True)
