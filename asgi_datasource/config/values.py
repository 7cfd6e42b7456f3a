"""The kinds of scalars in the document: what each accepts, its JSON Schema, and the words for what was expected.

Check and schema of a kind stand side by side here, so that neither changes without the other in sight. The checks see
the document after its references (`${NAME}`) are resolved; the schema describes it as it is written, so it also allows
a reference wherever a value may come from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

from .durations import DURATION, WHOLE_SECONDS, format_duration, parse_duration
from .sizes import SIZE, format_size, parse_size
from .url import HIDDEN, URL_PATTERN, DatabaseUrl, mask_url, read_url

DEFINITION: Final = "x-definition"
"""Marks the place of a value in the schema that pydantic generates; `schema.py` puts a `$ref` there."""


def hide(_: str) -> str:
    """What may be printed of a value that is hidden as a whole."""
    return HIDDEN


class Given(str):
    """Text that came from the environment or a file: may be read as a number or a boolean, and is never shown."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One kind of scalar; goes into `Annotated[...]`.

    Attributes:
        name: Its name among the `$defs` of the schema.
        expects: What it accepts, in words that follow "expected".
        types: The JSON types it may be written in: what is none of them has the wrong type, not the wrong value.
        schema: JSON Schema of what may be written, references aside.
        core: The check, as pydantic-core runs it.
        choices: The words to choose from, for did-you-mean.
        planned: What a later version accepts, as it is written; `*` is any other number.
        takes_reference: Whether `${NAME}` may stand in its place.
        is_free: Whether it may hold `${` as such, written `$${`.
        is_secret: Whether it may come from a file or a program, as `{file: path}`.
        mask: What of the value may be printed; None prints it as it is.
        is_duration: Whether it is a length of time.
        serialize: How JSON dumps write it.
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
        # pydantic keeps the schema of a mapping's keys only when its type is "string".
        return {"type": "string", DEFINITION: self.name}


VALUES: Final[dict[str, Value]] = {}
"""Every kind that a model uses, by name; filled while the models are made."""


def _plain(check: Callable[[object], object]) -> CoreSchema:
    return core_schema.no_info_plain_validator_function(check)


def _refuse() -> NoReturn:
    # The words are those of the kind: `custom_error_schema` replaces whatever a check says.
    raise ValueError


_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")


def _number(value: object) -> int:
    """A whole number; `3.0` is one, as JSON Schema has it, `true` and `"3"` are none."""
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
    """One number and no other."""

    def check(value: object) -> int:
        if isinstance(value, Given) and not takes_reference:
            _refuse()
        return only if _number(value) == only else _refuse()

    return Value(
        name, str(only), ("number",), {"const": only}, _plain(check), planned=planned, takes_reference=takes_reference
    )


_FLAGS: Final = {"true": True, "false": False}


def flag(name: str) -> Value:
    """A boolean: `true` or `false` and no other word."""

    def check(value: object) -> bool:
        found = _FLAGS.get(value) if isinstance(value, Given) else value
        return found if isinstance(found, bool) else _refuse()

    return Value(name, " or ".join(_FLAGS), ("boolean",), {"type": "boolean"}, _plain(check), choices=tuple(_FLAGS))


def word(name: str, *choices: str, planned: tuple[str, ...] = (), read: Callable[[str], object] = str) -> Value:
    """One of a few words.

    Args:
        name: Its name among the `$defs` of the schema.
        choices: The words.
        planned: Words that a later version accepts.
        read: What becomes of a word.
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
    """A string of a certain form, checked without calling Python: there may be 100,000 of them.

    Args:
        name: Its name among the `$defs` of the schema.
        expects: What it is, in words.
        pattern: What it matches from end to end, in the syntax that ECMAScript, Python and Rust share.
        minimum: Fewest characters.
        maximum: Most characters; None sets no bound.
        reserved: The one string of that form that it may not be.
        takes_reference: Whether `${NAME}` may stand in its place.
        is_free: Whether it may hold `${` as such, written `$${`.
        mask: What of the value may be printed; None prints it as it is.
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
    """A length of time with its unit; never a bare number, whose unit everybody guesses differently."""
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
    """An amount of bytes with its unit."""
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
    """A status, or a class of them."""
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
    """Where a server is and how to log in: libpq's URL, its keyword string, or `{file: path}`."""

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


MULTILINE: Final[dict[str, Any]] = {"not": {"pattern": r"\x00"}}
"""For what may hold control characters: a key in PEM has line breaks."""


def secret_text(name: str) -> Value:
    """A secret: in the environment or a file; `{file: path}` stands for what the file holds."""

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
