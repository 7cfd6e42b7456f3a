"""Template strings (t-strings, PEP 750): `t"select {value}"` becomes a text with placeholders, and its values.

The values are never part of the text. What is recognised is the interface of `string.templatelib.Template`, which
Python has since 3.14, so that this module runs on every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeGuard

from ..errors import DataError, DataErrorKind


class Interpolated(Protocol):
    """One replacement field, as `string.templatelib.Interpolation`."""

    @property
    def value(self) -> object:
        """The value of the expression."""
        ...

    @property
    def expression(self) -> str:
        """The source text of the expression."""
        ...

    @property
    def conversion(self) -> str | None:
        """The letter behind `!`."""
        ...

    @property
    def format_spec(self) -> str:
        """What stands behind `:`."""
        ...


class TemplateString(Protocol):
    """A t-string, as `string.templatelib.Template`."""

    @property
    def strings(self) -> Sequence[str]:
        """The literal parts: one more than interpolations."""
        ...

    @property
    def interpolations(self) -> Sequence[Interpolated]:
        """The replacement fields."""
        ...


_VALUES: Final = {"": "%s", "s": "%s", "t": "%t", "b": "%b"}
"""Format to placeholder: AUTO, text, binary."""


def is_template(query: object) -> TypeGuard[TemplateString]:
    """Whether an object is a t-string."""
    return hasattr(query, "interpolations") and hasattr(query, "strings")


def bind(template: TemplateString) -> tuple[str, list[object]]:
    """The text with psycopg's placeholders, and the values in their order.

    Formats are those of psycopg: `{value}` is a parameter, `{value:t}` and `{value:b}` are parameters in text or binary
    format, `{name:i}` is a quoted identifier, and `{part:q}` a nested t-string, whose values are parameters too, or a
    composed query. `:l`, a value within the text, is refused.

    Raises:
        DataError: QUERY: a conversion (`!r`), another format, or a value that does not fit its format.
    """
    chunks: list[str] = []
    values: list[object] = []
    _append(template, chunks, values)
    return "".join(chunks), values


def _append(template: TemplateString, chunks: list[str], values: list[object]) -> None:
    strings = template.strings
    chunks.append(strings[0].replace("%", "%%"))
    for field, following in zip(template.interpolations, strings[1:], strict=True):
        if field.conversion:
            raise _mistake(field, "has a conversion: values are bound as they are; leave it out")
        value, spec = field.value, field.format_spec
        if is_template(value):
            if spec != "q":
                raise _mistake(field, "is a t-string: write {%s:q} to insert it", field.expression)
            _append(value, chunks, values)
        elif spec == "i":
            chunks.append(_identifier(field))
        elif spec == "q":
            chunks.append(_composed(field))
        elif (placeholder := _VALUES.get(spec)) is not None:
            if hasattr(value, "as_string"):
                raise _mistake(field, "is a composed query: write {%s:q} to insert it", field.expression)
            chunks.append(placeholder)
            values.append(value)
        else:
            raise _mistake(field, "has a format that is none of s, t, b (a parameter), i (an identifier) and q (SQL)")
        chunks.append(following.replace("%", "%%"))


def _identifier(field: Interpolated) -> str:
    """The quoted name, as PostgreSQL's `quote_ident` does."""
    name = field.value
    as_string = getattr(name, "as_string", None)
    if as_string is not None:
        return str(as_string()).replace("%", "%%")
    if not isinstance(name, str) or not name or "\0" in name:
        raise _mistake(field, "is no name: :i needs a str that is not empty, without NUL")
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _composed(field: Interpolated) -> str:
    as_string = getattr(field.value, "as_string", None)
    if as_string is None:
        raise _mistake(field, "is no SQL: :q needs a t-string or an object of psycopg.sql")
    return str(as_string()).replace("%", "%%")


def _mistake(field: Interpolated, message: str, *names: str) -> DataError:
    """The expression is source code; the value stays out of the message."""
    conversion = f"!{field.conversion}" if field.conversion else ""
    spec = f":{field.format_spec}" if field.format_spec else ""
    where = f"{{{field.expression}{conversion}{spec}}}"
    return DataError(DataErrorKind.QUERY, f"t-string: {where} {message % names if names else message}")
