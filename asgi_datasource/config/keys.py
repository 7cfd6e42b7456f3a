"""Every key and value of the document, derived from the models."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from .diagnostics import Path
from .kinds import Omissible
from .models import Config, TenantConfig
from .sections import ListForm, Section
from .values import Value

ANY: Final = "*"
"""In the path of a place: any name, or any entry of a list."""


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """A mapping with fixed keys.

    Attributes:
        path: Its path, with `*` for names and entries.
        title: Its class.
        description: What it is for.
        fields: The keys as they are written, with their fields.
        planned: Keys of a later version, and what to do until then.
    """

    path: tuple[str, ...]
    title: str
    description: str
    fields: Mapping[str, FieldInfo]
    planned: Mapping[str, str]


@lru_cache(maxsize=1)
def sections() -> dict[tuple[str, ...], SectionInfo]:
    """All sections by their paths, in the order of the models."""
    return {place.path: place for place in _sections(Config, ())}


def _sections(model: type[Section] | type[TenantConfig], path: tuple[str, ...]) -> Iterator[SectionInfo]:
    declared: dict[str, FieldInfo] = getattr(model, "__pydantic_fields__")  # noqa: B009 - not declared by dataclasses
    fields = {info.alias or name: info for name, info in declared.items()}
    yield SectionInfo(path, model.__name__, model.__doc__ or "", fields, model.planned)
    for key, info in fields.items():
        for inner, steps in _models(info.annotation):
            yield from _sections(inner, (*path, key, *steps))


def _models(annotation: Any) -> Iterator[tuple[type[Section] | type[TenantConfig], tuple[str, ...]]]:
    """The sections in a field of this type, and the steps from the field to them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _models(arguments[0])
    elif origin is dict or origin is tuple:
        for model, steps in _models(arguments[1 if origin is dict else 0]):
            yield model, (ANY, *steps)
    elif origin in (Union, types.UnionType):
        for part in arguments:
            yield from _models(part)
    elif isinstance(annotation, type) and issubclass(annotation, Section | TenantConfig):
        yield annotation, ()


def section_at(path: Path) -> SectionInfo | None:
    """The section at a path; None when something else is there."""
    for candidate, place in sections().items():
        if len(candidate) == len(path) and all(step in (ANY, part) for step, part in zip(candidate, path, strict=True)):
            return place
    return None


def is_nullable(path: Path) -> bool:
    """Whether `null` is a value at a path, not the absence of one."""
    place = section_at(path[:-1])
    info = place.fields.get(str(path[-1])) if place is not None and path else None
    if info is None or any(isinstance(mark, Omissible) for mark in info.metadata):
        return False
    return type(None) in get_args(info.annotation) and None in (info.examples or ())


@lru_cache(maxsize=1)
def value_places() -> dict[tuple[str, ...], Value]:
    """The kind of every scalar by its path, with `*` for names and entries."""
    return {
        (*place.path, key, *steps): value
        for place in sections().values()
        for key, info in place.fields.items()
        for steps, value in _values(info.annotation, info.metadata)
    }


@lru_cache(maxsize=1)
def secret_places() -> tuple[tuple[str, ...], ...]:
    """The paths of all secrets, with `*` for names and entries; they may be `{file: path}`."""
    return tuple(place for place, value in value_places().items() if value.is_secret)


@lru_cache(maxsize=1)
def file_places() -> tuple[tuple[str, ...], ...]:
    """The paths of all file names, which are relative to the document's directory."""
    return tuple(place for place, value in value_places().items() if value.name == "FilePath")


def _values(annotation: Any, metadata: Sequence[Any]) -> Iterator[tuple[tuple[str, ...], Value]]:
    """The kinds of scalars in a field of this type, and the steps from the field to them."""
    for mark in metadata:
        if isinstance(mark, Value):
            yield (), mark
            return
        if isinstance(mark, ListForm):
            yield (ANY,), mark.value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _values(arguments[0], arguments[1:])
    elif origin is dict or origin is tuple:
        for steps, value in _values(arguments[1 if origin is dict else 0], ()):
            yield (ANY, *steps), value
    elif origin in (Union, types.UnionType):
        for part in arguments:
            yield from _values(part, ())


@dataclass(slots=True)
class _Branch:
    """A node of the tree of all scalars."""

    inner: dict[str, _Branch] = field(default_factory=dict[str, "_Branch"])
    value: Value | None = None


@lru_cache(maxsize=1)
def _tree() -> _Branch:
    root = _Branch()
    for place, value in value_places().items():
        branch = root
        for step in place:
            branch = branch.inner.setdefault(step, _Branch())
        branch.value = value
    return root


def value_at(path: Path) -> Value | None:
    """The kind of the scalar at a path, or of the scalar that the path leads into; None where the models have none."""
    branch = _tree()
    for step in path:
        if branch.value is not None:
            break
        inner = branch.inner.get(str(step)) or branch.inner.get(ANY)
        if inner is None:
            return None
        branch = inner
    return branch.value


def values_below(path: Path) -> Iterator[Value]:
    """The kinds of all scalars below a path."""
    branch = _tree()
    for step in path:
        inner = branch.inner.get(str(step)) or branch.inner.get(ANY)
        if inner is None:
            return
        branch = inner
    branches = [branch]
    while branches:
        branch = branches.pop()
        branches += branch.inner.values()
        if branch.value is not None:
            yield branch.value
