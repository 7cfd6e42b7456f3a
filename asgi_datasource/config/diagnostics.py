"""What is wrong with a document: where, what, and the mend; never a secret.

A value from the environment or from a file is never shown, and of what stands in the document only what looks like a
plain word: whatever else it is, it might be a password in the wrong place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from ..errors import ConfigError
from .limits import MAX_DEPTH
from .values import Given

Path = tuple[str | int, ...]
"""The way to a place in the document: keys, and indexes of list entries."""


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """The document is refused."""
    WARNING = "warning"
    """The document is used; something in it is probably not meant."""
    HINT = "hint"
    """Nothing is wrong; something could be said better."""


class Code(StrEnum):
    """The stable code of each kind of problem: it never changes its meaning, and is never used again."""

    NOT_READABLE = "ADS001"
    """The file cannot be read, or its name does not tell its format."""
    SYNTAX = "ADS002"
    """Not YAML, TOML or JSON."""
    DUPLICATE_KEY = "ADS003"
    """A key stands twice in one place: which one counts is anybody's guess."""
    TOO_LARGE = "ADS004"
    """The file is too long, nested too deep, or grows too much by its aliases."""
    NOT_PLAIN = "ADS005"
    """Something that JSON has no word for: a tag, a date, an infinite number, a key that is no string."""
    BAD_SUPPRESSION = "ADS006"
    """An `# ads: ignore[...]` without a reason, of a code that is none, or of an error."""
    UNUSED_SUPPRESSION = "ADS007"
    """An `# ads: ignore[...]` with nothing to ignore."""
    INCLUDE = "ADS008"
    """A file that cannot be included: not there, not readable, or part of the document already."""
    DEFINED_TWICE = "ADS009"
    """Two files of one document say the same thing."""
    VARIABLE_NOT_SET = "ADS010"
    """An environment variable is not set."""
    MALFORMED_REFERENCE = "ADS011"
    """`${` without a name and a closing brace."""
    SECRET_NOT_READABLE = "ADS012"  # noqa: S105
    """The file of a `{file: path}` cannot be read."""
    COMMAND = "ADS013"
    """The program of a `{command: [...]}` may not be run, or failed."""
    PLAIN_SECRET = "ADS014"  # noqa: S105
    """A secret stands in the file itself."""
    UNKNOWN_KEY = "ADS020"
    """A key that nobody knows here."""
    MISSING_KEY = "ADS021"
    """A key that must be there is not."""
    WRONG_TYPE = "ADS022"
    """A list for a mapping, a number for a string, null for a value."""
    WRONG_VALUE = "ADS023"
    """Of the right type, but out of range or of the wrong form."""
    WRONG_COUNT = "ADS024"
    """Too few or too many keys or entries."""
    WRONG_NAME = "ADS025"
    """A name, as a key, of the wrong form."""
    NOT_YET_SUPPORTED = "ADS026"
    """Part of the design, but not of this version."""
    UNKNOWN_DATASOURCE = "ADS040"
    """Names a datasource that is not there."""
    SHARED_PLACE = "ADS041"
    """Nothing keeps two tenants apart."""
    CONTRADICTION = "ADS042"
    """Two values that cannot both hold."""
    SAME_SERVER = "ADS043"
    """Two servers of a datasource have one URL."""
    NO_RESOLVER = "ADS044"
    """Tenants are configured, and no request can name one."""
    TENANT_NAME = "ADS045"
    """A tenant whose name requests cannot have."""
    PATTERN = "ADS046"
    """Not a regular expression."""
    URL = "ADS047"
    """A connection URL that libpq would not understand."""
    UNREACHABLE = "ADS048"
    """A rule or resolver that never comes to its turn."""
    NAME_TOO_LONG = "ADS049"
    """A name that PostgreSQL would cut off."""
    OVER_BUDGET = "ADS050"
    """More connections than the servers allow."""
    NEVER_ANSWERS = "ADS051"
    """A way to tell the tenant that cannot name any."""
    LAG_TOO_SHORT = "ADS052"
    """A bound on the lag that no replica can show to keep."""
    OUTLIVED_TOKEN = "ADS053"  # noqa: S105
    """Replicas may be further behind than the client's token counts."""
    UNKNOWN_TENANT = "ADS070"
    """Names a tenant that is not there."""
    UNVERIFIABLE = "ADS071"
    """A token could not be verified by these rules, or not safely."""
    ADDRESS = "ADS072"
    """Not an address, a network or a host."""
    SHARED_NAME = "ADS073"
    """One name or alias for two tenants."""

    NO_CONNECTION = "ADS101"
    """A server cannot be reached, or refuses the login."""
    WRONG_ROLE = "ADS102"
    """A primary that is a standby, or a replica that is none."""
    NOT_ITS_REPLICA = "ADS103"
    """A replica that does not replicate from its primary."""
    SERVER_VERSION = "ADS104"
    """A version of PostgreSQL that is not supported, or not the primary's."""
    POOLER = "ADS105"
    """A pooler stands in between, in a mode that matters."""
    CONNECTION_LIMIT = "ADS106"
    """The server allows fewer connections than the processes may open."""
    LAG = "ADS107"
    """A replica is behind."""
    CLOCK = "ADS108"
    """The clocks of the server and of this machine differ."""
    NOT_ENCRYPTED = "ADS109"
    """The connection crosses a network without TLS."""
    ROLE_BYPASSES = "ADS110"
    """A login that row security does not hold for."""
    UNGUARDED_TABLE = "ADS111"
    """A table that tenants share has no row security, or no policy."""
    NOT_FORCED = "ADS112"
    """Row security does not hold for the owner of a table or view."""
    FALLS_THROUGH = "ADS113"
    """A name that is missing in the tenant's schema is found elsewhere."""
    DEFINER = "ADS114"
    """A SECURITY DEFINER function without a search_path of its own."""
    MISSING_PLACE = "ADS115"
    """A tenant's schema or role is not there."""
    CANNOT_TELL = "ADS116"
    """The login may not see what the check asks for."""
    OPEN_POLICY = "ADS117"
    """A policy that keeps no tenants apart."""
    SHARED_ROLE = "ADS118"
    """A role that may use the schemas of several tenants."""

    @property
    def needs_server(self) -> bool:
        """Whether only `check` can find it, which asks the servers."""
        return self.value >= "ADS100"


DOCS: Final = "docs/diagnostics.md"
"""The page of all codes; each has a heading of its own."""


def docs_of(code: Code) -> str:
    """Where a kind of problem is explained."""
    return f"{DOCS}#{code.value.lower()}"


class Edit(StrEnum):
    """What a fix does to the document."""

    RENAME = "rename"
    """The key at the path gets another name."""
    REPLACE = "replace"
    """The value at the path becomes another one."""
    REMOVE = "remove"
    """The key or entry at the path goes."""
    ADD = "add"
    """A key or entry comes to the path."""


@dataclass(frozen=True, slots=True, repr=False)
class Fix:
    """A mend as an edit of the document.

    Attributes:
        edit: What is done.
        path: Where.
        value: The new name or value.
        is_safe: Certainly what was meant, so that it may be done without asking; else a proposal, or an example that
            shows the form.
    """

    edit: Edit
    path: Path
    value: Any = None
    is_safe: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


@dataclass(frozen=True, slots=True, repr=False)
class Diagnostic:
    """One problem.

    Attributes:
        code: Its kind.
        path: The way to the key; of a missing key, to where it belongs.
        message: What is wrong, without full stop.
        mend: What to do, a sentence.
        is_about_key: The key is wrong, not its value: the position is the key's.
        position: Where it is, as far as that is known.
        severity: How bad it is.
        related: Other places that have to do with it.
        related_positions: Where those are, as far as that is known.
        fix: The mend as an edit, where it is one.
    """

    code: Code
    path: Path
    message: str
    mend: str
    is_about_key: bool = False
    position: Position | None = None
    severity: Severity = Severity.ERROR
    related: tuple[Path, ...] = ()
    related_positions: tuple[Position, ...] = ()
    fix: Fix | None = None

    def at(self, position: Position | None, related: tuple[Position, ...] = ()) -> Diagnostic:
        """The same problem with its position, and those of what is related to it."""
        return replace(self, position=position, related_positions=related)

    @property
    def docs(self) -> str:
        """The page that explains this kind of problem."""
        return docs_of(self.code)

    @property
    def key(self) -> str:
        """The path as it is shown: `datasources.eu.pool.max_size`, `routes[2].match`."""
        return show_path(self.path)

    def __repr__(self) -> str:
        # `path` and `related` may hold keys that are passwords in the wrong place.
        return f"<{type(self).__name__} {self.severity.value} {self}>"

    def __str__(self) -> str:
        where = f"{self.position}: " if self.position is not None else ""
        key = f"{self.key}: " if self.path else ""
        return f"{where}{self.code.value} {key}{self.message}. {self.mend}"


SYNTAX_MEND: Final = "Look at this place and right before it."


def too_deep(position: Position) -> Diagnostic:
    """The problem of a text that is nested deeper than any document is."""
    message, mend = f"nested deeper than {MAX_DEPTH} levels", "Seven are enough."
    return Diagnostic(Code.TOO_LARGE, (), message, mend, position=position)


def huge_number(position: Position) -> Diagnostic:
    """The problem of a number that Python refuses to read."""
    return Diagnostic(Code.TOO_LARGE, (), "a number of thousands of digits", "Write a smaller one.", position=position)


class InvalidConfig(ConfigError):
    """Raised when a document is refused; carries every problem that was found.

    Attributes:
        diagnostics: The problems, in the order of the document where it has one.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        count = len(self.diagnostics)
        lines = ["the configuration has an error:" if count == 1 else f"the configuration has {count} errors:"]
        lines += [f"  {diagnostic}" for diagnostic in self.diagnostics[:_MOST_LINES]]
        if count > _MOST_LINES:
            lines.append(f"  and {count - _MOST_LINES} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[InvalidConfig], tuple[Sequence[Diagnostic]]]:
        return type(self), (self.diagnostics,)


_MOST_LINES: Final = 100


_PLAIN_WORD: Final = re.compile(r"[\w.*/-]{1,64}")
_HIDDEN: Final = "…"


def show(value: object) -> str:
    """A value as messages show it: a plain word or number, else only what it is.

    What might be a secret is not shown: everything from the environment or a file, and every string but a plain word.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value) if abs(value) < 1e15 else "a number"
    if isinstance(value, Given):
        return "what the reference stands for"
    if isinstance(value, str):
        if not value:
            return "an empty string"
        return repr(value) if _PLAIN_WORD.fullmatch(value) else "this string"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def show_key(key: str | int) -> str:
    """A key as messages show it; one that does not look like a name is hidden."""
    if isinstance(key, int) or _PLAIN_WORD.fullmatch(key):
        return str(key)
    return _HIDDEN


def show_path(path: Path) -> str:
    """A path as messages show it."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            shown = show_key(part)
            shown = f'"{shown}"' if "." in shown else shown
            parts.append(f".{shown}" if parts else shown)
    return "".join(parts)


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    if found:
        return found[0]
    folded = {candidate.casefold().replace("-", "_"): candidate for candidate in candidates}
    return folded.get(word.casefold().replace("-", "_").replace(" ", "_"))
