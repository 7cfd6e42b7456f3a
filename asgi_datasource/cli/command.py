"""The interface of commands: modules in `commands/` that define their arguments and return a result."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from .console import Console, Style


class ExitCode(IntEnum):
    """The exit status of a command."""

    CLEAN = 0
    """Success without findings."""
    FINDINGS = 1
    """Success with findings."""
    CANNOT_RUN = 2
    """Failure: bad usage, an unreadable file, an invalid configuration, a server that does not answer."""
    PENDING = 3
    """Success, and something is left to do: migrations are pending."""


class Result(Protocol):
    """The result of a command: a value that renders itself."""

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of the command."""
        ...

    def render(self, form: str, style: Style) -> str:
        """Render the result, without a final line break.

        Args:
            form: One of the formats that the command offers.
            style: The emphasis of text; other formats ignore it.
        """
        ...


class Clean:
    """A result without findings."""

    __slots__ = ()

    @property
    def exit_code(self) -> ExitCode:
        """Success."""
        return ExitCode.CLEAN


@dataclass(frozen=True, slots=True)
class Printed(Clean):
    """A text as a result."""

    text: str

    def render(self, form: str, style: Style) -> str:
        """The text."""
        return self.text.rstrip("\n")


class Command(Protocol):
    """The functions of a module in `commands/`."""

    def configure(self, parser: ArgumentParser) -> None:
        """Add the command's arguments; the last call is `offer_formats`."""
        ...

    def run(self, options: Namespace, console: Console) -> Result:
        """Run the command.

        Args:
            options: The parsed arguments.
            console: Prints progress; the caller prints the result.

        Raises:
            CannotRun: The command failed.
        """
        ...


class CannotRun(Exception):
    """Raised when a command fails.

    Args:
        message: What is wrong, without a full stop and without secrets.
        fix: What to do, a sentence.
    """

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}. {fix}")


def offer_formats(parser: ArgumentParser, *formats: str) -> None:
    """Add the options for the format and the destination of the result.

    Args:
        parser: The command's parser; a command with subcommands calls this for each of their parsers.
        formats: The formats that the command's result can render, the default first.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=formats, default=formats[0], help=f"the format; default: {formats[0]}")
    group.add_argument("--output", metavar="FILE", help="write to this file instead of standard output")
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set",
    )
