"""Reads names and the actions of ALTER TABLE from tokens, for the rules of the lint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .concurrent_index import name_of
from .sql_tokens import Statement, Token, TokenKind


@dataclass(frozen=True, slots=True)
class Name:
    """The name of an object.

    Attributes:
        name: The object.
        schema: Its schema, where it is named.
        token: Where it begins.
        end: The index behind its last token.
    """

    name: str
    schema: str | None
    token: Token
    end: int


@dataclass(frozen=True, slots=True)
class AlterTable:
    """ALTER TABLE.

    Attributes:
        table: The table.
        actions: The tokens of its actions.
    """

    table: Name
    actions: tuple[Token, ...]


_BEFORE_NAME: Final = frozenset({"if", "not", "exists", "only", "concurrently"})


def read_name(tokens: Sequence[Token], start: int) -> Name | None:
    """The name that begins at a token, behind IF NOT EXISTS, IF EXISTS and ONLY; None where none does."""
    at = start
    while at < len(tokens) and tokens[at].kind is TokenKind.WORD and tokens[at].folded in _BEFORE_NAME:
        at += 1
    if at >= len(tokens) or (first := name_of(tokens[at])) is None:
        return None
    if at + 2 < len(tokens) and tokens[at + 1].text == "." and (second := name_of(tokens[at + 2])) is not None:
        return Name(second, first, tokens[at], at + 3)
    return Name(first, None, tokens[at], at + 1)


def read_alter_table(statement: Statement) -> AlterTable | None:
    """ALTER TABLE; None for another statement."""
    if statement.words[:2] != ("alter", "table"):
        return None
    table = read_name(statement.tokens, 2)
    if table is None:
        return None
    actions = statement.tokens[table.end :]
    if actions and actions[0].text == "*":
        actions = actions[1:]
    return AlterTable(table, actions) if actions else None


def actions_of(statement: AlterTable) -> Iterator[tuple[Token, ...]]:
    """The actions of ALTER TABLE, which commas outside of parentheses separate."""
    action: list[Token] = []
    depth = 0
    for token in statement.actions:
        if token.kind is TokenKind.MARK:
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text, 0)
            if token.text == "," and depth == 0:
                if len(action) > 1:
                    yield tuple(action)
                action = []
                continue
        action.append(token)
    if len(action) > 1:
        yield tuple(action)
