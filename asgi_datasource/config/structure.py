"""The first stage of the validation: the form of the document, key by key. The JSON Schema accepts the same documents.

The second stage, `semantics.py`, checks what a JSON Schema cannot, such as references to datasources.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Suggestions, show, show_key
from .durations import suggest_duration
from .keys import section_at
from .limits import MAX_DIAGNOSTICS
from .masking import is_masked, show_at
from .models import Config, TenantConfig
from .shapes import is_mapping
from .tenants import OWNED
from .values import VALUES, Given, Value

_validate_tenant: Final = TypeAdapter(TenantConfig).validator.validate_python


def check_structure(document: object, *, is_owned: bool = False) -> tuple[Config | None, list[Diagnostic]]:
    """Check a document whose references are resolved.

    Args:
        document: Mappings, lists and scalars; tenants may already be `TenantConfig`s.
        is_owned: Whether parts of the document may become parts of the config, because nothing else refers to it.

    Returns:
        The config, or None and its problems.
    """
    try:
        return Config.model_validate(document, context=OWNED if is_owned else None), []
    except ValidationError as error:
        # The error contains the document with its secrets, so it does not become the `__cause__` of another one.
        details = error.errors(include_url=False)[:MAX_DIAGNOSTICS]
    suggestions = Suggestions()
    found = _without_collisions([_diagnostic(detail, document, suggestions) for detail in details])
    return None, [*found, *_below_misspelt(document, found)][:MAX_DIAGNOSTICS]


def _without_collisions(found: list[Diagnostic]) -> list[Diagnostic]:
    """The problems, none of which renames a key certainly where another one has the same name in mind."""
    targets = Counter((edit.path[:-1], edit.value) for edit in _renames(found))
    taken = {target for target, count in targets.items() if count > 1}
    if not taken:
        return found
    return [
        replace(problem, edit=replace(problem.edit, is_safe=False))
        if problem.edit is not None
        and problem.edit.kind is EditKind.RENAME
        and (problem.edit.path[:-1], problem.edit.value) in taken
        else problem
        for problem in found
    ]


def _renames(found: Iterable[Diagnostic]) -> Iterator[Edit]:
    """The certain names of misspelt keys."""
    for problem in found:
        edit = problem.edit
        if problem.code is Code.UNKNOWN_KEY and edit is not None and edit.is_safe:
            yield edit


def _below_misspelt(document: object, found: Sequence[Diagnostic]) -> Iterator[Diagnostic]:
    """The problems below keys whose name is certain, at their paths as they are written."""
    renames: dict[Path, Path] = {(*edit.path[:-1], edit.value): edit.path for edit in _renames(found)}
    if not renames or len(found) >= MAX_DIAGNOSTICS:
        # That many have a common cause, and each round finds the same ones further down.
        return
    corrected = document
    for named, written in renames.items():
        corrected = _renamed(corrected, written, named[-1])
    for problem in check_structure(corrected)[1]:
        for length in range(len(problem.path), 0, -1):
            misspelt = renames.get(problem.path[:length])
            if misspelt is not None:
                yield _moved(problem, misspelt)
                break


def _renamed(document: Any, path: Path, name: Any) -> Any:
    """A copy of the document with another name for the key at a path; other parts are shared."""
    if len(path) == 1:
        return {name if key == path[0] else key: value for key, value in document.items()}
    copy: Any = document.copy()
    step: Any = path[0]
    copy[step] = _renamed(copy[step], path[1:], name)
    return copy


def _moved(problem: Diagnostic, written: Path) -> Diagnostic:
    """A problem below a misspelt key, at the path as it is written, which is as long as the right one."""

    def here(path: Path) -> Path:
        return (*written, *path[len(written) :]) if len(path) >= len(written) else path

    edit = None if problem.edit is None else replace(problem.edit, path=here(problem.edit.path))
    return replace(problem, path=here(problem.path), edit=edit)


class TenantCompactor:
    """Validates each tenant as soon as it is read, so that 100,000 tenants are never in memory in two forms."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[object, Any] = {}

    def __call__(self, tenant: dict[str, Any]) -> object:
        """The tenant; the mapping itself when it is not a valid tenant or contains a reference."""
        try:
            name = tenant["datasource"]
            tenant["datasource"] = self._names.setdefault(name, name)
            return _validate_tenant(tenant)
        except (ValidationError, TypeError, KeyError):
            return tenant


def _diagnostic(detail: ErrorDetails, document: object, suggestions: Suggestions) -> Diagnostic:
    path: Path = detail["loc"]
    kind = detail["type"]
    value = VALUES.get(detail.get("ctx", {}).get("value", ""))
    if value is not None:
        if path[-1] == "[key]" and not _has(document, path):
            return _wrong_name(path[:-1], value, suggestions)
        return _wrong_value(path, value, detail["input"], suggestions)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(path, document, suggestions)
    if kind == "missing":
        return _missing_key(path, document, suggestions)
    if kind == "too_short":
        needed = path == ("datasources",)
        fix = "Add an entry." if needed else "Add an entry, or leave the key out."
        edit = Edit(EditKind.REPLACE, path, _example(path)) if needed else Edit(EditKind.REMOVE, path)
        return Diagnostic(Code.WRONG_COUNT, path, "there is nothing in it", fix, edit=edit)
    if kind == "one_key":
        written = _written_keys(document, path)
        edit = Edit(EditKind.REMOVE, (*path, next(reversed(written))) if written else path)
        fix = "Each way is an entry of the list of its own." if isinstance(path[-1], int) else "Keep one of the keys."
        return Diagnostic(Code.WRONG_COUNT, path, detail["msg"], fix, edit=edit)
    return _wrong_shape(path, kind, detail["input"])


def _at(document: object, path: Path) -> object:
    value: Any = document
    for part in path:
        value = value[part]
    return value


def _has(document: object, path: Path) -> bool:
    mapping = _at(document, path[:-1])
    return isinstance(mapping, Mapping) and path[-1] in mapping


def _written_keys(document: object, path: Path) -> dict[str, object]:
    mapping = _at(document, path)
    return mapping if is_mapping(mapping) else {}


def _wrong_name(path: Path, value: Value, suggestions: Suggestions) -> Diagnostic:
    meant, is_certain = suggestions.weigh(str(path[-1]), value.choices)
    fix = f"Did you mean {meant!r}?" if meant else "Give it another name."
    name = meant or _example_name(path)
    edit = Edit(EditKind.RENAME, path, name, is_safe=is_certain)
    return Diagnostic(Code.WRONG_NAME, path, f"expected {value.expects}", fix, is_about_key=True, edit=edit)


def _example_name(path: Path) -> str:
    """An example of a name."""
    example = _example(path[:-1])
    return next(iter(cast("dict[str, object]", example)), "name") if isinstance(example, dict) else "name"


def _unknown_key(path: Path, document: object, suggestions: Suggestions) -> Diagnostic:
    place, key = section_at(path[:-1]), str(path[-1])
    edit = Edit(EditKind.REMOVE, path)
    if place is None:
        return Diagnostic(Code.UNKNOWN_KEY, path, "unknown key", "Remove it.", is_about_key=True, edit=edit)
    if key in place.planned:
        until_then = place.planned[key]
        fix = f"{until_then[0].upper()}{until_then[1:]}."
        return Diagnostic(Code.NOT_YET_SUPPORTED, path, "not yet supported", fix, is_about_key=True, edit=edit)
    written = _written_keys(document, path[:-1])
    meant, is_certain = suggestions.weigh(key, (name for name in place.fields if name not in written))
    if is_certain and any(name in written for name in place.fields):
        # A key that is there already may be more similar: it is then written twice, and the name is not certain.
        is_certain = suggestions.weigh(key, place.fields) == (meant, True)
    if key == "<<":
        fix = "Merge keys are not part of YAML 1.2: write the keys out."
    elif meant is not None:
        fix = f"Did you mean {meant!r}?"
        edit = Edit(EditKind.RENAME, path, meant, is_safe=is_certain)
    else:
        fix = f"Known here: {', '.join(place.fields)}." if place.fields else "Remove it."
    return Diagnostic(Code.UNKNOWN_KEY, path, "unknown key", fix, is_about_key=True, edit=edit)


def _missing_key(path: Path, document: object, suggestions: Suggestions) -> Diagnostic:
    place, key = section_at(path[:-1]), str(path[-1])
    fix, edit = "Add it.", Edit(EditKind.ADD, path)
    if place is not None:
        meant = suggestions.find(key, (name for name in _written_keys(document, path[:-1]) if name not in place.fields))
        example = (place.fields[key].examples or [None])[0]
        fix = f"Is {show_key(meant)!r} meant to be it?" if meant else f"Add {key}: {write_inline(example)}."
        edit = Edit(EditKind.RENAME, (*path[:-1], meant), key) if meant else Edit(EditKind.ADD, path, example)
    return Diagnostic(Code.MISSING_KEY, path, "this key is missing", fix, edit=edit)


def write_inline(example: object) -> str:
    """A value in one line of YAML."""
    if isinstance(example, dict):
        pairs = cast("dict[str, object]", example)
        return "{" + ", ".join(f"{key}: {write_inline(value)}" for key, value in pairs.items()) + "}"
    if isinstance(example, list | tuple):
        return "[" + ", ".join(write_inline(entry) for entry in cast("Sequence[object]", example)) + "]"
    if isinstance(example, str):
        return example if _PLAIN_SCALAR.fullmatch(example) else f'"{example}"'
    return show(example)


_PLAIN_SCALAR: Final = re.compile(r"(?!true|false|null)[A-Za-z/][\w/. -]*|[0-9]+[a-z]+")


def _wrong_value(path: Path, expected: Value, value: object, suggestions: Suggestions) -> Diagnostic:
    example = Edit(EditKind.REPLACE, path, _example(path))
    if (planned := _planned(expected, value)) is not None:
        message, fix = f"{planned} is not yet supported", f"Use {expected.expects}."
        return Diagnostic(Code.NOT_YET_SUPPORTED, path, message, fix, edit=example)
    message = f"expected {expected.expects}"
    if isinstance(value, Given):
        fix = "What the environment or the file holds is something else."
        return Diagnostic(Code.WRONG_VALUE, path, message, fix, edit=example)
    if not expected.is_secret or not isinstance(value, str):
        message += f"; found {show_at(path, value)}"
    code = Code.WRONG_VALUE if _json_type(value) in expected.types else Code.WRONG_TYPE
    better, edit = _fix_for_value(expected, value, path, suggestions)
    return Diagnostic(code, path, message, better or _for_example(path), edit=edit or example)


def _planned(expected: Value, value: object) -> str | None:
    """The text of a value that a later version accepts; None when it is not planned."""
    if isinstance(value, bool):
        written = show(value)
    elif isinstance(value, int):
        return str(value) if "*" in expected.planned and value > 0 else None
    else:
        written = value if isinstance(value, str) else ""
    return written if written in expected.planned else None


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


_YES_AND_NO: Final = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _fix_for_value(
    expected: Value, value: object, path: Path, suggestions: Suggestions
) -> tuple[str | None, Edit | None]:
    """The fix of a wrong value, in words and as an edit, where the value reveals it."""
    if value is None:
        return "Write a value, or leave the key out.", Edit(EditKind.REMOVE, path) if _is_optional(path) else None
    if isinstance(value, str):
        return _fix_for_string(expected, value, path, suggestions)
    if not isinstance(value, int | float) or expected.types != ("string",) or expected.choices or expected.is_secret:
        return None, None
    if isinstance(value, bool):
        return None, None
    if expected.is_duration:
        meant = suggest_duration(str(value), whole_seconds=expected.name == "WholeSeconds")
        return (f"Write the unit: {meant}.", _safe(path, meant)) if meant is not None else (None, None)
    return "Quote it." if is_masked(path) else f"Quote it: '{show(value)}'.", _safe(path, str(value))


def _fix_for_string(
    expected: Value, value: str, path: Path, suggestions: Suggestions
) -> tuple[str | None, Edit | None]:
    if value != value.rstrip("\r\n"):
        edit = Edit(EditKind.REPLACE, path, value.rstrip("\r\n"))
        return "It ends in a line break: in YAML, write >- and |- instead of > and |.", edit
    if expected.types == ("boolean",) and _YES_AND_NO.get(value.lower()) in expected.choices:
        meant = _YES_AND_NO[value.lower()]
        return f"Write {meant}.", _safe(path, meant == "true")
    if expected.types == ("number",) and value.strip().isdecimal():
        return "Write it without quotes.", _safe(path, int(value) if len(value) < 18 else None)
    is_certain = True
    if expected.is_duration:
        near = suggest_duration(value, whole_seconds=expected.name == "WholeSeconds")
    else:
        near, is_certain = suggestions.weigh(value, expected.choices)
    if near is None:
        return None, None
    edit = _safe(path, near == "true" if expected.types == ("boolean",) else near)
    return f"Did you mean {near!r}?", replace(edit, is_safe=is_certain)


def _safe(path: Path, value: object) -> Edit:
    return Edit(EditKind.REPLACE, path, value, is_safe=value is not None)


def _is_optional(path: Path) -> bool:
    """Whether the key at a path may be omitted."""
    place = section_at(path[:-1])
    return place is not None and path[-1] in place.fields and not place.fields[str(path[-1])].is_required()


def _example(path: Path) -> Any:
    """An example of a value for a path; None when the models have none."""
    steps: list[str | int] = []
    while path:
        place = section_at(path[:-1])
        if place is not None and isinstance(path[-1], str) and path[-1] in place.fields:
            example: Any = (place.fields[path[-1]].examples or [None])[0]
            for step in reversed(steps):
                example = example[0] if isinstance(step, int) else next(iter(example.values()))
            return example
        steps.append(path[-1])
        path = path[:-1]
    return None


def _for_example(path: Path) -> str:
    """The fallback fix for a wrong value: an example."""
    example = _example(path)
    return f"For example: {write_inline(example)}." if example is not None else "Start with version: 1."


_LISTS: Final = frozenset({"tuple_type", "list_type"})


def _wrong_shape(path: Path, kind: str, value: object) -> Diagnostic:
    # Scalars are `Value`s, whose errors have a kind of their own.
    expected = "a list" if kind in _LISTS else "a mapping"
    edit = Edit(EditKind.REPLACE, path, _example(path))
    if value is None:
        fix = "Write a value, or leave the key out."
        edit = Edit(EditKind.REMOVE, path) if path and _is_optional(path) else edit
    elif kind in _LISTS and isinstance(value, str | int | float):
        fix = "Put it in brackets: [ ]."
        edit = Edit(EditKind.REPLACE, path, [value])
    else:
        fix = _for_example(path)
    return Diagnostic(Code.WRONG_TYPE, path, f"expected {expected}; found {show_at(path, value)}", fix, edit=edit)
