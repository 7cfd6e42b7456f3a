"""Excerpts: a line of a file without anything that might be a secret, and with a position marked.

A value is masked by its path in the document, as everywhere (`config/masking.py`). Other values are shown only when
they are plain words, because a password may be in the wrong place. Comments and unparsed text are hidden.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Final

from ...config import Position, Text
from ...config.keys import sections, value_at
from ...config.masking import REFERENCE
from ...config.places import Span
from ...config.reading import find_spans

MOST_COLUMNS: Final = 160
"""Longer lines are cut; minified JSON is a single line."""
_HIDDEN: Final = "…"

_BETWEEN: Final = re.compile(
    r"""
      (?P<suppression>(?:^|(?<=\s))\#[ \t]*ads:.*)
    | (?P<comment>\#.*)
    | (?P<reference>\$\{[A-Za-z_][A-Za-z0-9_]*\})
    | (?P<sign>[\s\[\]{}:,=."'|>?-]+)
    | (?P<word>[^\s\[\]{}:,=."'\#]+)
    """,
    re.VERBOSE,
)
_ASSIGNS: Final = re.compile(r"""["']?[ \t]*[:=]""")
_PLAIN: Final = re.compile(r"(?:[\w.*/+?^$-]|\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[\w.*/-]{0,64})?\}){1,64}")
_HARMLESS: Final = re.compile(r"-?[0-9]{1,4}(?:ms|s|m|h)?|true|false|null|yes|no|on|off|~")
_CALLABLE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A line and a position in it.

    Attributes:
        line: Its number, counted from 1.
        text: The line as it is shown.
        start: The first marked column, counted from 0.
        length: The number of marked columns.
    """

    line: int
    text: str
    start: int
    length: int


class Excerpts:
    """The lines of some positions; each file is parsed once.

    Args:
        texts: The files.
        positions: The positions.
    """

    def __init__(self, texts: Iterable[Text], positions: Iterable[Position]) -> None:
        lines: dict[str, set[int]] = {}
        for position in positions:
            if position.line is not None:
                lines.setdefault(position.file, set()).add(position.line)
        self._files = {text.file: _File(text, lines[text.file]) for text in texts if text.file in lines}

    def at(self, position: Position) -> Excerpt | None:
        """The line of a position; None when its file has no such line."""
        file = self._files.get(position.file)
        return file.at(position.line, position.column or 1) if file is not None and position.line is not None else None


class _File:
    """The wanted lines of one file."""

    def __init__(self, text: Text, wanted: Iterable[int]) -> None:
        self._lines = text.content.split("\n")
        self._spans: dict[int, list[Span]] = {line: [] for line in sorted(wanted)}
        numbers = list(self._spans)
        for span in find_spans(text, numbers):
            for line in numbers[bisect_left(numbers, span.start[0]) : bisect_right(numbers, span.end[0])]:
                self._spans[line].append(span)

    def at(self, line: int, column: int) -> Excerpt | None:
        if not 1 <= line <= len(self._lines):
            return None
        written = self._lines[line - 1].rstrip("\r")
        parts: list[str] = []
        width, start, length = 0, len(written), 1
        for first, last, shown in self._pieces(line, written, column - 1):
            if first <= column - 1 < last:
                is_whole = isinstance(shown, _Word)
                start = width if is_whole else width + min(column - 1 - first, len(shown) - 1)
                length = len(shown) if is_whole else 1
            parts.append(shown)
            width += len(shown)
        text, start = "".join(parts), min(start, width)
        if start > MOST_COLUMNS - 20:
            cut = start - 40
            text, start = _HIDDEN + text[cut + 1 :], start - cut
        if len(text) > MOST_COLUMNS:
            text = text[: MOST_COLUMNS - 1] + _HIDDEN
        return Excerpt(line, text, start, max(1, min(length, len(text) - start)))

    def _pieces(self, line: int, written: str, column: int) -> Iterator[tuple[int, int, str]]:
        """The pieces of a line around a column."""
        spans = self._spans[line]
        number = max(0, bisect_right(spans, (line, column - MOST_COLUMNS), key=lambda span: span.start) - 1)
        done = spans[number].start[1] - 1 if number and spans[number].start[0] == line else 0
        end = column + MOST_COLUMNS
        if done:
            yield done, done, _HIDDEN
        indent = len(written) - len(written.lstrip())
        for span in islice(spans, number, None):
            first = span.start[1] - 1 if span.start[0] == line else indent
            last = span.end[1] - 1 if span.end[0] == line else len(written)
            if first > end:
                break
            yield from _between(written[done:first], done)
            yield first, last, _Word(_show(written[first:last], span))
            done = last
        yield from _between(written[done : max(done, end)], done)


class _Word(str):
    """A key or a value as it is shown; it is marked as a whole."""

    __slots__ = ()


def _between(text: str, start: int) -> Iterator[tuple[int, int, str]]:
    """The text between keys and values: punctuation is shown, comments and unparsed text are hidden."""
    for token in _BETWEEN.finditer(text):
        kind, shown = token.lastgroup, token[0]
        if kind == "comment":
            shown = f"# {_HIDDEN}"
        elif kind == "word" and not (shown in _known_keys() and _ASSIGNS.match(text, token.end())):
            shown = _HIDDEN
        yield start + token.start(), start + token.end(), shown


def _show(written: str, span: Span) -> str:
    """A key or a value as it is shown."""
    quote = written[:1] if written[:1] in ('"', "'") else ""
    content = written.strip(quote) if quote else written
    kind = None if span.is_key else value_at(span.path)
    if not content or (not span.is_key and REFERENCE.fullmatch(content)):
        return written
    if span.is_key or (kind is not None and kind.mask is None):
        if _CALLABLE.fullmatch(content) or all(map(_PLAIN.fullmatch, content.split())):
            return written
    elif kind is None and _HARMLESS.fullmatch(content):
        return written
    return f"{quote}{_HIDDEN}{quote}"


@cache
def _known_keys() -> frozenset[str]:
    """The keys of all sections."""
    return frozenset(key for place in sections().values() for key in place.fields)
