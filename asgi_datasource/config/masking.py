"""Masks values of the document, by the types of their fields, for every command and message that prints them."""

from __future__ import annotations

import re
from typing import Any, Final

from .diagnostics import Path, show
from .keys import ANY, value_at, values_below
from .shapes import is_list, is_mapping
from .url import HIDDEN

REFERENCE: Final = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
"""A reference without a default; it reveals nothing about the value."""


def is_masked(path: Path) -> bool:
    """Whether the value at a path is masked, in whole or in part."""
    kind = value_at(path)
    return kind is not None and kind.mask is not None


def mask(path: Path, value: Any) -> Any:
    """A value of the document as it may be printed.

    Args:
        path: Its path in the document.
        value: The value as it is written; it may be a section or a list.
    """
    kind = value_at(path)
    if kind is None or kind.mask is None:
        if is_mapping(value):
            return {key: mask((*path, key), child) for key, child in value.items()}
        return [mask((*path, index), child) for index, child in enumerate(value)] if is_list(value) else value
    if not isinstance(value, str):
        return HIDDEN
    return value if REFERENCE.fullmatch(value) else kind.mask(value)


def show_at(path: Path, value: object) -> str:
    """A value as messages show it: like `show`, but only the type of masked values.

    A string at the path of a section with secrets is masked too, because it may be one of them.
    """
    is_scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    if is_scalar and (is_masked(path) or is_masked((*path, ANY))):
        return "a string" if isinstance(value, str) else "a number"
    if isinstance(value, str) and any(kind.mask is not None for kind in values_below(path)):
        return "a string"
    return show(value)
