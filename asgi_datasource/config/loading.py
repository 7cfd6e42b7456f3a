"""`load`: from a file or a mapping to a checked `Config`, or to every reason why not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final

from .diagnostics import Diagnostic, InvalidConfig, Severity
from .models import Config
from .reading import Text, locate, open_text, read_text
from .references import Outside
from .remainder import check_remainder
from .sense import check_sense
from .structure import TenantCompactor, check_structure
from .suppressions import Suppressed, apply_suppressions

logger: Final = logging.getLogger("asgi_datasource.config")

Source = str | FilePath | Mapping[str, Any] | Config
"""Where a configuration comes from: the path of a YAML, TOML or JSON file, a mapping, or a config made before."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What an examination found.

    Attributes:
        config: The config; None when keys or values do not have the right form.
        diagnostics: Every problem, errors, warnings and hints, in the order of the document where it has one.
        suppressed: What the file itself asks to leave out, with its reasons.
        texts: The files that were read. They may hold passwords: not for showing as they are.
    """

    config: Config | None
    diagnostics: tuple[Diagnostic, ...]
    suppressed: tuple[Suppressed, ...] = ()
    texts: tuple[Text, ...] = field(default=(), repr=False)

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The problems for which the document is refused."""
        return tuple(problem for problem in self.diagnostics if problem.severity is Severity.ERROR)


def load(source: Source, *, environ: Mapping[str, str] | None = None, needs_resolver: bool = True) -> Config:
    """Load and check a configuration; warnings are logged.

    Args:
        source: A path, a mapping with the document's keys, or a `Config`, which is only checked for sense.
        environ: Where `${NAME}` is looked up; None takes the process's environment.
        needs_resolver: Whether tenants without `tenancy.resolve` are an error; False where resolvers come from code.

    Returns:
        The config, frozen, with its defaults filled in.

    Raises:
        InvalidConfig: With every error that was found: key path, mend, and file, line and column where known.
    """
    findings = examine(source, environ=environ, needs_resolver=needs_resolver)
    if findings.config is None or findings.errors:
        raise InvalidConfig(findings.errors)
    for problem in findings.diagnostics:
        logger.log(logging.WARNING if problem.severity is Severity.WARNING else logging.INFO, "%s", problem)
    return findings.config


def examine(source: Source, *, environ: Mapping[str, str] | None = None, needs_resolver: bool = True) -> Findings:
    """Check a configuration and tell everything about it; raises nothing on account of the document.

    Args:
        source: A path, a mapping with the document's keys, or a `Config`, which is only checked for sense.
        environ: Where `${NAME}` is looked up; None takes the process's environment.
        needs_resolver: Whether tenants without `tenancy.resolve` are an error; False where resolvers come from code.
    """
    if isinstance(source, Config):
        return Findings(source, tuple(check_sense(source, needs_resolver=needs_resolver)))
    variables = os.environ if environ is None else environ
    if isinstance(source, Mapping):
        config, problems = _check(source, Outside(variables, FilePath()), needs_resolver=needs_resolver)
        return Findings(config, tuple(problems))
    path = FilePath(source)
    text = open_text(path)
    if isinstance(text, Diagnostic):
        return Findings(None, (text,))
    outside = Outside(variables, path.parent)
    document, problems = read_text(text, TenantCompactor())
    if document is not None and not problems:
        config, problems = _check(document, outside, needs_resolver=needs_resolver, is_owned=True)
        if config is not None:
            return _finish(config, problems, text)
    # Something is wrong. Read again, with the tenants as they are written: that is what there are words for.
    document, problems = read_text(text)
    if document is None:
        return _finish(None, problems, text)
    config, found = _check(document, Outside(variables, path.parent), needs_resolver=needs_resolver)
    return _finish(None if problems else config, [*problems, *found], text)


def _finish(config: Config | None, problems: list[Diagnostic], text: Text) -> Findings:
    """The findings of a text: with their positions, without what it asks to leave out, in its order."""
    kept, suppressed = apply_suppressions(locate(text, problems) if problems else [], [text])
    return Findings(config, tuple(sorted(kept, key=_line_and_column)), tuple(suppressed), (text,))


def _check(
    document: Any, outside: Outside, *, needs_resolver: bool, is_owned: bool = False
) -> tuple[Config | None, list[Diagnostic]]:
    resolved = outside.resolve(document)
    unresolved = {problem.path for problem in outside.diagnostics}
    config, found = check_structure(resolved, is_owned=is_owned)
    if config is not None and not unresolved:
        return config, check_sense(config, needs_resolver=needs_resolver)
    # About a value whose reference could not be resolved there is nothing more to say.
    problems = outside.diagnostics + [problem for problem in found if not _is_in(problem, unresolved)]
    return None, problems + check_remainder(resolved, problems, needs_resolver=needs_resolver)


def _is_in(problem: Diagnostic, places: Iterable[tuple[str | int, ...]]) -> bool:
    return any(problem.path[: len(place)] == place for place in places)


def _line_and_column(problem: Diagnostic) -> tuple[int, int]:
    position = problem.position
    return (0, 0) if position is None else (position.line or 0, position.column or 0)
