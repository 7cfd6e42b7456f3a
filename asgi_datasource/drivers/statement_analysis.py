"""Effects of a statement beyond its transaction, as far as its text shows them.

This is a hint only: effects of functions on the server, and what a parameter or an unusual spelling hides, cannot be
seen here. Session state of another tenant is cleared before a tenant's first statement in any case
(`psycopg/session_reset.py`). A statement that plainly changes the session (SET, LISTEN, a temporary table, a session
lock) is undone as soon as its connection is returned, so that the same tenant does not find the change either. Behind a
pooler in transaction mode, where such a statement cannot work, it is refused.

Source: PostgreSQL manual, "DISCARD", for what belongs to a session.
"""

from __future__ import annotations

import re
from typing import Final

_GAP: Final = rb"(?:\s|--[^\r\n]*(?:[\r\n]|\Z)|/\*(?:(?!/\*).)*?\*/)"
"""White space or a comment. A nested comment does not match, so that no word of it is taken for a command."""

_HEAD: Final = re.compile(rb"(?:%b|[;(])*([a-z]+)(?:%b+([a-z]+))?" % (_GAP, _GAP), re.IGNORECASE | re.DOTALL)

_QUERIES: Final = frozenset({b"select", b"with", b"values", b"table", b"insert", b"update", b"delete", b"merge"})
_HARMLESS: Final = _QUERIES | {
    *(b"begin", b"start", b"commit", b"end", b"rollback", b"abort", b"savepoint", b"release"),
    *(b"declare", b"fetch", b"move", b"close", b"explain", b"show", b"call", b"copy", b"lock", b"notify"),
    *(b"create", b"alter", b"drop", b"comment", b"grant", b"revoke", b"truncate", b"refresh"),
    *(b"analyze", b"vacuum", b"reindex", b"cluster", b"checkpoint"),
}
"""Commands that leave no session state, unless they contain one of the words below."""

_SET_IN_TRANSACTION: Final = frozenset({b"local", b"transaction", b"constraints"})
"""SET followed by one of these ends with the transaction."""

_HINTS: Final = (b"set_config", b"pg_settings", b"advisory_lock", b"temp", b"hold")
_LASTING: Final = re.compile(
    rb"""
      \b update \s+ (?: pg_catalog \s* \. \s* )? pg_settings \b             # is SET
    | \b pg_ (?: try_ )? advisory_lock (?: _shared )? \s* \(                 # those of a transaction say xact_lock
    | \b (?: create | replace | into ) \s+ (?: (?: local | global ) \s+ )? temp (?:orary)? \b
    | \b pg_temp \s* \.
    | \b with \s+ hold \b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SETTING: Final = re.compile(rb"\bset_config\s*\(", re.IGNORECASE)
_LASTING_SETTING: Final = re.compile(rb"[^,()]*,[^,()]*,\s*(?:is_local\s*(?:=>|:=)\s*)?false\s*\)", re.IGNORECASE)


def outlives_transaction(text: bytes) -> bool:
    """Whether a statement may change session state that lasts beyond its transaction."""
    head = _HEAD.match(text)
    if head is not None and head[1].lower() in _HARMLESS:
        lowered = text.lower()
        if not any(hint in lowered for hint in _HINTS):
            return False
    code = _without_noise(text)
    head = _HEAD.match(code)
    if head is None:
        return bool(code.strip(b" \t\r\n;"))
    verb = head[1].lower()
    if verb not in _HARMLESS and not (verb == b"set" and (head[2] or b"").lower() in _SET_IN_TRANSACTION):
        return True
    if _LASTING.search(code) is not None:
        return True
    return any(_LASTING_SETTING.match(code, call.end()) is not None for call in _SETTING.finditer(code))


def is_listen(text: bytes) -> bool:
    """Whether this is LISTEN."""
    head = _HEAD.match(text) or _HEAD.match(_without_noise(text))
    return head is not None and head[1].lower() == b"listen"


def may_end_transaction(text: bytes) -> bool:
    """Whether a statement may commit by itself outside an explicit transaction, as CALL and DO can.

    Source: PostgreSQL manual, "Transaction Management" of PL/pgSQL.
    """
    head = _HEAD.match(text)
    return head is None or head[1].lower() not in _QUERIES


_TRANSACTION_VERBS: Final = frozenset({b"begin", b"start", b"commit", b"end", b"rollback", b"abort"})


def transaction_command(text: bytes) -> str | None:
    """The command by which a statement would begin or end a transaction, in capitals; None where it does neither.

    The verb decides, behind any comments: no function, no prepared statement and no DO block can end the explicit
    transaction that it runs in (PostgreSQL manual, "Transaction Management" of PL/pgSQL). SAVEPOINT and RELEASE stay
    inside their transaction.
    """
    head = _HEAD.match(text) or _HEAD.match(_without_noise(text))
    if head is None:
        return None
    verb = head[1].lower()
    if verb in _TRANSACTION_VERBS:
        return verb.decode().upper()
    return "PREPARE TRANSACTION" if verb == b"prepare" and (head[2] or b"").lower() == b"transaction" else None


_ATOMIC: Final = re.compile(rb"\bbegin\s+atomic\b", re.IGNORECASE)
_TO_SAVEPOINT: Final = re.compile(rb"\s*rollback\s+(?:(?:work|transaction)\s+)?to\b", re.IGNORECASE)


def transaction_command_in(text: bytes) -> str | None:
    """The first command that begins or ends a transaction in a text of one or more statements; None without one.

    ROLLBACK TO SAVEPOINT does neither. Where a function has a body in SQL (BEGIN ATOMIC ... END), only the first verb
    counts.
    """
    if b";" not in text and transaction_command(text) is None:
        return None
    plain = _without_noise(text)
    statements = [plain] if _ATOMIC.search(plain) is not None else plain.split(b";")
    for statement in statements:
        command = transaction_command(statement)
        if command is not None and _TO_SAVEPOINT.match(statement) is None:
            return command
    return None


_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")
_NOISE: Final = re.compile(
    rb"""
      [eE]'(?:[^'\\]|''|\\.)*'              # a literal with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | --[^\r\n]*
    | (?P<comment>/\*)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLIENT_COPY: Final = re.compile(rb"[\s;]*copy\b.*\b(?:from\s+stdin|to\s+stdout)\b", re.IGNORECASE | re.DOTALL)


def is_client_copy(text: bytes) -> bool:
    """Whether this is COPY from or to the client; false for COPY with a file on the server."""
    lowered = text.lower()
    if b"copy" not in lowered or (b"stdin" not in lowered and b"stdout" not in lowered):
        return False
    return _CLIENT_COPY.match(_without_noise(text)) is not None


def _without_noise(text: bytes) -> bytes:
    """The text without literals, quoted names and comments, which may be nested."""
    chunks: list[bytes] = []
    position = 0
    while (noise := _NOISE.search(text, position)) is not None:
        chunks.append(text[position : noise.start()])
        chunks.append(b" " if noise[0][:1] in b"-/" else b" x ")
        position = noise.end()
        depth = 1 if noise["comment"] else 0
        while depth:
            edge = _COMMENT_EDGE.search(text, position)
            if edge is None:
                return b"".join(chunks)
            depth += 1 if edge[0] == b"/*" else -1
            position = edge.end()
    chunks.append(text[position:])
    return b"".join(chunks)
