"""Opens regular files only, and finds files by pattern within a bound."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from .limits import MAX_ENTRIES

_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Pipes and devices are refused: opening a pipe blocks, and reading a device may never end.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    return open(path, "rb", opener=_open)


def _open(path: str, flags: int) -> int:
    # Opening a device can have side effects, so the type is checked first. It is checked again afterwards, because the
    # file may have been replaced in between; with O_NONBLOCK the opening of a pipe does not wait for a writer.
    _refuse_others(os.stat(path))  # noqa: PTH116 - an opener gets a string
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _refuse_others(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_others(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
    raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")


class TooManyEntries(Exception):
    """Raised when a search has visited more directory entries than allowed."""


class Search:
    """Finds files by pattern, with a bound on the number of visited directory entries.

    The patterns are those of `glob.glob(..., recursive=True)`, which walks the whole file system for `/**`.

    Args:
        most: The bound for all searches of this object together; None takes `MAX_ENTRIES`.
    """

    def __init__(self, most: int | None = None) -> None:
        self._left = MAX_ENTRIES if most is None else most

    def find(self, folder: Path, pattern: str) -> tuple[str, ...]:
        """The files that match a pattern, sorted. A pattern without wildcards is a name, also that of a directory.

        Args:
            folder: The directory that relative patterns start at.
            pattern: `*` and `?` match within a name, `**` any number of directories.

        Raises:
            TooManyEntries: The bound is reached.
        """
        if not glob.has_magic(pattern):
            return (pattern,) if os.path.lexists(folder / pattern) else ()
        if pattern.endswith("/"):
            return ()  # matches directories only
        root = "/" if pattern.startswith("/") else ""
        steps: list[str] = []
        for step in filter(None, pattern.split("/")):
            if step != "**" or steps[-1:] != ["**"]:
                steps.append(step)
        return tuple(sorted(set(self._matches(folder, root, steps, frozenset()))))

    def _matches(self, folder: Path, base: str, steps: list[str], above: frozenset[_Identity]) -> Iterator[str]:
        """The files that match the rest of a pattern, with their names as the pattern writes them.

        Args:
            folder: The directory that the pattern starts at.
            base: The directory that the steps start at.
            steps: The rest of the pattern.
            above: The directories that `**` has descended through; a link to one of them would be an endless loop.
        """
        step, *rest = steps
        if not glob.has_magic(step):
            path = os.path.join(base, step)  # noqa: PTH118 - keeps `..` and `.` as they are written
            if rest:
                yield from self._matches(folder, path, rest, above)
            elif os.path.lexists(folder / path):
                yield path
            return
        is_any_depth = step == "**"
        if is_any_depth:
            here = _identity(folder / base)
            if here is None or here in above:
                return
            above |= {here}
            if rest:
                yield from self._matches(folder, base, rest, frozenset())
        is_match = re.compile(fnmatch.translate("*" if is_any_depth else step)).match
        for name, is_folder in self._entries(folder / base):
            if not is_match(name) or (name.startswith(".") and not step.startswith(".")):
                continue
            path = os.path.join(base, name)  # noqa: PTH118
            if is_folder and is_any_depth:
                yield from self._matches(folder, path, steps, above)
            elif is_folder and rest:
                yield from self._matches(folder, path, rest, above)
            elif not is_folder and not rest:
                yield path

    def _entries(self, folder: Path) -> list[tuple[str, bool]]:
        """The entries of a directory, each with whether it is a directory itself."""
        found: list[tuple[str, bool]] = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    raise TooManyEntries
                is_folder = False
                with suppress(OSError):
                    is_folder = entry.is_dir()
                found.append((entry.name, is_folder))
        return found


_Identity = tuple[int, int]


def _identity(folder: Path) -> _Identity | None:
    """Device and inode of a directory; None when there is no such directory."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
