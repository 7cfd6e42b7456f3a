"""SQLAlchemy's dialect whose cursors run through a session.

Types, compiler and reflection are those of SQLAlchemy's psycopg dialect. What it does with a connection is the
session's: BEGIN is lazy, COMMIT and ROLLBACK are `DataSession.commit()` and `rollback()`, a savepoint is a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar, cast

from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import HSTORE
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg, PGExecutionContext_psycopg
from sqlalchemy.util import memoized_property
from sqlalchemy.util.concurrency import await_, in_greenlet

from ..concurrency.threads import is_on_a_loop
from ..errors import DataError, DataErrorKind
from ..sessions.core import SessionCore
from .link import SessionCursor, SessionLink, read_intent

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, ExceptionContext
    from sqlalchemy.engine.interfaces import IsolationLevel

T = TypeVar("T")

NAME: Final = "asgi_datasource"

OLDEST_SERVER: Final = 130000
"""What is assumed of a server that has not been reached yet: the oldest version that the library supports."""

ACCESS_INTENT: Final = "access_intent"
"""The execution option that fixes the intent of a statement."""


class Flushes(Protocol):
    """The ORM's unit of work."""

    @property
    def is_flushing(self) -> bool:
        """Whether it is in the middle of a flush."""
        ...


class DialectLink(SessionLink):
    """A session as a connection of SQLAlchemy's, and as what its pools put around one: there is no pool between them.

    Args:
        session: Runs the statements.
        dialect: Whose errors are raised.
    """

    def __init__(self, session: SessionCore, dialect: SessionDialect) -> None:
        super().__init__(session)
        self.driver_error = dialect.loaded_dbapi.Error
        self.orm: Flushes | None = None
        """The ORM's unit of work on it."""

    @property
    def _connection_record(self) -> Any:
        # Where SQLAlchemy registers what a pool has to undo: here nothing goes back to one.
        return _NoRecord

    @property
    def is_flushing(self) -> bool:
        """Whether the ORM is in the middle of a flush: a rollback now is not one that the user has asked for."""
        return self.orm is not None and self.orm.is_flushing

    @property
    def is_valid(self) -> bool:
        """Always: the session knows what became of its connection."""
        return True

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait in the greenlet, or in a thread without an event loop."""
        if in_greenlet() or is_on_a_loop():
            # On the loop and outside of a greenlet SQLAlchemy says what is wrong: a lazy load, mostly.
            return await_(coroutine)
        return super().wait(coroutine)

    @property
    def dbapi_connection(self) -> Any:
        """Itself."""
        return self

    @property
    def driver_connection(self) -> Any:
        """The session: there is no connection of a driver's that is its alone."""
        return self.session

    @property
    def info(self) -> dict[Any, Any]:
        """What SQLAlchemy keeps with a connection."""
        return self.__dict__.setdefault("_info", {})  # type: ignore[no-any-return]

    @property
    def is_detached(self) -> bool:
        """Never: there is no pool."""
        return False

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Nothing: the session knows what became of its connection."""

    def detach(self) -> None:
        """Nothing: there is no pool."""

    def _close_special(self, transaction_reset: bool = False) -> None:
        self.close()


class _NoRecord:
    """Stands where a pool keeps its record of a connection."""

    finalize_callback: Final[deque[Any]] = deque(maxlen=0)


class OwnedLink(DialectLink):
    """A connection of an engine: it has its session to itself, and ends it."""

    def close(self) -> None:
        """End the session."""
        self.wait(self._close())

    async def _close(self) -> None:
        session = self.session
        await session.end(commit=False, reason="the connection was closed")
        session.release_references()


class SessionExecutionContext(PGExecutionContext_psycopg):
    """Runs one statement; `execution_options(access_intent="read")` fixes its intent."""

    def create_default_cursor(self) -> Any:
        """A cursor whose rows arrive with the answer."""
        return self._with_intent(cast("Any", self)._dbapi_connection.cursor())

    def create_server_side_cursor(self) -> Any:
        """A cursor that is read in steps; only queries have one."""
        name = "stream" if self._is_query else None
        if name is None:
            self._is_server_side = False
        return self._with_intent(cast("Any", self)._dbapi_connection.cursor(name))

    @property
    def _is_query(self) -> bool:
        return not (self.isinsert or self.isupdate or self.isdelete or self.isddl)

    def _with_intent(self, cursor: SessionCursor) -> SessionCursor:
        options = self.execution_options
        if ACCESS_INTENT in options:
            cursor.intent = read_intent(options[ACCESS_INTENT])
        return cursor


class _Hstore(HSTORE):
    """An hstore, whether or not psycopg has been told of the type."""

    def result_processor(self, dialect: Any, coltype: object) -> Any:
        """Text becomes a dictionary; psycopg's own dictionary stays."""
        parse = cast("Any", super()).result_processor(dialect, coltype)

        def read(value: object) -> Any:
            return parse(value) if isinstance(value, str) else value

        return read


class SessionDialect(PGDialectAsync_psycopg):
    """PostgreSQL through a session."""

    driver = NAME
    supports_statement_cache = True
    execution_ctx_cls = SessionExecutionContext
    colspecs = {**PGDialectAsync_psycopg.colspecs, HSTORE: _Hstore}  # noqa: RUF012 - a ClassVar there, without a type

    def __init__(self, server_version: int = 0, **kwargs: Any) -> None:
        kwargs["use_native_hstore"] = False
        cast("Any", super()).__init__(**kwargs)
        self._server_version = server_version

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> type[SessionDialect]:
        """The same: it serves greenlets and threads."""
        return cls

    def assume(self) -> None:
        """Take for granted what an engine asks its server at its first connection."""
        version = self._server_version or OLDEST_SERVER
        self.server_version_info = (version // 10000, version % 10000)
        self.default_schema_name = "public"
        self.default_isolation_level = "READ COMMITTED"
        self._backslash_escapes = False
        self.supports_smallserial = self.supports_identity_columns = True
        self._supports_drop_index_concurrently = True
        self._supports_jsonb_subscripting = self.server_version_info >= (14,)
        self.supports_virtual_generated_columns = self.server_version_info >= (18,)

    # What happens on a connection

    def on_connect(self) -> Any:
        """Nothing: the session's connections are the pool's."""

    @memoized_property
    def _psycopg_Json(self) -> Any:  # noqa: N802 - psycopg's dialect calls it so
        return self._with_serializer(super()._psycopg_Json)

    @memoized_property
    def _psycopg_Jsonb(self) -> Any:  # noqa: N802
        return self._with_serializer(super()._psycopg_Jsonb)

    def _with_serializer(self, wrapper: Any) -> Any:
        """psycopg's marker for JSON, which writes it by the engine's own function."""
        return wrapper if self._json_serializer is None else partial(wrapper, dumps=self._json_serializer)

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        """The session looks after its connections."""
        return True

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Never: the session knows, and its next transaction has another connection."""
        return False

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll back what is the session's transaction as well; a flush that has failed leaves that to the caller."""
        link = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        if link.is_flushing:
            # All or nothing: what the request sends afterwards must not be committed without this.
            link.doom()
        else:
            cast("Any", super()).do_rollback(dbapi_connection)

    def do_savepoint(self, connection: Connection, name: str) -> None:
        """Open a savepoint of both."""
        _link_of(connection).open_savepoint()

    def do_rollback_to_savepoint(self, connection: Connection, name: str) -> None:
        """Undo what was done since."""
        _link_of(connection).end_savepoint(undone=True)

    def do_release_savepoint(self, connection: Connection, name: str) -> None:
        """Keep it, as a part of what is around it."""
        _link_of(connection).end_savepoint(undone=False)

    def do_begin_twophase(self, connection: Connection, xid: Any) -> None:
        """Refuse it.

        Raises:
            DataError: QUERY: always.
        """
        raise DataError(
            DataErrorKind.QUERY,
            "two-phase transactions are not supported: the session commits by COMMIT, and knows its outcome",
        )

    # Isolation

    def get_isolation_level(self, dbapi_connection: Any) -> IsolationLevel:
        """The level of the transaction; "AUTOCOMMIT" where each statement commits by itself."""
        if dbapi_connection.is_autocommit:
            return "AUTOCOMMIT"
        return _level(dbapi_connection.level or self.default_isolation_level)

    def get_default_isolation_level(self, dbapi_conn: Any) -> IsolationLevel:
        """What the engine sets for each connection, or else what the server takes by itself."""
        if dbapi_conn.level is not None:
            return _level(dbapi_conn.level)
        with dbapi_conn.cursor() as cursor:
            cursor.execute("show default_transaction_isolation")
            row = cursor.fetchone()
        return _level(row[0] if row else None)

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Set the level of the transactions that the next statements open."""
        dbapi_connection.is_autocommit = level == "AUTOCOMMIT"
        dbapi_connection.set_level(None if level == "AUTOCOMMIT" else level.lower())

    def detect_autocommit_setting(self, dbapi_connection: Any) -> bool:
        """Whether each statement commits by itself."""
        return bool(dbapi_connection.is_autocommit)

    def get_driver_connection(self, connection: Any) -> Any:
        """The session."""
        return connection.driver_connection


def _level(name: object) -> IsolationLevel:
    return cast("IsolationLevel", str(name or "READ COMMITTED").upper())


def _link_of(connection: Connection) -> SessionLink:
    return cast("SessionLink", connection.connection.dbapi_connection)


# Errors: SQLAlchemy's and the library's in one


class FailedStatement(DataError):
    """Raised when a statement of SQLAlchemy's has failed: it is SQLAlchemy's exception as well.

    Never raised by itself, only together with `sqlalchemy.exc.IntegrityError` and its siblings: either can be caught.
    """

    def __str__(self) -> str:
        statement = getattr(self, "statement", None)
        return self.message if not statement else f"{self.message}\n[SQL: {statement}]"


_classes: dict[tuple[type[BaseException], type[DataError]], type[FailedStatement]] = {}


def both(failure: DataError, raised: exc.DBAPIError) -> FailedStatement:
    """One exception that is the library's and SQLAlchemy's."""
    key = (type(raised), type(failure))
    cls = _classes.get(key)
    if cls is None:
        bases = (FailedStatement, type(raised)) if key[1] is DataError else (FailedStatement, *key[::-1])
        cls = _classes[key] = cast("type[FailedStatement]", type(type(raised).__name__, bases, {}))
    error = cls.__new__(cls, *failure.args)
    error.__dict__.update({**raised.__dict__, **failure.__dict__})
    return error


def translate(context: ExceptionContext) -> BaseException | None:
    """What a failed statement raises; the session, not SQLAlchemy, decides what became of the connection."""
    context.is_disconnect = False
    connection, raised = context.connection, context.sqlalchemy_exception
    if connection is None or not isinstance(raised, exc.DBAPIError):
        return None
    link = cast("DialectLink", connection.connection.dbapi_connection)
    failure, link.failure = link.failure, None
    if failure is None or failure.__cause__ is not context.original_exception:
        return None
    return both(failure, raised)
