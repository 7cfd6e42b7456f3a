"""Every key of the document, read off the models: for did-you-mean, the reference page and the tests."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .diagnostics import Path
from .models import Config

ANY: Final = "*"
"""In the path of a key: any name, or any entry of a list."""


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with fixed keys.

    Attributes:
        path: The way to it, with `*` for names and entries.
        model: The class that it becomes.
        fields: Its keys as they are written, each with what the model says of it.
        planned: Keys that a later version brings to life, and what to do until then.
    """

    path: tuple[str, ...]
    model: type[Any]
    fields: Mapping[str, FieldInfo]
    planned: Mapping[str, str]


def fields_of(model: type[Any]) -> dict[str, FieldInfo]:
    """The keys of a section as they are written."""
    fields = cast("dict[str, FieldInfo]", model.__pydantic_fields__)
    return {info.alias or name: info for name, info in fields.items()}


@lru_cache(maxsize=1)
def sections() -> dict[tuple[str, ...], Section]:
    """Every section by its path."""
    return {section.path: section for section in _sections(Config, ())}


def _sections(model: type[Any], path: tuple[str, ...]) -> Iterator[Section]:
    fields = fields_of(model)
    yield Section(path, model, fields, model.planned)
    for key, info in fields.items():
        for inner, steps in _models(info.annotation):
            yield from _sections(inner, (*path, key, *steps))


def _models(annotation: Any) -> Iterator[tuple[type[Any], tuple[str, ...]]]:
    """The sections that a field of this type holds, and the steps to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _models(get_args(annotation)[0])
    elif origin is dict:
        for model, steps in _models(get_args(annotation)[1]):
            yield model, (ANY, *steps)
    elif origin is tuple:
        for model, steps in _models(get_args(annotation)[0]):
            yield model, (ANY, *steps)
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _models(part)
    elif isinstance(annotation, type) and (issubclass(annotation, BaseModel) or hasattr(annotation, "planned")):
        yield annotation, ()


def section_at(path: Path) -> Section | None:
    """The section that a path of the document leads to; None when it leads to something else."""
    found = sections()
    for candidate, section in found.items():
        if len(candidate) == len(path) and all(step in (ANY, part) for step, part in zip(candidate, path, strict=True)):
            return section
    return None
