"""`asgi-datasource upgrade FILE`: an older document in the present version, in its own text."""

from __future__ import annotations

import difflib
import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from ...config import Diagnostic, Fix, Text, open_text, read_text, show_path, upgrade_text
from ..command import CannotRun, ExitCode, offer_formats
from ..console import Console, Style
from ..rendering.excerpt import redact_line
from ..sources import find_file


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade changes in a file.

    Attributes:
        before: The file as it was.
        after: The file as it is to be.
        fixes: What was changed.
        is_written: Whether the file has been changed.
    """

    before: Text
    after: Text
    fixes: tuple[Fix, ...]
    is_written: bool

    @property
    def exit_code(self) -> ExitCode:
        """1 when the file is to be changed and was not."""
        return ExitCode.FINDINGS if self.fixes and not self.is_written else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The changes as a diff, in which secrets are hidden, or as JSON."""
        if form == "json":
            changes = [{"edit": fix.edit.value, "key": show_path(fix.path)} for fix in self.fixes]
            document = {"version": 1, "file": self.before.file, "written": self.is_written, "changes": changes}
            return json.dumps(document, indent=2, ensure_ascii=False)
        if not self.fixes:
            return f"{self.before.file}: {style.green('up to date')}"
        name = self.before.file
        lines = difflib.unified_diff(_lines(self.before), _lines(self.after), name, name, n=1, lineterm="")
        shown = [_painted(line, style) for line in lines]
        count = f"{len(self.fixes)} change{'s' if len(self.fixes) > 1 else ''}"
        done = "written" if self.is_written else "not written: give --write"
        return "\n".join([*shown, f"{self.before.file}: {style.bold(count)}, {done}"])


def _lines(text: Text) -> list[str]:
    return [redact_line(line, text.format) for line in text.content.splitlines()]


def _painted(line: str, style: Style) -> str:
    if line.startswith("+"):
        return style.green(line)
    return style.red(line) if line.startswith("-") else line


def configure(parser: ArgumentParser) -> None:
    """The file, and whether it is changed."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="YAML, TOML or JSON; datasource.yaml unless told")
    parser.add_argument("--write", action="store_true", help="change the file; without it the changes are only shown")
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Upgrade:
    """Upgrade the file's text."""
    file: str = options.file or find_file()
    text = open_text(Path(file))
    if isinstance(text, Diagnostic):
        raise CannotRun(f"{file}: {text.message}", text.mend)
    _, problems = read_text(text)
    if problems:
        raise CannotRun(str(problems[0]), "A text that cannot be read cannot be upgraded.")
    after, fixes = upgrade_text(text)
    if fixes and options.write:
        try:
            Path(file).write_text(after.content, encoding="utf-8", newline="")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise CannotRun(f"{file} cannot be written: {reason}", "Check its rights.") from None
    return Upgrade(text, after, tuple(fixes), bool(fixes) and options.write)
