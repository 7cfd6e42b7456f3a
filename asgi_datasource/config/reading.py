"""Reads a file into a plain document: mappings, lists, strings, numbers, booleans, null."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path as FilePath
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Path, Position
from .files import open_file
from .json_text import locate_json, read_json
from .limits import MAX_BYTES
from .places import Compact, Mark, Place, Span, Spans
from .toml_text import locate_toml, read_toml
from .yaml_text import read_yaml


class Format(StrEnum):
    """The notations of the document."""

    YAML = "yaml"
    TOML = "toml"
    JSON = "json"


SUFFIXES: Final = {".yaml": Format.YAML, ".yml": Format.YAML, ".toml": Format.TOML, ".json": Format.JSON}


@dataclass(frozen=True, slots=True, repr=False)
class Text:
    """The text of a file.

    Attributes:
        file: The name that positions carry.
        format: Its notation.
        content: The text. It may contain passwords and is never printed as it is.
    """

    file: str
    format: Format
    content: str

    def __repr__(self) -> str:
        return f"Text(file={self.file!r}, format={self.format.value!r}, {len(self.content)} characters)"


def open_text(path: FilePath) -> Text | Diagnostic:
    """Read a file.

    Returns:
        Its text, or the problem that prevents reading it.
    """
    file = str(path)
    position = Position(file)
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        fix = f"Use one of the endings {', '.join(SUFFIXES)}."
        return Diagnostic(Code.NOT_READABLE, (), "the file's name does not tell its format", fix, position=position)
    decoded = _Decoded()
    try:
        with open_file(path) as stream:
            while len(decoded) <= MAX_BYTES and (chunk := stream.read(_CHUNK_BYTES)):
                decoded.add(chunk)
        decoded.end()
    except OSError as error:
        message = f"the file cannot be read: {error.strerror or type(error).__name__}"
        return Diagnostic(Code.NOT_READABLE, (), message, "Check the path and its rights.", position=position)
    except UnicodeDecodeError as error:
        position = Position(file, *decoded.mark_of(error))
        return Diagnostic(Code.SYNTAX, (), "the file is not UTF-8", "Save it as UTF-8.", position=position)
    if len(decoded) > MAX_BYTES:
        message = f"the file is longer than {MAX_BYTES // 1024**2} MB"
        return Diagnostic(Code.TOO_LARGE, (), message, "Is it the right one?", position=position)
    return Text(file, form, decoded.text)


_CHUNK_BYTES: Final = 64 * 1024


class _Decoded:
    """Decodes UTF-8 in chunks.

    Freeing the buffer of a large file raises glibc's mmap threshold, and malloc then keeps freed memory: with 100,000
    tenants a process would permanently hold 13 MB more.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parts: list[str] = []
        self._bytes = 0

    def __len__(self) -> int:
        return self._bytes

    def add(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._bytes += len(chunk)
        self._parts.append(self._decoder.decode(chunk))

    def end(self) -> None:
        """Mark the end of the input."""
        self._parts.append(self._decoder.decode(b"", final=True))

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    def mark_of(self, error: UnicodeDecodeError) -> tuple[int, int]:
        """Line and column of a byte that cannot be decoded."""
        before = self.text + error.object[: error.start].decode(errors="ignore")
        return before.count("\n") + 1, len(before) - before.rfind("\n")


def read_text(text: Text, compact: Compact | None = None) -> tuple[Any, list[Diagnostic]]:
    """Read a document.

    Args:
        text: The text of a file.
        compact: Replaces each mapping with the key `datasource` as soon as it is read, in YAML and JSON.

    Returns:
        The document, None after a syntax error; and the problems, with their positions.
    """
    if text.format is Format.YAML:
        document, problems = read_yaml(text.content, text.file, compact=compact)
    elif text.format is Format.JSON:
        document, problems = read_json(text.content, text.file, compact)
    else:
        document, problems = read_toml(text.content, text.file)
    if document is None and not problems:
        problems = [
            Diagnostic(
                Code.SYNTAX, (), "the document is empty", "Start with `version: 1`.", position=Position(text.file)
            )
        ]
    return document, problems


def find_marks(text: Text, places: Iterable[tuple[Path, bool]]) -> dict[tuple[Path, bool], Mark | None]:
    """Find the positions of paths in a text.

    Args:
        text: A text without syntax errors.
        places: Paths, each with whether the position of the key is wanted, not that of its value.

    Returns:
        Line and column of each; of a path that is not in the text, those of the innermost path above it that is.
    """
    wanted = list(places)
    tree = Place.of(path for path, _ in wanted)
    if text.format is Format.YAML:
        read_yaml(text.content, text.file, places=tree)
    elif text.format is Format.JSON:
        locate_json(text.content, text.file, tree)
    else:
        locate_toml(text.content, tree)
    return {(path, is_about_key): tree.find(path, is_about_key=is_about_key) for path, is_about_key in wanted}


def find_spans(text: Text, lines: Iterable[int]) -> list[Span]:
    """The keys and scalars on some lines of a text, in order.

    After a syntax error YAML yields those before the error; TOML and JSON yield none.
    """
    spans = Spans(lines)
    if text.format is Format.YAML:
        read_yaml(text.content, text.file, spans=spans)
    elif read_text(text)[0] is not None:
        if text.format is Format.JSON:
            locate_json(text.content, text.file, Place(), spans)
        else:
            locate_toml(text.content, Place(), spans)
    return spans.found
