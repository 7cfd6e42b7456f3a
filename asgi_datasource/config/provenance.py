"""Every value of a document with its origin: file and line, variable, or default."""

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
    """The origin of a value."""

    FILE = "file"
    """A file contains the value."""
    REFERENCE = "reference"
    """A file contains a reference to the environment, a file or a program."""
    DEFAULT = "default"
    """No file contains the key."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One value.

    Attributes:
        key: Its path.
        value: The value, masked.
        provenance: Its origin.
        where: File, line and column, and the reference.
    """

    key: str
    value: Any
    provenance: Provenance
    where: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """The effective document.

    Attributes:
        document: The document with masked values and unresolved references.
        values: Its values.
    """

    document: Any
    values: tuple[Shown, ...]


def resolve_document(config: Config, findings: Findings, *, with_defaults: bool) -> Resolved:
    """Find the origin of every value of a document.

    Args:
        config: The config.
        findings: The findings that it is from.
        with_defaults: Whether to include defaults.
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
    """The defaults of all sections that the document has."""
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
