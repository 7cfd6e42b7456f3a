"""Problems of a document: where, what, and the fix; never a secret.

Values from the environment or a file are never shown. Of the document's own values only plain words are shown: anything
else might be a password in the wrong place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from ..errors import ConfigError
from .limits import MAX_COMPARISONS, MAX_DEPTH
from .values import Given

Path = tuple[str | int, ...]
"""A path in the document: keys, and indexes of list entries."""


class Severity(StrEnum):
    """The severity of a problem."""

    ERROR = "error"
    """The document is refused."""
    WARNING = "warning"
    """The document is accepted, but something in it is probably a mistake."""
    HINT = "hint"
    """Nothing is wrong; something could be improved."""


class Code(StrEnum):
    """The stable code of each kind of problem; a code never changes its meaning and is never reused."""

    NOT_READABLE = "ADS001"
    """The file cannot be read, or its name does not have the suffix of a known format."""
    SYNTAX = "ADS002"
    """Not YAML, TOML or JSON."""
    DUPLICATE_KEY = "ADS003"
    """A mapping has the same key twice, and readers disagree on which of them counts."""
    TOO_LARGE = "ADS004"
    """The file is too long, is nested too deeply, includes too much, or its aliases expand to too much."""
    NOT_PLAIN = "ADS005"
    """A value that JSON cannot express: a tag, a date, an infinite number, a key that is not a string."""
    BAD_SUPPRESSION = "ADS006"
    """An `# ads: ignore[...]` without a reason, with an unknown code, or on an error."""
    UNUSED_SUPPRESSION = "ADS007"
    """An `# ads: ignore[...]` that matches no problem."""
    INCLUDE = "ADS008"
    """An included file does not exist, cannot be read, or is already part of the document."""
    DEFINED_TWICE = "ADS009"
    """Two files of one document define the same key."""
    VARIABLE_NOT_SET = "ADS010"
    """An environment variable is not set."""
    MALFORMED_REFERENCE = "ADS011"
    """`${` without a name and a closing brace."""
    SECRET_NOT_READABLE = "ADS012"  # noqa: S105
    """The file of a `{file: path}` cannot be read."""
    COMMAND = "ADS013"
    """The program of a `{command: [...]}` is not allowed to run, or failed."""
    PLAIN_SECRET = "ADS014"  # noqa: S105
    """A secret is written in the file itself."""
    UNKNOWN_KEY = "ADS020"
    """An unknown key."""
    MISSING_KEY = "ADS021"
    """A required key is missing."""
    WRONG_TYPE = "ADS022"
    """A list for a mapping, a number for a string, null for a value."""
    WRONG_VALUE = "ADS023"
    """A value of the right type that is out of range or has the wrong form."""
    WRONG_COUNT = "ADS024"
    """Too few or too many keys or entries."""
    WRONG_NAME = "ADS025"
    """A name, used as a key, has the wrong form."""
    NOT_YET_SUPPORTED = "ADS026"
    """Planned, but not part of this version."""
    UNKNOWN_DATASOURCE = "ADS040"
    """A reference to a datasource that does not exist."""
    SHARED_PLACE = "ADS041"
    """Nothing isolates two tenants from each other."""
    CONTRADICTION = "ADS042"
    """Two values that contradict each other."""
    SAME_SERVER = "ADS043"
    """Two servers of a datasource have the same URL."""
    NO_RESOLVER = "ADS044"
    """Tenants are configured, but no resolver finds them."""
    TENANT_NAME = "ADS045"
    """A tenant name that no request can carry."""
    PATTERN = "ADS046"
    """Not a regular expression."""
    URL = "ADS047"
    """A connection URL that libpq would reject or misread."""
    UNREACHABLE = "ADS048"
    """A route rule or resolver that is never reached."""
    NAME_TOO_LONG = "ADS049"
    """A name that PostgreSQL would truncate."""
    OVER_BUDGET = "ADS050"
    """More connections than the servers allow."""
    NEVER_ANSWERS = "ADS051"
    """A resolver that cannot yield any of the tenants."""
    LAG_TOO_SHORT = "ADS052"
    """A `max_lag` that no replica can prove to meet."""
    OUTLIVED_TOKEN = "ADS053"  # noqa: S105
    """Replicas may lag longer than a client's token is valid."""
    SEVERAL_SERVERS = "ADS054"
    """A replica's URL that leads to several servers."""
    UNKNOWN_TENANT = "ADS070"
    """A reference to a tenant that does not exist."""
    UNVERIFIABLE = "ADS071"
    """Tokens could not be verified with these settings, or not safely."""
    ADDRESS = "ADS072"
    """Not an address, a network or a host."""
    SHARED_NAME = "ADS073"
    """Two tenants share a name or alias."""

    NO_CONNECTION = "ADS101"
    """A server cannot be reached, or refuses the login."""
    WRONG_ROLE = "ADS102"
    """The primary is a standby, or a replica is not."""
    NOT_ITS_REPLICA = "ADS103"
    """A replica does not replicate from its primary."""
    SERVER_VERSION = "ADS104"
    """The server's version is not supported, or differs from the primary's."""
    POOLER = "ADS105"
    """A pooler is in between, in a mode that matters."""
    CONNECTION_LIMIT = "ADS106"
    """The server allows fewer connections than the processes may open."""
    LAG = "ADS107"
    """A replica lags."""
    CLOCK = "ADS108"
    """The clocks of the server and of this machine differ."""
    NOT_ENCRYPTED = "ADS109"
    """The connection crosses a network without TLS."""
    ROLE_BYPASSES = "ADS110"
    """The login bypasses row security."""
    UNGUARDED_TABLE = "ADS111"
    """A table that tenants share has no row security or no policy."""
    NOT_FORCED = "ADS112"
    """The owner of a table or view bypasses its row security."""
    FALLS_THROUGH = "ADS113"
    """A name that is missing in the tenant's schema resolves to another schema."""
    DEFINER = "ADS114"
    """A SECURITY DEFINER function has no search_path of its own."""
    MISSING_PLACE = "ADS115"
    """A tenant's schema or role does not exist."""
    CANNOT_TELL = "ADS116"
    """The login lacks the privileges that a check needs."""
    OPEN_POLICY = "ADS117"
    """A row security policy does not isolate tenants."""
    SHARED_ROLE = "ADS118"
    """One role may use the schemas of several tenants."""
    NO_OUTBOX = "ADS119"
    """The tables of the outbox are missing."""
    OUTBOX_GROWS = "ADS120"
    """Dead rows of the outbox are removed too late, or not at all."""

    NOT_SQL = "ADS200"
    """PostgreSQL's parser refuses a statement of a migration."""
    INDEX_LOCKS_WRITES = "ADS201"
    """An index is built or dropped while queries wait."""
    NEEDS_NO_TRANSACTION = "ADS202"
    """A statement that refuses to run in a transaction."""
    INDEX_IF_NOT_EXISTS = "ADS203"
    """IF NOT EXISTS takes an invalid index for a valid one."""
    CONSTRAINT_SCANS = "ADS204"
    """A constraint is checked against all rows while queries wait."""
    CONSTRAINT_BUILDS_INDEX = "ADS205"
    """A constraint builds its index while queries wait."""
    REWRITES_TABLE = "ADS206"
    """A table is rewritten while queries wait."""
    NOT_NULL_SCANS = "ADS207"
    """NOT NULL is checked against all rows, or fails on them."""
    BREAKS_RUNNING_VERSION = "ADS208"
    """Something is renamed or dropped that the running version still uses."""
    NAMES_A_SCHEMA = "ADS209"
    """A migration of tenants names a schema."""
    WRITES_WHOLE_TABLE = "ADS210"
    """All rows of a table are written in one transaction."""

    @property
    def needs_server(self) -> bool:
        """Whether only `check`, which connects to the servers, reports it."""
        return "ADS100" <= self.value < "ADS200"

    @property
    def is_about_sql(self) -> bool:
        """Whether `migrate lint` reports it, about a migration and not about the document."""
        return self.value >= "ADS200"


def docs_of(code: Code) -> str:
    """The command that prints the explanation of a code, which needs no network."""
    return f"asgi-datasource rule {code.value}"


class EditKind(StrEnum):
    """The kind of an edit."""

    RENAME = "rename"
    """Rename the key at the path."""
    REPLACE = "replace"
    """Replace the value at the path."""
    REMOVE = "remove"
    """Remove the key or entry at the path."""
    ADD = "add"
    """Add a key or entry at the path."""


@dataclass(frozen=True, slots=True, repr=False)
class Edit:
    """A fix that a program can make: one change of the document.

    Attributes:
        kind: What kind of change it is.
        path: What is changed.
        value: The new name or value.
        is_safe: Whether the edit is certainly what the author meant. Other edits are proposals or examples.
    """

    kind: EditKind
    path: Path
    value: Any = None
    is_safe: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a file; line and column are counted from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


@dataclass(frozen=True, slots=True, repr=False)
class Diagnostic:
    """One problem.

    Attributes:
        code: The kind of problem.
        path: The path of the key; a missing key's path is where it belongs.
        message: What is wrong, without a full stop.
        fix: What to do, a sentence.
        is_about_key: Whether the key is wrong, not its value; the position is then the key's.
        position: The position in a file, where it is known.
        severity: How bad it is.
        related: Paths that belong to the problem.
        related_positions: The positions of these paths, where they are known.
        edit: The fix as an edit of the document, where a program can make it.
    """

    code: Code
    path: Path
    message: str
    fix: str
    is_about_key: bool = False
    position: Position | None = None
    severity: Severity = Severity.ERROR
    related: tuple[Path, ...] = ()
    related_positions: tuple[Position, ...] = ()
    edit: Edit | None = None

    def at(self, position: Position | None, related: tuple[Position, ...] = ()) -> Diagnostic:
        """A copy with its position and those of the related paths."""
        return replace(self, position=position, related_positions=related)

    @property
    def docs(self) -> str:
        """The command that prints the documentation of this kind of problem."""
        return docs_of(self.code)

    @property
    def key(self) -> str:
        """The path as text: `datasources.eu.pool.max_size`, `routes[2].match`."""
        return show_path(self.path)

    def __repr__(self) -> str:
        # `path` and `related` may contain keys that are passwords in the wrong place.
        return f"<{type(self).__name__} {self.severity.value} {self}>"

    def __str__(self) -> str:
        where = f"{self.position}: " if self.position is not None else ""
        key = f"{self.key}: " if self.path else ""
        return f"{where}{self.code.value} {key}{self.message}. {self.fix}"


SYNTAX_FIX: Final = "Look at this place and right before it."


def too_deep(position: Position) -> Diagnostic:
    """The problem of a text that is nested too deeply."""
    message, fix = f"nested deeper than {MAX_DEPTH} levels", "Seven are enough."
    return Diagnostic(Code.TOO_LARGE, (), message, fix, position=position)


def huge_number(position: Position) -> Diagnostic:
    """The problem of a number that Python refuses to parse."""
    return Diagnostic(Code.TOO_LARGE, (), "a number of thousands of digits", "Write a smaller one.", position=position)


class InvalidConfig(ConfigError):
    """Raised when a document has errors; it carries all of them.

    Attributes:
        diagnostics: The errors, in the order of the files.
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
    """A value as messages show it: plain words and numbers as they are, of other values only the type.

    Values that might be secrets are not shown: values from the environment or a file, and strings that are not a plain
    word.
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
    """A key as messages show it; a key that does not look like a name is hidden."""
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


class Suggestions:
    """Did-you-mean suggestions for one check, with a bound on the total number of comparisons.

    Without the bound, a document full of mistakes would take quadratic time.
    """

    def __init__(self) -> None:
        self._left = MAX_COMPARISONS

    def find(self, word: str, candidates: Iterable[str]) -> str | None:
        """The candidate that was probably meant; None when none is similar, or when the bound is reached."""
        return self.weigh(word, candidates)[0]

    def weigh(self, word: str, candidates: Iterable[str]) -> tuple[str | None, bool]:
        """The candidate that was probably meant, and whether it is certain: no other one is nearly as similar.

        `r1` and `r2` are similar, but a wrong digit is hardly a slip: they are never certain.
        """
        compared = list(islice(candidates, self._left)) if len(word) <= _LONGEST_WORD else []
        self._left -= len(compared)
        found = difflib.get_close_matches(word, compared, n=2, cutoff=0.6)
        if found:
            is_certain = _digits(word) == _digits(found[0])
            if len(found) > 1:
                first, second = (difflib.SequenceMatcher(None, each, word).ratio() for each in found)
                is_certain = is_certain and first - second >= _CLEAR_LEAD
            return found[0], is_certain
        folded = {candidate.casefold().replace("-", "_"): candidate for candidate in compared}
        meant = folded.get(word.casefold().replace("-", "_").replace(" ", "_"))
        return meant, meant is not None


_CLEAR_LEAD: Final = 0.1
"""How much more similar the best candidate is than the next one, on a scale of 0 to 1, when it is certain."""


def _digits(word: str) -> str:
    return "".join(filter(str.isdigit, word))


_LONGEST_WORD: Final = 100
"""Characters. Longer words are not compared: a comparison takes time proportional to the product of both lengths."""
