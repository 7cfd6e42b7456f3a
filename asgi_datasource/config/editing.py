"""Applies edits to a document, and to its text, where everything else stays as it is written, comments included.

An edit of a text is proved before it counts: the text is read again, and has to say what the edited document says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .diagnostics import Edit, EditKind, Path
from .reading import Format, Text, find_marks, read_text
from .shapes import is_list, is_mapping
from .structure import write_inline


def apply_edit(document: Any, edit: Edit) -> Any:
    """The document with an edit applied; the given document is not changed.

    Raises:
        LookupError, TypeError: There is no such place in it.
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


def edit_text(text: Text, edits: Sequence[Edit]) -> tuple[Text, list[Edit]]:
    """Apply edits to a text: renamed keys and replaced scalars.

    Args:
        text: A text without syntax errors.
        edits: What to change, each with its path in this file.

    Returns:
        The new text, and the edits that were made. An edit that would need more than one word to change is left out.
    """
    made: list[Edit] = []
    for edit in edits:
        document, problems = read_text(text)
        if problems:
            break
        try:
            wanted = apply_edit(document, edit)
        except (LookupError, TypeError, AttributeError):
            continue
        for content in _candidates(text, edit):
            edited = Text(text.file, text.format, content)
            found, problems = read_text(edited)
            if not problems and _same(found, wanted):
                text = edited
                made.append(edit)
                break
    return text, made


def _same(found: Any, wanted: Any) -> bool:
    """Whether two documents are equal, types of numbers included: 1 is not true."""
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


def _candidates(text: Text, edit: Edit) -> Iterator[str]:
    """Texts of which one may be the right one, the likeliest first."""
    content = text.content
    if edit.kind not in (EditKind.RENAME, EditKind.REPLACE):
        return
    is_key = edit.kind is EditKind.RENAME
    mark = find_marks(text, [(edit.path, is_key)])[edit.path, is_key]
    if mark is None:
        return
    start = _offset(content, *mark)
    written = _write(edit.value, text.format, is_key=is_key)
    quoted = _QUOTED.match(content, start)
    patterns = [_PLAIN["key"]] if is_key else [_PLAIN["flow"], _PLAIN["block"]]
    for match in [quoted] if quoted is not None else [pattern.match(content, start) for pattern in patterns]:
        if match is not None:
            yield content[:start] + written + content[match.end() :]


def _offset(content: str, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = content.index("\n", start) + 1
    return start + column - 1


def _write(value: Any, form: Format, *, is_key: bool) -> str:
    """A value as the notation writes it in one line."""
    if form is Format.YAML:
        return write_inline(value)
    if form is Format.JSON:
        return json.dumps(value, ensure_ascii=False)
    if is_key and re.fullmatch(r"[A-Za-z0-9_-]+", str(value)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
