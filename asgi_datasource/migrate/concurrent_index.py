"""`CREATE INDEX CONCURRENTLY`: what it is called, since an attempt that fails leaves it behind, invalid."""

from __future__ import annotations

from dataclasses import dataclass

from .sql_tokens import Statement, Token, TokenKind


@dataclass(frozen=True, slots=True)
class ConcurrentIndex:
    """The index that a statement builds concurrently.

    Attributes:
        name: Its name.
        schema: The schema of its table, where the statement names it.
    """

    name: str
    schema: str | None


def concurrent_index(statement: Statement) -> ConcurrentIndex | None:
    """What `CREATE INDEX CONCURRENTLY` builds; None for another statement, or an index without a name."""
    words, tokens = statement.words, statement.tokens
    if words[0] != "create" or "concurrently" not in words[:4] or "index" not in words[:3]:
        return None
    at = words.index("concurrently") + 1
    if words[at : at + 3] == ("if", "not", "exists"):
        at += 3
    if at >= len(tokens) or words[at] == "on":
        return None
    name = name_of(tokens[at])
    try:
        table = words.index("on", at) + 1
    except ValueError:
        return None
    if words[table] == "only":
        table += 1
    has_schema = words[table + 1 : table + 2] == (".",)
    return None if name is None else ConcurrentIndex(name, name_of(tokens[table]) if has_schema else None)


def name_of(token: Token) -> str | None:
    """The name that a token stands for; None where it stands for none."""
    if token.kind is TokenKind.WORD:
        return token.folded
    if token.kind is TokenKind.NAME and token.text.startswith('"'):
        return token.text[1:-1].replace('""', '"')
    return None
