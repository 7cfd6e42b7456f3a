"""The files that a document was read from, and whether they are still what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from .files import Search, TooManyEntries, open_file

_CHUNK_BYTES: Final = 64 * 1024

Stamp = tuple[int, int, int, int] | None
"""What tells a file from what was there before: device, inode, time of change, size; None where there is no file."""


class Origins:
    """Every file that a document was read from: the file itself, what it includes, overlays, secrets.

    Filled while it is read. Links are followed, so that a file whose link leads elsewhere from now on is another one:
    that is how Kubernetes changes what is mounted.

    Attributes:
        files: Each file with its stamp before it was opened.
        patterns: Each pattern of `include`, as folder and pattern, with the names that matched.
    """

    __slots__ = ("files", "patterns")

    def __init__(self) -> None:
        self.files: dict[Path, Stamp] = {}
        self.patterns: dict[tuple[Path, str], tuple[str, ...]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins) and self.files == other.files and self.patterns == other.patterns

    __hash__ = None  # type: ignore[assignment]  # it changes while a document is read

    def __bool__(self) -> bool:
        return bool(self.files)

    def __repr__(self) -> str:
        return f"<Origins, {len(self.files)} files>"

    def note_file(self, path: Path) -> None:
        """A file is about to be opened; what it was at first counts when it is opened again."""
        if path not in self.files:
            self.files[path] = _stamp(path)

    def note_pattern(self, folder: Path, pattern: str, names: Iterable[str]) -> None:
        """Names were looked for."""
        self.patterns.setdefault((folder, pattern), tuple(names))

    def look(self) -> Origins:
        """The same files and patterns as they are now."""
        now = Origins()
        now.files = {path: _stamp(path) for path in self.files}
        search = Search()
        for folder, pattern in self.patterns:
            # More than the bound is as good as another document: reading it tells why it is refused.
            with suppress(TooManyEntries):
                now.patterns[folder, pattern] = search.find(folder, pattern)
        return now

    def digest(self) -> bytes:
        """What all of them hold together."""
        whole = hashlib.sha256()
        for path in sorted(self.files):
            whole.update(f"{path}\x00{_digest(path)}\x00".encode("utf-8", "surrogatepass"))
        for (folder, pattern), names in sorted(self.patterns.items()):
            whole.update(f"{folder}\x00{pattern}\x00{names}\x00".encode("utf-8", "surrogatepass"))
        return whole.digest()


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with open_file(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(chunk)
    except (OSError, ValueError) as error:
        return type(error).__name__
    return found.hexdigest()
