"""What a refused statement is called: a text for each SQLSTATE, and the names of the objects that it concerns.

The server's own messages quote bound values and rows, in the language and with the quotation marks of `lc_messages`.
They stay in the cause's `diag`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import psycopg

REFUSALS: Final[Mapping[str, str]] = {
    "08": "the connection was lost",
    "0A": "the server does not support this",
    "22": "a value does not fit its type",
    "22001": "a text is too long",
    "22003": "a number is out of range",
    "22008": "a date or time is out of range",
    "22012": "division by zero",
    "23": "a row breaks a constraint",
    "23502": "a column that must have a value has none",
    "23503": "a row breaks a foreign key",
    "23505": "a row breaks a unique constraint",
    "23514": "a row breaks a check constraint",
    "23P01": "a row breaks an exclusion constraint",
    "25": "the transaction does not allow this",
    "25001": "this cannot run inside a transaction",
    "25006": "the server takes no writes: it is a standby, or read only",
    "25P02": "the transaction had failed before",
    "25P03": "the transaction was idle for too long",
    "25P04": "the transaction lasted too long",
    "26": "a prepared statement is not there any more",
    "28": "the server refused the login",
    "34": "there is no such cursor",
    "2BP01": "other objects depend on it",
    "3D": "there is no such database",
    "2D": "a transaction cannot be ended here",
    "3B": "there is no such savepoint",
    "3F": "there is no such schema",
    "40": "the transaction lost against another one",
    "40001": "the transaction lost against another one that ran at the same time",
    "40P01": "deadlock",
    "42": "the statement is wrong",
    "42501": "permission denied",
    "42601": "syntax error",
    "42701": "the column is there already",
    "42702": "a column name is ambiguous",
    "42703": "there is no such column",
    "42704": "there is no such object",
    "42710": "an object of that name is there already",
    "42723": "a function of that name is there already",
    "42725": "a function name is ambiguous",
    "42803": "a column is neither grouped nor aggregated",
    "42804": "a type does not match",
    "42809": "the object is of the wrong kind",
    "42846": "a type cannot be cast",
    "42883": "there is no such function or operator",
    "42P01": "there is no such table or view",
    "42P02": "there is no such parameter",
    "42P03": "a cursor of that name is there already",
    "42P04": "a database of that name is there already",
    "42P05": "a prepared statement of that name is there already",
    "42P06": "a schema of that name is there already",
    "42P07": "a table or view of that name is there already",
    "42P08": "the type of a parameter is ambiguous",
    "42P10": "a column reference is wrong",
    "42P17": "the definition is invalid",
    "53": "the server is out of a resource",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server is out of connections",
    "53400": "a limit of the server's configuration was reached",
    "54": "the statement goes beyond a limit of the server",
    "55": "the object is not in a state that allows this",
    "55006": "the object is in use",
    "55P03": "another transaction held a lock for too long",
    "57": "the server ended the statement",
    "55000": "the object is not in the state that this needs",
    "57014": "the statement was cancelled, or ran out of time",
    "57P01": "the server was told to end the connection",
    "57P02": "the server had to restart",
    "57P03": "the server takes no connections yet",
    "57P05": "the connection was idle for too long",
    "58": "the server failed to use a file",
    "P0": "a function of the database raised an error",
    "XX": "the server has an internal error",
}
"""SQLSTATE, or its class, to the text in messages (PostgreSQL manual, appendix A)."""

_NAMING: Final = frozenset({"0A", "28", "2B", "3D", "3F", "42", "55"})
"""Classes whose messages quote names of objects, never values."""

_QUOTED: Final = re.compile(r"[\"«„]([^\"«»„“]+)[\"»“]")
_RAISED: Final = re.compile(r"pl(?!an)")
"""Source files of procedural languages: `pl_exec.c`, `plpy_elog.c`; not `planner.c`."""
_WORD: Final = re.compile(r"[^\W\d][\w$]*")


def refusal_text(error: psycopg.Error) -> str:
    """Message text of a refused statement: `there is no such table or view: "items" (SQLSTATE 42P01)`."""
    state = error.sqlstate
    if state is None:
        return "the connection was lost" if isinstance(error, psycopg.OperationalError) else type(error).__name__
    text = text_of(state)
    names = ", ".join(f'"{name}"' for name in _names(error, state))
    return f"{text}{': ' if names else ''}{names} (SQLSTATE {state})"


def text_of(state: str) -> str:
    """The text for a SQLSTATE."""
    return REFUSALS.get(state) or REFUSALS.get(state[:2]) or "the server refused the statement"


def _names(error: psycopg.Error, state: str) -> list[str]:
    """Names of the objects that an error concerns."""
    found = error.diag
    if _is_raised(found):
        # A function in the database chooses SQLSTATE, text and names: they may contain values.
        return []
    names = _named(found)
    if names or state[:2] not in _NAMING:
        return names
    quoted = _QUOTED.findall(found.message_primary or "")
    # A syntax error quotes a token, which may be a literal.
    return [name for name in quoted if state != "42601" or _WORD.fullmatch(name)][:3]


def _is_raised(found: psycopg.errors.Diagnostic) -> bool:
    """Whether a function in a procedural language has raised an error, or may have."""
    return _RAISED.match(found.source_file or "pl_") is not None


def _named(found: psycopg.errors.Diagnostic) -> list[str]:
    """Names of objects that have fields of their own."""
    table = ".".join(name for name in (found.schema_name, found.table_name) if name)
    return [name for name in (table, found.column_name, found.constraint_name, found.datatype_name) if name]


_OF_REQUESTS: Final[Mapping[str, str]] = {"25006": "a write in a read-only transaction"}
"""Texts that differ where the server is an application's."""

_TOKEN: Final = re.compile(
    r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)(?:\.(?:"(?:[^"]|"")+"|[^\W\d][\w$]*))*|[-+*/<>=~!@#%^&|`?]+'
)
"""A name, with its schema, or an operator; never a literal."""


def request_refusal_text(error: psycopg.Error, state: str, statement: str | None) -> str:
    """Message text of a refused statement of a request: `there is no such column: "nmae" (SQLSTATE 42703)`.

    Its parameters are the request's, so that no part of the server's message is used: objects are those that the
    server names in fields of their own, or what stands in the statement where the server has found the mistake.

    Args:
        error: As psycopg raises it.
        state: Its SQLSTATE.
        statement: Its text with placeholders, as the server has it; None if that is not known.
    """
    text = _OF_REQUESTS.get(state) or text_of(state)
    found = error.diag
    if _is_raised(found):
        # A function in the database chooses SQLSTATE, text and names: they may contain values.
        return f"{text} (SQLSTATE {state})"
    names = _named(found) or _named_in(statement, found.statement_position) or _denied(found)
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"{text}{': ' if names else ''}{quoted} (SQLSTATE {state})"


def _denied(found: psycopg.errors.Diagnostic) -> list[str]:
    """The object without a privilege, which the server names at the end: one that exists, and no value."""
    words = (found.message_primary or "").split() if found.source_file == "aclchk.c" else []
    return [word.strip('"') for word in words[-1:]]


def _named_in(statement: str | None, position: str | None) -> list[str]:
    """What stands at a position of a statement; the server counts characters, from 1."""
    if statement is None or position is None:
        return []
    token = _TOKEN.match(statement, int(position) - 1)
    return [] if token is None else [token[0].replace('"', "")]
