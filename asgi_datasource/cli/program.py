"""Runs a command and returns its exit code. This module imports little more than argparse, so `--help` is fast."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

from .command import CannotRun, ExitCode, Result
from .commands import COMMANDS
from .console import PLAIN, Console, Style, wants_colour

PROGRAM: Final = "asgi-datasource"
_INTERRUPTED: Final = 130
"""The exit code of a program that was interrupted by Ctrl-C."""
_BROKEN_PIPE: Final = 141
"""The exit code of a program whose output pipe was closed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The arguments after the program's name; None takes the process's.

    Returns:
        0 without findings, 1 with findings, 2 when the command failed.
    """
    console = Console(sys.stdout, sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given, console)
    except CannotRun as problem:
        console.complain(str(problem))
        return ExitCode.CANNOT_RUN
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe (`| head`). Without this, Python reports that again when it flushes at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - Python would exit with 1, which means findings
        _report_bug(error, console)
        return ExitCode.CANNOT_RUN


def _run(arguments: list[str], console: Console) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        return _without_command(arguments, console)
    name, *rest = arguments
    entry = COMMANDS[name]
    command = entry.load()
    parser = ArgumentParser(
        prog=f"{PROGRAM} {name}", description=f"{entry.summary[:1].upper()}{entry.summary[1:]}.", allow_abbrev=False
    )
    command.configure(parser)
    options, left = parser.parse_known_args(_end_options(rest) if rest[:1] == ["--hook"] else rest)
    if left:
        _take_file(left, options, parser)
    result = command.run(options, console)
    _print(result, options, console)
    return result.exit_code


def _take_file(left: list[str], options: Namespace, parser: ArgumentParser) -> None:
    """Take the argument that is left for the file: before 3.12, argparse knows no FILE behind NAME and an option."""
    if len(left) > 1 or left[0].startswith("-") or getattr(options, "file", "") is not None:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    options.file = left[0]


def _end_options(arguments: list[str]) -> list[str]:
    """The arguments of a hook, with `--` before the first file name that looks like an option.

    pre-commit appends file names to the options without a `--`, and a repository may have a file named `--output=...`.
    """
    if "--" in arguments:
        return arguments
    for number, argument in enumerate(arguments):
        if argument.startswith("-") and os.path.lexists(argument):
            return [*arguments[:number], "--", *arguments[number:]]
    return arguments


def _print(result: Result, options: Namespace, console: Console) -> None:
    if options.output is None:
        text = result.render(options.format, Style(wants_colour(options.color, console.out)))
        if text:
            print(text, file=console.out, flush=True)
        return
    text = result.render(options.format, Style(options.color == "always") if options.color == "always" else PLAIN)
    try:
        with open(options.output, "w", encoding="utf-8") as stream:  # noqa: PTH123 - pathlib doubles the time to start
            stream.write(f"{text}\n" if text else "")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CannotRun(f"{options.output} cannot be written: {reason}", "Check the path and its rights.") from None


class _Parser(ArgumentParser):
    """The parser for arguments without a command."""

    def error(self, message: str) -> NoReturn:
        raise CannotRun(message, f"See {PROGRAM} --help.")


def _without_command(arguments: list[str], console: Console) -> int:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items())
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [OPTIONS]",
        description=f"Declarative multi-tenant PostgreSQL for ASGI: the tools around its configuration.\n\n{listing}",
        epilog=(
            f"{PROGRAM} COMMAND --help prints the options of a command.\n"
            "Exit codes: 0 nothing found, 1 something found, 2 could not run."
        ),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the above")
    options, _ = parser.parse_known_args(arguments)
    if options.version:
        from importlib.metadata import version

        print(PROGRAM, version(PROGRAM), file=console.out)
        return ExitCode.CLEAN
    if options.command is not None:
        if options.command in COMMANDS:
            raise CannotRun(f"options stand behind the command: {arguments[0]}", f"See {PROGRAM} --help.")
        raise CannotRun(f"there is no command {options.command!r}", _similar(options.command))
    if arguments:
        raise CannotRun(f"there is no option {arguments[0]}", f"See {PROGRAM} --help.")
    parser.print_help(console.err)
    return ExitCode.CANNOT_RUN


def _similar(command: str) -> str:
    from difflib import get_close_matches

    found = get_close_matches(command, COMMANDS, n=1)
    return f"Did you mean {found[0]!r}?" if found else f"There are: {', '.join(COMMANDS)}."


def _report_bug(error: Exception, console: Console) -> None:
    """Report a bug of the program, without the error's message, which may quote a secret."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    console.complain(f"{type(error).__name__} inside {PROGRAM}. This is a fault of it: please report it with\n{frames}")
