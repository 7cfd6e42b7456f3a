"""`asgi-datasource top URL`: what a running process does, read from its console, on a terminal."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from select import select
from time import sleep
from typing import Any, Final

from ..command import CannotRun, Clean, ExitCode, Result, offer_formats
from ..console import Console, Style, wants_colour
from ..console_reader import ConsoleReader

SHORTEST_S: Final = 0.5
"""Shortest pause between two readings."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a process at one moment.

    Attributes:
        state: The document of its console.
    """

    state: dict[str, Any]

    @property
    def exit_code(self) -> ExitCode:
        """1 while something is an alarm."""
        is_alarm = any(one["severity"] == "alarm" for one in self.state["attention"])
        return ExitCode.FINDINGS if is_alarm else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The state as tables, or the document."""
        if form == "json":
            return json.dumps(self.state, indent=2, ensure_ascii=False)
        from ..rendering.top import render_text

        return render_text(self.state, is_coloured=style.is_coloured)


class Left(Clean):
    """The end of a live view."""

    __slots__ = ()

    def render(self, form: str, style: Style) -> str:
        """Nothing: the view was on the screen."""
        return ""


def configure(parser: ArgumentParser) -> None:
    """Add the address, and what the console's guard wants."""
    parser.add_argument("url", metavar="URL", help="the page of the console, such as https://host/ops")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a header for the guard; repeatable"
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token-env", metavar="NAME", help="send this variable's value as Authorization: Bearer")
    token.add_argument("--token-file", metavar="FILE", help="the same with the content of a file")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between readings; default: 2")
    parser.add_argument(
        "--once", action="store_true", help="print the state once; exit with 1 while something is an alarm"
    )
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Result:
    """Read the state, once or until `q` or Ctrl-C."""
    reader = ConsoleReader(options.url, _headers(options))
    is_live = not options.once and options.format == "text" and options.output is None and console.out.isatty()
    if options.format == "text" and find_spec("rich") is None:
        raise CannotRun("top needs rich for its tables", "pip install 'asgi-datasource[top]', or use --format json.")
    if reader.is_exposed:
        console.progress(f"the headers travel unencrypted to {reader.place}: use https")
    first = reader.read()
    if not is_live:
        return Snapshot(first)
    _watch(reader, first, max(SHORTEST_S, options.interval), is_coloured=wants_colour(options.color, console.out))
    return Left()


def _headers(options: Namespace) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in options.header:
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not (name + value).isprintable():
            raise CannotRun("--header is not NAME: VALUE", "Write --header 'X-Ops-Key: ...'.")
        found[name.strip()] = value.strip()
    token = _token(options)
    if token is not None:
        found["Authorization"] = f"Bearer {token}"
    return found


def _token(options: Namespace) -> str | None:
    if options.token_env is not None:
        token = os.environ.get(options.token_env, "").strip()
        where = f"the variable {options.token_env}"
    elif options.token_file is not None:
        where = options.token_file
        try:
            token = Path(options.token_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise CannotRun(f"{where} cannot be read: {reason}", "Check the path and its rights.") from None
    else:
        return None
    if not token or not token.isprintable():
        raise CannotRun(f"{where} holds no token", "Set it to the token that the guard of the console accepts.")
    return token


def _watch(reader: ConsoleReader, first: dict[str, Any], interval_s: float, *, is_coloured: bool) -> None:
    """Show the state on the whole screen until `q` or Ctrl-C."""
    from rich.console import Console as RichConsole
    from rich.live import Live

    from ..rendering.top import render_state

    state, note = first, None
    screen = RichConsole(no_color=not is_coloured, highlight=False, emoji=False, markup=False)
    with (
        _keys() as is_left,
        Live(render_state(state), console=screen, screen=True, auto_refresh=False) as live,
    ):
        while not is_left(interval_s):
            try:
                state, note = reader.read(), None
            except CannotRun as problem:
                note = f"not current: {problem}"
            live.update(render_state(state, note=note), refresh=True)


@contextmanager
def _keys() -> Generator[Callable[[float], bool]]:
    """A function that waits for some seconds, and says whether `q` was pressed meanwhile."""
    try:
        import termios
        import tty
    except ImportError:
        yield _only_wait
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        yield _only_wait
        return

    def is_left(seconds: float) -> bool:
        ready, _, _ = select([sys.stdin], [], [], seconds)
        return bool(ready) and sys.stdin.read(1) in ("q", "")

    try:
        tty.setcbreak(sys.stdin)
        yield is_left
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> bool:
    sleep(seconds)
    return False
