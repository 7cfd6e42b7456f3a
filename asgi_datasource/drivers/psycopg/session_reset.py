"""What clears a session of the server that another tenant has used, in the round trip of the next one.

All of DISCARD ALL but the prepared statements, which are the library's own (PostgreSQL manual, "DISCARD").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from psycopg.pq import Escaping

from .pipeline import Command
from .prepared import StatementCache

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_SETTINGS: Final = b"reset all"
"""First: the rest runs without the settings that there were, a limit of time among them."""

_ALWAYS: Final = (b"close all", b"unlisten *")
_OF_WRITES: Final = (b"discard temp", b"discard sequences")
"""What no READ ONLY transaction can leave behind: it creates nothing, and takes no value of a sequence."""

_UNLOCK: Final = b"pg_catalog.pg_advisory_unlock_all()"
_NO_ROLE: Final = b"none"
_ROLE: Final = b"reset role"
"""Behind a pooler, where the role of a session at its start is not known."""

_REPORTED: Final = (b"client_encoding", b"DateStyle", b"TimeZone", b"standard_conforming_strings", b"application_name")
"""Settings of a client that poolers carry from one session of the server to the next.

Source: PgBouncer manual, "track_extra_parameters".
"""


class SessionReset:
    """The commands that clear the session of one connection, ready to be sent.

    Args:
        pgconn: The connection.
        plans: Its prepared statements.

    Attributes:
        encoding: What the session's `client_encoding` is once it is clear.
        role: What its role is: `none`, or what the login role takes by itself.
    """

    __slots__ = ("_calls", "_generation", "_login", "_pgconn", "_plans", "_ready", "_reported", "encoding", "role")

    def __init__(self, pgconn: PGconn, plans: StatementCache) -> None:
        self._pgconn = pgconn
        self._plans = plans
        self._reported = {name: pgconn.parameter_status(name) for name in _REPORTED}
        self._login = pgconn.parameter_status(b"session_authorization")
        self._generation = plans.generation
        self._calls: dict[bool, bytes] = {}
        self._ready: dict[tuple[bool, bool, bool], list[Command]] = {}
        self.encoding = self._reported[b"client_encoding"]
        self.role = _NO_ROLE

    def commands(self, *, has_written: bool, is_shared: bool, has_calls: bool) -> list[Command]:
        """What to send in front of the settings.

        Args:
            has_written: Something other than READ ONLY round trips has run in the session.
            is_shared: A pooler is in between, which has set up the session for this client.
            has_calls: The settings begin with the `calls`, so that they need no statement of their own.
        """
        if self._generation != self._plans.generation:
            self._generation = self._plans.generation
            self._ready.clear()
        commands = self._ready.get((has_written, is_shared, has_calls))
        if commands is None:
            texts = [_SETTINGS, *_ALWAYS]
            if is_shared:
                texts.append(_ROLE)
            if has_written:
                texts += _OF_WRITES
            if not has_calls:
                texts.append(b"select " + self.calls(is_shared=is_shared))
            commands = [self._command(text, prepares=not is_shared) for text in texts]
            self._ready[has_written, is_shared, has_calls] = commands
        if self._pgconn.parameter_status(b"session_authorization") != self._login:
            # Only superusers can change it.
            return [self._command(b"reset session authorization", prepares=False), *commands]
        return commands

    def calls(self, *, is_shared: bool) -> bytes:
        """The function calls of a reset, for the front of a SELECT."""
        calls = self._calls.get(is_shared)
        if calls is None:
            settings = self._reported if is_shared else {b"role": self.role}
            calls = self._calls[is_shared] = b",".join(
                [
                    _UNLOCK,
                    *(
                        b"pg_catalog.set_config('%b',%b,false)" % (name, self._quoted(value))
                        for name, value in settings.items()
                        if value
                    ),
                ]
            )
        return calls

    def _command(self, text: bytes, *, prepares: bool) -> Command:
        return (text, None, (), None, self._plans.control_plan(text) if prepares else None, False)

    def _quoted(self, value: bytes) -> bytes:
        return bytes(Escaping(self._pgconn).escape_literal(value))
