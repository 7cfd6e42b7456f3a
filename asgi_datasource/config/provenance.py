"""Every value of a document with where it comes from: which file and line, which variable, or the default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Path, show_path
from .keys import section_at
from .loading import Findings
from .masking import is_masked, mask
from .models import Config
from .references import at
from .shapes import is_list, is_mapping


class Provenance(StrEnum):
    """Where a value comes from."""

    FILE = "file"
    """It is written there."""
    REFERENCE = "reference"
    """A reference is written there: to the environment, a file or a program."""
    DEFAULT = "default"
    """Nobody says it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One value.

    Attributes:
        key: The way to it.
        value: The value, masked where it is a secret or comes from outside.
        provenance: Where it comes from.
        where: File, line and column, and the reference that stands there.
    """

    key: str
    value: Any
    provenance: Provenance
    where: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A document as it counts.

    Attributes:
        document: With its secrets masked, and its references as they are written.
        values: Each value.
    """

    document: Any
    values: tuple[Shown, ...]


def resolve_document(config: Config, findings: Findings, *, with_defaults: bool) -> Resolved:
    """Where every value of a document comes from.

    Args:
        config: The checked document.
        findings: Its examination.
        with_defaults: Whether values that no file says are shown as well.
    """
    layers = findings.layers
    written: Any = layers.plain_document if layers is not None else None
    places = list(_leaves(written, ()))
    located = layers.locate([Diagnostic(Code.SYNTAX, path, "", "") for path, _ in places]) if layers is not None else []
    values: list[Shown] = []
    for (path, value), problem in zip(places, located, strict=True):
        reference = _reference(path, value)
        provenance = Provenance.FILE if reference is None else Provenance.REFERENCE
        where = " ".join(filter(None, (str(problem.position), reference)))
        values.append(Shown(show_path(path), mask(path, value), provenance, where))
    if with_defaults:
        values += _defaults(config, written)
    return Resolved(mask((), written), tuple(values))


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if is_mapping(value) and value and not is_masked(path):
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    elif is_list(value) and any(is_mapping(entry) for entry in value):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, value


_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-[^{}]*)?\}")


def _reference(path: Path, value: Any) -> str | None:
    """The references in a value, without their defaults."""
    if is_mapping(value):
        return f"{{{next(iter(value), '')}}}" if is_masked(path) else None
    entries: list[Any] = value if is_list(value) else [value]
    names = [name for entry in entries if isinstance(entry, str) for name in _REFERENCE.findall(entry)]
    return ", ".join(f"${{{name}}}" for name in names) or None


def _defaults(config: Config, written: Any) -> list[Shown]:
    """The values that no file says, of sections that are there."""
    dumped = config.model_dump(mode="json", by_alias=True, exclude={"tenants"})
    found: list[Shown] = []

    def walk(value: Any, path: Path) -> None:
        place = section_at(path)
        if not is_mapping(value):
            return
        for key, child in value.items():
            here = (*path, key)
            if place is None or is_mapping(child):
                walk(child, here)
            elif at(written, here) is None and key in place.fields:
                found.append(Shown(show_path(here), mask(here, child), Provenance.DEFAULT, "default"))

    walk(dumped, ())
    return found
