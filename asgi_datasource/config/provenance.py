"""Every value of a document with where it comes from: which file and line, which variable, or the default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Path, show_path
from .keys import ANY, secret_places, section_at
from .loading import Findings
from .models import Config
from .references import at
from .shapes import is_list, is_mapping
from .url import mask_url

HIDDEN: Final = "**********"


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
        shown, reference = _masked(path, value)
        where = str(problem.position)
        provenance = Provenance.FILE if reference is None else Provenance.REFERENCE
        values.append(Shown(show_path(path), shown, provenance, where if reference is None else f"{where} {reference}"))
    if with_defaults:
        values += _defaults(config, written)
    return Resolved(_mask_all(written, ()), tuple(values))


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if is_mapping(value) and value and not _is_secret(path):
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    elif is_list(value) and any(is_mapping(entry) for entry in value):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, value


def _is_secret(path: Path) -> bool:
    return any(
        len(pattern) == len(path) and all(step in (ANY, part) for step, part in zip(pattern, path, strict=True))
        for pattern in secret_places()
    )


_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-[^{}]*)?\}")


def _masked(path: Path, value: Any) -> tuple[Any, str | None]:
    """A value as it is shown, and the reference in it."""
    if _is_secret(path):
        if is_mapping(value):
            kind = next(iter(value), "")
            return HIDDEN, f"{{{kind}}}"
        names = _REFERENCE.findall(value) if isinstance(value, str) else []
        shown = value if isinstance(value, str) and _REFERENCE.fullmatch(value) and ":-" not in value else None
        return shown or mask_url(str(value)), ", ".join(f"${{{name}}}" for name in names) or None
    if path[:1] == ("tenants",) and "row_security" in path:
        return HIDDEN, None
    names = _REFERENCE.findall(value) if isinstance(value, str) else []
    return value, ", ".join(f"${{{name}}}" for name in names) or None


def _mask_all(value: Any, path: Path) -> Any:
    if _is_secret(path):
        return _masked(path, value)[0]
    if is_mapping(value):
        return {key: _mask_all(child, (*path, key)) for key, child in value.items()}
    if is_list(value):
        return [_mask_all(child, (*path, index)) for index, child in enumerate(value)]
    return _masked(path, value)[0] if path else value


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
            elif at(written, here) is None and key in place.fields and not _is_secret(here):
                found.append(Shown(show_path(here), child, Provenance.DEFAULT, "default"))

    walk(dumped, ())
    return found
