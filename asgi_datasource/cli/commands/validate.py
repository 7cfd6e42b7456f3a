"""`asgi-datasource validate FILES`: every problem of configuration files."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ...config import Code, Diagnostic, Severity, examine
from ..command import ExitCode, offer_formats
from ..console import Console, Style


@dataclass(frozen=True, slots=True)
class Validation:
    """What was found in some files.

    Attributes:
        files: Their names.
        diagnostics: Every problem, file by file.
    """

    files: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...]

    @property
    def exit_code(self) -> ExitCode:
        """2 when a file could not be read; else 1 when there is an error."""
        if any(problem.code is Code.NOT_READABLE for problem in self.diagnostics):
            return ExitCode.CANNOT_RUN
        has_errors = any(problem.severity is Severity.ERROR for problem in self.diagnostics)
        return ExitCode.FINDINGS if has_errors else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The problems as text or as JSON."""
        if form == "json":
            return json.dumps([_as_json(problem) for problem in self.diagnostics], indent=2, ensure_ascii=False)
        lines = [str(problem) for problem in self.diagnostics]
        if not lines:
            checked = self.files[0] if len(self.files) == 1 else f"{len(self.files)} files"
            lines.append(f"{checked}: {style.green('valid')}")
        return "\n".join(lines)


def _as_json(problem: Diagnostic) -> dict[str, object]:
    position = problem.position
    return {
        "code": problem.code.value,
        "severity": problem.severity.value,
        "key": problem.key,
        "message": problem.message,
        "mend": problem.mend,
        "file": position.file if position else None,
        "line": position.line if position else None,
        "column": position.column if position else None,
    }


def configure(parser: ArgumentParser) -> None:
    """The files."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a YAML, TOML or JSON file")
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Validation:
    """Examine each file."""
    files: list[str] = options.files
    return Validation(tuple(files), tuple(problem for file in files for problem in examine(file).diagnostics))
