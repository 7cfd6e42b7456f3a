"""Rows as objects of a class: `row_factory=Order` for a dataclass, a pydantic model, a named tuple, `tuple`, `dict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, get_origin

from ..drivers.protocol import Result, RowFactory

T = TypeVar("T")

RowType = RowFactory[T] | type[T]
"""What makes rows: a row factory as psycopg's, or the class of the rows."""


def read_rows(result: Result, row_type: RowType[Any] | None) -> list[Any]:
    """All rows of a result; without a type as dictionaries."""
    cls = _class_of_rows(row_type)
    if cls is None:
        return result.rows(cast("RowFactory[Any] | None", row_type))
    make = _maker(cls, result.columns)
    return [make(values) for values in result.tuples()]


def read_first(result: Result, row_type: RowType[Any] | None) -> Any | None:
    """The first row of a result; None without one."""
    cls = _class_of_rows(row_type)
    if cls is None:
        return result.first(cast("RowFactory[Any] | None", row_type))
    values = result.tuples()
    return _maker(cls, result.columns)(values[0]) if values else None


def _class_of_rows(row_type: RowType[Any] | None) -> type[Any] | None:
    """The class of the rows; None for a row factory, which may be written as a class with `__call__`."""
    cls = get_origin(row_type) or row_type
    if not isinstance(cls, type) or any("__call__" in vars(base) for base in cls.__mro__):
        return None
    return cls


def _maker(cls: type[Any], columns: Sequence[str]) -> Callable[[tuple[Any, ...]], Any]:
    if cls is tuple:
        return tuple
    # `strict` costs per row, and they are equally long.
    return lambda values: cls(**dict(zip(columns, values)))  # noqa: B905
