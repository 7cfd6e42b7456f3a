"""The options for the configuration of a command and for its references."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path

from ..config import Config, ConfigFile, Findings, examine
from .command import CannotRun

DEFAULT_FILE: ContextVar[str | None] = ContextVar("default_file", default=None)
"""The file of commands without one, where a framework's own command runs them."""

NAMES = ("datasource.yaml", "datasource.yml", "datasource.toml", "datasource.json")
"""The default files, in order."""


def offer_overlays(parser: ArgumentParser) -> None:
    """Add the options for overlays and for resolvers in code."""
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="FILE", help="a file that changes it; repeatable"
    )
    parser.add_argument(
        "--resolvers-in-code",
        action="store_true",
        help="do not require tenancy.resolve: the application adds resolvers in code",
    )


def offer_file(parser: ArgumentParser) -> None:
    """Add the argument that names the configuration, and the option that names it as well.

    Args:
        parser: The parser of a command, or of one of its operations after its other arguments.
    """
    parser.add_argument("file", nargs="?", metavar="FILE", help="YAML, TOML or JSON; default: datasource.yaml")
    offer_config(parser)


def offer_config(parser: ArgumentParser) -> None:
    """Add the option that names the configuration."""
    parser.add_argument("--config", metavar="FILE", help="the same as FILE")


def offer_environment(parser: ArgumentParser, *, is_optional: bool = False) -> None:
    """Add the options for references.

    Args:
        parser: The command's parser.
        is_optional: Whether references are resolved only on request.
    """
    if is_optional:
        parser.add_argument(
            "--environment",
            action="store_true",
            help="resolve references, from the environment and files; without it they count as valid values",
        )
    group = parser.add_argument_group("references")
    group.add_argument("--env-file", metavar="FILE", help="NAME=value lines, added to the environment")
    group.add_argument("--allow-commands", action="store_true", help="run the programs of {command: [...]}")


def environment(options: Namespace) -> dict[str, str]:
    """The variables for references.

    Raises:
        CannotRun: The file of `--env-file` cannot be read.
    """
    return {**os.environ, **(read_env_file(options.env_file) if options.env_file else {})}


def environment_on_request(options: Namespace) -> dict[str, str] | None:
    """The variables for references that are resolved only on request; None without a request.

    Raises:
        CannotRun: The file of `--env-file` cannot be read.
    """
    is_wanted = options.environment or options.env_file or options.allow_commands
    return environment(options) if is_wanted else None


def read_env_file(name: str) -> dict[str, str]:
    """Read `NAME=value` lines like `docker run --env-file`; a pair of quotes around a value is removed.

    Raises:
        CannotRun: The file cannot be read, or has a line of another form.
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


def named_file(options: Namespace, default: str | None = None) -> str:
    """The configuration that `FILE` or `--config` names, or the default file.

    Args:
        options: The options of `offer_file`.
        default: The default file; None takes one that is there.

    Raises:
        CannotRun: Both name different files, or no file is named and there is no default file.
    """
    files = dict.fromkeys(file for file in (options.file, options.config) if file is not None)
    if len(files) > 1:
        raise CannotRun(f"two configurations are named: {' and '.join(files)}", "Name one, as FILE or by --config.")
    return next(iter(files), None) or default or find_file()


def find_application() -> None:
    """Let the modules that a configuration names be imported from the working directory, as uvicorn does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def find_file() -> str:
    """The default file: the framework's (`DEFAULT_FILE`), or the one in the working directory.

    Raises:
        CannotRun: There is none.
    """
    given = DEFAULT_FILE.get()
    if given is not None:
        return given
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
        environ: The variables; None leaves references unresolved, and they count as valid.
        needs_resolver: Whether a missing `tenancy.resolve` is an error, unless code adds resolvers.
    """
    source = ConfigFile(file, tuple(options.overlay), allow_commands=options.allow_commands)
    return examine(
        source,
        environ=environ,
        is_offline=environ is None,
        needs_resolver=needs_resolver and not options.resolvers_in_code,
    )


def load_or_refuse(findings: Findings) -> Config:
    """The config of findings that have no errors.

    Raises:
        CannotRun: There are errors.
    """
    if findings.config is None or findings.errors:
        count = len(findings.errors)
        errors = "\n".join(f"  {problem}" for problem in findings.errors[:20])
        raise CannotRun(
            f"the configuration has {count} error{'s' if count > 1 else ''}", f"Fix the configuration first:\n{errors}"
        )
    return findings.config


def load_config(file: str, options: Namespace, environ: Mapping[str, str] | None) -> Config:
    """The config of a file without errors; the arguments are those of `examine_file`.

    Raises:
        CannotRun: It has errors.
    """
    return load_or_refuse(examine_file(file, options, environ))
