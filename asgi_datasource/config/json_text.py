"""Reads JSON at full speed; positions and duplicate keys are searched only when needed."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from .diagnostics import SYNTAX_FIX, Code, Diagnostic, Path, Position, huge_number, too_deep
from .limits import MAX_DIAGNOSTICS
from .places import Compact, Mark, Place, Spans

_STRINGS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"[ \t\n\r]*(:?)', re.DOTALL)
_TOKENS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class _NotPlain(ValueError):
    """Raised for NaN and infinities, which Python's parser accepts and JSON does not have."""


def _refuse_constant(name: str) -> None:
    raise _NotPlain(name)


def read_json(text: str, file: str, compact: Compact | None = None) -> tuple[Any, list[Diagnostic]]:
    """Read one JSON document.

    Args:
        text: The text.
        file: The name that positions carry.
        compact: Replaces each mapping with the key `datasource` as soon as it is read.

    Returns:
        The document and its problems; after a syntax error the document is None.
    """
    keys = 0

    def count(mapping: dict[str, Any]) -> object:
        nonlocal keys
        keys += len(mapping)
        return compact(mapping) if compact is not None and "datasource" in mapping else mapping

    problem: Diagnostic
    try:
        document = json.loads(text, object_hook=count, parse_constant=_refuse_constant)
        # Escapes can produce lone surrogates, which cannot be encoded.
        if "\\u" in text and compact is None:
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        problem = Diagnostic(Code.SYNTAX, (), message, SYNTAX_FIX, position=Position(file, error.lineno, error.colno))
    except _NotPlain as error:
        problem = Diagnostic(Code.NOT_PLAIN, (), f"{error} is not JSON", "Write a number.", position=Position(file))
    except RecursionError:
        problem = too_deep(Position(file))
    except UnicodeEncodeError:
        message = "an escape that is half a character"
        problem = Diagnostic(Code.NOT_PLAIN, (), message, "Write the character itself.", position=Position(file))
    except ValueError:  # Python refuses to read numbers of more than 4300 digits.
        problem = huge_number(Position(file))
    else:
        # The parser keeps only the last of duplicate keys. Comparing the number of keys in the text and in the document
        # detects them at a tenth of the cost of a pairs hook; only then are they searched.
        return document, [] if _count_keys(text) == keys else locate_json(text, file, Place())
    return None, [problem]


def _count_keys(text: str) -> int:
    """The number of keys in JSON text without syntax errors."""
    if '\\":' not in text and not any(f"{space}:" in text for space in " \t\n\r"):
        # Then every quote followed by a colon ends a key.
        return text.count('":')
    return _STRINGS.findall(text).count(":")


class _Frame:
    """An open mapping or list."""

    __slots__ = ("expects_key", "is_mapping", "key", "key_mark", "keys", "place")

    def __init__(self, is_mapping: bool, place: Place | None) -> None:
        self.is_mapping = is_mapping
        self.expects_key = is_mapping
        self.key: str | int = "" if is_mapping else 0
        self.key_mark: Mark | None = None
        self.keys: set[str | int] = set()
        self.place = place


def locate_json(text: str, file: str, places: Place, spans: Spans | None = None) -> list[Diagnostic]:
    """Fill in the marks of the wanted paths.

    Args:
        text: JSON without syntax errors.
        file: The name that positions carry.
        places: The wanted paths.
        spans: Collects keys and scalars.

    Returns:
        A problem for each duplicate key.
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
        is_key = frame is not None and frame.expects_key
        wants_span = spans is not None and first not in "{}[],:" and spans.wants(line, line)
        if first in "}]":
            frames.pop()
        elif first == ",":
            if frame is not None and not frame.is_mapping and isinstance(frame.key, int):
                frame.key += 1
            elif frame is not None:
                frame.expects_key = True
        elif first == ":":
            continue
        elif frame is not None and is_key:
            frame.key, frame.key_mark, frame.expects_key = json.loads(token[0]), mark, False
            if frame.key in frame.keys and len(diagnostics) < MAX_DIAGNOSTICS:
                path: Path = tuple(outer.key for outer in frames)
                message, fix = "the key stands here a second time", "Keep one of them."
                position = Position(file, *mark)
                diagnostics.append(
                    Diagnostic(Code.DUPLICATE_KEY, path, message, fix, is_about_key=True, position=position)
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
        if spans is not None and wants_span:
            spans.add(tuple(outer.key for outer in frames), mark, (line, mark[1] + len(token[0])), is_key=is_key)
    return diagnostics
