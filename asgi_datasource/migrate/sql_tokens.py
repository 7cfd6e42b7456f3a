"""SQL as tokens, and as statements: what the checksum, the executor and the lint read.

Follows the lexer of PostgreSQL (`scan.l`) and the splitting of psql (`psqlscan.l`): dollar quotes, nested comments,
escape strings and their continuations, parentheses, and the bodies of SQL-standard functions (`BEGIN ATOMIC ... END`).
`standard_conforming_strings` counts as on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from ..observability.sql_comments import end_of_comment


class SqlError(ValueError):
    """Raised when a text cannot be read as SQL.

    Attributes:
        line: Where, counted from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class TokenKind(StrEnum):
    """What a token is."""

    WORD = "word"
    """A keyword, or a name without quotes."""
    NAME = "name"
    """A quoted name."""
    STRING = "string"
    """A literal, dollar-quoted ones included."""
    NUMBER = "number"
    PARAMETER = "parameter"
    OPERATOR = "operator"
    MARK = "mark"
    """A parenthesis, a comma, a semicolon, a cast."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token; comments and layout are none.

    Attributes:
        kind: What it is.
        text: As it is written.
        start: Its offset in the file, in characters.
    """

    kind: TokenKind
    text: str
    start: int

    @property
    def folded(self) -> str:
        """In the one spelling that the server sees: words in lower case (ASCII only, as the server folds names)."""
        return self.text.translate(_LOWER) if self.kind is TokenKind.WORD else self.text


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a file.

    Attributes:
        text: From its first token to its last, without the semicolon.
        start: Its offset in the file, in characters.
        line: The line of its first token, counted from 1.
        tokens: Its tokens.
    """

    text: str
    start: int
    line: int
    tokens: tuple[Token, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words and marks of the statement as the server folds them; literals are left as they are."""
        return tuple(token.folded for token in self.tokens)


_LOWER: Final = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_OPERATOR_CHARS: Final = "+-*/<>=~!@#%^&|`?"
_SPECIAL_ENDS: Final = frozenset("~!@#%^&|`?")
"""An operator may end in + or - only if it has one of these (PostgreSQL manual, "Operators")."""

_LETTER: Final = r"A-Za-z_\u0080-\U0010ffff"
_TOKEN: Final = re.compile(
    rf"""
      (?P<space>[ \t\n\r\f\v]+)
    | (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<escape>[eE]')
    | (?P<plain>(?:[bBxXnN]|[uU]&)?')
    | (?P<name>(?:[uU]&)?")
    | (?P<dollar>\$(?:[{_LETTER}][{_LETTER}0-9]*)?\$)
    | (?P<parameter>\$[0-9]+)
    | (?P<word>[{_LETTER}][{_LETTER}0-9$]*)
    | (?P<number>
          0[xX][0-9A-Fa-f_]+ | 0[oObB][0-7_]+
        | (?:[0-9][0-9_]*(?:\.(?!\.)[0-9_]*)?|\.[0-9][0-9_]*) (?:[eE][+-]?[0-9]+)?
      )
    | (?P<operator>[{re.escape(_OPERATOR_CHARS)}]+)
    | (?P<mark>::|:=|\.\.|[()\[\],;:.{{}}])
    """,
    re.VERBOSE,
)
_PLAIN_END: Final = re.compile(r"(?:[^']|'')*'")
_ESCAPE_END: Final = re.compile(r"(?:[^'\\]|''|\\.)*'", re.DOTALL)
_NAME_END: Final = re.compile(r'(?:[^"]|"")*"')
_CONTINUATION: Final = re.compile(r"(?:[ \t\f\v]|--[^\n]*)*\n(?:[ \t\n\r\f\v]|--[^\n]*\n)*'")


def read_tokens(text: str) -> Iterator[Token]:
    """Every token of a text.

    Args:
        text: SQL, with `\\n` at the end of lines.

    Raises:
        SqlError: A quote or comment is not closed, or a character cannot stand there, such as a command of psql.
    """
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise _not_sql(text, position)
        end, kind = found.end(), found.lastgroup
        match kind:
            case "space" | "line":
                position = end
                continue
            case "block":
                position = _comment_end(text, position)
                continue
            case "escape" | "plain":
                token = Token(TokenKind.STRING, text[position : _string_end(text, position, end, kind)], position)
            case "name":
                token = Token(TokenKind.NAME, text[position : _end_of(_NAME_END, text, position, end)], position)
            case "dollar":
                closing = text.find(found[0], end)
                if closing < 0:
                    raise SqlError(f"the quote {found[0]} is not closed", line_of(text, position))
                token = Token(TokenKind.STRING, text[position : closing + len(found[0])], position)
            case "operator":
                token = Token(TokenKind.OPERATOR, _operator(found[0]), position)
            case "word":
                token = Token(TokenKind.WORD, found[0], position)
            case "number":
                token = Token(TokenKind.NUMBER, found[0], position)
            case "parameter":
                token = Token(TokenKind.PARAMETER, found[0], position)
            case _:
                token = Token(TokenKind.MARK, found[0], position)
        yield token
        position = token.start + len(token.text)


def line_of(text: str, offset: int) -> int:
    """The line of an offset, counted from 1."""
    return text.count("\n", 0, offset) + 1


def _not_sql(text: str, position: int) -> SqlError:
    line = line_of(text, position)
    if text[position] == "\\":
        return SqlError("a command of psql (\\...) is not SQL: the server would refuse it", line)
    return SqlError(f"the character {text[position]!r} cannot stand here", line)


def _comment_end(text: str, start: int) -> int:
    end = end_of_comment(text, start + 2)
    if end is None:
        raise SqlError("the comment /* is not closed", line_of(text, start))
    return end


def _string_end(text: str, start: int, inside: int, kind: str) -> int:
    """Where a literal ends, with all its continuations on further lines."""
    pattern = _ESCAPE_END if kind == "escape" else _PLAIN_END
    end = _end_of(pattern, text, start, inside)
    while (more := _CONTINUATION.match(text, end)) is not None:
        end = _end_of(pattern, text, start, more.end())
    return end


def _end_of(pattern: re.Pattern[str], text: str, start: int, inside: int) -> int:
    found = pattern.match(text, inside)
    if found is None:
        raise SqlError(f"the quote {text[start:inside]} is not closed", line_of(text, start))
    return found.end()


def _operator(run: str) -> str:
    """The first operator of a run of operator characters: a comment ends it, and + or - at its end may not belong."""
    for opening in ("--", "/*"):
        at = run.find(opening)
        if at > 0:
            run = run[:at]
    while len(run) > 1 and run[-1] in "+-" and not _SPECIAL_ENDS.intersection(run):
        run = run[:-1]
    return run


# -- statements --------------------------------------------------------------------------------------------------------


def split(text: str) -> list[Statement]:
    """The statements of a text, without empty ones.

    Raises:
        SqlError: It cannot be read, or the last statement is not complete: a parenthesis or a body is not closed.
    """
    found: list[Statement] = []
    pending: list[Token] = []
    body = _Body()
    for token in read_tokens(text):
        body.see(token)
        if token.text == ";" and token.kind is TokenKind.MARK and body.is_outside:
            if pending:
                found.append(_statement(text, pending))
            pending, body = [], _Body()
        else:
            pending.append(token)
    if pending:
        if not body.is_outside:
            what = "a parenthesis" if body.parentheses else "BEGIN ATOMIC"
            raise SqlError(f"{what} is not closed", line_of(text, pending[0].start))
        found.append(_statement(text, pending))
    return found


def _statement(text: str, tokens: Sequence[Token]) -> Statement:
    start, last = tokens[0].start, tokens[-1]
    return Statement(text[start : last.start + len(last.text)], start, line_of(text, start), tuple(tokens))


class _Body:
    """Where in a statement the lexer is: semicolons in parentheses and in the body of a function do not end it."""

    __slots__ = ("_blocks", "_head", "parentheses")

    def __init__(self) -> None:
        self.parentheses = 0
        self._blocks = 0
        self._head: list[str] = []

    @property
    def is_outside(self) -> bool:
        return not self.parentheses and not self._blocks

    def see(self, token: Token) -> None:
        if token.kind is TokenKind.MARK:
            if token.text == "(":
                self.parentheses += 1
            elif token.text == ")":
                self.parentheses = max(0, self.parentheses - 1)
        elif token.kind is TokenKind.WORD:
            word = token.folded
            if len(self._head) < _ROUTINE_WORDS:
                self._head.append(word)
            if self.parentheses == 0 and self._is_routine:
                if word == "begin" or (word == "case" and self._blocks):
                    self._blocks += 1
                elif word == "end" and self._blocks:
                    self._blocks -= 1

    @property
    def _is_routine(self) -> bool:
        head = self._head
        if head[:1] != ["create"]:
            return False
        rest = head[3:] if head[1:3] == ["or", "replace"] else head[1:]
        return rest[:1] in (["function"], ["procedure"])


_ROUTINE_WORDS: Final = 4
"""`create or replace function`: what tells that a statement has a body."""


# -- the checksum ------------------------------------------------------------------------------------------------------


class Digest(Protocol):
    """A checksum that is being computed."""

    def update(self, data: bytes, /) -> None:
        """Add some bytes."""
        ...


def checksum(text: str) -> bytes:
    """SHA-256 of the tokens of a text: comments, layout, the case of keywords and semicolons at the end do not count.

    Raises:
        SqlError: It cannot be read.
    """
    digest = hashlib.sha256()
    for statement in split(text):
        for token in statement.tokens:
            add_part(digest, token.kind.value, token.folded)
        add_part(digest, "end", "")
    return digest.digest()


def add_part(digest: Digest, kind: str, text: str) -> None:
    """Add one token to a checksum, with its length, so that no two rows of tokens read alike."""
    data = text.encode("utf-8", "surrogatepass")
    digest.update(f"{kind} {len(data)} ".encode())
    digest.update(data)
