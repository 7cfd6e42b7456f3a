"""Kinds of scalars: the check, the JSON Schema, the words for what is expected, and what may be printed.

Check and schema of a kind are defined side by side, so that they change together. Checks run after references
(`${NAME}`) are resolved. Schemas describe the document as it is written, so they also accept references.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

from .durations import DURATION, WHOLE_SECONDS, format_duration, parse_duration
from .sizes import SIZE, format_size, parse_size
from .url import HIDDEN, URL_PATTERN, DatabaseUrl, mask_url, read_url

DEFINITION: Final = "x-definition"
"""Marks a value in the schema that pydantic generates; `generated.py` replaces it by a `$ref`."""


def hide(_: str) -> str:
    """The mask of a value that is hidden as a whole."""
    return HIDDEN


class Given(str):
    """Text from the environment, a file or a program: it may be parsed as a number or boolean, and is never shown."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One kind of scalar; goes into `Annotated[...]`.

    Attributes:
        name: Its name in the schema's `$defs`.
        expects: What it accepts, in words that follow "expected".
        types: The JSON types that it is written in; other types are the wrong type, not the wrong value.
        schema: The JSON Schema, without references.
        core: The check, as a schema of pydantic-core.
        choices: The words to choose from, for did-you-mean.
        planned: What a later version accepts, as it is written; `*` is any other number.
        takes_reference: Whether it may be written as `${NAME}`.
        is_free: Whether it may contain a literal `${`, written `$${`.
        is_secret: Whether it may come from a file or a program, as `{file: path}`.
        mask: Returns the part of the value that may be printed; None prints all of it.
        is_duration: Whether it is a duration.
        serialize: Converts it for JSON dumps.
    """

    name: str
    expects: str
    types: tuple[str, ...]
    schema: dict[str, Any]
    core: CoreSchema
    choices: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()
    takes_reference: bool = True
    is_free: bool = False
    is_secret: bool = False
    mask: Callable[[str], str] | None = None
    is_duration: bool = False
    serialize: Callable[[Any], Any] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.custom_error_schema(
            self.core,
            custom_error_type="value",
            custom_error_message="expected {expects}",
            custom_error_context={"expects": self.expects, "value": self.name},
        )
        if self.serialize is not None:
            schema["serialization"] = core_schema.plain_serializer_function_ser_schema(
                self.serialize, when_used="json-unless-none"
            )
        VALUES[self.name] = self
        return schema

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # pydantic omits the schema of a mapping's keys unless its type is "string".
        return {"type": "string", DEFINITION: self.name}


VALUES: Final[dict[str, Value]] = {}
"""All kinds that the models use, by name; filled when the models are defined."""


def _plain(check: Callable[[object], object]) -> CoreSchema:
    return core_schema.no_info_plain_validator_function(check)


def _refuse() -> NoReturn:
    # `custom_error_schema` replaces the message.
    raise ValueError


_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")


def _number(value: object) -> int:
    """A whole number; as in JSON Schema, `3.0` is one, but `true` and `"3"` are not."""
    if isinstance(value, Given):
        return int(value) if _WHOLE_NUMBER.fullmatch(value) else _refuse()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else _refuse()


def integer(name: str, minimum: int, maximum: int, *, what: str = "a whole number") -> Value:
    """A whole number within bounds."""

    def check(value: object) -> int:
        number = _number(value)
        return number if minimum <= number <= maximum else _refuse()

    return Value(
        name,
        f"{what} from {minimum} to {maximum}",
        ("number",),
        {"type": "integer", "minimum": minimum, "maximum": maximum},
        _plain(check),
    )


def constant(name: str, only: int, *, planned: tuple[str, ...] = (), takes_reference: bool = True) -> Value:
    """Exactly one number."""

    def check(value: object) -> int:
        if isinstance(value, Given) and not takes_reference:
            _refuse()
        return only if _number(value) == only else _refuse()

    return Value(
        name, str(only), ("number",), {"const": only}, _plain(check), planned=planned, takes_reference=takes_reference
    )


_FLAGS: Final = {"true": True, "false": False}


def flag(name: str) -> Value:
    """A boolean: `true` or `false`, no other word."""

    def check(value: object) -> bool:
        found = _FLAGS.get(value) if isinstance(value, Given) else value
        return found if isinstance(found, bool) else _refuse()

    return Value(name, " or ".join(_FLAGS), ("boolean",), {"type": "boolean"}, _plain(check), choices=tuple(_FLAGS))


def word(name: str, *choices: str, planned: tuple[str, ...] = (), read: Callable[[str], object] = str) -> Value:
    """One of a few words.

    Args:
        name: Its name in the schema's `$defs`.
        choices: The words.
        planned: Words that a later version accepts.
        read: Converts a word.
    """

    def check(value: object) -> object:
        return read(value) if isinstance(value, str) and value in choices else _refuse()

    expects = choices[-1] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Value(name, expects, ("string",), {"enum": list(choices)}, _plain(check), choices=choices, planned=planned)


def text(
    name: str,
    expects: str,
    pattern: str,
    *,
    minimum: int = 1,
    maximum: int | None = 255,
    reserved: str | None = None,
    takes_reference: bool = True,
    is_free: bool = False,
    mask: Callable[[str], str] | None = None,
) -> Value:
    """A string that matches a pattern, checked without calling Python: there may be 100,000 of them.

    Args:
        name: Its name in the schema's `$defs`.
        expects: What it accepts, in words.
        pattern: The pattern of the whole string, in the syntax that ECMAScript, Python and Rust share.
        minimum: Fewest characters.
        maximum: Most characters; None sets no bound.
        reserved: A string that matches and is refused.
        takes_reference: Whether it may be written as `${NAME}`.
        is_free: Whether it may contain a literal `${`, written `$${`.
        mask: Returns the part of the value that may be printed; None prints all of it.
    """
    anchored = f"^(?:{pattern})$"
    core: CoreSchema = core_schema.str_schema(strict=True, pattern=anchored, min_length=minimum, max_length=maximum)
    schema: dict[str, Any] = {"type": "string", "minLength": minimum, "pattern": anchored}
    if maximum is not None:
        schema["maxLength"] = maximum
    if reserved is not None:

        def check(value: str) -> str:
            return value if value != reserved else _refuse()

        core = core_schema.no_info_after_validator_function(check, core)
        schema["not"] = {"const": reserved}
    return Value(name, expects, ("string",), schema, core, takes_reference=takes_reference, is_free=is_free, mask=mask)


def duration(name: str, *, whole_seconds: bool = False) -> Value:
    """A duration with its unit; never a bare number, whose unit would be a guess."""
    pattern = WHOLE_SECONDS if whole_seconds else DURATION
    compiled = re.compile(pattern)

    def check(value: object) -> float:
        return parse_duration(value) if isinstance(value, str) and compiled.fullmatch(value) else _refuse()

    return Value(
        name,
        f"a whole number and its unit: {'' if whole_seconds else '250ms, '}3s, 10m or 1h",
        ("string",),
        {"type": "string", "pattern": f"^(?:{pattern})$"},
        _plain(check),
        is_duration=True,
        serialize=format_duration,
    )


def size(name: str) -> Value:
    """A size in bytes with its unit."""
    compiled = re.compile(SIZE)

    def check(value: object) -> int:
        return parse_size(value) if isinstance(value, str) and compiled.fullmatch(value) else _refuse()

    return Value(
        name,
        "a whole number and its unit: 512B, 64KiB or 1MiB",
        ("string",),
        {"type": "string", "pattern": f"^(?:{SIZE})$"},
        _plain(check),
        serialize=format_size,
    )


def outcome(name: str) -> Value:
    """An HTTP status or a class of statuses."""
    classes = ("2xx", "3xx", "4xx", "5xx")

    def check(value: object) -> int | str:
        if isinstance(value, str) and value in classes:
            return str(value)
        number = _number(value)
        return number if 200 <= number <= 599 else _refuse()

    return Value(
        name,
        "a status from 200 to 599, or a class of them: 2xx, 3xx, 4xx or 5xx",
        ("number", "string"),
        {"anyOf": [{"enum": list(classes)}, {"type": "integer", "minimum": 200, "maximum": 599}]},
        _plain(check),
        choices=classes,
    )


def database_url(name: str) -> Value:
    """A connection URL: libpq's URL or keyword string, or `{file: path}`."""

    def check(value: object) -> DatabaseUrl:
        return read_url(value)

    return Value(
        name,
        "postgresql://user@host/database, libpq's keyword form 'host=... dbname=...', or {file: path}",
        ("string",),
        {"type": "string", "pattern": URL_PATTERN},
        _plain(check),
        is_free=True,
        is_secret=True,
        mask=mask_url,
        serialize=str,
    )


def service_url(name: str) -> Value:
    """The URL of a service, which may hold a password: hidden as a whole, or `{file: path}`."""
    return replace(secret_text(name), expects="a URL such as nats://host:4222, by ${NAME} or {file: path}")


MULTILINE: Final[dict[str, Any]] = {"not": {"pattern": r"\x00"}}
"""For values with control characters: a key in PEM has line breaks."""


def secret_text(name: str) -> Value:
    """A secret: from the environment, or from a file by `{file: path}`."""

    def check(value: object) -> SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not isinstance(text, str) or not text or "\x00" in text:
            _refuse()
        text.encode()
        return SecretStr(str(text))

    return Value(
        name,
        "a secret, by ${NAME} or {file: path}",
        ("string",),
        {"type": "string", "minLength": 1, **MULTILINE},
        _plain(check),
        is_free=True,
        is_secret=True,
        mask=hide,
        serialize=str,
    )
