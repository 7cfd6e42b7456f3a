"""A line of a file as messages show it: without what might be a secret, and with the place marked.

Keys are shown, references, and plain words as the values of known keys that hold no secrets. Of anything else (an
address with a password in it, a keyword string, the value of a key that may be a misspelt `url`, a comment) only the
place is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from ...config import Format, Text
from ...config.keys import sections

MOST_COLUMNS: Final = 160
"""A longer line is cut; nobody reads on, and minified JSON has one line."""
_HIDDEN: Final = "…"

_TOKENS: Final = re.compile(
    r"""
      (?P<space>[ \t]+)
    | (?P<suppression>(?:^|(?<=\s))\#[ \t]*ads:.*)
    | (?P<comment>(?:^|(?<=[\s\[\]{},"']))\#.*)
    | (?P<string>"(?:[^"\\]|\\.)*"?|'(?:[^']|'')*'?)
    | (?P<flow>[\[\]{},])
    | (?P<plain>(?:[^\s\[\]{},\#"':=]|(?<=\S)\#|\$\{[^}]*\}|:(?![\s]|$)|=(?!\s)|(?<=\S)["'])+)
    | (?P<sign>.)
    """,
    re.VERBOSE,
)
_REFERENCE: Final = r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[\w.*/-]{0,64})?\}"
_SHOWN: Final = re.compile(rf"(?:[\w.*/+?^$-]|{_REFERENCE}){{1,64}}")
_HARMLESS: Final = re.compile(r"-?[0-9]{1,4}(?:ms|s|m|h)?|true|false|null|yes|no|on|off|~")
_CALLABLE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """One line, and a place in it.

    Attributes:
        line: Its number, from 1.
        text: What of it is shown.
        start: The first column of the place, from 0.
        length: How many columns it has.
    """

    line: int
    text: str
    start: int
    length: int


def excerpt_of(text: Text, line: int, column: int, key: str = "") -> Excerpt | None:
    """The line of a place.

    Args:
        text: The file.
        line: The line's number, from 1.
        column: The place's column, from 1.
        key: The key that the line is the value of, should it hold no key of its own.

    Returns:
        None when the text has no such line.
    """
    lines = text.content.split("\n", line)
    if not 1 <= line <= len(lines):
        return None
    written = lines[line - 1].rstrip("\r")
    shown, start, length = _redact(written, column - 1, text.format, key)
    if start > MOST_COLUMNS - 20:
        cut = start - 40
        shown, start = _HIDDEN + shown[cut + 1 :], start - cut
    if len(shown) > MOST_COLUMNS:
        shown = shown[: MOST_COLUMNS - 1] + _HIDDEN
    return Excerpt(line, shown, start, max(1, min(length, len(shown) - start)))


def _redact(written: str, column: int, form: Format, key: str) -> tuple[str, int, int]:
    """What of a line is shown, and where in it the token at a column is."""
    parts: list[str] = []
    width, start, length = 0, len(written), 1
    for token in _TOKENS.finditer(written):
        kind, word = token.lastgroup or "", token[0]
        if kind == "comment":
            shown = f"# {_HIDDEN}"
        elif kind in ("string", "plain"):
            rest = written[token.end() :].lstrip()
            is_key = rest.startswith("=") if form is Format.TOML else rest.startswith(":")
            shown = _show(word, None if is_key else key)
            key = word.strip("\"'") if is_key else key
        else:
            if kind == "flow" and word in ",}]":
                key = ""
            shown = word
        # The token that the place is in; one that only spaces separate from it belongs to another value.
        if token.start() <= column < token.end():
            start, length = width + min(column - token.start(), len(shown) - 1), len(shown)
            if kind in ("string", "plain"):
                start = width
        parts.append(shown)
        width += len(shown)
    return "".join(parts), min(start, width), length


def _show(word: str, key: str | None) -> str:
    """A string or plain scalar as it is shown; its key, None for a key itself."""
    quote = word[0] if word[0] in "\"'" else ""
    content = word.strip(quote) if quote else word
    if not content or re.fullmatch(_REFERENCE, content) or _HARMLESS.fullmatch(content):
        return word
    if (key is None or key in _known_keys()) and (_CALLABLE.fullmatch(content) or _is_plain(content)):
        return word
    return f"{quote}{_HIDDEN}{quote}"


def _is_plain(content: str) -> bool:
    return all(_SHOWN.fullmatch(part) for part in content.split())


@cache
def _known_keys() -> frozenset[str]:
    """Keys whose values are no secrets."""
    fields = [field for place in sections().values() for field in place.fields.items()]
    return frozenset(
        key for key, info in fields if not any(getattr(each, "is_secret", False) for each in info.metadata)
    )
