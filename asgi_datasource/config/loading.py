"""Loads a configuration from a file or a mapping: to a validated `Config`, or to all of its errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Edit, InvalidConfig, Severity
from .layers import INCLUDE, ConfigFile, Layers, read_layers
from .limits import MAX_DIAGNOSTICS
from .models import Config
from .origins import Origins
from .plain_secrets import find_plain_secrets
from .reading import Text
from .references import Outside, Surroundings
from .remainder import check_remainder
from .semantics import check_semantics
from .structure import TenantCompactor, check_structure
from .suppressions import Suppressed, apply_suppressions

logger: Final = logging.getLogger("asgi_datasource.config")

Source = str | FilePath | ConfigFile | Mapping[str, Any] | Config
"""A configuration's source: the path of a YAML, TOML or JSON file, a path with overlays, a mapping, or a `Config`."""

ALLOW_COMMANDS: Final = "ASGI_DATASOURCE_ALLOW_COMMANDS"
"""The environment variable that allows programs to be run for secrets when it is 1."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of an examination.

    Attributes:
        config: The config; None when keys or values have the wrong form. Where references were not resolved, unknown
            values have their default or a stand-in.
        diagnostics: All errors, warnings and hints, in the order of the files.
        suppressed: Problems that the files ignore, with their reasons.
        texts: The files that were read. They may contain passwords and must not be printed as they are.
        layers: The files and how they were merged; None where there are no files.
    """

    config: Config | None
    diagnostics: tuple[Diagnostic, ...]
    suppressed: tuple[Suppressed, ...] = ()
    texts: tuple[Text, ...] = field(default=(), repr=False)
    layers: Layers | None = field(default=None, repr=False)

    def with_servers(self, problems: Iterable[Diagnostic]) -> Findings:
        """A copy with the problems that the servers revealed, located, and without those that the files ignore."""
        located = self.layers.locate(problems) if self.layers is not None else list(problems)
        kept, suppressed = apply_suppressions(located, self.texts, needs_server=True)
        return replace(self, diagnostics=tuple(kept), suppressed=tuple(suppressed))

    def safe_edits(self) -> dict[str, list[Edit]]:
        """The safe edits of all problems by file, each with its path in that file."""
        found: dict[str, list[Edit]] = {}
        for problem in self.diagnostics:
            if problem.edit is not None and problem.edit.is_safe and self.layers is not None:
                text, path = self.layers.origin(problem.edit.path)
                found.setdefault(text.file, []).append(replace(problem.edit, path=path))
        return found

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The problems that refuse the document."""
        return tuple(problem for problem in self.diagnostics if problem.severity is Severity.ERROR)


def load(
    source: Source,
    *,
    environ: Mapping[str, str] | None = None,
    needs_resolver: bool = True,
    origins: Origins | None = None,
) -> Config:
    """Load and validate a configuration; warnings are logged.

    Args:
        source: A path, a `ConfigFile`, a mapping with the document's keys, or a `Config`, of which only the second
            stage, `check_semantics`, is checked.
        environ: The variables for `${NAME}`; None takes the process's environment.
        needs_resolver: Whether tenants without `tenancy.resolve` are an error; False where code adds resolvers.
        origins: Records the files that are read, also when the document is refused.

    Returns:
        The frozen config with all defaults.

    Raises:
        InvalidConfig: The document has errors; all of them are listed, with key path, fix and position.
    """
    findings = examine(source, environ=environ, needs_resolver=needs_resolver, origins=origins)
    if findings.config is None or findings.errors:
        raise InvalidConfig(findings.errors)
    for problem in findings.diagnostics:
        logger.log(logging.WARNING if problem.severity is Severity.WARNING else logging.INFO, "%s", problem)
    return findings.config


def examine(
    source: Source,
    *,
    environ: Mapping[str, str] | None = None,
    needs_resolver: bool = True,
    is_offline: bool = False,
    origins: Origins | None = None,
) -> Findings:
    """Validate a configuration and return all findings; a wrong document raises nothing.

    Args:
        source: A path, a `ConfigFile`, a mapping with the document's keys, or a `Config`, of which only the second
            stage, `check_semantics`, is checked.
        environ: The variables for `${NAME}`; None takes the process's environment.
        needs_resolver: Whether tenants without `tenancy.resolve` are an error; False where code adds resolvers.
        is_offline: Whether references are not resolved: each then has its default, or counts as valid.
        origins: Records the files that are read.
    """
    read_from = Origins() if origins is None else origins
    if isinstance(source, Config):
        return Findings(source, tuple(check_semantics(source, needs_resolver=needs_resolver)))
    variables = os.environ if environ is None else environ
    may_run = variables.get(ALLOW_COMMANDS) == "1"
    check = _Check(needs_resolver)
    if isinstance(source, Mapping):
        where = Surroundings(variables, is_offline=is_offline, allow_commands=may_run, origins=read_from)
        # Secrets in a mapping are not in a file, so they cause no warning.
        config, problems = check.document(source, where, is_written=False)
        if INCLUDE in source:
            fix = "Load the file, or put the parts into the mapping."
            problems.append(Diagnostic(Code.INCLUDE, (INCLUDE,), "only files can include others", fix))
        return Findings(config, tuple(problems))
    file = source if isinstance(source, ConfigFile) else ConfigFile(source)

    def surroundings(layers: Layers) -> Surroundings:
        return Surroundings(variables, layers.folder_of, is_offline, file.allow_commands or may_run, read_from)

    layers = read_layers(file, TenantCompactor(), read_from)
    if layers.document is not None and not layers.errors:
        is_owned = not file.overlays
        config, problems = check.document(layers.document, surroundings(layers), is_owned=is_owned)
        if config is not None and not any(problem.severity is Severity.ERROR for problem in problems):
            return _finish(config, [*layers.problems, *problems], layers)
    # There are errors. The files are read again without compact tenants, because messages describe tenants as written.
    layers = read_layers(file, origins=read_from)
    if layers.document is None:
        return _finish(None, layers.problems, layers)
    config, problems = check.document(layers.document, surroundings(layers))
    return _finish(None if layers.errors else config, [*layers.problems, *problems], layers)


@dataclass(frozen=True, slots=True)
class _Check:
    """The stages of the validation."""

    needs_resolver: bool

    def document(
        self, document: Any, surroundings: Surroundings, *, is_owned: bool = False, is_written: bool = True
    ) -> tuple[Config | None, list[Diagnostic]]:
        """Validate a document; the problems have no positions yet."""
        outside = Outside(surroundings)
        resolved = outside.resolve(document)
        config, found = check_structure(resolved, is_owned=is_owned)
        secrets = find_plain_secrets(document) if is_written else []
        if config is not None and not outside.unresolved:
            return config, secrets + check_semantics(config, needs_resolver=self.needs_resolver)
        # A value whose reference was not resolved gets no second problem.
        known = [problem for problem in found if not _is_in(problem, outside.unresolved)]
        problems = outside.diagnostics + known
        if len(problems) >= MAX_DIAGNOSTICS:
            # They probably have a common cause, and removing them one by one to check the rest would take long.
            return None, secrets + problems
        unknown = outside.unresolved.difference(problem.path for problem in problems)
        rest, more = check_remainder(resolved, problems, unknown, needs_resolver=self.needs_resolver)
        return rest if surroundings.is_offline and not problems else None, secrets + problems + more


def _is_in(problem: Diagnostic, places: set[tuple[str | int, ...]]) -> bool:
    # A problem of a key does not depend on the key's value.
    longest = len(problem.path) + (0 if problem.is_about_key else 1)
    return any(problem.path[:length] in places for length in range(longest))


def _finish(config: Config | None, problems: list[Diagnostic], layers: Layers) -> Findings:
    """The findings of files: located, without ignored problems, in the order of the files."""
    texts = layers.texts
    order = {text.file: number for number, text in enumerate(texts)}
    located = layers.locate(problems) if problems and texts else problems

    def place(problem: Diagnostic) -> tuple[int, int, int]:
        position = problem.position
        if position is None:
            return 0, 0, 0
        return order.get(position.file, len(order)), position.line or 0, position.column or 0

    kept, suppressed = apply_suppressions(located, texts)
    return Findings(config, tuple(sorted(kept, key=place)), tuple(suppressed), texts, layers)
