"""The folder of migrations: `shared/`, once for each database, and `tenant/`, once for each tenant's schema."""

from __future__ import annotations

import hashlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final

from .directives import DirectiveError, Directives, read_directives
from .sql_tokens import SqlError, Statement, add_part, checksum, split

MAX_VERSION: Final = 2**63 - 1
"""The largest version: the ledger has it as a bigint. Timestamps such as 20260714120000 fit."""


class Scope(StrEnum):
    """What a migration is run for."""

    SHARED = "shared"
    """Each database, once."""
    TENANT = "tenant"
    """Each schema, or database, of a tenant."""


class Kind(StrEnum):
    """What a migration does."""

    VERSIONED = "versioned"
    """Runs once, in the order of the versions."""
    REPEATABLE = "repeatable"
    """Runs after the versioned ones whenever its text has changed: views, functions, triggers."""
    BASELINE = "baseline"
    """What all versions up to its own come to: new schemas begin with it."""


class Problem(ValueError):
    """Raised when a file of the folder cannot be used.

    Attributes:
        file: The file.
        line: Where, counted from 1; None where it is about the whole file.
        fix: What to do.
    """

    def __init__(self, file: Path, message: str, *, fix: str, line: int | None = None) -> None:
        where = f"{file}:{line}" if line else str(file)
        super().__init__(f"{where}: {message}. {fix}")
        self.file = file
        self.line = line
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class Migration:
    """One file.

    Attributes:
        path: Where it is.
        scope: What it is run for.
        kind: What it does.
        version: Its number; 0 for repeatables.
        name: The rest of its name.
        text: What stands in it, with `\\n` at the end of lines and without a byte order mark.
        directives: What its head says.
        down: The file that takes it back; None where there is none.
    """

    path: Path
    scope: Scope
    kind: Kind
    version: int
    name: str
    text: str = field(repr=False)
    directives: Directives = field(repr=False)
    down: Path | None = None

    @property
    def is_python(self) -> bool:
        """Whether it is a Python step."""
        return self.path.suffix == ".py"

    @property
    def label(self) -> str:
        """Its name for messages and reports: `0007_add_orders`, `R_views`."""
        return self.path.stem

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """Its statements; none for a Python step."""
        return () if self.is_python else tuple(split(self.text))

    @cached_property
    def checksum(self) -> bytes:
        """SHA-256 of its tokens: layout and comments do not count."""
        return python_checksum(self.text) if self.is_python else checksum(self.text)

    @property
    def raw_checksum(self) -> bytes:
        """SHA-256 of its text, byte by byte but for the ends of lines."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Folder:
    """All migrations, each list in the order in which it is run.

    Attributes:
        path: The folder.
        shared, tenant: Versioned migrations.
        repeatables: Repeatables of both scopes, by name.
        baselines: Baselines of both scopes, by version.
    """

    path: Path
    shared: tuple[Migration, ...] = field(default=(), repr=False)
    tenant: tuple[Migration, ...] = field(default=(), repr=False)
    repeatables: tuple[Migration, ...] = field(default=(), repr=False)
    baselines: tuple[Migration, ...] = field(default=(), repr=False)

    def __iter__(self) -> Iterator[Migration]:
        return iter((*self.shared, *self.tenant, *self.repeatables, *self.baselines))

    def versioned(self, scope: Scope) -> tuple[Migration, ...]:
        """The versioned migrations of a scope."""
        return self.shared if scope is Scope.SHARED else self.tenant

    def repeatable(self, scope: Scope) -> tuple[Migration, ...]:
        """The repeatables of a scope."""
        return tuple(found for found in self.repeatables if found.scope is scope)

    def baseline(self, scope: Scope) -> Migration | None:
        """The newest baseline of a scope."""
        return next((found for found in reversed(self.baselines) if found.scope is scope), None)

    def head(self, scope: Scope) -> int:
        """The highest version of a scope; 0 where it has none."""
        found = self.versioned(scope)
        return found[-1].version if found else 0

    def has(self, scope: Scope) -> bool:
        """Whether there is anything to run for a scope."""
        return any(found.scope is scope for found in self)


_VERSIONED: Final = re.compile(
    r"(?P<version>[0-9]{1,19})_(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*?)(?P<suffix>\.down\.sql|\.sql|\.py)"
)
_REPEATABLE: Final = re.compile(r"R_(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*?)(?P<suffix>\.sql|\.py)")
_BASELINE: Final = re.compile(r"B(?P<version>[0-9]{1,19})_(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*?)(?P<suffix>\.sql)")
_FORMS: Final = "0001_name.sql, 0001_name.down.sql, 0001_name.py, R_name.sql or B0001_name.sql"


def read_folder(path: Path) -> Folder:
    """Read all migrations.

    Args:
        path: The folder.

    Raises:
        Problem: It is not there; a file has another form of name, a version that is there twice, a head or SQL that
            cannot be read; or a `.down.sql` has nothing that it takes back.
    """
    if not path.is_dir():
        raise Problem(path, "there is no such folder", fix="Create it, or set migrate.folder to where migrations are.")
    _refuse_strays(path)
    found = [migration for scope in Scope for migration in _read_scope(path / scope.value, scope)]
    by_version = sorted((one for one in found if one.kind is Kind.VERSIONED), key=lambda one: one.version)
    folder = Folder(
        path,
        tuple(one for one in by_version if one.scope is Scope.SHARED),
        tuple(one for one in by_version if one.scope is Scope.TENANT),
        tuple(sorted((one for one in found if one.kind is Kind.REPEATABLE), key=lambda one: one.name)),
        tuple(sorted((one for one in found if one.kind is Kind.BASELINE), key=lambda one: one.version)),
    )
    for migration in folder:
        _check(migration)
    return folder


def _refuse_strays(path: Path) -> None:
    for file in _files_of(path):
        raise Problem(file, "it is in neither shared/ nor tenant/", fix=f"Move it into {path}/shared or {path}/tenant.")


def _files_of(path: Path) -> Iterator[Path]:
    """The SQL and Python files of a folder; `__init__.py` and `README.md` may lie beside them."""
    for file in sorted(path.iterdir()):
        if file.suffix in (".sql", ".py") and file.name != "__init__.py" and not file.name.startswith("."):
            yield file


def _read_scope(path: Path, scope: Scope) -> Iterable[Migration]:
    if not path.is_dir():
        return []
    found: dict[tuple[Kind, int | str], Migration] = {}
    downs: dict[int, Path] = {}
    for file in _files_of(path):
        migration = _read_one(file, scope)
        if isinstance(migration, int):
            downs[migration] = file
            continue
        key = (migration.kind, migration.name if migration.kind is Kind.REPEATABLE else migration.version)
        if key in found:
            raise Problem(
                file,
                f"{found[key].path.name} has the same version",
                fix="Rename the one that is in no database yet: migrate new NAME takes the next version.",
            )
        found[key] = migration
    for version, file in downs.items():
        up = found.get((Kind.VERSIONED, version))
        if up is None:
            raise Problem(file, "there is no migration that it takes back", fix="Name it like its migration.")
        found[Kind.VERSIONED, version] = Migration(
            up.path, scope, Kind.VERSIONED, version, up.name, up.text, up.directives, file
        )
    return found.values()


def _read_one(file: Path, scope: Scope) -> Migration | int:
    """A migration, or the version of a `.down.sql`."""
    kind, match = Kind.VERSIONED, _VERSIONED.fullmatch(file.name)
    if match is None:
        kind, match = Kind.REPEATABLE, _REPEATABLE.fullmatch(file.name)
    if match is None:
        kind, match = Kind.BASELINE, _BASELINE.fullmatch(file.name)
    if match is None:
        raise Problem(file, "its name is none of a migration", fix=f"Name it {_FORMS}.")
    version = 0 if kind is Kind.REPEATABLE else int(match["version"])
    if version > MAX_VERSION or (kind is not Kind.REPEATABLE and version == 0):
        raise Problem(file, f"{version} is no version", fix=f"Use a number from 1 to {MAX_VERSION}.")
    if match["suffix"] == ".down.sql":
        return version
    text = read_text(file)
    try:
        directives = read_directives(text.split("\n"))
    except DirectiveError as error:
        raise Problem(file, str(error), fix="Fix the directive.", line=error.line) from None
    return Migration(file, scope, kind, version, match["name"], text, directives)


def read_text(file: Path) -> str:
    """A file as it is run on every machine: UTF-8, lines that end with `\\n`, no byte order mark.

    Raises:
        Problem: It cannot be read.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Problem(file, reason, fix="Check its rights and its encoding.") from None
    return text.replace("\r\n", "\n")


_TRANSACTION_CONTROL: Final = frozenset(
    {"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare"}
)
_HAS_SUBJECT: Final = frozenset({("prepare", "transaction"), ("start", "transaction")})


def _check(migration: Migration) -> None:
    """Refuse what could not be run as it is meant.

    Raises:
        Problem: It cannot be read, has no statement, or controls the transaction that it runs in.
    """
    try:
        statements = migration.statements
        _ = migration.checksum
    except SqlError as error:
        raise Problem(migration.path, str(error), fix="Fix the SQL.", line=error.line) from None
    except SyntaxError as error:
        raise Problem(migration.path, "it is not Python", fix="Fix the syntax.", line=error.lineno) from None
    if migration.is_python:
        return
    check_statements(migration.path, statements)


def check_statements(path: Path, statements: Sequence[Statement]) -> None:
    """Refuse statements that a migration cannot have.

    Args:
        path: The file.
        statements: Its statements.

    Raises:
        Problem: There is none; or one controls the transaction, or is a COPY from the client.
    """
    if not statements:
        raise Problem(path, "there is no statement in it", fix="Write one, or remove the file.")
    for statement in statements:
        words = statement.words
        if words[0] in _TRANSACTION_CONTROL and (words[0] not in ("prepare", "start") or words[:2] in _HAS_SUBJECT):
            raise Problem(
                path,
                f"{words[0].upper()} would end the transaction that holds the migration and its row in the ledger",
                fix="Remove it: each file is one transaction. `-- transaction: off` in its head runs it without one.",
                line=statement.line,
            )
        if words[0] == "copy" and ("stdin" in words or "stdout" in words):
            raise Problem(
                path,
                "COPY needs a client that sends the rows",
                fix="Use INSERT, or a Python step.",
                line=statement.line,
            )


def python_checksum(text: str) -> bytes:
    """SHA-256 of the tokens of a Python file: layout and comments do not count.

    f-strings are taken as they are written, since Python 3.12 cuts them into tokens and Python 3.11 does not.

    Raises:
        SyntaxError: It is not Python.
    """
    digest = hashlib.sha256()
    compile(text, "<migration>", "exec")
    lines = text.split("\n")
    begin = getattr(tokenize, "FSTRING_START", None)
    end = getattr(tokenize, "FSTRING_END", None)
    depth, opened = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == begin:
            opened = token.start if depth == 0 else opened
            depth += 1
        elif token.type == end:
            depth -= 1
            if depth == 0:
                add_part(digest, str(tokenize.STRING), _between(lines, opened, token.end))
        elif depth or token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        elif token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            add_part(digest, tokenize.tok_name[token.type], "")
        else:
            add_part(digest, str(token.type), token.string)
    return digest.digest()


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text from one position to another; lines are counted from 1, columns from 0."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = lines[start[0] : end[0] - 1]
    return "\n".join([lines[start[0] - 1][start[1] :], *middle, lines[end[0] - 1][: end[1]]])
