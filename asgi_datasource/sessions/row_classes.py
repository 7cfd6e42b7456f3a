"""Rows as objects of a class: `row_factory=Order` for a dataclass, a pydantic model, a named tuple, `tuple`, `dict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from ..drivers.protocol import Result, RowFactory

T = TypeVar("T")

RowType = RowFactory[T] | type[T]
"""What makes rows: a row factory as psycopg's, or the class of the rows."""


def read_rows(result: Result, row_type: RowType[Any] | None) -> list[Any]:
    """All rows of a result; without a type as dictionaries."""
    if row_type is None or not _is_class_of_rows(row_type):
        return result.rows(cast("RowFactory[Any] | None", row_type))
    make = _maker(cast("type[Any]", row_type), result.columns)
    return [make(values) for values in result.tuples()]


def read_first(result: Result, row_type: RowType[Any] | None) -> Any | None:
    """The first row of a result; None without one."""
    if row_type is None or not _is_class_of_rows(row_type):
        return result.first(cast("RowFactory[Any] | None", row_type))
    values = result.tuples()
    return _maker(cast("type[Any]", row_type), result.columns)(values[0]) if values else None


def _is_class_of_rows(row_type: RowType[Any]) -> bool:
    """Whether it is the class of the rows, and not a row factory that is written as a class with `__call__`."""
    return isinstance(row_type, type) and not any("__call__" in vars(base) for base in row_type.__mro__)


def _maker(cls: type[Any], columns: Sequence[str]) -> Callable[[tuple[Any, ...]], Any]:
    if cls is tuple:
        return tuple
    # `strict` costs per row, and they are equally long.
    return lambda values: cls(**dict(zip(columns, values)))  # noqa: B905
