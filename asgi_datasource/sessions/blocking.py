"""`db.blocking`: the session for code that is not async, in a thread of its own."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload
from uuid import UUID

from ..concurrency.threads import ON_THE_LOOP, is_on_a_loop, wait_in_thread
from ..drivers.placeholders import PlaceholderStyle
from ..drivers.statements import Params, Query
from ..errors import DataError, DataErrorKind
from ..transaction import Isolation, Propagation, TransactionOptions, parse_isolation
from .capabilities import EventInbox, EventOutbox
from .core import SessionCore
from .row_classes import RowType
from .statement_api import Row, StatementMethods
from .transaction_block import TransactionBlock

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")


class DBAPIConnection(Protocol):
    """A connection as of DB-API 2.0 (PEP 249)."""

    def cursor(self) -> Any:
        """A cursor."""
        ...

    def commit(self) -> None:
        """Commit."""
        ...

    def rollback(self) -> None:
        """Roll back."""
        ...

    def close(self) -> None:
        """Close."""
        ...


class BlockingOutbox:
    """`db.blocking.outbox`: `db.outbox` for code that is not async."""

    __slots__ = ("_session",)

    def __init__(self, session: SessionCore) -> None:
        self._session = session

    def publish(
        self,
        topic: str,
        *,
        key: str | None = None,
        payload: object = None,
        headers: Mapping[str, str] | None = None,
        id: UUID | str | None = None,
        ordered: bool = False,
    ) -> UUID:
        """Publish an event with the transaction around. Arguments and errors: `EventOutbox.publish`."""
        outbox = cast("EventOutbox", self._session.facade("outbox"))
        published = outbox.publish(topic, key=key, payload=payload, headers=headers, id=id, ordered=ordered)
        return wait_in_thread(self._session.registry_loop, published)


class BlockingInbox:
    """`db.blocking.inbox`: `db.inbox` for code that is not async."""

    __slots__ = ("_session",)

    def __init__(self, session: SessionCore) -> None:
        self._session = session

    def once(self, consumer: str, event_id: UUID | str) -> bool:
        """Note in the transaction around that a consumer has processed an event. See `EventInbox.once`."""
        inbox = cast("EventInbox", self._session.facade("inbox"))
        return wait_in_thread(self._session.registry_loop, inbox.once(consumer, event_id))


class BlockingSession:
    """The methods of a session for code that is not async: `def` handlers, thread pools, libraries that block.

    Statements run in the event loop, in the same transaction, and this thread waits for them. In the thread of the
    event loop every method raises `DataError` (QUERY).
    """

    __slots__ = ("_session", "_statements")

    def __init__(self, session: SessionCore, statements: StatementMethods) -> None:
        self._session = session
        self._statements = statements

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return wait_in_thread(self._session.registry_loop, coroutine)

    def execute(self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None) -> int:
        """Run a statement; returns the number of affected rows. Arguments and errors: `DataSession.execute`."""
        return self._wait(self._statements.execute(query, params, style=style))

    @overload
    def executemany(
        self, query: Query, params_seq: Iterable[Params], *, style: PlaceholderStyle | None = None
    ) -> int: ...

    @overload
    def executemany(
        self,
        query: Query,
        params_seq: Iterable[Params],
        *,
        returning: Literal[True],
        style: PlaceholderStyle | None = None,
    ) -> list[Row]: ...

    @overload
    def executemany(
        self,
        query: Query,
        params_seq: Iterable[Params],
        *,
        returning: Literal[True],
        row_factory: RowType[T],
        style: PlaceholderStyle | None = None,
    ) -> list[T]: ...

    def executemany(self, query: Query, params_seq: Iterable[Params], **options: Any) -> int | list[Any]:
        """Run a statement once for each set of parameters, in one round trip. Errors: `DataSession.executemany`."""
        statements: Any = self._statements
        return cast("int | list[Any]", self._wait(statements.executemany(query, params_seq, **options)))

    @overload
    def fetch_all(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> list[Row]: ...

    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[T],
        style: PlaceholderStyle | None = None,
    ) -> list[T]: ...

    def fetch_all(self, query: Query, params: Params | None = None, **options: Any) -> list[Any]:
        """Run a statement and return all its rows. Arguments and errors: `DataSession.fetch_all`."""
        return cast("list[Any]", self._wait(self._statements.fetch_all(query, params, **options)))

    @overload
    def fetch_one(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> Row | None: ...

    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowType[T],
        style: PlaceholderStyle | None = None,
    ) -> T | None: ...

    def fetch_one(self, query: Query, params: Params | None = None, **options: Any) -> Any | None:
        """Run a statement and return its first row; None without one. Arguments and errors: `DataSession.fetch_all`."""
        return self._wait(self._statements.fetch_one(query, params, **options))

    def fetch_value(self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None) -> Any:
        """Run a statement and return the first column of its first row; None without a row."""
        return self._wait(self._statements.fetch_value(query, params, style=style))

    def stream(self, query: Query, params: Params | None = None, *, size: int = 500) -> Iterator[Row]:
        """Run a query through a server-side cursor and yield its rows. Arguments and errors: `DataSession.stream`."""
        rows = cast("Any", self._statements.stream(query, params, size=size))
        try:
            while True:
                try:
                    yield self._wait(_following(rows))
                except StopAsyncIteration:
                    return
        finally:
            self._wait(rows.aclose())

    def commit(self) -> None:
        """Commit what the request has written so far. Errors: `DataSession.commit`."""
        self._wait(self._session.end_midway(commit=True))

    def rollback(self) -> None:
        """Undo what the request has written since its last commit. Errors: `DataSession.rollback`."""
        self._wait(self._session.end_midway(commit=False))

    @contextmanager
    def transaction(
        self, *, read_only: bool = False, isolation: Isolation | str | None = None
    ) -> Generator[BlockingSession]:
        """Open a block that takes effect as a whole. Arguments and errors: `DataSession.transaction`."""
        options = TransactionOptions(
            read_only=read_only, isolation=parse_isolation(isolation), propagation=Propagation.NESTED
        )
        with TransactionBlock(self._session, options).in_thread():
            yield self

    @property
    def outbox(self) -> BlockingOutbox:
        """Publishes events with the transaction: `db.blocking.outbox.publish(...)`. Errors: `DataSession.outbox`."""
        return BlockingOutbox(self._session)

    @property
    def inbox(self) -> BlockingInbox:
        """Records processed events: `if db.blocking.inbox.once("mailer", event_id): ...`."""
        return BlockingInbox(self._session)

    @property
    def sqlalchemy(self) -> Session:
        """SQLAlchemy's `Session`: the one inside `db.sqlalchemy`, with the same objects. Errors: `db.sqlalchemy`."""
        self._check_thread()
        return cast("Session", self._session.facade("sqlalchemy").sync_session)

    @property
    def connection(self) -> DBAPIConnection:
        """A DB-API 2.0 connection, for libraries that take one: pandas, polars.

        Its `commit()` and `rollback()` are the session's, `close()` has no effect, and its errors are `DataError`.
        """
        self._check_thread()
        return cast("DBAPIConnection", self._session.facade("dbapi_connection"))

    def _check_thread(self) -> None:
        if is_on_a_loop():
            raise DataError(DataErrorKind.QUERY, ON_THE_LOOP)


async def _following(rows: Any) -> Any:
    return await rows.__anext__()
