"""Reads files of traces: OTLP or Jaeger JSON, one document, or one a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

from ...config.json_text import locate_json
from ...config.places import Place
from ..command import CannotRun
from .jaeger import read_jaeger
from .otlp import read_otlp
from .parts import Malformed, Part
from .spans import Span

STANDARD_INPUT: Final = "-"
_FORMS: Final = (
    "Give OTLP JSON (`resourceSpans`; one document, or one a line) or Jaeger's JSON (`data`), as the file exporter of"
    " the collector or the download of Jaeger's page writes it."
)
_FIX: Final = "Correct the value, or export the trace again."


def read_file(name: str) -> list[Span]:
    """The spans of a file.

    Args:
        name: The file; `-` is standard input.

    Raises:
        CannotRun: It cannot be read, or holds no traces; names line and key.
    """
    label = "standard input" if name == STANDARD_INPUT else name
    try:
        data = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CannotRun(f"{label}:{line} is not UTF-8", _FORMS) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CannotRun(f"{label} cannot be read: {reason}", "Check the path and its rights.") from None
    return [*_spans(text, label)]


def _spans(text: str, label: str) -> Iterator[Span]:
    if not text.strip():
        raise CannotRun(f"{label} is empty", _FORMS)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        if error.msg != "Extra data" or not _is_complete(lines[: error.lineno - 1]):
            raise _no_json(f"{label}:{error.lineno}:{error.colno}", error) from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield from _documents(line, number, label)
    except (ValueError, RecursionError):
        raise CannotRun(f"{label} is not JSON: a number or the nesting has no end", _FORMS) from None
    else:
        yield from _read(document, label, lambda path: _line_of(text, path))


def _is_complete(lines: list[str]) -> bool:
    """Whether a document ends with these lines: then each line is one."""
    return sum(1 for line in lines if line.strip()) == 1


def _documents(line: str, number: int, label: str) -> Iterator[Span]:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise _no_json(f"{label}:{number}:{error.colno}", error) from None
    except (ValueError, RecursionError):
        raise CannotRun(f"{label}:{number} is not JSON: a number or the nesting has no end", _FORMS) from None
    yield from _read(document, label, lambda _: number)


def _no_json(place: str, error: json.JSONDecodeError) -> CannotRun:
    return CannotRun(f"{place} is not JSON: {error.msg[:1].lower()}{error.msg[1:]}", _FORMS)


def _read(document: object, label: str, line_of: Callable[[tuple[str | int, ...]], int]) -> Iterator[Span]:
    try:
        if isinstance(document, list):
            for number, entry in enumerate(cast("list[object]", document)):
                yield from _read_one(Part(entry, (number,)))
        else:
            yield from _read_one(Part(document))
    except Malformed as problem:
        fix = _FIX if len(problem.path) > 1 else _FORMS
        raise CannotRun(f"{label}:{line_of(problem.path)}: {problem}", fix) from None


def _read_one(document: Part) -> Iterator[Span]:
    if "resourceSpans" in document.value:
        return read_otlp(document)
    if "data" in document.value or "spans" in document.value:
        return read_jaeger(document)
    if "result" in document.value:
        # The answer of Jaeger's API from version 3 on.
        return read_otlp(document.part("result"))
    raise Malformed(document.path, "has none of the keys resourceSpans, data, spans and result")


def _line_of(text: str, path: tuple[str | int, ...]) -> int:
    """The line of a value, or of the innermost one around it that is there."""
    places = Place.of([path])
    locate_json(text, "", places)
    found = places.find(path, is_about_key=True)
    return 1 if found is None else found[0]
