"""Unsafe DDL: what stops the site, breaks the version that still runs, or is not resumed.

The rules read tokens, not a syntax tree. PostgreSQL's own parser (`pglast`) reads PostgreSQL 18 soundly, but its
licence is the GPL, and it has wheels for some systems only. Where it is installed, it checks the syntax, and the tests
compare the splitting with it. No rule needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Final

from ..config import Code, Diagnostic, Position, Severity, Suppressed
from .directives import Phase
from .files import Kind, Migration, Scope
from .lint_reading import AlterTable, Name, actions_of, read_alter_table, read_name
from .sql_tokens import Statement, Token, TokenKind, line_of

FIRST_CODE: Final = "ADS201"
LAST_CODE: Final = "ADS299"


@dataclass(frozen=True, slots=True)
class _Found:
    """What a rule has found.

    Attributes:
        code: The rule.
        token: Where.
        message: What is wrong.
        fix: What to do.
        severity: How bad it is.
    """

    code: Code
    token: Token
    message: str
    fix: str
    severity: Severity = Severity.ERROR


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the rules see it.

    Attributes:
        migration: The file.
        created: Tables that it creates: nobody uses them yet.
    """

    migration: Migration
    created: frozenset[str]

    def is_new(self, name: Name | None) -> bool:
        """Whether a table is created in this file."""
        return name is not None and name.name in self.created


Rule = Callable[[Statement, _File], Iterator[_Found]]


def lint_file(migration: Migration) -> tuple[list[Diagnostic], list[Suppressed]]:
    """Check one file; Python steps are not read."""
    if migration.is_python:
        return [], []
    file = _File(migration, frozenset(_created(migration.statements)))
    rules = _BASELINE_RULES if migration.kind is Kind.BASELINE else _RULES
    results = [one for statement in migration.statements for rule in rules for one in rule(statement, file)]
    results += _syntax(migration)
    allowances = migration.directives.allowed
    found: list[Diagnostic] = []
    ignored: list[Suppressed] = []
    for one in sorted(results, key=lambda one: one.token.start):
        diagnostic = _diagnostic(one, migration)
        reason = allowances.get(one.code.value)
        if reason is None:
            found.append(diagnostic)
        else:
            ignored.append(Suppressed(diagnostic, reason))
    used = {one.diagnostic.code.value for one in ignored}
    return [*found, *_allowances(migration, used)], ignored


def _diagnostic(one: _Found, migration: Migration) -> Diagnostic:
    line = line_of(migration.text, one.token.start)
    column = one.token.start - (migration.text.rfind("\n", 0, one.token.start) + 1) + 1
    position = Position(str(migration.path), line, column)
    return Diagnostic(one.code, (), one.message, one.fix, position=position, severity=one.severity)


def _allowances(migration: Migration, used: Iterable[str]) -> Iterator[Diagnostic]:
    """What the head allows for nothing."""
    for code, line in migration.directives.allowed_lines.items():
        position = Position(str(migration.path), line, 1)
        if not FIRST_CODE <= code <= LAST_CODE or code not in set(Code):
            message, fix = f"{code} is no code of this lint", "See asgi-datasource rule."
            yield Diagnostic(Code.BAD_SUPPRESSION, (), message, fix, position=position, severity=Severity.WARNING)
        elif code not in used:
            message, fix = f"the file allows {code}, and nothing in it needs that", "Remove the directive."
            yield Diagnostic(Code.UNUSED_SUPPRESSION, (), message, fix, position=position, severity=Severity.WARNING)


def _created(statements: Iterable[Statement]) -> Iterator[str]:
    for statement in statements:
        words = statement.words
        if words[0] == "create" and "table" in words[:5]:
            name = read_name(statement.tokens, words.index("table") + 1)
            if name is not None:
                yield name.name
        elif words[:2] == ("select",) and "into" in words:
            name = read_name(statement.tokens, words.index("into") + 1)
            if name is not None:
                yield name.name


# -- the rules ---------------------------------------------------------------------------------------------------------


def _index(statement: Statement, file: _File) -> Iterator[_Found]:
    words, tokens = statement.words, statement.tokens
    if words[0] != "create" or "index" not in words[:3] or "on" not in words:
        return
    table = read_name(tokens, words.index("on") + 1)
    if "concurrently" not in words:
        if not file.is_new(table):
            yield _Found(
                Code.INDEX_LOCKS_WRITES,
                tokens[0],
                "CREATE INDEX holds up every write of the table until the index is built",
                "Write CREATE INDEX CONCURRENTLY, with `-- transaction: off` in the head of a file of its own.",
            )
    elif ("if", "not", "exists") in zip(words, words[1:], words[2:], strict=False):
        yield _Found(
            Code.INDEX_IF_NOT_EXISTS,
            tokens[words.index("concurrently")],
            "CONCURRENTLY IF NOT EXISTS takes the invalid index of a failed attempt for the real one",
            "Leave out IF NOT EXISTS: an invalid index is dropped before the statement is tried again.",
        )


def _drop_index(statement: Statement, file: _File) -> Iterator[_Found]:
    words = statement.words
    if words[:2] == ("drop", "index") and "concurrently" not in words:
        yield _Found(
            Code.INDEX_LOCKS_WRITES,
            statement.tokens[0],
            "DROP INDEX waits for every query of the table, and all others wait behind it",
            "Write DROP INDEX CONCURRENTLY, with `-- transaction: off` in the head of a file of its own.",
            Severity.WARNING,
        )


_NO_TRANSACTION: Final = (
    ("vacuum",),
    ("create", "database"),
    ("drop", "database"),
    ("create", "tablespace"),
    ("drop", "tablespace"),
    ("alter", "system"),
    ("create", "subscription"),
    ("drop", "subscription"),
    ("reindex", "database"),
    ("reindex", "system"),
)
_CONCURRENT: Final = frozenset({"create", "drop", "reindex", "alter"})


def _transaction(statement: Statement, file: _File) -> Iterator[_Found]:
    words = statement.words
    is_concurrent = words[0] in _CONCURRENT and "concurrently" in words
    refuses = is_concurrent or any(words[: len(head)] == head for head in _NO_TRANSACTION)
    if refuses and file.migration.directives.is_transactional:
        what = "CONCURRENTLY" if is_concurrent else " ".join(words[:2]).upper()
        yield _Found(
            Code.NEEDS_NO_TRANSACTION,
            statement.tokens[0],
            f"{what} refuses to run in a transaction",
            "Write `-- transaction: off` in the head, and give it a file of its own.",
        )


def _alter_table(statement: Statement, file: _File) -> Iterator[_Found]:
    found = read_alter_table(statement)
    if found is None or file.is_new(found.table):
        return
    for action in actions_of(found):
        for rule in _ACTIONS:
            yield from rule(action, found, file)


def _constraint(action: Sequence[Token], table: AlterTable, file: _File) -> Iterator[_Found]:
    words = _words(action)
    if words[0] != "add" or words[1:2] == ("column",):
        return
    start = 3 if words[1:2] == ("constraint",) else 1
    kind = words[start : start + 2]
    is_valid = words[-2:] != ("not", "valid") and "enforced" not in words
    if kind[:1] in (("foreign",), ("check",)) and is_valid:
        what = "FOREIGN KEY" if kind[0] == "foreign" else "CHECK"
        yield _Found(
            Code.CONSTRAINT_SCANS,
            action[0],
            f"ADD {what} reads the whole table while writes wait",
            "Add it NOT VALID, and VALIDATE CONSTRAINT it in a later file.",
        )
    elif kind[:1] in (("unique",), ("primary",), ("exclude",)) and "using" not in words[start:]:
        yield _Found(
            Code.CONSTRAINT_BUILDS_INDEX,
            action[0],
            f"ADD {kind[0].upper()} builds its index while every query of the table waits",
            "Build the index CONCURRENTLY in a file before, and add the constraint USING INDEX.",
        )


_VOLATILE: Final = frozenset(
    {
        *(
            "random",
            "gen_random_uuid",
            "uuid_generate_v4",
            "uuidv4",
            "uuidv7",
            "clock_timestamp",
            "timeofday",
            "nextval",
        ),
        *("txid_current", "pg_current_xact_id"),
    }
)
_SERIAL: Final = frozenset({"serial", "bigserial", "smallserial", "serial4", "serial8", "serial2"})


def _add_column(action: Sequence[Token], table: AlterTable, file: _File) -> Iterator[_Found]:
    words = _words(action)
    if words[0] != "add" or words[1] in ("constraint", "foreign", "check", "unique", "primary", "exclude"):
        return
    has_default = "default" in words
    volatile = next((word for word in words if word in _VOLATILE), None) if has_default else None
    is_stored = "generated" in words and ("stored" in words or "identity" in words)
    serial = next((word for word in words if word in _SERIAL), None)
    if volatile or is_stored or serial:
        what = serial or (f"the default {volatile}()" if volatile else "a generated column")
        yield _Found(
            Code.REWRITES_TABLE,
            action[0],
            f"ADD COLUMN with {what} rewrites the table while every query of it waits",
            "Add the column without it, fill it in parts, then set the default.",
        )
    elif _has_pair(words, "not", "null") and not has_default and "generated" not in words:
        yield _Found(
            Code.NOT_NULL_SCANS,
            action[0],
            "a column that is NOT NULL without a default cannot be added to a table with rows",
            "Give it a default; or add it nullable, fill it, and set NOT NULL in a later file.",
        )
    if "references" in words:
        yield _Found(
            Code.CONSTRAINT_SCANS,
            action[0],
            "REFERENCES in ADD COLUMN locks the other table as well, and reads this one",
            "Add the column, then the foreign key NOT VALID, then VALIDATE CONSTRAINT in a later file.",
        )


def _alter_column(action: Sequence[Token], table: AlterTable, file: _File) -> Iterator[_Found]:
    words = _words(action)
    if words[0] == "alter" and words[1] != "constraint":
        if _has_pair(words, "set", "not"):
            yield _Found(
                Code.NOT_NULL_SCANS,
                action[0],
                "SET NOT NULL reads the whole table while every query of it waits",
                "Add CHECK (column IS NOT NULL) NOT VALID, validate it in a later file, then SET NOT NULL, then drop"
                " the CHECK.",
                Severity.WARNING,
            )
        elif "type" in words[2:6]:
            yield _Found(
                Code.REWRITES_TABLE,
                action[0],
                "a change of the type rewrites the table while every query of it waits, unless the types are binary"
                " compatible",
                "Add a new column, fill it in parts, switch the application over, and drop the old one in a contract"
                " file.",
            )
    elif words[:2] in (("set", "logged"), ("set", "unlogged"), ("set", "tablespace"), ("set", "access")):
        yield _Found(
            Code.REWRITES_TABLE,
            action[0],
            f"{' '.join(words[:2]).upper()} rewrites the table while every query of it waits",
            "Do it in a maintenance window, and allow it here with that reason.",
        )


def _rename(action: Sequence[Token], table: AlterTable, file: _File) -> Iterator[_Found]:
    words = _words(action)
    if words[0] == "rename" and words[1:2] != ("constraint",):
        yield _Found(
            Code.BREAKS_RUNNING_VERSION,
            action[0],
            "RENAME breaks the version of the application that still runs",
            "Add the new one beside it, write both, switch reads over, and drop the old one in a contract file.",
        )


def _drop_column(action: Sequence[Token], table: AlterTable, file: _File) -> Iterator[_Found]:
    words = _words(action)
    if words[0] == "drop" and words[1:2] != ("constraint",):
        yield from _outside_contract(action[0], "DROP COLUMN", file)


_ACTIONS: Final = (_constraint, _add_column, _alter_column, _rename, _drop_column)

_DROPPED: Final = frozenset(
    {"table", "schema", "view", "function", "procedure", "type", "domain", "sequence", "materialized"}
)


def _drop(statement: Statement, file: _File) -> Iterator[_Found]:
    words = statement.words
    if words[0] == "drop" and words[1] in _DROPPED and file.migration.kind is not Kind.REPEATABLE:
        name = read_name(statement.tokens, 2)
        if not file.is_new(name):
            yield from _outside_contract(statement.tokens[0], f"DROP {words[1].upper()}", file)
    elif words[0] == "alter" and words[1] in ("view", "type", "schema", "sequence") and "rename" in words:
        yield _Found(
            Code.BREAKS_RUNNING_VERSION,
            statement.tokens[0],
            "RENAME breaks the version of the application that still runs",
            "Add the new one beside it, and drop the old one in a contract file.",
        )


def _outside_contract(token: Token, what: str, file: _File) -> Iterator[_Found]:
    if file.migration.directives.phase is not Phase.CONTRACT:
        yield _Found(
            Code.BREAKS_RUNNING_VERSION,
            token,
            f"{what} breaks the version of the application that still runs",
            "Write `-- phase: contract` in the head: it waits until every tenant has what is before it.",
        )


def _rewrites(statement: Statement, file: _File) -> Iterator[_Found]:
    words = statement.words
    is_full = words[0] == "vacuum" and "full" in words
    is_refresh = words[:3] == ("refresh", "materialized", "view") and "concurrently" not in words
    if is_full or words[0] == "cluster" or is_refresh or (words[0] == "reindex" and "concurrently" not in words):
        yield _Found(
            Code.REWRITES_TABLE,
            statement.tokens[0],
            f"{words[0].upper()} keeps every query waiting until it is done",
            "Use CONCURRENTLY where there is one; or allow it here, with the maintenance window as the reason.",
            Severity.WARNING,
        )


def _whole_table(statement: Statement, file: _File) -> Iterator[_Found]:
    words, tokens = statement.words, statement.tokens
    if words[0] not in ("update", "delete") or "where" in words:
        return
    name = read_name(tokens, 2 if words[0] == "delete" else 1)
    if not file.is_new(name):
        yield _Found(
            Code.WRITES_WHOLE_TABLE,
            tokens[0],
            f"{words[0].upper()} without WHERE locks every row until the transaction ends",
            "Do it in parts, in a Python step with `# transaction: off`; or add a WHERE.",
            Severity.WARNING,
        )


_TARGETS: Final = frozenset(
    {"table", "index", "view", "sequence", "into", "update", "from", "function", "trigger", "type"}
)
_SYSTEM: Final = frozenset({"pg_catalog", "information_schema", "pg_temp"})


def _qualified(statement: Statement, file: _File) -> Iterator[_Found]:
    if file.migration.scope is not Scope.TENANT:
        return
    words, tokens = statement.words, statement.tokens
    head = words[0]
    if head not in ("create", "alter", "drop", "insert", "update", "delete", "truncate"):
        return
    if head == "create" and "function" in words[:4]:
        limit = 12
    else:
        limit = len(words) if head in ("create", "alter", "drop", "truncate") and "index" in words[:3] else 10
    for number, word in enumerate(words[:limit]):
        is_place = word in _TARGETS or (word == "on" and "index" in words[:3]) or (word == "delete" and number == 0)
        name = read_name(tokens, number + 1) if is_place else None
        if name is not None and name.schema is not None and name.schema not in _SYSTEM:
            yield _Found(
                Code.NAMES_A_SCHEMA,
                name.token,
                f"the name {name.schema}.{name.name} leads every tenant to the same schema",
                "Write the name without a schema: the tenant's own is searched first. Shared tables belong into"
                " shared/.",
            )
            return


_BASELINE_RULES: Final[tuple[Rule, ...]] = (_transaction, _qualified)
_RULES: Final[tuple[Rule, ...]] = (
    _index,
    _drop_index,
    _transaction,
    _alter_table,
    _drop,
    _rewrites,
    _whole_table,
    _qualified,
)


def _words(tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(
        token.folded if token.kind in (TokenKind.WORD, TokenKind.MARK) else f'"{token.text}' for token in tokens
    )


def _has_pair(words: Sequence[str], first: str, second: str) -> bool:
    return any(pair == (first, second) for pair in pairwise(words))


def _syntax(migration: Migration) -> Iterator[_Found]:
    """What PostgreSQL's own parser refuses, where it is installed."""
    if find_spec("pglast") is None:
        return
    parser: Any = import_module("pglast.parser")
    for statement in migration.statements:
        try:
            parser.parse_sql_json(statement.text)
        except parser.ParseError as error:
            message = str(error.args[0]) if error.args else "syntax error"
            fix = "Fix it: the server would refuse it as well."
            yield _Found(Code.NOT_SQL, statement.tokens[0], message, fix)
