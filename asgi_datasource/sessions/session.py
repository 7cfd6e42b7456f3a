"""`DataSession`: the public API of a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..datasource.datasource import DataSource
from ..drivers.placeholders import PlaceholderStyle, restyle
from ..drivers.protocol import Result
from ..drivers.raw import RawConnection
from ..drivers.statements import Params, Query, Statement
from ..observability import names
from ..routing import AccessIntent, ReadAfterWritePin, Route
from ..tenancy import Tenant
from ..transaction import Hook, HookEvent, Isolation, Propagation, TransactionOptions, parse_isolation
from . import cursor_stream, raw_connection
from .advisory_lock import LockKey, take_lock
from .autocommit import autocommit
from .base import SessionOrigin
from .blocking import BlockingSession
from .capabilities import EventInbox, EventOutbox
from .core import SessionCore
from .listener import Listener
from .row_classes import RowType
from .statement_api import StatementMethods
from .transaction_block import TransactionBlock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

R = TypeVar("R")


class DataSession(SessionCore, StatementMethods):
    """The request's handle on its tenant's data; get it with `session(request)`.

    Reads outside a transaction run READ ONLY on a replica, each in one round trip, and hold no connection in
    between. The first write opens the request's transaction on the primary; from then on everything runs in it. It
    is committed before the first byte of the response leaves, or rolled back. Afterwards every call raises
    `SessionClosed`.

    Several tasks of one request may use it; their statements run one after the other.
    """

    def __dir__(self) -> list[str]:
        # The public API only, without the internals of the core.
        own = {name for cls in (DataSession, StatementMethods) for name in vars(cls) if not name.startswith("_")}
        return sorted(own - {"run_one"} | {"state"})

    # -- identity

    @property
    def registry(self) -> SessionOrigin:
        """The registry of the session; `registry.session(tenant=...)` opens a session that may outlive the request."""
        return self._registry

    @property
    def tenant(self) -> Tenant:
        """The tenant that every statement runs as."""
        return self._tenant

    @property
    def datasource(self) -> DataSource:
        """The tenant's datasource."""
        return self._datasource

    @property
    def pin(self) -> ReadAfterWritePin:
        """Set by the first write; from then on reads go to the primary."""
        return super().pin

    @property
    def token(self) -> str | None:
        """Causal-consistency token: with it, another service or `registry.session(token=...)` reads no older state.

        None when tokens are disabled, and before the first statement.
        """
        tokens = self._policy.tokens
        return (
            None if tokens is None or self.client_history is None else tokens.signer.sign(self.client_history.whole())
        )

    @property
    def last_route(self) -> Route | None:
        """Where the last statement went and why; None before the first."""
        return super().last_route

    def using(self, datasource: str) -> DataSession:
        """The request's session on another of the tenant's datasources: `db.using("analytics")`.

        It has a pin, routes and a transaction of its own, and ends with this session: its COMMIT comes before this
        one's, and its failure fails the request. A second session that writes is refused, because two COMMITs cannot be
        atomic, unless `transactions.multiple_writers` is `allow`. Blocks and `set_rollback_only` concern one session.

        Args:
            datasource: Its name: the tenant's own datasource, or one of `tenants.NAME.datasources`.

        Raises:
            DataError: CONFIG: the tenant has no datasource of this name.
            SessionClosed: The request's response has started.
        """
        self.check_open()
        main = cast("DataSession", self.main or self)
        if main.tenant.datasource == datasource:
            return main
        found = main.sibling(datasource)
        if found is None:
            found = self._registry.make_sibling(main, datasource)
        return cast("DataSession", found)

    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        transaction = self.current_transaction
        return transaction is not None and transaction.is_open

    # -- statements

    @property
    def read(self) -> IntentView:
        """The same methods with read intent: READ ONLY on any server."""
        return ReadView(self)

    @property
    def write(self) -> IntentView:
        """The same methods with write intent: in the transaction, on the primary."""
        return WriteView(self)

    def connection(self, intent: AccessIntent | None = None) -> AbstractAsyncContextManager[RawConnection]:
        """Borrow the driver's connection (psycopg's), inside the tenant and a transaction.

        Use it for COPY, or for a library that takes a connection. With write intent it is the connection of the
        request's transaction: do not commit on it. With read intent it is one in a READ ONLY transaction that ends with
        the block. The connection and its cursors cannot be used after the block.

        Args:
            intent: None uses the intent in force.

        Raises:
            DataError: No transaction could be opened.
            SessionClosed: The request's response has started.
        """
        return cast("AbstractAsyncContextManager[RawConnection]", raw_connection.lend(self, intent))

    def autocommit(self) -> AbstractAsyncContextManager[StatementMethods]:
        """Open a block whose statements run outside of any transaction block, each by itself: VACUUM, CREATE INDEX
        CONCURRENTLY.

        They run on a connection of the primary, inside the tenant: `async with db.autocommit() as bare: await
        bare.execute("vacuum orders")`. Their effects stay, whatever becomes of the request.

        Raises:
            DataError: QUERY: it was called inside a transaction; or a pooler in transaction mode is in between, where
                the tenant's settings cannot outlive a transaction.
            SessionClosed: The request's response has started.
        """
        return autocommit(self)

    def listen(self, *channels: str) -> Listener:
        """Iterate over the notifications of channels, until the session ends.

        Listening has a connection of its own, which is made anew when it is lost; the notification behind a gap says so
        (`Notification.has_gap`). Channels belong to the database: tenants that share one share its channels.

        Args:
            channels: Their names, as in `NOTIFY`, of at most 63 bytes; compared exactly, as quoted names.

        Raises:
            DataError: QUERY: a name cannot be one of a channel. CONNECTION: the server cannot be reached at the start.
                CONFIG: there is a pooler in transaction mode in between.
            SessionClosed: The request's response has started.
        """
        return Listener(self, channels)

    # -- other ecosystems

    @property
    def sqlalchemy(self) -> AsyncSession:
        """SQLAlchemy's `AsyncSession` on this session: what it sends is routed, pinned and committed like other SQL.

        Its `commit()` and `rollback()` are this session's, its `begin_nested()` is a savepoint of both, and what it has
        not flushed is flushed before the commit. `docs/sqlalchemy.md` has the rest.

        Raises:
            ConfigError: SQLAlchemy is not installed.
            SessionClosed: The request's response has started.
        """
        return cast("AsyncSession", self.facade("sqlalchemy"))

    @property
    def sqlalchemy_connection(self) -> AsyncConnection:
        """SQLAlchemy's `AsyncConnection` on this session, for Core without the ORM; errors: `sqlalchemy`."""
        return cast("AsyncConnection", self.facade("sqlalchemy_connection"))

    @property
    def blocking(self) -> BlockingSession:
        """The same methods for code that is not async, in a thread of its own: `db.blocking.fetch_all(...)`."""
        self.check_open()
        return BlockingSession(self, self)

    # -- transaction

    def transaction(
        self, *, read_only: bool = False, isolation: Isolation | str | None = None
    ) -> AbstractAsyncContextManager[DataSession]:
        """Open an atomic block.

        Inside a transaction it is a savepoint: an exception that leaves the block rolls back the block alone. In
        autocommit it is a transaction, committed at its end. With `read_only` and outside a transaction it is a
        snapshot on one replica. Statements of other tasks of the request wait until it ends.

        Args:
            read_only: Refuse writes in the block.
            isolation: "read committed", "repeatable read" or "serializable", for a transaction that is not open yet.

        Raises:
            DataError: QUERY: the transaction that is open has another isolation.
            UnexpectedRollback: A statement in the block failed and its error was caught inside.
            SessionClosed: The request's response has started.
        """
        self.check_open()
        options = TransactionOptions(
            read_only=read_only, isolation=parse_isolation(isolation), propagation=Propagation.NESTED
        )
        return TransactionBlock(self, options)

    async def commit(self) -> None:
        """Commit what the request has written so far; the next write opens a new transaction in the same tenant.

        A later failure of the request does not roll it back. The pin stays set.

        Raises:
            DataError: The commit failed (CommitUnknown: its outcome is unknown).
            SessionClosed: The request's response has started.
        """
        await self.end_midway(commit=True)

    async def execute_and_commit(
        self, query: Query, params: Params | None = None, *, style: PlaceholderStyle | None = None
    ) -> int:
        """Run one write and commit it, as `execute` and `commit` do, in one round trip.

        For a write that is the only one of its transaction. A later failure of the request, or an error response, does
        not roll it back. It takes two round trips if the transaction is open already, if something has to be sent
        before COMMIT (hooks, an ORM's flush, events), behind a pooler, and if its trace is sampled.

        Args:
            query, params, style: As of `execute`.

        Returns:
            The number of rows that it affected or returned.

        Raises:
            DataError: It failed, and nothing took effect. CommitUnknown: the connection was lost, and the outcome is
                unknown.
            SessionClosed: The request's response has started.
        """
        if style is not None:
            query, params = restyle(query, params, style)
        return (await self.run_and_commit(Statement(query, params))).rowcount

    async def rollback(self) -> None:
        """Roll back what the request has written since its last commit; the next write opens a new transaction.

        Raises:
            SessionClosed: The request's response has started.
        """
        await self.end_midway(commit=False)

    async def lock(self, key: LockKey, *, timeout: float | None = None) -> None:
        """Acquire an advisory lock until the transaction ends; other callers with the same key wait that long.

        Takes one round trip. Rolling back to a savepoint releases the locks that were acquired after it.

        Args:
            key: A string, scoped to the tenant; or one or two integers as in `pg_advisory_xact_lock`, which are shared
                by all users of the database.
            timeout: Seconds to wait; 0 fails at once, None waits until the deadline.

        Raises:
            DataError: CONFLICT (55P03): it was not free in time; the transaction stays usable.
                QUERY: no transaction surrounds the call.
        """
        await take_lock(self, key, timeout)

    def set_rollback_only(self, reason: str) -> None:
        """Roll back the transaction at its end, whatever the status of the response, which stays as it is.

        Args:
            reason: Recorded on the spans of the transaction and of ROLLBACK.
        """
        self.check_open()
        self.make_work_here().rollback_reason = reason
        self.note_event(names.DOOMED, {names.ROLLBACK_REASON: reason})

    def before_commit(self, function: Hook) -> None:
        """Run a function inside the transaction, right before it is committed; its exception fails the request.

        It may run statements and add hooks. When the transaction is rolled back, it does not run.

        Args:
            function: Sync or async, without arguments.
        """
        self.add_hook(HookEvent.BEFORE_COMMIT, function)

    def after_commit(self, function: Hook) -> None:
        """Run a function once the transaction is known to be committed and the response has been handed over.

        When the outcome of the commit is not known, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self.add_hook(HookEvent.AFTER_COMMIT, function)

    def after_rollback(self, function: Hook) -> None:
        """Run a function once the transaction has been rolled back and the response has been handed over.

        When the outcome of the commit is not known, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self.add_hook(HookEvent.AFTER_ROLLBACK, function)

    # -- for `StatementMethods`

    # -- events

    @property
    def outbox(self) -> EventOutbox:
        """Publishes events with the transaction: `await db.outbox.publish("orders.placed", key=..., payload=...)`.

        Raises:
            DataError: CONFIG: the configuration has no section `outbox`.
        """
        return cast("EventOutbox", self.facade("outbox"))

    @property
    def inbox(self) -> EventInbox:
        """Records processed events: `if await db.inbox.once("mailer", event_id): ...`."""
        return cast("EventInbox", self.facade("inbox"))

    def _run_all(self, statements: Sequence[Statement]) -> Coroutine[Any, Any, Sequence[Result]]:
        return self.run(statements)

    def _iterate(
        self, query: Query, params: Params | None, row_factory: RowType[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        return cursor_stream.stream(self, None, query, params, row_factory, size)


class IntentView(StatementMethods):
    """The statement methods of a session with the intent fixed: `db.read`, `db.write`."""

    __slots__ = ("_session",)

    def __init__(self, session: SessionCore) -> None:
        self._session = session

    def run_one(
        self,
        query: Query,
        params: Params | None,
        intent: AccessIntent | None,
        read: Callable[[Result, Any], R],
        row_factory: Any,
    ) -> Coroutine[Any, Any, R]:
        """Run one statement with this view's intent."""
        return self._session.run_one(query, params, intent, read, row_factory)

    def _run_all(self, statements: Sequence[Statement]) -> Coroutine[Any, Any, Sequence[Result]]:
        return self._session.run(statements, self._intent)

    def _iterate(
        self, query: Query, params: Params | None, row_factory: RowType[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        return cursor_stream.stream(self._session, self._intent, query, params, row_factory, size)


class ReadView(IntentView):
    """`db.read`."""

    __slots__ = ()
    _intent = AccessIntent.READ


class WriteView(IntentView):
    """`db.write`."""

    __slots__ = ()
    _intent = AccessIntent.WRITE
