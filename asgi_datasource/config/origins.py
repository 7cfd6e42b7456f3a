"""Records the files that a document was read from, and detects that they have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from .files import Search, TooManyEntries, open_file

_CHUNK_BYTES: Final = 64 * 1024

Stamp = tuple[int, int, int, int] | None
"""What identifies a version of a file: device, inode, modification time, size; None where there is no file."""


class Origins:
    """The files that a document was read from: the main file, included files, overlays, secrets.

    Filled while the document is read. Symbolic links are followed, so a link with a new target is a changed file. This
    is how Kubernetes updates mounted files.

    Attributes:
        files: Each file with its stamp before it was opened.
        patterns: Each pattern of `include`, with its directory, and the names that matched.
    """

    __slots__ = ("files", "patterns")

    def __init__(self) -> None:
        self.files: dict[Path, Stamp] = {}
        self.patterns: dict[tuple[Path, str], tuple[str, ...]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins) and self.files == other.files and self.patterns == other.patterns

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __bool__(self) -> bool:
        return bool(self.files)

    def __repr__(self) -> str:
        return f"<Origins, {len(self.files)} files>"

    def note_file(self, path: Path) -> None:
        """Record a file before it is opened; when it is opened twice, the first stamp counts."""
        if path not in self.files:
            self.files[path] = _stamp(path)

    def note_pattern(self, folder: Path, pattern: str, names: Iterable[str]) -> None:
        """Record the names that a pattern matched."""
        self.patterns.setdefault((folder, pattern), tuple(names))

    def look(self) -> Origins:
        """The current state of the same files and patterns."""
        now = Origins()
        now.files = {path: _stamp(path) for path in self.files}
        search = Search()
        for folder, pattern in self.patterns:
            # Beyond the bound the pattern counts as changed; reading the document then reports why it is refused.
            with suppress(TooManyEntries):
                now.patterns[folder, pattern] = search.find(folder, pattern)
        return now

    def digest(self) -> bytes:
        """A digest of the content of all files."""
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
