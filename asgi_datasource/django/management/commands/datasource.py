"""`manage.py datasource COMMAND`: the command line, with the project's settings and its configuration file."""

from __future__ import annotations

import sys
from argparse import REMAINDER
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ....cli import main
from ....cli.sources import DEFAULT_FILE
from ...application import configured


class Command(BaseCommand):
    """Passes its arguments to `asgi-datasource`; commands without a file take that of the setting `DATASOURCE`."""

    help = "The command line of asgi-datasource: validate, check, explain, migrate, tenants, ..."
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run with all arguments as they are: their options are not Django's."""
        sys.exit(_run(argv[2:]))

    def add_arguments(self, parser: CommandParser) -> None:
        """Take everything, for `call_command`."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *_: object, **options: Any) -> None:
        """Run for `call_command`.

        Raises:
            CommandError: It found something, or failed; the exit code is `returncode`.
        """
        code = _run(options["arguments"])
        if code:
            raise CommandError("asgi-datasource has failed, or found something", returncode=code)


def _run(arguments: list[str]) -> int:
    file = configured()
    token = DEFAULT_FILE.set(str(file) if isinstance(file, str | Path) else None)
    try:
        return main(arguments)
    finally:
        DEFAULT_FILE.reset(token)
