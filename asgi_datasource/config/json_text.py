"""JSON text: read at full speed; the places of keys, and keys that stand twice, are looked for when there is a reason."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Path, Position
from .limits import MAX_DEPTH
from .places import Mark, Place

_STRINGS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"[ \t\n\r]*(:?)', re.DOTALL)
_TOKENS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class _NotPlain(ValueError):
    """Raised for NaN and infinities, which Python's parser takes and JSON does not have."""


def _refuse_constant(name: str) -> None:
    raise _NotPlain(name)


def read_json(text: str, file: str) -> tuple[Any, list[Diagnostic]]:
    """Read one JSON document.

    Args:
        text: The text.
        file: The name that positions carry.

    Returns:
        The document and its problems; after a syntax error the document is None.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        position = Position(file, error.lineno, error.colno)
        return None, [
            Diagnostic(Code.SYNTAX, (), f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}", position=position)
        ]
    except _NotPlain as error:
        message = f"{error} is not JSON"
        return None, [Diagnostic(Code.NOT_PLAIN, (), message, "Write a number.", position=Position(file))]
    except RecursionError:
        return None, [_too_deep(file)]
    except ValueError:  # Python refuses to read numbers of more than 4300 digits.
        return None, [Diagnostic(Code.TOO_LARGE, (), "a number of thousands of digits", position=Position(file))]
    # A key that stands twice is lost while reading. A hook for each object would take four times as long as reading
    # does; counting the keys before and after finds that there are such keys, and then they are looked for.
    try:
        keys = _count_keys(document)
    except RecursionError:
        return None, [_too_deep(file)]
    if _STRINGS.findall(text).count(":") != keys:
        return document, locate_json(text, file, Place())
    return document, []


def _too_deep(file: str) -> Diagnostic:
    message = f"nested deeper than {MAX_DEPTH} levels"
    return Diagnostic(Code.TOO_LARGE, (), message, "The document needs seven.", position=Position(file))


def _count_keys(value: Any) -> int:
    kind = type(value)
    if kind is dict:
        count, children = len(value), value.values()
    elif kind is list:
        count, children = 0, value
    else:
        return 0
    for child in children:
        kind = type(child)
        if kind is dict or kind is list:
            count += _count_keys(child)
    return count


class _Frame:
    __slots__ = ("expects_key", "is_mapping", "key", "key_mark", "keys", "place")

    def __init__(self, is_mapping: bool, place: Place | None) -> None:
        self.is_mapping = is_mapping
        self.expects_key = is_mapping
        self.key: str | int = "" if is_mapping else 0
        self.key_mark: Mark | None = None
        self.keys: set[str | int] = set()
        self.place = place


def locate_json(text: str, file: str, places: Place) -> list[Diagnostic]:
    """Fill in the marks of the wanted paths.

    Args:
        text: Text that has been read as JSON without a syntax error.
        file: The name that positions carry.
        places: The wanted paths.

    Returns:
        A problem for each key that stands twice.
    """
    diagnostics: list[Diagnostic] = []
    frames: list[_Frame] = []
    line, line_start, scanned = 1, 0, 0
    for token in _TOKENS.finditer(text):
        start = token.start()
        lines = text.count("\n", scanned, start)
        if lines:
            line += lines
            line_start = text.rfind("\n", scanned, start) + 1
        scanned = start
        mark = (line, start - line_start + 1)
        first = text[start]
        frame = frames[-1] if frames else None
        if first in "}]":
            frames.pop()
        elif first == ",":
            if frame is not None and not frame.is_mapping and isinstance(frame.key, int):
                frame.key += 1
            elif frame is not None:
                frame.expects_key = True
        elif first == ":":
            continue
        elif frame is not None and frame.expects_key:
            frame.key, frame.key_mark, frame.expects_key = json.loads(token[0]), mark, False
            if frame.key in frame.keys:
                path: Path = tuple(outer.key for outer in frames)
                message, mend = "the key stands here a second time", "Keep one of them."
                position = Position(file, *mark)
                diagnostics.append(
                    Diagnostic(Code.DUPLICATE_KEY, path, message, mend, is_about_key=True, position=position)
                )
            frame.keys.add(frame.key)
        else:
            place: Place | None = places
            if frame is not None:
                place = None if frame.place is None else frame.place.children.get(frame.key)
            if place is not None:
                place.key, place.value = None if frame is None else frame.key_mark, mark
            if first in "{[":
                frames.append(_Frame(first == "{", place))
    return diagnostics
