"""`asgi-datasource validate FILES`: finds problems in configuration files, without environment, network or server."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from ...config import Code, Findings, edit_text
from ..command import CannotRun, offer_formats
from ..console import Console
from ..rendering import FORMATS, Report
from ..sources import environment_on_request, examine_file, find_file, offer_environment, offer_overlays


def configure(parser: ArgumentParser) -> None:
    """Add the files and the strictness."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="YAML, TOML or JSON; default: datasource.yaml")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="the same as FILE; repeatable")
    parser.add_argument("--fix", action="store_true", help="apply the safe fixes to the files")
    parser.add_argument(
        "--hook",
        action="store_true",
        help="as first option: an argument that names an existing file is a file, even if it looks like an option",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings and hints as well")
    offer_overlays(parser)
    offer_environment(parser, is_optional=True)
    offer_formats(parser, *FORMATS)


def run(options: Namespace, console: Console) -> Report:
    """Examine each file."""
    files: list[str] = [*options.files, *options.config] or [find_file()]
    variables = environment_on_request(options)

    def look(file: str) -> Findings:
        return examine_file(file, options, variables)

    findings = [fix_file(look, file, console) if options.fix else look(file) for file in files]
    could_run = not any(problem.code is Code.NOT_READABLE for found in findings for problem in found.diagnostics)
    return Report.of("validate", files, findings, is_strict=options.strict, could_run=could_run)


_MOST_ROUNDS = 20


def fix_file(look: Callable[[str], Findings], file: str, console: Console) -> Findings:
    """Make the safe edits of a file and of its included files, until none is left."""
    made = 0
    findings = look(file)
    for _ in range(_MOST_ROUNDS):
        texts = {text.file: text for text in findings.texts}
        done = 0
        for name, edits in findings.safe_edits().items():
            text, applied = edit_text(texts[name], edits)
            if applied:
                try:
                    Path(name).write_text(text.content, encoding="utf-8", newline="")
                except OSError as error:
                    reason = error.strerror or type(error).__name__
                    raise CannotRun(f"{name} cannot be written: {reason}", "Check its rights.") from None
                done += len(applied)
        if not done:
            break
        made += done
        findings = look(file)
    console.progress(f"{file}: {made} fixed")
    return findings
