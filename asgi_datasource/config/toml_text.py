"""Reads TOML with the standard library, which keeps no positions; these are searched on demand."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from .diagnostics import SYNTAX_FIX, Code, Diagnostic, Path, Position, huge_number, too_deep
from .limits import MAX_DEPTH
from .places import Mark, Place, Spans

_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_QUOTED: Final = re.compile(r"(['\"]).{2,}\1|\(.*\)")


def read_toml(text: str, file: str) -> tuple[Any, list[Diagnostic]]:
    """Read one TOML document.

    Args:
        text: The text.
        file: The name that positions carry.

    Returns:
        The document, None when there is a problem; and the problems.
    """
    deep = _deep_key(text)
    if deep is not None:
        return None, [too_deep(Position(file, *deep))]
    try:
        return tomllib.loads(text), []
    except tomllib.TOMLDecodeError as error:
        words = str(error)
    except RecursionError:
        return None, [too_deep(Position(file))]
    except ValueError:  # Python refuses to read numbers of more than 4300 digits.
        return None, [huge_number(Position(file))]
    found = _PLACE.search(words)
    line, column = (int(found[1]), int(found[2])) if found is not None and found[1] else (None, None)
    position = Position(file, line, column)
    # The parser's message may quote the text, and the text may be a password.
    reason = _QUOTED.sub("…", _PLACE.sub("", words))
    if any(word in reason for word in ("overwrite", "twice", "Duplicate", "immutable")):
        message, fix = "a key stands here a second time", "Keep one of them."
        return None, [Diagnostic(Code.DUPLICATE_KEY, (), message, fix, position=position)]
    return None, [Diagnostic(Code.SYNTAX, (), f"not TOML: {reason.lower()}", SYNTAX_FIX, position=position)]


def _deep_key(text: str) -> Mark | None:
    """The position of a dotted key with too many levels; tomllib takes quadratic time for it."""
    if not any(line.count(".") >= MAX_DEPTH for line in text.splitlines()):
        return None
    levels = 0
    for token in _tokens(text):
        if token.text == ".":
            levels += 1
        elif token.kind not in ("bare", "string"):
            levels = 0
        if levels >= MAX_DEPTH:
            return token.mark
    return None


_TOKENS: Final = re.compile(
    r"""
      (?P<newline>\r?\n)
    | (?P<space>[ \t]+|\#[^\n]*)
    | (?P<string>"{3}(?:[^"\\]|\\.|"(?!""))*"{3,5}|'{3}(?:[^']|'(?!''))*'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
    | (?P<sign>[\[\]{}=,.])
    | (?P<bare>[^\s\[\]{}=,."'\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)


class _Token:
    """A token other than space and comments."""

    __slots__ = ("kind", "mark", "text")

    @property
    def end(self) -> Mark:
        """The position after its last character."""
        line, column = self.mark
        lines = self.text.count("\n")
        return (line + lines, len(self.text) - self.text.rindex("\n")) if lines else (line, column + len(self.text))

    def __init__(self, kind: str, text: str, mark: Mark) -> None:
        self.kind = kind
        self.text = text
        self.mark = mark


def _tokens(text: str) -> Iterator[_Token]:
    line, line_start = 1, 0
    for match in _TOKENS.finditer(text):
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match[0], (line, match.start() - line_start + 1))
        lines = match[0].count("\n")
        if lines:
            line += lines
            line_start = match.start() + match[0].rindex("\n") + 1
    yield _Token("end", "", (line, 1))


class _Locator:
    """Finds positions in text that tomllib has accepted."""

    def __init__(self, text: str, places: Place, spans: Spans | None) -> None:
        self._tokens = _tokens(text)
        self._places = places
        self._spans = spans
        self._tables: dict[Path, int] = {}
        """The number of tables of each array of tables so far, by its path."""
        self._token = next(self._tokens)

    def _advance(self) -> _Token:
        token = self._token
        self._token = next(self._tokens, token)
        return token

    def _skip_lines(self) -> None:
        while self._token.kind == "newline":
            self._advance()

    def walk(self) -> None:
        """Fill in the marks of all wanted paths."""
        table: Path = ()
        self._note_value((), (1, 1))
        while True:
            self._skip_lines()
            if self._token.kind == "end":
                return
            table = self._header() if self._token.text == "[" else self._pair(table)

    def _header(self) -> Path:
        self._advance()
        is_array = self._token.text == "["
        if is_array:
            self._advance()
        table: Path = ()
        keys = list(self._keys())
        for number, (key, token) in enumerate(keys, start=1):
            table = (*table, key)
            mark = token.mark
            self._note_key(table, mark)
            self._note_span(table, token, token, is_key=True)
            if is_array and number == len(keys):
                self._tables[table] = self._tables.get(table, 0) + 1
            if table in self._tables:
                table = (*table, self._tables[table] - 1)
                self._note_key(table, mark)
        while self._token.text == "]":
            self._advance()
        return table

    def _pair(self, table: Path) -> Path:
        """Read a key and its value, in a table or between braces, and return the table's path."""
        path = table
        for key, token in self._keys():
            path = (*path, key)
            self._note_key(path, token.mark)
            self._note_span(path, token, token, is_key=True)
        self._advance()  # the equals sign
        self._value(path)
        return table

    def _keys(self) -> Iterator[tuple[str, _Token]]:
        while True:
            token = self._advance()
            yield token.text if token.kind == "bare" else _unquoted(token.text), token
            if self._token.text != ".":
                return
            self._advance()

    def _value(self, path: Path) -> None:
        first = last = self._advance()
        self._note_value(path, first.mark)
        if first.text == "[":
            self._entries(path, "]")
        elif first.text == "{":
            self._entries(path, "}")
        else:
            while self._token.kind in ("bare", "sign", "string") and self._token.text not in (",", "]", "}"):
                last = self._advance()  # the rest of a number or a time
            self._note_span(path, first, last)

    def _entries(self, path: Path, closing: str) -> None:
        index = 0
        while True:
            self._skip_lines()
            if self._token.text == ",":
                self._advance()
            elif self._token.text == closing or self._token.kind == "end":
                self._advance()
                return
            elif closing == "]":
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)

    def _place(self, path: Path) -> Place | None:
        place: Place | None = self._places
        for part in path:
            place = place.children.get(part) if place is not None else None
        return place

    def _note_key(self, path: Path, mark: Mark) -> None:
        """Record the first position of a key or table; until its value is reached, it is also the value's position."""
        place = self._place(path)
        if place is not None and place.value is None:
            place.key = mark if isinstance(path[-1], str) else None
            place.value = mark

    def _note_span(self, path: Path, first: _Token, last: _Token, *, is_key: bool = False) -> None:
        if self._spans is not None and self._spans.wants(first.mark[0], last.end[0]):
            self._spans.add(path, first.mark, last.end, is_key=is_key)

    def _note_value(self, path: Path, mark: Mark) -> None:
        place = self._place(path)
        if place is not None:
            place.value = mark


def _unquoted(key: str) -> str:
    """The content of a quoted key."""
    found: dict[str, Any] = tomllib.loads(f"{key} = 0")
    return next(iter(found))


def locate_toml(text: str, places: Place, spans: Spans | None = None) -> None:
    """Fill in the marks of the wanted paths.

    Args:
        text: TOML without syntax errors.
        places: The wanted paths.
        spans: Collects keys and scalars.
    """
    try:
        _Locator(text, places, spans).walk()
    except RecursionError:
        return  # The problem is the nesting itself, and its position is the file.
