"""SQLAlchemy on a session: `db.sqlalchemy`, `db.sqlalchemy_connection`, and engines for scripts and Alembic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

from sqlalchemy import URL, Connection, event
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import NullPool
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from ..routing import AccessIntent
from ..sessions.core import SessionCore
from ..sessions.transaction_block import TransactionBlock
from ..transaction import SurroundingTransaction, TransactionOptions
from .dialect import NAME, DialectLink, OwnedLink, SessionDialect, translate

URL_OF_SESSIONS: Final = URL.create(f"postgresql+{NAME}")

dialects.register(f"postgresql.{NAME}", SessionDialect.__module__, SessionDialect.__name__)

_engines: dict[int, AsyncEngine] = {}
"""The engines of sessions, by the server's version: they hold nothing but compiled statements."""


class OrmSession(Session):
    """The ORM's unit of work on a session. `commit()` and `rollback()` are the session's; `close()` is not its end."""

    link: DialectLink

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Send what was changed; as one transaction, where the session's statements would each commit by themselves."""
        session = self.link.session
        if (
            self._flushing
            or session.intent is AccessIntent.READ
            or session.surroundings() is not SurroundingTransaction.NOTHING
        ):
            super().flush(objects)
            return
        wait = self.link.wait
        block = TransactionBlock(session, _REQUIRED)
        wait(block.__aenter__())
        try:
            super().flush(objects)
        except BaseException as error:
            wait(block.__aexit__(type(error), error, error.__traceback__))
            raise
        wait(block.__aexit__(None, None, None))

    def begin_nested(self) -> SessionTransaction:
        """A savepoint, at once: what is sent by hand from here on is inside of it."""
        nested = super().begin_nested()
        self.connection()
        return nested

    def commit(self) -> None:
        """Commit the session's transaction, also where the ORM itself has sent nothing in it."""
        super().commit()
        if self._is_left and self.link.session.innermost_scope() is None:
            self.link.commit()

    def rollback(self) -> None:
        """Roll back the session's transaction, also where a flush has failed in it, or the ORM has sent nothing."""
        super().rollback()
        if self.link.is_doomed or self._is_left:
            self.link.rollback()

    @property
    def _is_left(self) -> bool:
        """Statements by hand, or events, wait for an end that SQLAlchemy has not sent: its own part was empty."""
        return not self.link.is_kept and not self.link.session.is_at_rest

    def close(self) -> None:
        """Let the objects go. The transaction stays the request's: it ends with that, or by `rollback()`."""
        with self.link.kept():
            super().close()

    def reset(self) -> None:
        """As `close()`; it can be used again."""
        with self.link.kept():
            super().reset()

    @property
    def is_flushing(self) -> bool:
        """Whether it is in the middle of a flush."""
        return self._flushing

    @property
    def has_pending(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._new or self._deleted or self.identity_map.check_modified())


_REQUIRED: Final = TransactionOptions()


class OrmParticipant:
    """What a session knows of the ORM's unit of work on it."""

    __slots__ = ("_orm",)

    def __init__(self, orm: OrmSession) -> None:
        self._orm = orm

    @property
    def has_pending(self) -> bool:
        """Whether there is something to flush."""
        return self._orm.has_pending

    async def flush(self) -> None:
        """Flush it."""
        await greenlet_spawn(self._orm.flush)

    def ended(self, *, committed: bool) -> None:
        """The transaction has ended by the session's own method: the objects are what they are from now on."""
        orm = self._orm
        if orm.link.is_kept or not orm.in_transaction():
            return
        with orm.link.kept():
            if committed:
                orm.commit()
            else:
                orm.rollback()

    def close(self) -> None:
        """Let the objects go."""
        orm = self._orm
        orm.close()
        orm.link.orm = None


class CoreParticipant:
    """What a session knows of a Core connection on it: there is nothing to flush."""

    __slots__ = ("_connection",)

    def __init__(self, connection: SessionConnection) -> None:
        self._connection = connection

    @property
    def has_pending(self) -> bool:
        """Never."""
        return False

    async def flush(self) -> None:
        """Nothing."""

    def ended(self, *, committed: bool) -> None:
        """The transaction has ended by the session's own method: SQLAlchemy begins another one."""
        if not self._connection.link.is_kept:
            self._connection.close()

    def close(self) -> None:
        """Let go of the transaction."""
        self._connection.close()


class SessionConnection(Connection):
    """A Core connection on a session."""

    def close(self) -> None:
        """End what SQLAlchemy knows of the transaction, which stays the request's; the connection can be used on."""
        if self._transaction is not None:
            with self.link.kept():
                self._transaction.close()

    @property
    def link(self) -> DialectLink:
        """The session, as SQLAlchemy sees it."""
        return cast("DialectLink", self._dbapi_connection)


class SessionAsyncConnection(AsyncConnection):
    """`AsyncConnection` on a session: open from the start, until the session ends."""

    __slots__ = ()

    async def start(self, is_ctxmanager: bool = False) -> SessionAsyncConnection:
        """It is open already."""
        return self


class OrmAsyncSession(AsyncSession):
    """`AsyncSession` on a session."""

    sync_session_class = OrmSession


def engine_of(session: SessionCore) -> AsyncEngine:
    """The engine that composes statements for a session's server."""
    primary = session.datasource.servers.get("primary")
    version = 0 if primary is None else primary.server_version
    engine = _engines.get(version)
    if engine is None:
        engine = _engines[version] = make_engine(_no_connection, server_version=version)
        cast("SessionDialect", engine.dialect).assume()
    return engine


def _connect(session: SessionCore) -> tuple[SessionAsyncConnection, SessionConnection]:
    engine = engine_of(session)
    link = DialectLink(session, cast("SessionDialect", engine.dialect))
    connection = SessionConnection(engine.sync_engine, cast("Any", link))
    return SessionAsyncConnection(engine, connection), connection


def connection_of(session: SessionCore) -> AsyncConnection:
    """A Core connection on a session."""
    made, connection = _connect(session)
    session.participants = (*session.participants, CoreParticipant(connection))
    return made


def orm_of(session: SessionCore) -> AsyncSession:
    """The ORM's unit of work on a session, which flushes it before each commit."""
    bind, connection = _connect(session)
    made = OrmAsyncSession(bind, expire_on_commit=False)
    orm = cast("OrmSession", made.sync_session)
    orm.link = connection.link
    orm.link.orm = orm
    session.participants = (*session.participants, OrmParticipant(orm))
    return made


def make_engine(creator: Callable[[], Any], *, server_version: int = 0, **options: Any) -> AsyncEngine:
    """An engine whose connections are sessions.

    Args:
        creator: Makes a connection.
        server_version: As libpq tells it; 0 is not known.
        options: More of `create_async_engine`.
    """
    # Values stay out of messages and logs, as everywhere else.
    engine = create_async_engine(
        URL_OF_SESSIONS,
        poolclass=NullPool,
        creator=creator,
        server_version=server_version,
        **{"hide_parameters": True, **options},
    )
    event.listen(engine.sync_engine, "handle_error", translate, retval=True)
    return engine


def engine_for(open_session: Callable[[], Awaitable[SessionCore]], **options: Any) -> AsyncEngine:
    """An engine for scripts and Alembic: each of its connections has a session to itself.

    Args:
        open_session: Makes a session; the connection ends it.
        options: More of `create_async_engine`.
    """

    def connect() -> OwnedLink:
        return OwnedLink(await_(open_session()), cast("SessionDialect", engine.dialect))

    engine = make_engine(connect, **options)
    return engine


def _no_connection() -> Any:
    raise RuntimeError("this engine has no connections of its own: they come from a session")


FACADES: Final[dict[str, Callable[[SessionCore], Any]]] = {
    "sqlalchemy": orm_of,
    "sqlalchemy_connection": connection_of,
}
