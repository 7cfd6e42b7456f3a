"""The scalar values of the document: what each accepts, its JSON Schema, and the words for what was expected.

Check and schema of a value stand side by side here, so that neither can change without the other in sight. The checks
see the document after references (`${NAME}`) are resolved; the schemas see it as it is written, so they also allow a
reference wherever a value stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .url import URL_PATTERN, DatabaseUrl, read_url

CONTROL: Final = r"[\x00-\x1f\x7f]"
"""Control characters: never part of a value. The usual one is a line break that YAML's `>` or `|` left at the end."""

DEFINITION: Final = "x-definition"
"""Marks the place of a value in the schema that pydantic generates; `schema.py` puts a `$ref` there."""


class Given(str):
    """Text that came out of the environment: may be read as a number or a boolean, and is never shown."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One kind of scalar; goes into `Annotated[...]`.

    Attributes:
        name: Its name among the `$defs` of the schema.
        expects: What it accepts, in words that follow "expected".
        schema: JSON Schema of what may be written, without the reference.
        core: The check, as pydantic-core runs it.
        choices: The words to choose from, for did-you-mean.
        planned: Words that a later version will accept.
        takes_reference: Whether `${NAME}` may stand in its place.
    """

    name: str
    expects: str
    schema: dict[str, Any]
    core: CoreSchema
    choices: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()
    takes_reference: bool = True
    serialize: Callable[[Any], Any] | None = field(default=None, repr=False)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        context: dict[str, Any] = {"expects": self.expects, "choices": self.choices, "planned": self.planned}
        schema = core_schema.custom_error_schema(
            self.core, "value", custom_error_message="expected {expects}", custom_error_context=context
        )
        if self.serialize is not None:
            schema["serialization"] = core_schema.plain_serializer_function_ser_schema(
                self.serialize, when_used="json-unless-none"
            )
        DEFINITIONS[self.name] = self
        return schema

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {DEFINITION: self.name}


DEFINITIONS: Final[dict[str, Value]] = {}
"""Every value that a model uses, by name."""


def integer(name: str, minimum: int, maximum: int) -> Value:
    """A whole number; `3.0` is one, as JSON Schema has it, `true` and `"3"` are not."""

    def check(value: object) -> int:
        number = _number(value)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    return Value(
        name,
        f"a whole number from {minimum} to {maximum}",
        {"type": "integer", "minimum": minimum, "maximum": maximum},
        core_schema.no_info_plain_validator_function(check),
    )


def _number(value: object) -> int:
    if isinstance(value, Given):
        if _WHOLE_NUMBER.fullmatch(value) is None:
            raise ValueError
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError


_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")


def flag(name: str, *, only: bool | None = None) -> Value:
    """A boolean: `true` or `false` and nothing else; with `only`, one of the two, the other being planned."""

    def check(value: object) -> bool:
        if isinstance(value, Given):
            value = {"true": True, "false": False}.get(value)
        if not isinstance(value, bool) or (only is not None and value is not only):
            raise ValueError
        return value

    words = {True: "true", False: "false"}
    return Value(
        name,
        "true or false" if only is None else words[only],
        {"type": "boolean"} if only is None else {"const": only},
        core_schema.no_info_plain_validator_function(check),
        planned=() if only is None else (words[not only],),
    )


def zero(name: str) -> Value:
    """The number 0; others are planned."""

    def check(value: object) -> int:
        if _number(value) != 0:
            raise ValueError
        return 0

    return Value(name, "0", {"const": 0}, core_schema.no_info_plain_validator_function(check), planned=("*",))


def word(name: str, *choices: str, planned: tuple[str, ...] = ()) -> Value:
    """One of a few words."""
    return Value(
        name,
        " or ".join(choices) if len(choices) < 3 else f"{', '.join(choices[:-1])} or {choices[-1]}",
        {"enum": list(choices)},
        core_schema.no_info_plain_validator_function(_one_of(choices)),
        choices=choices,
        planned=planned,
    )


def _one_of(choices: Sequence[str]) -> Callable[[object], str]:
    words = {choice: choice for choice in choices}

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        return words[value] if value in words else _refuse()

    return check


def _refuse() -> Any:
    raise ValueError


def text(
    name: str, expects: str, pattern: str, *, minimum: int = 1, maximum: int = 255, takes_reference: bool = True
) -> Value:
    """A string of a certain form, checked without Python: there may be 100,000 of them.

    Args:
        name: Its name among the `$defs` of the schema.
        expects: What it is, in words.
        pattern: What it matches from end to end, in the syntax that ECMAScript, Python and Rust share.
        minimum: Fewest characters.
        maximum: Most characters.
        takes_reference: Whether `${NAME}` may stand in its place.
    """
    return Value(
        name,
        expects,
        {"type": "string", "minLength": minimum, "maxLength": maximum, "pattern": f"^(?:{pattern})$"},
        core_schema.str_schema(
            strict=True, pattern=rf"^(?:{pattern})$", min_length=minimum, max_length=maximum, regex_engine="rust-regex"
        ),
        takes_reference=takes_reference,
    )


_DURATION: Final = r"[1-9][0-9]{0,8}ms|[1-9][0-9]{0,5}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h"
_WHOLE_SECONDS: Final = r"[1-9][0-9]{0,5}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PARTS: Final = re.compile(r"([0-9]+)(ms|s|m|h)")


def parse_duration(value: str) -> float:
    """Seconds of a duration as it is written: `250ms`, `3s`, `10m`, `1h`.

    Raises:
        ValueError: It is not one.
    """
    if re.fullmatch(_DURATION, value) is None:
        raise ValueError(f"{value!r} is not a duration such as '250ms', '3s', '10m' or '1h'")
    parts = _DURATION_PARTS.fullmatch(value)
    if parts is None:  # pragma: no cover - the pattern above has seen to it
        raise ValueError(value)
    amount, unit = int(parts[1]), parts[2]
    return amount / 1000 if unit == "ms" else amount * _UNITS[unit]


def format_duration(seconds: float) -> str:
    """The shortest way to write a duration; `parse_duration` reads it back."""
    milliseconds = round(seconds * 1000)
    for unit, size, most in (("h", 3_600_000, 99), ("m", 60_000, 9_999), ("s", 1000, 999_999)):
        if milliseconds % size == 0 and milliseconds // size <= most:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def duration(name: str, *, whole_seconds: bool = False) -> Value:
    """A length of time with its unit; never a bare number, whose unit everybody guesses differently."""
    pattern = _WHOLE_SECONDS if whole_seconds else _DURATION
    compiled = re.compile(pattern)

    def check(value: object) -> float:
        if not isinstance(value, str) or compiled.fullmatch(value) is None:
            raise ValueError
        return parse_duration(value)

    return Value(
        name,
        "a whole number and its unit, 3s, 10m or 1h"
        if whole_seconds
        else "a whole number and its unit, 250ms, 3s, 10m or 1h",
        {"type": "string", "pattern": f"^(?:{pattern})$"},
        core_schema.no_info_plain_validator_function(check),
        serialize=format_duration,
    )


def status(name: str, minimum: int, maximum: int) -> Value:
    """An HTTP status."""
    found = integer(name, minimum, maximum)
    return Value(name, f"an HTTP status from {minimum} to {maximum}", found.schema, found.core)


def outcome(name: str) -> Value:
    """A status, or a class of them."""
    classes = ("2xx", "3xx", "4xx", "5xx")

    def check(value: object) -> int | str:
        if isinstance(value, str) and value in classes:
            return str(value)
        number = _number(value)
        if not 200 <= number <= 599:
            raise ValueError
        return number

    return Value(
        name,
        "a status from 200 to 599, or a class of them: 2xx, 3xx, 4xx or 5xx",
        {"anyOf": [{"enum": list(classes)}, {"type": "integer", "minimum": 200, "maximum": 599}]},
        core_schema.no_info_plain_validator_function(check),
        choices=classes,
    )


def database_url(name: str) -> Value:
    """Where a server is and how to log in: libpq's URL, its keyword string, or `{file: path}`."""

    def check(value: object) -> DatabaseUrl:
        return read_url(value)

    return Value(
        name,
        "postgresql://user@host/database, libpq's keyword form 'host=... dbname=...', or {file: path}",
        {"type": "string", "pattern": URL_PATTERN},
        core_schema.no_info_plain_validator_function(check),
        serialize=str,
    )


def version(name: str) -> Value:
    """The format's version: 1, always written out."""

    def check(value: object) -> int:
        if isinstance(value, Given) or _number(value) != 1:
            raise ValueError
        return 1

    return Value(name, "1", {"const": 1}, core_schema.no_info_plain_validator_function(check), takes_reference=False)
