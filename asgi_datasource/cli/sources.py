"""The options that say which configuration a command works on, and where its references are looked up."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from ..config import Config, ConfigFile, Findings, examine
from .command import CannotRun

NAMES = ("datasource.yaml", "datasource.yml", "datasource.toml", "datasource.json")
"""Where a configuration is looked for when none is named."""


def offer_overlays(parser: ArgumentParser) -> None:
    """Add the options for files on top, and for code that tells tenants."""
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="FILE", help="a file that changes it; may be given again"
    )
    parser.add_argument(
        "--resolvers-in-code",
        action="store_true",
        help="do not ask for tenancy.resolve: the application brings resolvers of its own",
    )


def offer_file(parser: ArgumentParser) -> None:
    """Add the argument that names the configuration."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="YAML, TOML or JSON; datasource.yaml unless told")


def offer_environment(parser: ArgumentParser, *, is_optional: bool = False) -> None:
    """Add the options for references.

    Args:
        parser: The command's parser.
        is_optional: Whether references are looked up only on request.
    """
    if is_optional:
        parser.add_argument(
            "--environment",
            action="store_true",
            help="look references up, in the environment and in files; without it they stand for valid values",
        )
    group = parser.add_argument_group("what the configuration takes from outside")
    group.add_argument("--env-file", metavar="FILE", help="NAME=value lines, beside the environment's own variables")
    group.add_argument("--allow-commands", action="store_true", help="run the programs of {command: [...]}")


def environment(options: Namespace) -> dict[str, str]:
    """The variables that references are looked up in.

    Raises:
        CannotRun: The file of `--env-file` cannot be read.
    """
    return {**os.environ, **(read_env_file(options.env_file) if options.env_file else {})}


def environment_on_request(options: Namespace) -> dict[str, str] | None:
    """The same where they are looked up only on request; None when nobody asks for it.

    Raises:
        CannotRun: The file of `--env-file` cannot be read.
    """
    is_wanted = options.environment or options.env_file or options.allow_commands
    return environment(options) if is_wanted else None


def read_env_file(name: str) -> dict[str, str]:
    """`NAME=value` lines, as `docker run --env-file` reads them; a pair of quotes around a value is taken off.

    Raises:
        CannotRun: The file cannot be read, or a line is none.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CannotRun(f"{name} cannot be read: {reason}", "Check the path and its rights.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            key, equals, value = line.removeprefix("export ").partition("=")
            if not equals:
                raise CannotRun(f"{name}:{number} is not NAME=value", "Fix the line.")
            value = value.strip()
            is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            found[key.strip()] = value[1:-1] if is_quoted else value
    return found


def find_file() -> str:
    """The configuration of the folder that the command runs in.

    Raises:
        CannotRun: There is none.
    """
    for name in NAMES:
        if Path(name).is_file():
            return name
    raise CannotRun(f"there is no {', '.join(NAMES[:-1])} or {NAMES[-1]} here", "Name the file.")


def examine_file(
    file: str, options: Namespace, environ: Mapping[str, str] | None, *, needs_resolver: bool = True
) -> Findings:
    """The findings of a file.

    Args:
        file: The file.
        options: The options of `offer_overlays` and `offer_environment`.
        environ: The variables; None looks nothing up, and references stand for valid values.
        needs_resolver: Whether the command needs `tenancy.resolve`, unless the application brings resolvers.
    """
    source = ConfigFile(file, tuple(options.overlay), allow_commands=options.allow_commands)
    return examine(
        source,
        environ=environ,
        is_offline=environ is None,
        needs_resolver=needs_resolver and not options.resolvers_in_code,
    )


def load_or_refuse(findings: Findings) -> Config:
    """The config of findings without errors.

    Raises:
        CannotRun: There are errors.
    """
    if findings.config is None or findings.errors:
        count = len(findings.errors)
        told = "\n".join(f"  {problem}" for problem in findings.errors[:20])
        raise CannotRun(
            f"the configuration has {count} error{'s' if count > 1 else ''}:\n{told}\n", "Fix the configuration first."
        )
    return findings.config


def load_config(file: str, options: Namespace, environ: Mapping[str, str] | None) -> Config:
    """The config of a file without errors; the arguments are those of `examine_file`.

    Raises:
        CannotRun: It has errors.
    """
    return load_or_refuse(examine_file(file, options, environ))
