"""Applies edits to a document and to its text; the rest of the text is preserved, comments included.

Every edit of a text is verified: the new text is read again and must equal the edited document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final

from .diagnostics import Edit, EditKind, Path
from .reading import Format, Text, find_marks, read_text
from .shapes import is_list, is_mapping
from .structure import write_inline


def apply_edit(document: Any, edit: Edit) -> Any:
    """A copy of the document with an edit applied.

    Raises:
        LookupError, TypeError: The document has no such path.
    """
    return _changed(document, edit.path, lambda inner: _edit(inner, edit.path[-1], edit))


def _changed(document: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    if len(path) == 1:
        return change(document)
    copy: Any = document.copy()
    step: Any = path[0]
    inner: Any = {} if is_mapping(document) and step not in document else document[step]
    copy[step] = _changed(inner, path[1:], change)
    return copy


def _edit(inner: Any, step: Any, edit: Edit) -> Any:
    if edit.kind is EditKind.RENAME:
        return {edit.value if key == step else key: value for key, value in inner.items()}
    copy: Any = inner.copy()
    if edit.kind is EditKind.REMOVE:
        del copy[step]
    elif is_list(copy) and edit.kind is EditKind.ADD:
        copy.append(edit.value)
    else:
        copy[step] = edit.value
    return copy


def edit_text(text: Text, edits: Iterable[Edit]) -> tuple[Text, list[Edit]]:
    """Apply edits to a text: renamed keys and replaced scalars.

    Args:
        text: A text without syntax errors.
        edits: What to change, each with its path in this file.

    Returns:
        The new text and the edits that were made. An edit that needs more than one replaced word is left out.
    """
    edits = list(edits)
    document, problems = read_text(text)
    if problems or not edits:
        return text, []
    wanted = document
    possible: list[Edit] = []
    for edit in edits:
        with suppress(LookupError, TypeError, AttributeError):
            wanted = apply_edit(wanted, edit)
            possible.append(edit)
    for content in _candidates(text, possible):
        edited = Text(text.file, text.format, content)
        found, problems = read_text(edited)
        if not problems and _same(found, wanted):
            return edited, possible
    if len(possible) < 2:
        return text, []
    # At least one edit does not apply. Bisecting finds it in few attempts; each attempt parses the whole text.
    middle = len(possible) // 2
    text, first = edit_text(text, possible[:middle])
    text, second = edit_text(text, possible[middle:])
    return text, first + second


def _same(found: Any, wanted: Any) -> bool:
    """Whether two documents are equal, types included: 1 is not true."""
    if type(found) is not type(wanted):
        return False
    if is_mapping(found):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in found)
    if is_list(found):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return bool(found == wanted)


_QUOTED: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'")
_PLAIN: Final = {
    "key": re.compile(r"[^\s:=,{}\[\]#]+(?:[ ][^\s:=,{}\[\]#]+)*"),
    "flow": re.compile(r"[^\s,{}\[\]]+(?:[ ]+[^\s,{}\[\]#][^\s,{}\[\]]*)*"),
    "block": re.compile(r"\S+(?:[ ]+[^\s#]\S*)*"),
}


def _candidates(text: Text, edits: Sequence[Edit]) -> Iterator[str]:
    """Possible texts with the edits applied, the likeliest first."""
    if any(edit.kind not in (EditKind.RENAME, EditKind.REPLACE) for edit in edits):
        return
    marks = find_marks(text, [(edit.path, edit.kind is EditKind.RENAME) for edit in edits])
    starts = list(accumulate((len(line) + 1 for line in text.content.split("\n")), initial=0))
    for plain in ("flow", "block"):
        pieces: list[tuple[int, int, str]] = []
        for edit in edits:
            is_key = edit.kind is EditKind.RENAME
            mark = marks[edit.path, is_key]
            if mark is None:
                return
            start = starts[mark[0] - 1] + mark[1] - 1
            match = _QUOTED.match(text.content, start) or _PLAIN["key" if is_key else plain].match(text.content, start)
            if match is None:
                return
            pieces.append((start, match.end(), _write(edit.value, text.format, is_key=is_key)))
        yield _spliced(text.content, sorted(pieces))


def _spliced(content: str, pieces: Sequence[tuple[int, int, str]]) -> str:
    """The content with some ranges replaced."""
    parts: list[str] = []
    last = 0
    for start, end, written in pieces:
        parts += [content[last:start], written]
        last = max(last, end)
    return "".join([*parts, content[last:]])


def _write(value: Any, form: Format, *, is_key: bool) -> str:
    """A value in one line of the notation."""
    if form is Format.YAML:
        return write_inline(value)
    if form is Format.JSON:
        return json.dumps(value, ensure_ascii=False)
    if is_key and re.fullmatch(r"[A-Za-z0-9_-]+", str(value)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
