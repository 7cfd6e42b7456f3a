"""The first stage of checking: is this, key by key, a document? The same question that the JSON Schema answers.

What a JSON Schema cannot say (does that datasource exist?) is asked by the second stage, `sense.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .diagnostics import Code, Diagnostic, Path, did_you_mean, show, show_key
from .keys import section_at
from .models import Config
from .url import TEMPLATE
from .values import Given


def check_structure(document: object, unresolved: Sequence[Path] = ()) -> tuple[Config | None, list[Diagnostic]]:
    """Check a document whose references are resolved.

    Args:
        document: Plain mappings, lists and scalars.
        unresolved: Places whose reference could not be resolved; nothing is said about them.

    Returns:
        The config, None when there is any problem or anything unresolved; and the problems.
    """
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        # The error holds the document with its secrets: it ends here, and is nobody's `__cause__`.
        details = error.errors(include_url=False)
    else:
        return None if unresolved else config, []
    hidden = set(unresolved)
    problems = [_diagnostic(detail, document) for detail in details]
    return None, [p for p in problems if not any(p.path[: len(path)] == path for path in hidden)]


def _diagnostic(detail: ErrorDetails, document: object) -> Diagnostic:
    path: Path = detail["loc"]
    kind = detail["type"]
    if path[-1:] == ("[key]",) and not _is_there(document, path):
        return _wrong_name(path[:-1], detail)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(path, document)
    if kind == "missing":
        return _missing_key(path, document)
    if kind == "value":
        return _wrong_value(path, detail)
    if kind in ("too_short", "one_key"):
        return _wrong_count(path, kind, detail)
    return _wrong_shape(path, kind, detail["input"])


def _is_there(document: object, path: Path) -> bool:
    value = document
    for part in path:
        if isinstance(value, Mapping) and part in value:
            value = cast("Mapping[str, object]", value)[cast("str", part)]
        else:
            return False
    return True


def _keys_at(document: object, path: Path) -> list[str]:
    """The keys that are written in the mapping at a path."""
    value: Any = document
    for part in path:
        value = value[part]
    return [key for key in cast("dict[Any, Any]", value) if isinstance(key, str)] if isinstance(value, dict) else []


def _wrong_name(path: Path, detail: ErrorDetails) -> Diagnostic:
    expects = detail.get("ctx", {}).get("expects", "another name")
    if path == ("tenants", "*"):
        mend = "Name the datasource of all other tenants in tenancy.default."
        return Diagnostic(
            Code.NOT_YET_SUPPORTED, path, "'*' for all other tenants is not yet supported", mend, is_about_key=True
        )
    choices = detail.get("ctx", {}).get("choices", ())
    meant = did_you_mean(str(path[-1]), choices)
    return Diagnostic(
        Code.WRONG_NAME, path, f"expected {expects}", f"Did you mean {meant!r}?" if meant else "", is_about_key=True
    )


def _unknown_key(path: Path, document: object) -> Diagnostic:
    section, key = section_at(path[:-1]), str(path[-1])
    known = list(section.fields) if section is not None else []
    planned = section.planned if section is not None else {}
    if key in planned:
        mend = planned[key]
        return Diagnostic(
            Code.NOT_YET_SUPPORTED, path, "not yet supported", f"{mend[:1].upper()}{mend[1:]}.", is_about_key=True
        )
    if key == "<<":
        mend = "Merge keys are not part of YAML 1.2: write the keys out."
        return Diagnostic(Code.UNKNOWN_KEY, path, "unknown key", mend, is_about_key=True)
    written = _keys_at(document, path[:-1])
    meant = did_you_mean(key, [name for name in known if name not in written])
    if meant is not None:
        mend = f"Did you mean {meant!r}?"
    elif known:
        mend = f"Known here: {', '.join(known)}."
    else:
        mend = "Remove it."
    return Diagnostic(Code.UNKNOWN_KEY, path, "unknown key", mend, is_about_key=True)


def _missing_key(path: Path, document: object) -> Diagnostic:
    section, key = section_at(path[:-1]), str(path[-1])
    mend = "Add it."
    if section is not None and key in section.fields:
        written = [name for name in _keys_at(document, path[:-1]) if name not in section.fields]
        meant = did_you_mean(key, written)
        examples = section.fields[key].examples
        if meant is not None:
            mend = f"Is {show_key(meant)!r} meant to be it?"
        elif examples:
            mend = f"Add it: {key}: {_written(examples[0])}"
    return Diagnostic(Code.MISSING_KEY, path, "this key is missing", mend)


def _written(example: object) -> str:
    """An example as YAML writes it, in one line."""
    if isinstance(example, dict):
        pairs = cast("dict[str, object]", example)
        return "{" + ", ".join(f"{key}: {_written(value)}" for key, value in pairs.items()) + "}"
    if isinstance(example, list | tuple):
        return "[" + ", ".join(_written(entry) for entry in cast("list[object]", example)) + "]"
    if isinstance(example, bool) or example is None:
        return {True: "true", False: "false", None: "null"}[example]
    text = str(example)
    return f'"{text}"' if isinstance(example, str) and any(sign in text for sign in "${}:*#[] ,") else text


def _wrong_value(path: Path, detail: ErrorDetails) -> Diagnostic:
    context = detail.get("ctx", {})
    expects, choices, planned = context["expects"], context["choices"], context["planned"]
    value = detail["input"]
    plain = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    if isinstance(value, str | int) and (plain in planned or ("*" in planned and isinstance(value, int) and value > 0)):
        return Diagnostic(Code.NOT_YET_SUPPORTED, path, f"{plain} is not yet supported", f"Use {expects}.")
    if isinstance(value, str) and TEMPLATE in value:
        mend = "Give the tenant a datasource or schema of its own."
        return Diagnostic(Code.NOT_YET_SUPPORTED, path, f"{TEMPLATE} is not yet supported", mend)
    is_text = "a string" in expects or not any(word in expects for word in ("number from", "true", "status"))
    code = Code.WRONG_TYPE if isinstance(value, str) != is_text else Code.WRONG_VALUE
    return Diagnostic(code, path, f"expected {expects}, found {show(value)}", _mend_value(value, choices))


def _mend_value(value: object, choices: Sequence[str]) -> str:
    if isinstance(value, str) and not isinstance(value, Given):
        if value != value.rstrip("\r\n"):
            return "It ends in a line break: in YAML, write >- and |- instead of > and |."
        meant = did_you_mean(value, choices)
        return f"Did you mean {meant!r}?" if meant else ""
    return ""


def _wrong_count(path: Path, kind: str, detail: ErrorDetails) -> Diagnostic:
    if kind == "one_key":
        return Diagnostic(Code.WRONG_COUNT, path, detail["msg"], "Write each way as an entry of its own.")
    return Diagnostic(Code.WRONG_COUNT, path, "there is nothing in it", "Add an entry, or leave the key out.")


_SHAPES = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "dataclass_exact_type": "a mapping",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}


def _wrong_shape(path: Path, kind: str, value: object) -> Diagnostic:
    expected = _SHAPES.get(kind, "another value")
    mend = ""
    if value is None:
        mend = "Write a value, or leave the key out."
    elif expected == "a list":
        mend = "Put it in brackets: [ ]."
    return Diagnostic(Code.WRONG_TYPE, path, f"expected {expected}, found {show(value)}", mend)
