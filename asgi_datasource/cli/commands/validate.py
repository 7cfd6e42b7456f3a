"""`asgi-datasource validate FILES`: every problem of configuration files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ...config import Code, examine
from ..command import offer_formats
from ..console import Console
from ..rendering import FORMATS, Report


def configure(parser: ArgumentParser) -> None:
    """The files, and how strictly they are judged."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a YAML, TOML or JSON file")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings and hints as well")
    offer_formats(parser, *FORMATS)


def run(options: Namespace, console: Console) -> Report:
    """Examine each file."""
    files: list[str] = options.files
    findings = [examine(file) for file in files]
    could_run = not any(problem.code is Code.NOT_READABLE for found in findings for problem in found.diagnostics)
    return Report.of("validate", files, findings, is_strict=options.strict, could_run=could_run)
