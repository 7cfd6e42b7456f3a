"""What a command is: a module of `commands/` that describes its arguments, and runs to a result."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from .console import Console, Style


class ExitCode(IntEnum):
    """What the shell is told."""

    CLEAN = 0
    """Done, and nothing was found."""
    FINDINGS = 1
    """Done, and something was found."""
    CANNOT_RUN = 2
    """Not done: bad usage, a file that cannot be read, a configuration that is wrong, a server that does not answer."""


class Result(Protocol):
    """What a command found or did; a value, so that tests and other programs can use it as well."""

    @property
    def exit_code(self) -> ExitCode:
        """What the shell is told."""
        ...

    def render(self, form: str, style: Style) -> str:
        """The result in one of the command's formats, without a line break at its end.

        Args:
            form: The format's name, one of those that the command offers.
            style: How to emphasise text; other formats have no use for it.
        """
        ...


class Clean:
    """A result in which there is nothing to find."""

    __slots__ = ()

    @property
    def exit_code(self) -> ExitCode:
        """0."""
        return ExitCode.CLEAN


@dataclass(frozen=True, slots=True)
class Printed(Clean):
    """Text that is printed as it is."""

    text: str

    def render(self, form: str, style: Style) -> str:
        """The text itself."""
        return self.text.rstrip("\n")


class Command(Protocol):
    """What a module of `commands/` holds."""

    def configure(self, parser: ArgumentParser) -> None:
        """Add the arguments to the command's own parser; ends with `offer_formats`."""
        ...

    def run(self, options: Namespace, console: Console) -> Result:
        """Do the work.

        Args:
            options: The parsed arguments.
            console: Takes progress; the result is printed by whoever called.

        Raises:
            CannotRun: The command could not do its work.
        """
        ...


class CannotRun(Exception):
    """Raised when a command cannot do its work.

    Args:
        message: What is wrong, without full stop; nothing in it is secret.
        fix: What to do, a sentence.
    """

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}. {fix}")


def offer_formats(parser: ArgumentParser, *formats: str) -> None:
    """Add the options that say how the result is printed, and where to.

    Args:
        parser: The command's parser; a command with commands of its own calls this for each of theirs.
        formats: The formats' names, the default first; each is one that the command's results can render.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=formats, default=formats[0], help=f"how to print; {formats[0]} unless told")
    group.add_argument("--output", metavar="FILE", help="write there instead of to standard output")
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set",
    )
