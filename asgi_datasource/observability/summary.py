"""The summary and the text of a statement for spans and metrics: its operations and tables, never a literal.

A statement is read token by token, as far as PostgreSQL's grammar is needed to find operations and their targets.
The result is cached, and bounded in length however long the statement is.

Source: OpenTelemetry semantic conventions, "Generating a summary of the query" and "Sanitization of db.query.text".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from .sql_comments import end_of_comment

MAX_READ: Final = 8192
"""Characters of a statement that are read; the rest is left out."""

MAX_SUMMARY: Final = 255
"""Most characters of a summary, as the conventions require; it ends with a whole name."""

_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+ | --[^\r\n]*)
    | (?P<comment>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|''|\\.)*(?:'|\Z))
    | (?P<literal>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z))
    | (?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z))
    | (?P<parameter>\$\d+ | %\(\w+\)[sbt] | %[sbt](?!\w))
    | (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*(?:"|\Z))
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>0[xXoObB][\da-fA-F_]+ | (?:\d[\d_]*\.?[\d_]* | \.\d+)(?:[eE][+-]?\d+)?)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_DATA_VERBS: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_BEFORE_VERB: Final = frozenset({"", "(", ")", "ANALYZE", "VERBOSE", "EXPLAIN", ";"})
"""What may stand before UPDATE and the like where they are statements; not `FOR UPDATE`, `DO UPDATE`, `ON UPDATE`."""
_ENDS_TARGETS: Final = frozenset(
    [
        "WHERE",
        "GROUP",
        "HAVING",
        "ORDER",
        "LIMIT",
        "OFFSET",
        "FETCH",
        "FOR",
        "WINDOW",
        "UNION",
        "INTERSECT",
        "EXCEPT",
        "RETURNING",
        "SET",
        "VALUES",
    ]
)
_BEFORE_TARGET: Final = frozenset({"ONLY", "LATERAL", "ROWS", "FROM"})
_QUERY_STARTS: Final = frozenset({"SELECT", "WITH", "VALUES", "TABLE", *_DATA_VERBS})
_OBJECT_VERBS: Final = frozenset({"CREATE", "DROP", "ALTER", "REFRESH"})
_OBJECTS: Final = frozenset(
    [
        "TABLE",
        "VIEW",
        "INDEX",
        "SEQUENCE",
        "FUNCTION",
        "PROCEDURE",
        "ROUTINE",
        "AGGREGATE",
        "SCHEMA",
        "DATABASE",
        "ROLE",
        "USER",
        "GROUP",
        "TYPE",
        "DOMAIN",
        "EXTENSION",
        "TRIGGER",
        "POLICY",
        "RULE",
        "COLLATION",
        "PUBLICATION",
        "SUBSCRIPTION",
        "SERVER",
        "TABLESPACE",
        "STATISTICS",
        "CAST",
        "OPERATOR",
        "LANGUAGE",
        "CONVERSION",
    ]
)
_MODIFIERS: Final = frozenset(
    [
        "OR",
        "REPLACE",
        "TEMP",
        "TEMPORARY",
        "UNLOGGED",
        "UNIQUE",
        "GLOBAL",
        "LOCAL",
        "RECURSIVE",
        "CONSTRAINT",
        "FOREIGN",
        "CONCURRENTLY",
        "IF",
        "NOT",
        "EXISTS",
        "ONLY",
        "EVENT",
        "PROCEDURAL",
        "TRUSTED",
        "DEFAULT",
    ]
)
_NAMED_VERBS: Final = frozenset(
    [
        "CALL",
        "TRUNCATE",
        "COPY",
        "LOCK",
        "TABLE",
        "VACUUM",
        "ANALYZE",
        "NOTIFY",
        "LISTEN",
        "UNLISTEN",
        "EXECUTE",
        "DEALLOCATE",
        "FETCH",
        "MOVE",
        "CLOSE",
        "REINDEX",
        "CLUSTER",
        "SAVEPOINT",
    ]
)
"""Statements that name their object right behind the verb."""
_BEFORE_NAME: Final = frozenset({"TABLE", "ONLY", "VERBOSE", "FULL", "FREEZE", "CONCURRENTLY", "FORWARD", "ALL"})


@dataclass(frozen=True, slots=True)
class Analysis:
    """A statement as spans and metrics describe it.

    Attributes:
        operation: `INSERT`; `statement` where there is none.
        summary: Operations and their targets in order: `INSERT orders SELECT baskets`.
        text: The text without comments, each literal replaced by `?`.
    """

    operation: str
    summary: str
    text: str


def analyze(sql: str) -> Analysis:
    """Analyze a statement's text, with its placeholders."""
    return _analyze(sql if len(sql) <= MAX_READ else sql[:MAX_READ])


def summarize(sql: str) -> str:
    """The operations of a statement and their targets: `INSERT orders`."""
    return analyze(sql).summary


def combine(analyses: Sequence[Analysis]) -> Analysis:
    """The analysis of a batch of at least two statements: `BATCH INSERT orders` if all are alike."""
    first = analyses[0]
    if all(one is first for one in analyses):
        return Analysis(f"BATCH {first.operation}", f"BATCH {first.summary}", first.text)
    alike = {one.operation for one in analyses}
    summaries = {one.summary for one in analyses}
    texts = list(dict.fromkeys(one.text for one in analyses))
    return Analysis(
        f"BATCH {first.operation}" if len(alike) == 1 else "BATCH",
        f"BATCH {first.summary}" if len(summaries) == 1 else "BATCH",
        "; ".join(texts)[:MAX_READ],
    )


@lru_cache(maxsize=2048)
def _analyze(sql: str) -> Analysis:
    text: list[str] = []
    tokens = list(_tokens(sql, text))
    words = _Reader(tokens).read()
    operation = words.operation or (words.found[0] if words.found else "statement")
    summary = ""
    for part in words.found or ["statement"]:
        if len(summary) + 1 + len(part) > MAX_SUMMARY:
            break
        summary = f"{summary} {part}" if summary else part
    return Analysis(operation, summary or operation, "".join(text).strip())


@dataclass(frozen=True, slots=True)
class _Token:
    """A word in capitals, a quoted name, or a single character; `text` is as it was written."""

    kind: str
    key: str
    text: str


def _tokens(sql: str, text: list[str]) -> Iterator[_Token]:
    """The tokens of a statement; appends its text without comments and literals to `text`."""
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            return
        kind = match.lastgroup or ""
        if kind == "tag":
            kind = "dollar"
        at = match.end()
        found = match[0]
        if kind == "comment":
            at = end_of_comment(sql, at) or len(sql)
            kind = "space"
        if kind == "space":
            if text and text[-1] != " ":
                text.append(" ")
            continue
        if kind in ("escaped", "literal", "dollar", "number"):
            text.append("?")
            yield _Token("literal", "?", "?")
            continue
        text.append(found)
        if kind == "word":
            yield _Token("word", found.upper(), found)
        elif kind == "quoted":
            yield _Token("quoted", found, found)
        else:
            yield _Token(kind, found, found)


@dataclass(slots=True)
class _Level:
    """What is expected inside one pair of parentheses.

    Attributes:
        expects: The next name is a target.
        is_list: Targets are separated by commas.
        is_arguments: It holds arguments or columns, in which FROM names no table.
    """

    expects: bool = False
    is_list: bool = False
    is_arguments: bool = False


@dataclass(slots=True)
class _Reader:
    """Finds operations and targets in the tokens of a statement."""

    tokens: list[_Token]
    found: list[str] = field(default_factory=list[str])
    operation: str = ""
    at: int = 0
    _levels: list[_Level] = field(default_factory=lambda: [_Level()])
    _before: str = ""

    def read(self) -> _Reader:
        """Read all tokens."""
        while self.at < len(self.tokens) and self.tokens[self.at].key == "(":
            self._levels.append(_Level())
            self.at += 1
        if not self._read_command():
            return self
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            self._take(token)
            self._before = token.key
        return self

    # -- commands other than queries

    def _read_command(self) -> bool:
        """Read the verb of a command and its object; False if nothing else of it is of interest."""
        if self.at >= len(self.tokens) or self.tokens[self.at].kind != "word":
            return False
        verb = self.tokens[self.at].key
        if verb == "EXPLAIN":
            self._note(verb)
            self.at += 1
            self._skip_options()
            return True
        if verb in _OBJECT_VERBS:
            self.at += 1
            return self._read_object(verb)
        if verb in _NAMED_VERBS:
            self.at += 1
            return self._read_named(verb)
        if verb in _QUERY_STARTS:
            if verb == "VALUES":
                self._note(verb)
            return True
        self._note(verb)
        return False

    def _skip_options(self) -> None:
        if self._key() == "(":
            while self.at < len(self.tokens) and self._key() != ")":
                self.at += 1
            self.at += 1
        while self._key() in ("ANALYZE", "VERBOSE"):
            self.at += 1

    def _read_object(self, verb: str) -> bool:
        while self._key() in _MODIFIERS:
            self.at += 1
        kind = self._key()
        if kind == "MATERIALIZED":
            self.at += 1
            kind = f"MATERIALIZED {self._key()}"
        if kind.split(" ")[-1] not in _OBJECTS:
            self._note(verb)
            return False
        self.at += 1
        self._note(f"{verb} {kind}")
        while self._key() in _MODIFIERS:
            self.at += 1
        if self._key() != "ON":
            self._read_name()
        return verb == "CREATE" and kind.split(" ")[-1] in ("TABLE", "VIEW")

    def _read_named(self, verb: str) -> bool:
        if verb == "LOCK" and self._key() == "TABLE":
            verb = "LOCK TABLE"
        self._note(verb)
        if verb in ("VACUUM", "ANALYZE"):
            self._skip_options()
        while self._key() in _BEFORE_NAME:
            self.at += 1
        if verb == "COPY" and self._key() == "(":
            return True
        self._read_name()
        while verb == "TRUNCATE" and self._key() == ",":
            self.at += 1
            self._read_name()
        return False

    # -- queries

    def _take(self, token: _Token) -> None:
        level = self._levels[-1]
        key = token.key
        if key == "(":
            self._open(level)
        elif key == ")":
            if len(self._levels) > 1:
                self._levels.pop()
        elif key == ",":
            level.expects = level.is_list
        elif token.kind == "quoted":
            if level.expects:
                self._take_target(level)
        elif token.kind == "word":
            self._take_word(key, level)
        elif key == ";":
            level.expects = level.is_list = False

    def _open(self, level: _Level) -> None:
        following = self._key()
        if following in _QUERY_STARTS or following == "(":
            self._levels.append(_Level(expects=level.expects and following == "(", is_list=False))
        elif level.expects:
            self._levels.append(_Level(expects=True, is_list=True))
        else:
            self._levels.append(_Level(is_arguments=True))
        level.expects = False

    def _take_word(self, key: str, level: _Level) -> None:
        if self._before == ".":
            return
        if key == "SELECT":
            self._operate(key, level)
        elif key in _DATA_VERBS and self._before in _BEFORE_VERB and self._is_statement(key):
            self._operate(key, level)
            level.expects = True
            if key in ("INSERT", "MERGE") and self._key() == "INTO":
                self.at += 1
        elif key == "TABLE" and self._before in _BEFORE_VERB:
            self._operate(key, level)
            level.expects = True
        elif key == "FROM":
            # DELETE FROM expects its target already.
            if not level.is_arguments and self._before not in ("DISTINCT", "DELETE"):
                level.expects = level.is_list = True
        elif key == "JOIN":
            level.expects = True
        elif key == "USING":
            level.expects = level.is_list = self._key() != "("
        elif key in _ENDS_TARGETS:
            level.expects = level.is_list = False
        elif level.expects and key not in _BEFORE_TARGET:
            self._take_target(level)

    def _is_statement(self, key: str) -> bool:
        """Whether the word is a verb: INSERT, DELETE and MERGE may be names as well."""
        following = self._key()
        if key == "UPDATE":
            return following not in (")", ",", "=", "")
        return following == ("FROM" if key == "DELETE" else "INTO")

    def _operate(self, verb: str, level: _Level) -> None:
        if len(self._levels) == 1 and not self.operation:
            self.operation = verb
        self.found.append(verb)
        level.is_arguments = False
        level.expects = level.is_list = False

    def _take_target(self, level: _Level) -> None:
        self.at -= 1
        self._read_name()
        level.expects = False

    # -- tokens

    def _key(self) -> str:
        return self.tokens[self.at].key if self.at < len(self.tokens) else ""

    def _note(self, operation: str) -> None:
        self.operation = self.operation or operation
        self.found.append(operation)

    def _read_name(self) -> None:
        """Read a name with its qualifiers, as it is written."""
        parts: list[str] = []
        while self.at < len(self.tokens) and self.tokens[self.at].kind in ("word", "quoted"):
            parts.append(self.tokens[self.at].text)
            self.at += 1
            if self._key() != ".":
                break
            self.at += 1
        if parts:
            self.found.append(".".join(parts))
