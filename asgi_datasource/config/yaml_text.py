"""Reads YAML by the core schema of YAML 1.2, with bounds.

PyYAML's own loaders follow YAML 1.1 (`no` is false, `1:30` is 90), keep the last of duplicate keys, and keep no
positions. So only its parser is used: one loop over its events, without recursion.
"""

from __future__ import annotations

import re
from typing import Any, Final, cast

import yaml

from .diagnostics import SYNTAX_FIX, Code, Diagnostic, Path, Position, too_deep
from .limits import MAX_ALIASED_NODES, MAX_DEPTH, MAX_DIAGNOSTICS
from .places import Compact, Mark, Place, Spans

LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML has it; it is twenty times as fast."""

_TAG: Final = "tag:yaml.org,2002:"
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_BASES: Final = {"0o": 8, "0x": 16}
_NUMBER_START: Final = frozenset("0123456789+-.")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class _Stop(Exception):
    """Raised when the rest of the text cannot be read."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.code)
        self.diagnostic = diagnostic


class _Frame:
    """An open mapping or list."""

    __slots__ = ("anchor", "container", "expects_key", "is_mapping", "key", "key_mark", "place", "started_at")

    def __init__(self, container: Any, place: Place | None, anchor: str | None, started_at: int) -> None:
        self.container = container
        self.is_mapping = type(container) is dict
        self.expects_key = self.is_mapping
        self.key: str | int = 0
        """The key or index of the current value."""
        self.key_mark: Mark | None = None
        self.place = place
        self.anchor = anchor
        self.started_at = started_at


class _Anchored:
    """The value of an anchor, and the number of its nodes."""

    __slots__ = ("size", "value")

    def __init__(self, value: Any, size: int) -> None:
        self.value = value
        self.size = size


class _Reader:
    """Builds the document from the events of one text."""

    def __init__(self, file: str, places: Place | None, compact: Compact | None, spans: Spans | None) -> None:
        self._file = file
        self._compact = compact
        self._places = places
        self._spans = spans
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored | None] = {}
        self._nodes = 0
        self._aliased = 0
        self._documents = 0
        self.document: Any = None
        self.diagnostics: list[Diagnostic] = []

    def read(self, text: str, loader: Any) -> None:
        """Read the text to its end or to the first syntax error."""
        parser = loader(text)
        try:
            while parser.check_event():
                self._take(parser.get_event())
        finally:
            parser.dispose()

    def _take(self, event: Any) -> None:
        kind = cast("type[object]", type(event))
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._open({} if kind is yaml.MappingStartEvent else [], event)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._close()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self._documents += 1
            if self._documents > 1:
                raise self._stop(Code.SYNTAX, event, "a second document starts here", "Keep one document in a file.")

    def _scalar(self, event: Any) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.expects_key:
            self._key(frame, event)
            return
        value = self._resolve(event)
        self._nodes += 1
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 1)
        self._put(frame, value, event)

    def _key(self, frame: _Frame, event: Any) -> None:
        # A key is always a string, even where it would be another type as a value: a tenant may be called `no`, `42` or
        # `null`.
        key: str = event.value
        frame.key_mark = _mark(event)
        frame.key = key
        frame.expects_key = False
        if self._spans is not None:
            self._note_span(self._path, event, is_key=True)
        if event.anchor is not None or (event.tag is not None and event.tag not in ("!", f"{_TAG}str")):
            self._note(Code.NOT_PLAIN, event, "a key with an anchor or a tag", "Write the key as a plain string.")
        if key in frame.container:
            fix = "Keep one of them."
            if key == "<<":
                fix = "Merge keys are not part of YAML 1.2: write the keys out."
            self._note(Code.DUPLICATE_KEY, event, "the key stands here a second time", fix)

    def _open(self, container: Any, event: Any) -> None:
        if len(self._frames) >= MAX_DEPTH:
            raise _Stop(too_deep(self._position(event)))
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.expects_key:
            raise self._stop(Code.NOT_PLAIN, event, "a mapping or list as a key", "Keys are strings.")
        if event.tag is not None and event.tag not in (f"{_TAG}map", f"{_TAG}seq", "!"):
            self._note(Code.NOT_PLAIN, event, "a tag, which stands for something only a program can make", "Remove it.")
        self._nodes += 1
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        place = self._put(frame, container, event)
        self._frames.append(_Frame(container, place, event.anchor, self._nodes))

    def _close(self) -> None:
        frame = self._frames.pop()
        if frame.anchor is not None:
            self._anchors[frame.anchor] = _Anchored(frame.container, self._nodes - frame.started_at + 1)
        if self._compact is not None and frame.is_mapping and "datasource" in frame.container:
            self._replace(self._compact(frame.container))

    def _replace(self, value: Any) -> None:
        """Replace the mapping that has just ended."""
        if self._frames:
            outer = self._frames[-1]
            outer.container[outer.key] = value

    def _alias(self, event: Any) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.expects_key:
            raise self._stop(Code.NOT_PLAIN, event, "an alias as a key", "Write the key out.")
        if event.anchor not in self._anchors:
            raise self._stop(
                Code.SYNTAX, event, "an alias of an anchor that is not there", "Quote a string that starts with '*'."
            )
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise self._stop(Code.TOO_LARGE, event, "an alias of what it stands in, without end", "Write it out.")
        self._nodes += anchored.size
        self._aliased += anchored.size
        if self._aliased > MAX_ALIASED_NODES:
            message = f"aliases stand for more than {MAX_ALIASED_NODES} values"
            raise self._stop(Code.TOO_LARGE, event, message, "Write them out.")
        self._put(frame, anchored.value, event)

    def _put(self, frame: _Frame | None, value: Any, event: Any) -> Place | None:
        """Put a value into its mapping or list.

        Returns:
            Its place, when a path in it is wanted.
        """
        key_mark: Mark | None = None
        if self._spans is not None and (type(event) is yaml.ScalarEvent or type(event) is yaml.AliasEvent):
            last = [] if frame is None or frame.is_mapping else [len(frame.container)]
            self._note_span((*self._path[: -1 if last else None], *last), event)
        if frame is None:
            self.document = value
            place = self._places
        else:
            if frame.is_mapping:
                frame.container[frame.key] = value
                frame.expects_key = True
                key_mark = frame.key_mark
            else:
                frame.key = len(frame.container)
                frame.container.append(value)
            place = None if frame.place is None else frame.place.children.get(frame.key)
        if place is not None:
            place.key = key_mark
            place.value = _mark(event)
        return place

    def _resolve(self, event: Any) -> Any:
        text: str = event.value
        tag = event.tag
        if tag is None:
            if not event.implicit[0]:
                return text
            if text in _NULL:
                return None
            if text in _BOOL:
                return _BOOL[text]
        elif tag in ("!", f"{_TAG}str"):
            return text
        elif tag == f"{_TAG}null" and text in _NULL:
            return None
        elif tag == f"{_TAG}bool" and text in _BOOL:
            return _BOOL[text]
        elif tag not in (f"{_TAG}int", f"{_TAG}float"):
            self._note(Code.NOT_PLAIN, event, "a tag, which stands for something only a program can make", "Remove it.")
            return text
        if text[:1] not in _NUMBER_START:
            return text
        if _INT.fullmatch(text):
            return int(text, _BASES.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            return float(text)
        if _SPECIAL_FLOAT.fullmatch(text):
            return float(text.replace(".", "", 1))
        return text

    @property
    def _path(self) -> Path:
        """The current path."""
        path = [frame.key for frame in self._frames]
        if path and self._frames[-1].expects_key:
            path.pop()
        return tuple(path)

    def _position(self, event: Any) -> Position:
        return Position(self._file, *_mark(event))

    def _note_span(self, path: Path, event: Any, *, is_key: bool = False) -> None:
        end = (event.end_mark.line + 1, event.end_mark.column + 1)
        if self._spans is not None and self._spans.wants(event.start_mark.line + 1, end[0]):
            self._spans.add(path, _mark(event), end, is_key=is_key)

    def _note(self, code: Code, event: Any, message: str, fix: str) -> None:
        if len(self.diagnostics) < MAX_DIAGNOSTICS:
            self.diagnostics.append(
                Diagnostic(code, self._path, message, fix, is_about_key=True, position=self._position(event))
            )

    def _stop(self, code: Code, event: Any, message: str, fix: str) -> _Stop:
        return _Stop(Diagnostic(code, self._path, message, fix, position=self._position(event)))


def _mark(event: Any) -> Mark:
    return event.start_mark.line + 1, event.start_mark.column + 1


def read_yaml(
    text: str,
    file: str,
    *,
    places: Place | None = None,
    compact: Compact | None = None,
    spans: Spans | None = None,
    loader: Any = LOADER,
) -> tuple[Any, list[Diagnostic]]:
    """Read one YAML document.

    Args:
        text: The text.
        file: The name that positions carry.
        places: The wanted paths; their marks are filled in.
        compact: Replaces each mapping with the key `datasource` as soon as it is read.
        spans: Collects keys and scalars, up to a syntax error.
        loader: The PyYAML class whose parser is used.

    Returns:
        The document, None after a syntax error; and the problems.
    """
    reader = _Reader(file, places, compact, spans)
    try:
        reader.read(text, loader)
    except _Stop as stop:
        return None, [*reader.diagnostics, stop.diagnostic]
    except yaml.MarkedYAMLError as error:
        return None, [*reader.diagnostics, _syntax(error, text, file)]
    except yaml.reader.ReaderError:
        found = _FORBIDDEN.search(text)
        offset = len(text) if found is None else found.start()
        position = Position(file, text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))
        message = "a character that YAML does not allow"
        return None, [Diagnostic(Code.SYNTAX, (), message, "Remove it.", position=position)]
    return reader.document, reader.diagnostics


_FORBIDDEN: Final = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_QUOTED: Final = re.compile(r"'[^' ]{3,}'|\"[^\" ]{3,}\"")


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> Diagnostic:
    mark = error.problem_mark or error.context_mark
    # The parser's message may quote the text, and the text may be a password.
    problem = _QUOTED.sub("…", error.problem or error.context or "it cannot be read")
    if mark is None:
        return Diagnostic(Code.SYNTAX, (), f"not YAML: {problem}", SYNTAX_FIX, position=Position(file))
    position = Position(file, mark.line + 1, mark.column + 1)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    fix = SYNTAX_FIX
    if "\t" in line[: mark.column + 1]:
        fix = "Indent with spaces, not with tabs."
    elif "${" in line:
        fix = 'Quote a reference in braces: "${NAME}".'
    elif line[mark.column : mark.column + 1] in tuple("@`%"):
        fix = "Quote a string that starts with @, ` or %."
    return Diagnostic(Code.SYNTAX, (), f"not YAML: {problem}", fix, position=position)
