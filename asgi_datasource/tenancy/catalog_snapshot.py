"""The rows of the last load of a catalog in a file, for a start while the datasource does not answer.

One JSON document a line: the columns, then each row, then the number of rows and their SHA-256. The file is replaced
atomically; a truncated or changed file is rejected.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

FORMAT: Final = "asgi-datasource tenants 1"
"""The first word of the file; it changes with the format."""


_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode
_decode: Final = json.JSONDecoder().decode
"""Created once: `json.dumps` creates an encoder for each call, and `json.loads` detects the encoding of each line."""


class SnapshotWriter:
    """Writes a snapshot row by row; it becomes visible at `commit`.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        self._temporary = Path(name)
        self._stream: IO[bytes] = os.fdopen(handle, "wb")
        self._hash = hashlib.sha256()
        self._count = 0
        self._write([_encode([FORMAT, *columns])])

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write some rows; raises OSError."""
        # A name may be a UUID; other columns may have types that JSON lacks.
        lines = [_encode(list(row)) for row in rows]
        self._write(lines)
        self._count += len(lines)

    def commit(self) -> None:
        """Replace the file; raises OSError."""
        self._stream.write(json.dumps({"rows": self._count, "sha256": self._hash.hexdigest()}).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._temporary.replace(self._path)

    def abandon(self) -> None:
        """Discard the snapshot; the file stays as it is."""
        with suppress(OSError):
            self._stream.close()
        with suppress(OSError):
            self._temporary.unlink()

    def _write(self, lines: Sequence[str]) -> None:
        written = "\n".join([*lines, ""]).encode()
        self._hash.update(written)
        self._stream.write(written)


def read_snapshot(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    """The columns and the rows of a complete snapshot.

    Raises:
        OSError: It cannot be read.
        ValueError: The file is not a snapshot, or was truncated or changed.
    """
    digest = hashlib.sha256()
    count = -1
    last = b""
    with path.open("rb") as stream:
        for line in stream:
            if last:
                digest.update(last)
                count += 1
            last = line
    try:
        told = json.loads(last)
        is_whole = told == {"rows": count, "sha256": digest.hexdigest()}
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError("it is no snapshot, or was cut short or changed")
    rows = _lines(path)
    word, *columns = next(rows)
    if word != FORMAT:
        raise ValueError("it was written by another version")
    return columns, rows


def _lines(path: Path) -> Iterator[list[Any]]:
    with path.open("rb") as stream:
        before = stream.readline()
        for line in stream:
            yield _decode(before.decode())
            before = line
