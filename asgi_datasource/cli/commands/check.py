"""`asgi-datasource check FILE`: compares the configuration with its servers."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace

from ...config import Code
from ..checking import check_servers
from ..command import offer_formats
from ..console import Console
from ..rendering import FORMATS, Report
from ..sources import (
    environment,
    examine_file,
    load_or_refuse,
    named_file,
    offer_environment,
    offer_file,
    offer_overlays,
)


def configure(parser: ArgumentParser) -> None:
    """Add the file and the strictness."""
    offer_file(parser)
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings and hints as well")
    offer_overlays(parser)
    offer_environment(parser)
    offer_formats(parser, *FORMATS)


def run(options: Namespace, console: Console) -> Report:
    """Query every server."""
    file = named_file(options)
    findings = examine_file(file, options, environment(options))
    config = load_or_refuse(findings)
    servers = sum(1 + len(datasource.replicas) for datasource in config.datasources.values())
    console.progress(f"asking {servers} server{'s' if servers > 1 else ''}")
    checked = asyncio.run(check_servers(config))
    found = findings.with_servers(checked.problems)
    could_run = not any(problem.code is Code.NO_CONNECTION for problem in found.diagnostics)
    return Report.of("check", [file], [found], is_strict=options.strict, could_run=could_run, notes=checked.notes)
