"""What is sent to a server: the user's statements, the library's own, and the envelope around one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Protocol

from .statement_analysis import may_end_transaction


class Composable(Protocol):
    """A composed text, such as those of `psycopg.sql`."""

    def as_string(self, context: Any = ...) -> str:
        """The text."""
        ...


Query = str | bytes | Composable
"""The text of a statement, with psycopg's placeholders."""

Params = Sequence[object] | Mapping[str, object]
"""Values for the placeholders: a sequence for `%s`, a mapping for `%(name)s`."""


class Statement:
    """One statement to send.

    Args:
        query: The text, or what a driver's tools compose.
        params: Values for its placeholders. None: the text is sent as it is, `%` included.
        prepare: True prepares it on the server at once, False never, None leaves that to the driver.
    """

    __slots__ = ("params", "prepare", "query")

    def __init__(self, query: Query, params: Params | None = None, prepare: bool | None = None) -> None:
        self.query = query
        self.params = params
        self.prepare = prepare

    @property
    def prefix(self) -> str:
        """What goes in front of the text, without placeholders."""
        return ""

    @property
    def text(self) -> str:
        """The text with its placeholders, for summaries; without parameters."""
        query = self.query
        if isinstance(query, str):
            text = query
        else:
            text = query.decode("utf-8", "replace") if isinstance(query, bytes) else query.as_string()
        return self.prefix + text

    @property
    def may_end_transaction(self) -> bool:
        """Whether it may commit from inside, as CALL and DO can where no explicit BEGIN keeps them from it."""
        query = self.query
        return _may_end_transaction(query if isinstance(query, str | bytes) else self.text)

    def __repr__(self) -> str:
        # Parameters stay out: they are data.
        return f"Statement({self.text!r})"


@lru_cache(maxsize=2048)
def _may_end_transaction(text: str | bytes) -> bool:
    return may_end_transaction(text.encode("utf-8", "replace") if isinstance(text, str) else text)


class CursorDeclaration(Statement):
    """DECLARE a server-side cursor over a query, whose parameters are bound as they are in the query itself.

    Args:
        name: The cursor's name: the library's own, so that it needs no quoting.
        query, params: The query.
    """

    __slots__ = ("name",)

    def __init__(self, name: str, query: Query, params: Params | None) -> None:
        super().__init__(query, params, prepare=False)
        self.name = name

    @property
    def prefix(self) -> str:
        """DECLARE, up to the query."""
        return f"declare {self.name} no scroll cursor for "

    @property
    def may_end_transaction(self) -> bool:
        """Never: it only declares."""
        return False


class ControlKind(StrEnum):
    """What a control statement means, for drivers whose server has other words for it."""

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
    """Asks for what the fate of the transaction can be found out by later."""
    POSITION = "position"
    """Asks where the server is in the write-ahead log."""
    COMMIT_POSITION = "commit_position"
    """Behind COMMIT: asks where the log ends, which then holds this commit."""


# All names in the library's statements are qualified: the statements run with the tenant's search_path, in which the
# tenant may have a function, an operator or a type that fits better than PostgreSQL's (manual, "Type Conversion"). What
# the grammar resolves, such as `extract` and `int`, is always PostgreSQL's.

INCARNATION: Final = (
    "case when pg_catalog.pg_is_in_recovery() then null"
    " else pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)"
    " operator(pg_catalog.||) ' ' operator(pg_catalog.||)"
    " extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time())::pg_catalog.text end"
)
"""SQL for what is another value after every event in which a server may give out the id of a lost transaction again.

A failover begins a new timeline, and a crash discards the cumulative statistics; a restart in good order changes
neither. The one without the other proves nothing: a standby may have come by the primary's statistics when it was
made, and a crash keeps the timeline. A connection to a primary outlives none of these events.

Source: PostgreSQL manual, "Timelines" and "The Cumulative Statistics System" ("Statistics Collection Configuration").
"""


class Control(Statement):
    """A statement of the library's own: what it means, and how PostgreSQL spells it.

    Its answer is read as text with `Exchange.values`.

    Args:
        kind: What it means.
        text: PostgreSQL's words for it, in ASCII, without placeholders.
        name: The savepoint's, where it is about one.
        prepare: False where the text changes from one time to the next.
    """

    __slots__ = ("encoded", "kind", "name")

    def __init__(self, kind: ControlKind, text: str, *, name: str = "", prepare: bool | None = True) -> None:
        super().__init__(text, None, prepare)
        self.encoded = text.encode("ascii")
        self.kind = kind
        self.name = name

    @property
    def may_end_transaction(self) -> bool:
        """Never without the library's intent."""
        return False


class Begin(Control):
    """BEGIN with its modes. Never READ WRITE: that would defeat a server fenced by `default_transaction_read_only`.

    Args:
        isolation: PostgreSQL's name of the isolation level; None leaves it to the server.
        read_only: READ ONLY.
        deferrable: It waits for a snapshot that cannot fail.
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
    """The settings of a transaction, which end with it: the tenant's, READ ONLY, and the limits of its time.

    Args:
        pairs: The tenant's: names and values; `OWN_SCHEMA` is not a setting.
        is_read: The transaction is READ ONLY and ends with this round trip.
        deadline: Event-loop time at which its time is up; None sets no limit.
    """

    __slots__ = ("deadline", "is_read", "pairs")

    def __init__(self, pairs: tuple[tuple[str, str], ...], *, is_read: bool, deadline: float | None) -> None:
        super().__init__(ControlKind.SETTINGS, "")
        self.pairs = pairs
        self.is_read = is_read
        self.deadline = deadline


class Envelope:
    """The control statements around one statement in its round trip; made once, compared by identity.

    Args:
        opening: In front of the settings: BEGIN.
        settings: Whether the tenant's settings and the limits of time are applied.
        is_read: The round trip is READ ONLY, and a transaction by itself.
        between: Behind the settings, in front of the statement.
        closing: Behind the statement.

    Attributes:
        index: Where the statement stands in the round trip.
    """

    __slots__ = ("between", "closing", "index", "is_read", "opening", "settings")

    def __init__(
        self,
        *,
        opening: tuple[Control, ...] = (),
        settings: bool = True,
        is_read: bool = False,
        between: tuple[Control, ...] = (),
        closing: tuple[Control, ...] = (),
    ) -> None:
        self.opening = opening
        self.settings = settings
        self.is_read = is_read
        self.between = between
        self.closing = closing
        self.index = len(opening) + int(settings) + len(between)
