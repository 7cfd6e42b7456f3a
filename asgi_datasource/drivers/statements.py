"""Statements: the user's, the library's control statements, and the envelope around one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Protocol

from ..errors import DataError, DataErrorKind
from .statement_analysis import may_end_transaction, transaction_command
from .template_strings import TemplateString, bind, is_template


class Composable(Protocol):
    """A composed query, such as `psycopg.sql`'s."""

    def as_string(self, context: Any = ...) -> str:
        """The query's text."""
        ...


Query = str | bytes | Composable | TemplateString
"""Text of a statement, with psycopg's placeholders; or a t-string, whose values are bound as parameters."""

Params = Sequence[object] | Mapping[str, object]
"""Values for the placeholders: a sequence for `%s`, a mapping for `%(name)s`."""


class Statement:
    """One statement to send.

    Args:
        query: The text, a composed query, or a t-string, which is converted to a text and its parameters.
        params: Values for its placeholders. None: the text is sent unchanged, `%` included.
        prepare: True prepares it on the server at once, False never; None lets the driver decide.

    Raises:
        DataError: QUERY: a t-string with a format that is not supported, or with other parameters than its own.
    """

    __slots__ = ("params", "prepare", "query")

    is_auxiliary = False
    """Whether it only accompanies other statements, so that it has no span."""

    def __init__(self, query: Query, params: Params | None = None, prepare: bool | None = None) -> None:
        if type(query) is not str and is_template(query):
            if params is not None:
                raise DataError(DataErrorKind.QUERY, "a t-string has its values in itself: pass it without parameters")
            query, params = bind(query)
        self.query: Query = query
        self.params = params
        self.prepare = prepare

    @property
    def prefix(self) -> str:
        """Text in front of the query, without placeholders."""
        return ""

    @property
    def text(self) -> str:
        """The text with its placeholders, without parameters; for summaries."""
        query = self.query
        if isinstance(query, str):
            text = query
        elif isinstance(query, bytes):
            text = query.decode("utf-8", "replace")
        else:
            # What is no text at all is the driver's to refuse.
            as_string = getattr(query, "as_string", None)
            text = type(query).__name__ if as_string is None else str(as_string())
        return self.prefix + text

    @property
    def may_end_transaction(self) -> bool:
        """Whether it may commit by itself outside an explicit transaction, as CALL and DO can."""
        query = self.query
        return _may_end_transaction(query if isinstance(query, str | bytes) else self.text)

    @property
    def transaction_command(self) -> str | None:
        """The command by which it would begin or end a transaction, as `COMMIT`; None where it does neither."""
        query = self.query
        return _transaction_command(query if isinstance(query, str | bytes) else self.text)

    def __repr__(self) -> str:
        # Without the parameters: they are data.
        return f"Statement({self.text!r})"


@lru_cache(maxsize=2048)
def _may_end_transaction(text: str | bytes) -> bool:
    return may_end_transaction(text.encode("utf-8", "replace") if isinstance(text, str) else text)


@lru_cache(maxsize=2048)
def _transaction_command(text: str | bytes) -> str | None:
    return transaction_command(text.encode("utf-8", "replace") if isinstance(text, str) else text)


class AuxiliaryStatement(Statement):
    """A statement of the library's around those of the application: FETCH and CLOSE, the settings of a lock."""

    __slots__ = ()

    is_auxiliary = True


class CursorDeclaration(Statement):
    """DECLARE of a server-side cursor for a query; parameters are bound as in the query itself.

    Args:
        name: The cursor's name; generated, so that it needs no quoting.
        query, params: The query.
    """

    __slots__ = ("name",)

    is_auxiliary = True

    def __init__(self, name: str, query: Query, params: Params | None) -> None:
        super().__init__(query, params, prepare=False)
        self.name = name

    @property
    def prefix(self) -> str:
        """DECLARE, up to the query."""
        return f"declare {self.name} no scroll cursor for "

    @property
    def may_end_transaction(self) -> bool:
        """Always false: DECLARE does not run the query."""
        return False

    @property
    def transaction_command(self) -> str | None:
        """None: what follows DECLARE is a query, or a syntax error."""
        return None


class ControlKind(StrEnum):
    """Meaning of a control statement, for drivers of other database systems."""

    BEGIN = "begin"
    SETTINGS = "settings"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback_to"
    READ_ONLY = "read_only"
    """Makes the rest of a transaction, or of a savepoint, READ ONLY."""
    IDENTIFY = "identify"
    """Returns an identification by which the outcome of the transaction can be looked up."""
    POSITION = "position"
    """Returns the server's position in the write-ahead log: statements behind it see no older state."""
    SEEN_POSITION = "seen_position"
    """Returns a position that includes all that the statements in front of it have seen."""
    COMMIT_POSITION = "commit_position"
    """Sent behind COMMIT: returns the end of the log, which includes this commit."""


# All names in the library's statements are qualified: the statements run with the tenant's search_path, in which the
# tenant may have a function, an operator or a type that fits better than PostgreSQL's (manual, "Type Conversion"). What
# the grammar resolves, such as `extract` and `int`, is always PostgreSQL's.

INCARNATION: Final = (
    "case when pg_catalog.pg_is_in_recovery() then null"
    " else pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)"
    " operator(pg_catalog.||) ' ' operator(pg_catalog.||)"
    " extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time())::pg_catalog.text end"
)
"""SQL for a value that changes with every event after which a server may reuse the id of a lost transaction.

A failover starts a new timeline, and a crash discards the cumulative statistics; a clean restart changes neither. Both
parts are needed: a standby may have a copy of the primary's statistics, and a crash keeps the timeline. A connection to
a primary does not survive any of these events.

Source: PostgreSQL manual, "Timelines" and "The Cumulative Statistics System" ("Statistics Collection Configuration").
"""


class Control(Statement):
    """A statement of the library itself: its meaning, and its PostgreSQL text.

    The answer is read as text with `Exchange.values`.

    Args:
        kind: The meaning.
        text: SQL for PostgreSQL, in ASCII, without placeholders.
        name: Name of the savepoint, for savepoint commands.
        prepare: False for texts that change from call to call.
    """

    __slots__ = ("encoded", "kind", "name")

    is_auxiliary = True

    def __init__(self, kind: ControlKind, text: str, *, name: str = "", prepare: bool | None = True) -> None:
        super().__init__(text, None, prepare)
        self.encoded = text.encode("ascii")
        self.kind = kind
        self.name = name

    @property
    def may_end_transaction(self) -> bool:
        """Always false: COMMIT is sent on purpose only."""
        return False

    @property
    def transaction_command(self) -> str | None:
        """None: those of the library are where they belong."""
        return None


class Begin(Control):
    """BEGIN with its modes. Never READ WRITE: that would defeat a server fenced by `default_transaction_read_only`.

    Args:
        isolation: PostgreSQL's name of the isolation level; None uses the server's default.
        read_only: READ ONLY.
        deferrable: BEGIN waits for a snapshot that cannot cause a serialization failure.
    """

    __slots__ = ("deferrable", "isolation", "read_only")

    def __init__(self, isolation: str | None = None, *, read_only: bool = False, deferrable: bool = False) -> None:
        text = "begin"
        if isolation is not None:
            text += f" isolation level {isolation}"
        if read_only:
            text += " read only"
        if deferrable:
            text += " deferrable"
        super().__init__(ControlKind.BEGIN, text)
        self.isolation = isolation
        self.read_only = read_only
        self.deferrable = deferrable


OWN_SCHEMA: Final = "schema"
"""In place of a setting's name: the value is the tenant's schema.

A driver for PostgreSQL must fail the transaction with TENANT (404) if the schema does not exist or the role may not use
it: PostgreSQL skips such an entry of `search_path` and resolves names in the schemas behind it.
"""


class Settings(Control):
    """Transaction-scoped settings: the tenant's, READ ONLY, and timeouts.

    Args:
        pairs: Names and values of the tenant's settings; `OWN_SCHEMA` is not a setting.
        is_read: The transaction is READ ONLY and ends with this round trip.
        deadline: Event-loop time at which the transaction times out; None sets no timeout.
        lasts: They apply to the session until the connection is returned, instead of to one transaction.
    """

    __slots__ = ("deadline", "is_read", "lasts", "pairs")

    def __init__(
        self, pairs: tuple[tuple[str, str], ...], *, is_read: bool, deadline: float | None, lasts: bool = False
    ) -> None:
        super().__init__(ControlKind.SETTINGS, "")
        self.lasts = lasts
        self.pairs = pairs
        self.is_read = is_read
        self.deadline = deadline


class Envelope:
    """The control statements around one statement in its round trip; created once, compared by identity.

    Args:
        opening: Sent in front of the settings: BEGIN.
        settings: Whether the tenant's settings and timeouts are applied.
        is_read: The round trip is READ ONLY, and a transaction of its own.
        between: Sent between the settings and the statement.
        closing: Sent behind the statement.
        flushes: The server is asked to send its answers up to the first of `closing` before it runs the rest.

    Attributes:
        index: Index of the statement in the round trip.
        flush_after: Index of the statement whose answer the server is asked to send at once; None without one.
    """

    __slots__ = ("between", "closing", "flush_after", "index", "is_read", "opening", "settings")

    def __init__(
        self,
        *,
        opening: tuple[Control, ...] = (),
        settings: bool = True,
        is_read: bool = False,
        between: tuple[Control, ...] = (),
        closing: tuple[Control, ...] = (),
        flushes: bool = False,
    ) -> None:
        self.opening = opening
        self.settings = settings
        self.is_read = is_read
        self.between = between
        self.closing = closing
        self.index = len(opening) + int(settings) + len(between)
        self.flush_after = self.index + 1 if flushes else None
