"""Merges the files of a document: included files and overlays.

The rules (docs/config.md, "Several files"):

- **Includes** are parts of one document. Sections are joined; `routes` are concatenated, the including file's first.
  A key that two files define is an error; no file silently takes precedence.
- **Overlays** change the document in order, as JSON Merge Patches (RFC 7396): mappings are merged key by key, `null`
  removes a key, and any other value, a list included, replaces the old one. Where `null` is a value
  (`transactions.deadline`), it is that value.

The file of each path is kept: for positions, and for the directory that the paths of secrets are relative to.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final, cast

from .diagnostics import Code, Diagnostic, Path, Position, Severity, show
from .files import Search, TooManyEntries
from .keys import is_nullable
from .limits import MAX_BYTES, MAX_DEPTH, MAX_DIAGNOSTICS, MAX_ENTRIES, MAX_FILES
from .origins import Origins
from .places import Compact
from .reading import Text, find_marks, open_text, read_text
from .shapes import is_list, is_mapping

INCLUDE: Final = "include"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration in files; accepted wherever a path is.

    Attributes:
        path: The document.
        overlays: Files that change it, in order, such as those of an environment and a region.
        allow_commands: Whether programs may be run for secrets (`{command: [...]}`) while it is read.
    """

    path: str | FilePath
    overlays: tuple[str | FilePath, ...] = ()
    allow_commands: bool = False


@dataclass(slots=True)
class _Part:
    """One file."""

    text: Text
    folder: FilePath
    document: Any
    layer: int
    first_route: int = 0
    """The index of its first route among the routes of its layer."""


class _Holders:
    """The files that define a path of the merged document, as a tree that is built on demand."""

    __slots__ = ("_inner", "_values")

    def __init__(self, values: list[tuple[_Part, Any]]) -> None:
        self._values = values
        self._inner: dict[Any, list[tuple[_Part, Any]] | _Holders] | None = None

    @property
    def first(self) -> _Part:
        """The first file that defines the path."""
        return self._values[0][0]

    def at(self, step: str | int) -> _Holders | None:
        """The holders of a path inside of this one; None when no file defines it."""
        if self._inner is None:
            self._inner = {}
            for part, value in self._values:
                for key, child in value.items() if is_mapping(value) else enumerate(value) if is_list(value) else ():
                    cast("list[tuple[_Part, Any]]", self._inner.setdefault(key, [])).append((part, child))
        inner = self._inner.get(step)
        if isinstance(inner, list):
            # A value that is not a mapping replaces those of earlier files, and is replaced by those of later files.
            last = max((number for number, (_, value) in enumerate(inner) if not is_mapping(value)), default=-1)
            inner = self._inner[step] = _Holders(inner[last + 1 :] or inner[last:])
        return inner


@dataclass(slots=True)
class Layers:
    """The files that were read, and the document that they form.

    Attributes:
        document: The merged document; None when the main file could not be read.
        problems: What is wrong with the files themselves, with positions.
        parts: The files, in the order in which they are merged.
        source: What was read.
    """

    document: Any = None
    problems: list[Diagnostic] = field(default_factory=list[Diagnostic])
    parts: list[_Part] = field(default_factory=list[_Part])
    source: ConfigFile | None = None
    _holders: _Holders | None = field(default=None, init=False, repr=False)

    @property
    def errors(self) -> list[Diagnostic]:
        """The problems that refuse the document."""
        return [problem for problem in self.problems if problem.severity is Severity.ERROR]

    @property
    def plain_document(self) -> Any:
        """The merged document as plain data, tenants included."""
        again = read_layers(self.source) if self.source is not None else self
        return again.document

    @property
    def texts(self) -> tuple[Text, ...]:
        """The files as they are written."""
        return tuple(part.text for part in self.parts)

    def folder_of(self, path: Path) -> FilePath:
        """The directory of the file that defines a path."""
        return self._origin(path)[0].folder if self.parts else FilePath()

    def locate(self, problems: Iterable[Diagnostic]) -> list[Diagnostic]:
        """Add to each problem its position in its file."""
        found = list(problems)
        wanted: dict[int, dict[tuple[Path, bool], None]] = {}
        origins: dict[tuple[Path, bool], tuple[_Part, Path]] = {}
        for problem in found:
            for key in _places_of(problem):
                if key not in origins:
                    origins[key] = self._origin(key[0])
                    part, path = origins[key]
                    wanted.setdefault(id(part), {})[path, key[1]] = None
        marks = {
            id(part): find_marks(part.text, wanted[id(part)])
            for part in {id(part): part for part, _ in origins.values()}.values()
        }

        def position(key: tuple[Path, bool]) -> Position:
            part, path = origins[key]
            return Position(part.text.file, *(marks[id(part)][path, key[1]] or ()))

        return [
            problem.at(
                problem.position or position((problem.path, problem.is_about_key)),
                tuple(position((path, True)) for path in problem.related),
            )
            for problem in found
        ]

    def origin(self, path: Path) -> tuple[Text, Path]:
        """The file that defines a path, and the path in that file."""
        part, inner = self._origin(path)
        return part.text, inner

    def _origin(self, path: Path) -> tuple[_Part, Path]:
        if len(self.parts) == 1:
            return self.parts[0], path
        if path[:1] == ("routes",) and len(path) > 1 and isinstance(path[1], int):
            return self._route(path, path[1])
        if self._holders is None:
            self._holders = _Holders([(part, part.document) for part in self.parts])
        holders = self._holders
        for step in path:
            inner = holders.at(step)
            if inner is None:
                break
            holders = inner
        return holders.first, path

    def _route(self, path: Path, index: int) -> tuple[_Part, Path]:
        holders = [part for part in self.parts if is_mapping(part.document) and is_list(part.document.get("routes"))]
        top = max((part.layer for part in holders), default=0)
        chosen = self.parts[0]
        for part in holders:
            if part.layer == top and part.first_route <= index:
                chosen = part
        return chosen, ("routes", index - chosen.first_route, *path[2:])


def _places_of(problem: Diagnostic) -> Iterator[tuple[Path, bool]]:
    if problem.position is None:
        yield problem.path, problem.is_about_key
    yield from ((path, True) for path in problem.related)


def read_layers(source: ConfigFile, compact: Compact | None = None, origins: Origins | None = None) -> Layers:
    """Read a document with all that it includes, and its overlays.

    Args:
        source: The files.
        compact: Replaces each tenant as soon as it is read; not used where overlays may change tenants.
        origins: Records the files.
    """
    reader = _Reader(None if source.overlays else compact, Origins() if origins is None else origins)
    layers = reader.layers
    layers.source = source
    for number, path in enumerate((source.path, *source.overlays)):
        document = reader.layer(FilePath(path), number)
        if number == 0:
            layers.document = document
        elif is_mapping(document) and is_mapping(layers.document):
            layers.document = _patched(layers.document, document, ())
    layers.problems += reader.located_notes()
    return layers


class _Reader:
    """Reads the files of one document."""

    def __init__(self, compact: Compact | None, origins: Origins) -> None:
        self._compact = compact
        self._origins = origins
        self._search = Search()
        self._bytes = 0
        self._is_full = False
        self._seen: dict[FilePath, str] = {}
        self._notes: list[tuple[_Part, Diagnostic]] = []
        self.layers = Layers()

    def layer(self, path: FilePath, number: int) -> Any:
        """One file with everything that it includes."""
        self._origins.note_file(path)
        text = open_text(path)
        if isinstance(text, Diagnostic):
            self.layers.problems.append(text)
            return None
        parts: list[_Part] = []
        self._read(text, path, number, parts, ())
        return self._joined(parts)

    def located_notes(self) -> list[Diagnostic]:
        """The problems of `include` with their positions; each file is searched once for all of its problems."""
        by_part: dict[int, tuple[_Part, list[Diagnostic]]] = {}
        for part, problem in self._notes:
            by_part.setdefault(id(part), (part, []))[1].append(problem)
        found: list[Diagnostic] = []
        for part, problems in by_part.values():
            marks = find_marks(part.text, [(problem.path, False) for problem in problems])
            found += [problem.at(Position(part.text.file, *(marks[problem.path, False] or ()))) for problem in problems]
        return found

    def _read(self, text: Text, path: FilePath, number: int, parts: list[_Part], above: tuple[FilePath, ...]) -> None:
        document, problems = read_text(text, self._compact)
        self.layers.problems += problems
        part = _Part(text, path.parent, document, number)
        self.layers.parts.append(part)
        parts.append(part)
        real = _real(path)
        self._seen[real] = text.file
        self._bytes += len(text.content)
        patterns: object = document.get(INCLUDE) if is_mapping(document) else None
        if not is_list(patterns):
            return
        for index, pattern in enumerate(patterns):
            for found in self._matching(pattern, part, index) if isinstance(pattern, str) else ():
                if not self._is_full:
                    self._include(found, part, index, parts, (*above, real))

    def _matching(self, pattern: str, part: _Part, index: int) -> list[FilePath]:
        if "\0" in pattern or self._is_full:
            return []
        try:
            names = self._search.find(part.folder, pattern)
        except TooManyEntries:
            self._is_full = True
            message = f"the patterns look at more than {MAX_ENTRIES:,} files and folders"
            self._note(part, index, message, "Name the folder that the files are in.", code=Code.TOO_LARGE)
            return []
        self._origins.note_pattern(part.folder, pattern, names)
        if not names:
            is_exact = not glob.has_magic(pattern)
            message = "there is no such file" if is_exact else "no file matches"
            severity = Severity.ERROR if is_exact else Severity.WARNING
            fix = "Paths start at the folder of the including file."
            self._note(part, index, message, fix, severity=severity)
        return [part.folder / name for name in names]

    def _include(
        self, path: FilePath, part: _Part, index: int, parts: list[_Part], above: tuple[FilePath, ...]
    ) -> None:
        real = _real(path)
        if real in above:
            self._note(part, index, f"{show(path.name)} includes itself in the end", "Include each file once.")
        elif real in self._seen:
            message = f"{show(path.name)} is part of the document already"
            self._note(part, index, message, "Include each file once.")
        elif len(self.layers.parts) >= MAX_FILES or self._bytes > MAX_BYTES or len(above) >= MAX_DEPTH:
            self._is_full = True
            message = f"more than {MAX_FILES} files, {MAX_BYTES // 1024**2} MB or {MAX_DEPTH} levels of includes"
            self._note(part, index, message, "Join some of them.", code=Code.TOO_LARGE)
        else:
            self._origins.note_file(path)
            text = open_text(path)
            if isinstance(text, Diagnostic):
                self._note(part, index, f"{show(path.name)}: {text.message}", text.fix)
            else:
                self._read(text, path, part.layer, parts, above)

    def _note(
        self,
        part: _Part,
        index: int,
        message: str,
        fix: str,
        *,
        code: Code = Code.INCLUDE,
        severity: Severity = Severity.ERROR,
    ) -> None:
        if len(self._notes) < MAX_DIAGNOSTICS:
            self._notes.append((part, Diagnostic(code, (INCLUDE, index), message, fix, severity=severity)))

    def _joined(self, parts: list[_Part]) -> Any:
        """The parts of one layer as one document."""
        first, *others = parts
        if not others:
            return first.document
        if not is_mapping(first.document):
            return first.document
        joined = {
            key: dict(value) if is_mapping(value) else list(value) if is_list(value) else value
            for key, value in first.document.items()
        }
        for part in others:
            if not is_mapping(part.document):
                if part.document is not None:
                    message, fix = "a part of a document is a mapping", "Start with a section, such as tenants:."
                    position = Position(part.text.file, 1, 1)
                    self.layers.problems.append(Diagnostic(Code.INCLUDE, (), message, fix, position=position))
                continue
            twice = [path for key, value in part.document.items() for path in self._join(joined, key, value, part)]
            if twice:
                self._report_duplicates(part, twice)
        return joined

    def _join(self, joined: dict[str, Any], key: str, value: Any, part: _Part) -> Iterator[Path]:
        """Add a section of a part, and yield the paths that the document already has."""
        if key == INCLUDE:
            return
        if key not in joined:
            joined[key] = dict(value) if is_mapping(value) else list(value) if is_list(value) else value
            return
        there = joined[key]
        if is_mapping(there) and is_mapping(value):
            for name, inner in value.items():
                if name in there:
                    yield key, name
                else:
                    there[name] = inner
        elif key == "routes" and is_list(there) and is_list(value):
            part.first_route = len(there)
            there += value
        elif there != value:
            # Only the version may be repeated.
            yield (key,)

    def _report_duplicates(self, part: _Part, paths: list[Path]) -> None:
        # One search for all paths: a whole file may be a duplicate.
        for (path, _), mark in find_marks(part.text, [(path, True) for path in paths]).items():
            problem = Diagnostic(
                Code.DEFINED_TWICE,
                path,
                "another file of this document says this as well",
                "Keep it in one of them; an overlay may change it.",
                is_about_key=True,
                position=Position(part.text.file, *(mark or ())),
            )
            self.layers.problems.append(problem)


def _real(path: FilePath) -> FilePath:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a symbolic link to itself; opening it reports the error
        return path.absolute()


def _patched(document: dict[str, Any], patch: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document with a merge patch applied; unchanged parts are shared.

    Source: RFC 7396, section 2.
    """
    result = dict(document)
    for key, value in patch.items():
        here = (*path, key)
        if not path and key in (INCLUDE, "version"):
            continue
        if value is None and not is_nullable(here):
            result.pop(key, None)
        elif is_mapping(value):
            there: object = result.get(key)
            result[key] = _patched(there if is_mapping(there) else {}, value, here)
        else:
            result[key] = value
    return result
