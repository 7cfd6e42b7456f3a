"""The pattern of tenant names, matched in time that grows with the name and with nothing else.

Python's own engine goes back and tries again: with `^([a-z0-9]+-?)+$` it takes seconds for 30 characters that a request
gives, and the event loop stands as long. The engine of pydantic-core, Rust's `regex`, never goes back. It has no
look-around and no back-references, which cannot be matched so.

Source: https://docs.rs/regex, "Untrusted input".
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic_core import SchemaError, SchemaValidator, core_schema


def compile_name_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches a pattern as a whole.

    Raises:
        ValueError: It is none that can be matched; the message says why.
    """
    try:
        # By itself first: "a)(b" would become one by the parentheses around it.
        _validator(pattern)
        try:
            found = _validator(rf"\A(?:{pattern})\z")
        except SchemaError:
            # A comment of the verbose form ends with its line.
            found = _validator(f"\\A(?:{pattern}\n)\\z")
    except SchemaError as error:
        raise ValueError(_reason(str(error))) from None
    return found.isinstance_python


def _validator(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _reason(text: str) -> str:
    last = text.strip().splitlines()[-1].strip()
    return last.removeprefix("SchemaError:").strip().removeprefix("error:").strip().rstrip(".")
