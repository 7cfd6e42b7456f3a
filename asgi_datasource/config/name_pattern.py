"""The pattern of tenant names, matched in time linear in the length of the name.

Python's `re` backtracks: with `^([a-z0-9]+-?)+$` it takes seconds for 30 characters from a request, and blocks the
event loop. The engine of pydantic-core, Rust's `regex`, does not backtrack, and so supports neither look-around nor
back-references.

Source: https://docs.rs/regex, "Untrusted input".
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic_core import SchemaError, SchemaValidator, core_schema


def compile_name_pattern(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern into a function that returns whether it matches a whole name.

    Raises:
        ValueError: The pattern is not valid or not supported; the message has the reason.
    """
    try:
        # First without the added parentheses, which would make "a)(b" valid.
        _validator(pattern)
        try:
            found = _validator(rf"\A(?:{pattern})\z")
        except SchemaError:
            # A comment of a verbose pattern ends at the line break.
            found = _validator(f"\\A(?:{pattern}\n)\\z")
    except SchemaError as error:
        raise ValueError(_reason(str(error))) from None
    return found.isinstance_python


def _validator(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _reason(text: str) -> str:
    last = text.strip().splitlines()[-1].strip()
    return last.removeprefix("SchemaError:").strip().removeprefix("error:").strip().rstrip(".")
