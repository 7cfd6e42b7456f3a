"""`load`: from a file or a mapping to a checked `Config`, or every reason why not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from .diagnostics import Diagnostic, InvalidConfig, Severity
from .models import Config
from .reading import Text, locate, open_text, read_text
from .references import Outside
from .sense import check_sense
from .structure import check_structure

Source = str | FilePath | Mapping[str, Any] | Config
"""Where a configuration may come from: the path of a YAML, TOML or JSON file, a mapping, or a config."""


def load(source: Source, *, environ: Mapping[str, str] | None = None) -> Config:
    """Load and check a configuration.

    Args:
        source: A path, a mapping with the document's keys, or a `Config`, which is only checked for sense.
        environ: What `${NAME}` is looked up in; the process's environment when None.

    Returns:
        The config, frozen, with every default filled in.

    Raises:
        InvalidConfig: With every problem that was found, each with the key's path, the mend, and where the format
            tells it, file, line and column.
    """
    config, diagnostics = examine(source, environ=environ)
    errors = [problem for problem in diagnostics if problem.severity is Severity.ERROR]
    if config is None or errors:
        raise InvalidConfig(errors)
    return config


def examine(
    source: Source, *, environ: Mapping[str, str] | None = None
) -> tuple[Config | None, tuple[Diagnostic, ...]]:
    """Check a configuration and say everything about it, warnings too.

    Args:
        source: A path, a mapping with the document's keys, or a `Config`.
        environ: What `${NAME}` is looked up in; the process's environment when None.

    Returns:
        The config, None when its keys and values do not even have the right form; and the diagnostics, in the order
        of the document where there is one.
    """
    if isinstance(source, Config):
        return source, tuple(check_sense(source))
    text: Text | None = None
    folder = FilePath()
    document: Any = source
    problems: list[Diagnostic] = []
    if isinstance(source, str | FilePath):
        path = FilePath(source)
        opened = open_text(path)
        if isinstance(opened, Diagnostic):
            return None, (opened,)
        text, folder = opened, path.parent
        document, problems = read_text(text)
        if document is None:
            return None, tuple(problems)
    outside = Outside(os.environ if environ is None else environ, folder)
    document = outside.resolve(document)
    problems += outside.diagnostics
    config, found = check_structure(document, [problem.path for problem in outside.diagnostics])
    problems += found
    if config is not None:
        problems += check_sense(config)
    return config, tuple(_in_order(problems, text))


def _in_order(problems: list[Diagnostic], text: Text | None) -> list[Diagnostic]:
    if text is None or not problems:
        return problems
    return sorted(locate(text, problems), key=_line_and_column)


def _line_and_column(problem: Diagnostic) -> tuple[int, int]:
    position = problem.position
    return (position.line or 0, position.column or 0) if position is not None else (0, 0)
