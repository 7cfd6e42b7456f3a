"""Runs `pg_dump` and `pg_restore`: no secrets in arguments, no rows in messages, dumps readable only by their user."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final
from uuid import uuid4

from ...errors import DataError, DataErrorKind

_SERVICE: Final = "asgi_datasource"
_MOST_TEXT: Final = 2000
"""Longest part of a program's output in a message."""


class ProgramFailed(Exception):
    """Raised when a program ends with an error: the cause of the reported `DataError`.

    Attributes:
        output: All that it wrote to standard error. It may quote rows.
    """

    def __init__(self, name: str, code: int, output: str) -> None:
        super().__init__(f"{name} ended with {code}")
        self.output = output


class Programs:
    """PostgreSQL's client programs.

    Args:
        folder: Their directory; None searches the PATH.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, name: str) -> str:
        """The path of a program.

        Raises:
            DataError: CONFIG: it is not installed.
        """
        program = shutil.which(name, path=None if self._folder is None else str(self._folder))
        if program is None:
            raise DataError(
                DataErrorKind.CONFIG, f"{name} is not here: install it, or name its folder in provisioning.programs"
            )
        return program

    async def run(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        server: Mapping[str, str] | None = None,
        out: IO[bytes] | None = None,
    ) -> None:
        """Run a program to its end.

        Args:
            name: Its name.
            arguments: Its arguments, which every user of this machine can read; without those of the connection.
            server: Connection parameters: they reach the program by a file that only this user can read.
            out: Receives its standard output; None discards it.

        Raises:
            DataError: CONFIG: it is not installed. QUERY: it failed; the message is its own, without rows.
        """
        program = self.find(name)
        with _service(server or {}) as environ:
            connection = ["--dbname", f"service={_SERVICE}"] if server else []
            process = await asyncio.create_subprocess_exec(
                program,
                *connection,
                *arguments,
                env={**os.environ, **environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL if out is None else out,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                _, complaint = await process.communicate()
            except BaseException:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise
        if process.returncode:
            output = complaint.decode(errors="replace")
            raise DataError(DataErrorKind.QUERY, f"{name} failed: {without_rows(output)}") from ProgramFailed(
                name, process.returncode, output
            )


@contextmanager
def _service(parameters: Mapping[str, str]) -> Generator[Mapping[str, str]]:
    """Connection parameters as environment variables, most of them by way of a service file.

    The password goes into the environment, where it may hold any character; there are no variables for other secrets.

    Source: PostgreSQL manual, "The Connection Service File".
    """
    values = dict(parameters)
    password = values.pop("password", None)
    for name, value in values.items():
        if value != value.strip() or "\n" in value or "\r" in value:
            raise DataError(
                DataErrorKind.CONFIG,
                f"the admin connection's {name} begins or ends with white space, or has a line break in it, which"
                " a service file of pg_dump cannot hold",
            )
    with TemporaryDirectory(prefix="asgi-datasource-") as folder:
        file = Path(folder) / "service"
        with create_private(file) as stream:
            lines = [f"[{_SERVICE}]", *(f"{name}={value}" for name, value in values.items()), ""]
            stream.write("\n".join(lines).encode())
        secret = {} if password is None else {"PGPASSWORD": password}
        yield {"PGSERVICEFILE": str(file), **secret}


# -- files that only this user can read --------------------------------------------------------------------------------


def create_private(file: Path) -> IO[bytes]:
    """Create a file that only this user can read.

    Raises:
        FileExistsError: There is one, or a link, in its place.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")


def check_dump_folder(folder: Path) -> None:
    """Create the folder of dumps where it is missing; refuse one that other users can enter.

    Raises:
        DataError: CONFIG: it cannot be created, or is open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(DataErrorKind.CONFIG, f"provisioning.dump_folder: {folder}: {reason}") from None
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise DataError(
            DataErrorKind.CONFIG,
            f"provisioning.dump_folder: {folder} holds whole tenants and is open to other users: give it to the user"
            " that runs this, and chmod 700 it",
        )


@contextmanager
def dump_file(file: Path) -> Generator[IO[bytes]]:
    """A file that appears under its name once it is whole, and is never written over another one.

    Args:
        file: Its name.

    Raises:
        DataError: CONFIG: it cannot be written, or there is one of that name.
    """
    partial = file.with_name(f".{file.name}.{uuid4().hex}.partial")
    try:
        stream = create_private(partial)
    except OSError as error:
        raise _unwritten(file, error) from error
    try:
        with stream:
            yield stream
            os.fsync(stream.fileno())
        try:
            # Not `rename`, which replaces a file that is there.
            os.link(partial, file)
        except OSError as error:
            raise _unwritten(file, error) from error
    finally:
        partial.unlink(missing_ok=True)


def partials_of(file: Path) -> list[Path]:
    """What is left of `dump_file` for this file when the process died."""
    return [path for path in file.parent.glob(".*.partial") if path.name.startswith(f".{file.name}.")]


def _unwritten(file: Path, error: OSError) -> DataError:
    return DataError(
        DataErrorKind.CONFIG, f"the dump {file} cannot be written: {error.strerror or type(error).__name__}"
    )


# -- output of programs ------------------------------------------------------------------------------------------------

_HEAD: Final = re.compile(r"pg_(?:dump|restore)(?:\.exe)?: ")
_FIELD: Final = re.compile(r"[A-Z]{4,}:  ")
"""`HINT:  `, `DETAIL:  `, `CONTEXT:  `; in the server's language."""
_NAMED: Final = re.compile(
    r"((?:relation|table|view|sequence|index|column|constraint|schema|database|role|user|type|function|trigger|policy"
    r"|extension|language|publication|collation|operator class|access method|large object|parameter|server at|file"
    r"|directory|for relation|on table|option)s? )?(\"[^\"]*\"|'[^']*'|«[^»]*»|„[^“]*“)"
)

_RAISED: Final = re.compile(r"\b(?:RAISE|ASSERT)\b|PL/(?!pgSQL)")
"""In the context of an error: its message is not the server's, but that of a function."""


def without_rows(output: str) -> str:
    """The error output of a program, without the parts that may quote rows.

    Kept: its own lines, the server's error and hint. Left out: details, contexts and commands, which quote rows and
    definitions; quoted text that is not the name of an object; the text of errors that a function of the database has
    raised, which may be anything.
    """
    blocks: list[list[str]] = []
    for line in output.strip().splitlines():
        if _HEAD.match(line) or not blocks:
            blocks.append([])
        blocks[-1].append(line.rstrip())
    told = [text for text in map(_told, blocks) if text]
    return "; ".join(dict.fromkeys(told))[:_MOST_TEXT] or "no reason given"


def _told(block: Sequence[str]) -> str:
    head, *rest = block
    head = _HEAD.sub("", head, count=1).removeprefix("error: ").removesuffix(":")
    if head.startswith("detail: Command was"):
        return ""
    if _RAISED.search("\n".join(rest)):
        head = re.sub(r"(\S+:)  .*", r"\1 a function of the database raised an error", head)
    kept = [head]
    is_kept = True
    for line in rest:
        if _FIELD.match(line):
            is_kept = line.startswith("HINT:")
            if is_kept:
                kept.append(line)
        # What follows a head without a field is the rest of a statement: nothing of it is kept.
    text = _NAMED.sub(lambda found: found[0] if found[1] else '"..."', " ".join(kept))
    return " ".join(text.split())
