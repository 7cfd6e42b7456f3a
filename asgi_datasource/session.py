"""`DataSession`: what a handler holds.

One object a request: it knows the tenant, what holds for each statement (`plan.py`), and the one transaction of the
request (`transaction/`). The statements themselves run in `execution.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast, overload

from starlette.requests import HTTPConnection

from . import telemetry
from .background import BackgroundTasks
from .block import Block, BlockKind, current_block, isolation_refused
from .datasource import DataSource, DataSourceState
from .drivers.psycopg import Params, PsycopgConnection, Query, Result, RowFactory, Statement
from .errors import CommitUnknown, DataError, DataErrorKind, SessionClosed
from .execution import Executor
from .plan import NO_RULE, Plan, RouteRule, SessionPolicy, make_plan
from .routing import AccessIntent, ReadAfterWritePin, Route
from .tenancy import Tenant
from .transaction import (
    LOAN,
    Frame,
    Hook,
    Hooks,
    Isolation,
    Transaction,
    TransactionOptions,
    WaitingHooks,
    current_frame,
    current_runner,
    options_of,
    parse_isolation,
    unexpected_rollback,
)

if TYPE_CHECKING:
    from .registry import DataSourceRegistry

R = TypeVar("R")
T = TypeVar("T")

Row = dict[str, Any]
"""One row: column name to value, as psycopg adapts it."""

SCOPE_KEY: Final = "asgi_datasource.session"


class SessionState(StrEnum):
    """Whether the handle may still be used."""

    OPEN = "open"
    ENDING = "ending"
    """The outcome is decided; COMMIT or ROLLBACK is on its way."""
    CLOSED = "closed"


class SessionOwner(Protocol):
    """Who ends the session; it is told when the session comes into use."""

    def first_statement(self, session: DataSession, /) -> None:
        """The session is about to run its first statement."""
        ...


class SessionHolder(Protocol):
    """What stands in the scope and in the context: knows the session, or makes it when it is asked for."""

    @property
    def registry(self) -> DataSourceRegistry:
        """Where the session comes from."""
        ...

    @property
    def session(self) -> DataSession:
        """The session."""
        ...


class Writers:
    """The sessions of one request that have written: two COMMITs cannot be atomic, so it should be one."""

    __slots__ = ("_allows_several", "_first")

    def __init__(self, *, allows_several: bool) -> None:
        self._allows_several = allows_several
        self._first: DataSession | None = None

    def claim(self, session: DataSession) -> None:
        """Note that `session` is about to write.

        Raises:
            DataError: QUERY: another session of this request has, and the configuration does not allow that.
        """
        if self._first is None:
            self._first = session
        elif self._first is not session and not self._allows_several:
            raise DataError(
                DataErrorKind.QUERY,
                f"this request has already written to the datasource {self._first.datasource.name!r} and now writes to"
                f" {session.datasource.name!r}; two commits cannot be atomic. Write to one of them only, or set"
                " `transactions: {multiple_writers: allow}`",
            )


class DataSession:
    """The request's handle on its tenant's data; get it with `session(request)`.

    Reads outside a transaction run READ ONLY on a replica, each in one round trip, and hold no connection in
    between. The first write opens the request's transaction on the primary; from then on everything runs in it. It
    is committed before the first byte of the response leaves, or rolled back. Afterwards the handle is dead:
    `SessionClosed`.

    Several tasks of one request may use it; their statements run one after the other.
    """

    __slots__ = (
        "_background",
        "_committing",
        "_datasource",
        "_ending",
        "_executor",
        "_hooks",
        "_is_interrupted",
        "_lock",
        "_method",
        "_owner",
        "_pin",
        "_plan",
        "_plan_endpoint",
        "_plan_frame",
        "_policy",
        "_rollback_reason",
        "_rule",
        "_running",
        "_savepoints",
        "_scope",
        "_snapshot",
        "_started",
        "_state",
        "_stopped_by",
        "_tenant",
        "_transaction",
        "_verdict",
        "registry",
        "writers",
    )

    def __init__(
        self,
        registry: DataSourceRegistry,
        datasource: DataSource,
        tenant: Tenant,
        *,
        policy: SessionPolicy,
        background: BackgroundTasks,
        scope: MutableMapping[str, Any] | None = None,
        method: str = "POST",
        rule: RouteRule = NO_RULE,
        started: float | None = None,
        owner: SessionOwner | None = None,
        pin: ReadAfterWritePin | None = None,
    ) -> None:
        self.registry = registry
        """Where the session came from; `registry.session(tenant=...)` gives one that may outlive the request."""
        self.writers: Writers | None = None
        """Shared with the other sessions of the request, where there are any."""
        self._datasource = datasource
        self._tenant = tenant
        self._policy = policy
        self._background = background
        self._scope = scope
        self._method = method
        self._rule = rule
        self._started = started
        self._owner = owner
        self._state = SessionState.OPEN
        # Nothing below exists before the first statement: most of a request's cost is what it does not build.
        self._executor: Executor | None = None
        self._lock: asyncio.Lock | None = None
        self._pin = pin
        self._hooks: Hooks | None = None
        self._committing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[Any] | None = None
        self._transaction: Transaction | None = None
        self._snapshot: Transaction | None = None
        self._savepoints = 0
        self._plan: Plan | None = None
        self._plan_frame: Frame | None = None
        self._plan_endpoint: object = None
        self._rollback_reason: str | None = None
        self._verdict: bool | None = None
        self._stopped_by: DataError | None = None
        self._running: asyncio.Task[Any] | None = None
        self._is_interrupted = False

    # -- what it is

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
        if self._pin is None:
            self._pin = ReadAfterWritePin()
        return self._pin

    @property
    def last_route(self) -> Route | None:
        """Where the last statement went and why; None before the first."""
        return None if self._executor is None else self._executor.last_route

    @property
    def state(self) -> SessionState:
        """Whether the handle may still be used."""
        return self._state

    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._transaction is not None and self._transaction.is_open

    def __repr__(self) -> str:
        doing = f" in {self._transaction!r}" if self._transaction is not None else ""
        return f"<DataSession {self._state.value} datasource={self._datasource.name!r}{doing}>"

    # -- statements

    async def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a statement.

        Args:
            query: SQL with psycopg's placeholders (`%s`, `%(name)s`), or a `psycopg.sql` object.
            params: Values for the placeholders; a sequence or a mapping.

        Returns:
            How many rows it affected or returned; -1 where the command has no such number.

        Raises:
            DataError: It failed; the kind says how.
            SessionClosed: The request's response has started.
        """
        return (await self.run((Statement(query, params),)))[0].rowcount

    async def executemany(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a statement once for each set of parameters, all in one round trip and one transaction.

        Returns:
            The sum of the affected rows.

        Raises:
            DataError: One of them failed; none of them counts then.
            SessionClosed: The request's response has started.
        """
        statements = [Statement(query, params) for params in params_seq]
        return sum(max(0, result.rowcount) for result in await self.run(statements)) if statements else 0

    @overload
    async def fetch_all(self, query: Query, params: Params | None = None) -> list[Row]: ...

    @overload
    async def fetch_all(self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]) -> list[T]: ...

    async def fetch_all(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> list[Any]:
        """Run a statement and return all its rows.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: One of psycopg's row factories (`class_row(Order)`); None gives dictionaries.

        Raises:
            DataError: It failed, or returns no rows.
            SessionClosed: The request's response has started.
        """
        return _with_rows(await self.run((Statement(query, params),))).rows(row_factory)

    @overload
    async def fetch_one(self, query: Query, params: Params | None = None) -> Row | None: ...

    @overload
    async def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]
    ) -> T | None: ...

    async def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Any | None:
        """Run a statement and return its first row; None when there is none. Arguments and errors: `fetch_all`."""
        return _with_rows(await self.run((Statement(query, params),))).first(row_factory)

    async def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Run a statement and return the first column of its first row; None when there is none."""
        return _with_rows(await self.run((Statement(query, params),))).scalar()

    @overload
    def stream(self, query: Query, params: Params | None = None, *, size: int = ...) -> AsyncIterator[Row]: ...

    @overload
    def stream(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T], size: int = ...
    ) -> AsyncIterator[T]: ...

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        size: int = 500,
    ) -> AsyncIterator[Any]:
        """Run a query through a server-side cursor and give its rows one by one, in bounded memory.

        Outside a transaction a connection of a replica is held until the iteration ends. Iterate before the response
        starts, and close the iterator (`contextlib.aclosing`) when you leave it early.

        Args:
            query: SQL with psycopg's placeholders.
            params: Values for the placeholders.
            row_factory: One of psycopg's row factories; None gives dictionaries.
            size: Rows a round trip.

        Raises:
            DataError: It failed.
            SessionClosed: The request's response has started.
        """
        return self.stream_as(None, query, params, row_factory, size)

    @property
    def read(self) -> IntentView:
        """The same methods with read intent: READ ONLY wherever they land."""
        return IntentView(self, AccessIntent.READ)

    @property
    def write(self) -> IntentView:
        """The same methods with write intent: in the transaction, on the primary."""
        return IntentView(self, AccessIntent.WRITE)

    def connection(self, intent: AccessIntent | None = None) -> AbstractAsyncContextManager[PsycopgConnection]:
        """Borrow the psycopg connection, inside the tenant and a transaction.

        For what the session has no method for: COPY, a library that wants a connection. With write intent it is the
        connection of the request's transaction: do not commit on it. With read intent it is one in a READ ONLY
        transaction that ends with the block. The connection and its cursors die with the block.

        Args:
            intent: None takes the intent that a statement would have here.

        Raises:
            DataError: No transaction could be opened.
            SessionClosed: The request's response has started.
        """
        return self._lend(intent)

    # -- transaction

    def transaction(
        self, *, read_only: bool = False, isolation: Isolation | str | None = None
    ) -> AbstractAsyncContextManager[DataSession]:
        """Open a block that takes effect as a whole.

        Inside a transaction it is a savepoint: an exception out of the block undoes the block alone. Where each
        statement would commit by itself, it is a transaction, committed at its end. With `read_only` and no
        transaction around it, it is a snapshot on one replica. Other tasks of the request wait until it ends.

        Args:
            read_only: Nothing in the block may write.
            isolation: "read committed", "repeatable read" or "serializable", for a transaction that is not open yet.

        Raises:
            DataError: QUERY: the transaction that is open has another isolation.
            UnexpectedRollback: A statement in the block failed and its error was caught inside.
            SessionClosed: The request's response has started.
        """
        self.check_open()
        return Block(self, read_only=read_only, isolation=parse_isolation(isolation))

    async def commit(self) -> None:
        """Commit what the request has written so far; the next write opens a new transaction in the same tenant.

        A failure later in the request no longer undoes it. The pin stays set.

        Raises:
            DataError: Nothing was committed (for CommitUnknown: nobody could tell).
            SessionClosed: The request's response has started.
        """
        await self._end_midway(commit=True)

    async def rollback(self) -> None:
        """Undo what the request has written since its last commit; the next write opens a new transaction.

        Raises:
            SessionClosed: The request's response has started.
        """
        await self._end_midway(commit=False)

    def set_rollback_only(self, reason: str) -> None:
        """Decide that the transaction is rolled back, whatever the response says; the response itself stays.

        Args:
            reason: Why; it stands on the ROLLBACK's span.
        """
        self.check_open()
        self._rollback_reason = reason

    def after_commit(self, function: Hook) -> None:
        """Run a function once the transaction is known to be committed and the response has been handed over.

        When nobody could tell what became of the commit, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self._add_hook(function, on_commit=True)

    def after_rollback(self, function: Hook) -> None:
        """Run a function once the transaction has been rolled back and the response has been handed over.

        When nobody could tell what became of the commit, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self._add_hook(function, on_commit=False)

    async def run_annotated(self, frame: Frame, call: Callable[[], Awaitable[R]]) -> R:
        """Run an annotated function in the transaction around it, or in one of its own where there is none."""
        options = frame.options
        if self._state is not SessionState.OPEN or options is self._endpoint_options():
            return await call()
        transaction = self.transaction_in_use
        if transaction is not None:
            if options.isolation not in (None, transaction.isolation):
                raise isolation_refused(options.isolation, transaction.isolation)
            return await call()
        if self.is_managed and not options.read_only:
            return await call()
        async with Block(self, read_only=options.read_only, isolation=options.isolation, deadline=frame.deadline):
            try:
                return await call()
            except Exception as error:
                if not options.decides(error):
                    raise
                tolerated = error
        # The block has committed, as the annotation asks for after this error.
        raise tolerated

    def note_failure(self, frame: Frame, error: Exception) -> None:
        """An exception leaves an annotated function: where it is the route's, its annotation may name the exception.

        A handler of the application may turn the exception into a response, whose status then says nothing about it.
        """
        if frame.options is self._endpoint_options():
            self._verdict = frame.options.decides(error)

    # -- for its owner

    @property
    def session(self) -> DataSession:
        """Itself: where there is no request, the session stands in the context as its own holder."""
        return self

    @property
    def is_unused(self) -> bool:
        """No statement has run and no hook waits: there is nothing to end."""
        return self._lock is None and self._hooks is None

    @property
    def is_at_rest(self) -> bool:
        """No transaction is open and no statement runs: it can be ended without a server."""
        return self.transaction_in_use is None and (self._lock is None or not self._lock.locked())

    @property
    def scope(self) -> MutableMapping[str, Any] | None:
        """The innermost scope in which it was asked for; None outside requests."""
        return self._scope

    @property
    def has_due_hooks(self) -> bool:
        """Whether there is something for `run_due_hooks`."""
        if self._hooks is None:
            return False
        return self._hooks.has_due or self._state is SessionState.ENDING or bool(self._unfinished())

    @property
    def rollback_reason(self) -> str | None:
        """What `set_rollback_only` was told; None where only the outcome decides."""
        return self._rollback_reason

    def observe(self, scope: MutableMapping[str, Any]) -> None:
        """Take note of the innermost scope in which the session was asked for: the matched endpoint stands there."""
        self._scope = scope

    def stop(self, error: DataError) -> DataError:
        """From now on refuse everything but the rollback: the deadline has passed, or the client is gone.

        Returns:
            What the session is stopped by: the first call counts.
        """
        if self._stopped_by is None:
            self._stopped_by = error
        return self._stopped_by

    def interrupt(self) -> bool:
        """Stop the statement that runs: its caller gets the error that the session was stopped by.

        Returns:
            Whether one was running.
        """
        if self._running is None or self._is_interrupted:
            return self._is_interrupted
        self._is_interrupted = True
        self._running.cancel()
        return True

    def commits_on(self, status: int) -> bool:
        """Whether a response of this status commits.

        An exception that the route's annotation names decides; then the status by the annotation, by the rule, by the
        default.
        """
        if self._rollback_reason is not None:
            return False
        if self._verdict is not None:
            return self._verdict
        for options in (self._endpoint_options(), self._rule.options):
            if options is not None and (verdict := options.commits(status)) is not None:
                return verdict
        return status not in self._policy.rollback_on.statuses

    def commits_after(self, error: BaseException) -> bool:
        """Whether the transaction is committed although this exception came out of the application."""
        options = self._endpoint_options()
        return self._rollback_reason is None and options is not None and options.decides(error) is True

    def deadline(self) -> float | None:
        """Event-loop time at which the time is up; None where there is no limit."""
        return self._current_plan().deadline

    def share_writers(self, outer: DataSession) -> None:
        """It is nested in a request that has a session already: of the two only one should write."""
        if outer.writers is None:
            outer.writers = Writers(allows_several=self._policy.allows_multiple_writers)
            if outer.in_transaction():
                outer.writers.claim(outer)
        self.writers = outer.writers

    def close_unused(self) -> None:
        """End a session that nothing has been done with."""
        self._state = SessionState.CLOSED

    def end(self, *, commit: bool, reason: str) -> Coroutine[Any, Any, None]:
        """End the session and its transaction; whatever uses it from this call on gets `SessionClosed`.

        Args:
            commit: Commit; otherwise roll back.
            reason: Why it is rolled back, for the span.

        Returns:
            What has to be awaited, here or in another task.

        Raises:
            DataError: It was to be committed and was not (for CommitUnknown: nobody could tell).
        """
        if self._state is not SessionState.OPEN:
            return _nothing()
        deadline = self.deadline()
        self._state = SessionState.ENDING
        return self._end(commit=commit, reason=reason, deadline=deadline)

    async def _end(self, *, commit: bool, reason: str, deadline: float | None) -> None:
        self._ending = asyncio.current_task()
        try:
            if self._lock is None:
                if commit and self._stopped_by is not None:
                    raise self._stopped_by
                self._settle(self._take_hooks(), committed=commit)
                return
            if not commit:
                # Whatever still runs is to be undone: there is no point in waiting for it.
                self.stop(_closed())
                self.interrupt()
            await self._acquire_for_the_end(self._lock, deadline, commit=commit)
            try:
                await self._finish(commit=commit, reason=reason, deadline=deadline)
            finally:
                self._lock.release()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._state = SessionState.CLOSED
            if self._lock is not None:
                self._datasource.leave()

    async def run_due_hooks(self) -> None:
        """Run the hooks whose transaction has ended, each isolated from the others."""
        if self._hooks is not None:
            unfinished = self._unfinished()
            if unfinished:
                # Whoever asked for the end was cancelled meanwhile; the hooks hear of the truth all the same.
                await asyncio.wait(unfinished)
            await self._hooks.run_due()

    # -- for blocks

    @property
    def is_managed(self) -> bool:
        """Whether writes here share one transaction, which the session's owner ends."""
        return self._current_plan().is_managed

    @property
    def is_one_snapshot(self) -> bool:
        """Whether all reads of the route share one READ ONLY transaction."""
        return self._current_plan().read_only

    @property
    def transaction_in_use(self) -> Transaction | None:
        """The transaction that statements run in; one that has failed stays until it is ended."""
        return self._transaction or self._snapshot

    @property
    def hook_count(self) -> int:
        """How many hooks wait for the end of the transaction."""
        return 0 if self._hooks is None else len(self._hooks)

    def check_open(self) -> None:
        """Refuse a handle that has outlived its request.

        Raises:
            SessionClosed: It has.
            DataError: The deadline has passed, or the client is gone.
        """
        if self._state is not SessionState.OPEN:
            raise _closed()
        if self._stopped_by is not None:
            raise self._stopped_by

    def innermost_block(self) -> Block | None:
        """The innermost open block of this session that the running task belongs to."""
        block = current_block.get()
        while block is not None and not (block.is_open and block.belongs_to(self)):
            block = block.parent
        return block

    def lock_of(self, block: Block | None) -> asyncio.Lock:
        """What serialises the statements of a block; without one, those of the session."""
        if block is not None:
            return block.lock
        if self._lock is None:
            self._start()
        return cast("asyncio.Lock", self._lock)

    def next_savepoint(self) -> str:
        """A name for a savepoint, new in this session."""
        self._savepoints += 1
        return f"ads_{self._savepoints}"

    def undo_hooks(self, since: int) -> None:
        """A block was undone: what it wanted to run after its commit never runs."""
        self._settle(self._take_hooks(since), committed=False)

    def spoil(self, reason: str) -> None:
        """Leave only rollback for the transaction that is open."""
        if self._transaction is not None and self._transaction.is_open:
            self._transaction.doom(DataError(DataErrorKind.QUERY, reason))

    async def end_transaction(self, *, commit: bool, reason: str, hooks_since: int = 0) -> None:
        """End the transaction that a block has opened; the block holds the lock."""
        await self._finish(commit=commit, reason=reason, deadline=self.deadline(), hooks_since=hooks_since)

    # -- inside

    async def run(self, statements: Sequence[Statement], intent: AccessIntent | None = None) -> list[Result]:
        """Run statements in one round trip: what `execute`, `fetch_all` and the others are made of.

        Args:
            statements: What to run.
            intent: None takes what holds here.
        """
        self.check_open()
        async with self.lock_of(self.innermost_block()):
            # Second check: the session may have ended while this task waited for its turn.
            self.check_open()
            plan = self._current_plan()
            task = self._running = asyncio.current_task()
            try:
                return await self._dispatch(statements, intent or plan.intent, plan)
            except asyncio.CancelledError:
                if self._is_interrupted and task is not None and self._stopped_by is not None:
                    self._is_interrupted = False
                    if task.uncancel() == 0:
                        raise self._stopped_by from None
                raise
            except DataError as error:
                if error.kind is DataErrorKind.READ_ONLY:
                    raise self._explain_read_only(statements, error) from error.__cause__
                raise
            finally:
                self._running = None

    def _start(self) -> None:
        self.check_open()
        if self._datasource.state is DataSourceState.LEFT:
            # The configuration was loaded anew since the request began, which had no use for its datasource yet.
            self._datasource = self.registry.successor(self._datasource)
        self._datasource.enter()
        self._lock = asyncio.Lock()
        self._executor = Executor(
            self._datasource,
            self._tenant,
            self.pin,
            self._background,
            is_traced=self._policy.is_traced and telemetry.is_recording(),
            traces_statements=self._policy.traces_statements,
            shows_tenant=self._policy.shows_tenant,
        )
        if self._owner is not None:
            self._owner.first_statement(self)

    async def _dispatch(self, statements: Sequence[Statement], intent: AccessIntent, plan: Plan) -> list[Result]:
        if plan.read_only and intent is AccessIntent.WRITE:
            raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
        executor = cast("Executor", self._executor)
        block = self.innermost_block()
        transaction = self._transaction
        if transaction is None and self._snapshot is not None:
            if intent is AccessIntent.WRITE:
                raise DataError(
                    DataErrorKind.QUERY,
                    "a write was sent while a read-only block or a stream holds a replica; end that first, or put"
                    " `async with db.transaction():` around both, so that they share one connection",
                )
            transaction = self._snapshot
        if transaction is not None:
            if transaction.read_only and intent is AccessIntent.WRITE:
                raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
            executor.note_transaction(transaction, intent)
            return await transaction.run(
                statements,
                deadline=plan.deadline,
                as_read=intent is AccessIntent.READ,
                is_guarded=block is not None and block.is_guarded,
            )
        if block is not None and block.kind is BlockKind.SNAPSHOT:
            return await self._open(statements, plan, block, read_only=True, is_snapshot=True)
        if intent is AccessIntent.READ and not plan.read_only:
            return await executor.read(statements, deadline=plan.deadline, is_strong=plan.is_strong)
        if self.writers is not None and intent is AccessIntent.WRITE:
            self.writers.claim(self)
        if plan.is_managed or (block is not None and block.is_transactional):
            return await self._open(statements, plan, block, read_only=plan.read_only)
        # Nothing surrounds it: the statement is a transaction by itself.
        committed = False
        try:
            results = await self._open(statements, plan, block, read_only=plan.read_only)
            committed = True
        finally:
            await self._finish(
                commit=committed,
                reason="the statement failed",
                deadline=plan.deadline,
                # Those that wait here wait for the end of the session.
                hooks_since=self.hook_count,
            )
        return results

    async def _open(
        self,
        statements: Sequence[Statement],
        plan: Plan,
        block: Block | None,
        *,
        read_only: bool,
        is_snapshot: bool = False,
    ) -> list[Result]:
        """Open a transaction, and the savepoints of the blocks that are open, in its first statements' round trip."""
        blocks = [] if block is None else block.with_parents()
        savepoints = [Statement(f"savepoint {name}", prepare=False) for one in blocks if (name := one.name_savepoint())]
        isolation = next((one.isolation for one in reversed(blocks) if one.isolation is not None), plan.isolation)
        if read_only and isolation is None:
            isolation = Isolation.REPEATABLE_READ
        opened = await cast("Executor", self._executor).begin(
            statements,
            deadline=plan.deadline,
            read_only=read_only,
            isolation=isolation,
            is_strong=plan.is_strong,
            savepoints=savepoints,
        )
        if is_snapshot:
            self._snapshot = opened.transaction
        else:
            self._transaction = opened.transaction
        if opened.error is not None:
            raise opened.error from opened.error.__cause__
        return opened.results

    async def stream_as(
        self,
        intent: AccessIntent | None,
        query: Query,
        params: Params | None,
        row_factory: RowFactory[Any] | None,
        size: int,
    ) -> AsyncIterator[Any]:
        """What `stream` is made of; with None, the intent is the one that holds here."""
        if size < 1:
            raise ValueError(f"size: {size!r} is not a positive number of rows")
        self.check_open()
        plan = self._current_plan()
        name = self.next_savepoint()
        declare = Statement.declare_cursor(name, query, params)
        fetch = Statement(f"fetch forward {size} from {name}", prepare=False)
        if intent is None:
            intent = plan.intent if plan.is_managed else AccessIntent.READ
        snapshot: Transaction | None = None
        if self.transaction_in_use is None and intent is AccessIntent.READ and not plan.read_only:
            async with self.lock_of(self.innermost_block()):
                self.check_open()
                await self._open((), plan, None, read_only=True, is_snapshot=True)
                snapshot = self._snapshot
        try:
            rows = (await self.run((declare, fetch), intent))[1].rows(row_factory)
            while True:
                for row in rows:
                    yield row
                if len(rows) < size:
                    break
                rows = (await self.run((fetch,), intent))[0].rows(row_factory)
            if snapshot is None:
                await self.run((Statement(f"close {name}", prepare=False),), intent)
        finally:
            if snapshot is not None:
                if self._snapshot is snapshot:
                    self._snapshot = None
                await snapshot.rollback("end of the stream")

    @asynccontextmanager
    async def _lend(self, intent: AccessIntent | None) -> AsyncGenerator[PsycopgConnection]:
        self.check_open()
        is_read = (intent or self._current_plan().intent) is AccessIntent.READ
        in_write = self._transaction is not None and not self._transaction.read_only
        # In a transaction that writes, READ ONLY needs a savepoint to end with.
        async with Block(self, read_only=is_read, isolation=None, takes_savepoint=is_read and in_write):
            await self.run((LOAN,), AccessIntent.READ if is_read else None)
            transaction = cast("Transaction", self.transaction_in_use)
            view = transaction.connection.view()
            try:
                yield view
            except BaseException:
                view.expire(_OUTLIVED)
                # What it has to say is in the way of nothing: the transaction says it to whoever goes on with it.
                with contextlib.suppress(DataError):
                    await transaction.take_back()
                raise
            view.expire(_OUTLIVED)
            await transaction.take_back()

    # -- the end

    async def _end_midway(self, *, commit: bool) -> None:
        self.check_open()
        if self.innermost_block() is not None:
            raise DataError(
                DataErrorKind.QUERY,
                "commit() and rollback() end the whole transaction; leave the transaction() block first",
            )
        if self._lock is not None:
            async with self._lock:
                self.check_open()
                await self.end_transaction(commit=commit, reason="rollback() was called")
        else:
            self._settle(self._take_hooks(), committed=commit)
        if not commit:
            self._rollback_reason = None
        await self.run_due_hooks()

    async def _finish(self, *, commit: bool, reason: str, deadline: float | None, hooks_since: int = 0) -> None:
        """End whatever is open; the caller holds the lock."""
        hooks = self._take_hooks(hooks_since)
        committed = False
        transaction, self._transaction = self._transaction, None
        try:
            try:
                await self.end_snapshot()
            except BaseException:
                if transaction is not None:
                    self._background.spawn(transaction.rollback("cancelled"))
                raise
            stopped_by = self._stopped_by
            if transaction is None:
                if commit and stopped_by is not None:
                    raise stopped_by
                committed = commit
                return
            loop = asyncio.get_running_loop()
            if commit and stopped_by is None and deadline is not None and loop.time() >= deadline:
                stopped_by = deadline_passed()
            if commit and stopped_by is not None:
                await transaction.rollback(stopped_by.kind.value)
                raise stopped_by
            if not commit:
                await transaction.rollback(self._rollback_reason or reason)
                return
            if self._rollback_reason is not None:
                await transaction.rollback(self._rollback_reason)
                raise unexpected_rollback(DataError(DataErrorKind.OTHER, self._rollback_reason))
            if deadline is None:
                deadline = loop.time() + self._policy.commit_timeout_s
            # From here on it is the commit's own task that knows what becomes of the hooks, whoever still waits for it.
            committing = self._committing = self._background.spawn(self._commit(transaction, hooks, deadline))
            hooks = []
            await asyncio.shield(committing)
        finally:
            self._settle(hooks, committed=committed)

    async def _commit(self, transaction: Transaction, hooks: WaitingHooks, deadline: float) -> None:
        committed: bool | None = None
        try:
            await transaction.commit(deadline=deadline, doubt_timeout_s=self._policy.doubt_timeout_s)
            committed = True
        except CommitUnknown:
            raise
        except DataError:
            committed = False
            raise
        finally:
            self._settle(hooks, committed=committed)
        if transaction.wal_position is not None:
            self.pin.lsn = transaction.wal_position

    def _unfinished(self) -> set[asyncio.Task[Any]]:
        """The tasks that still end the session, or a transaction of it."""
        ending = self._ending if self._state is SessionState.ENDING else None
        return {task for task in (ending, self._committing) if task is not None and not task.done()}

    def _take_hooks(self, since: int = 0) -> WaitingHooks:
        return [] if self._hooks is None else self._hooks.take(since)

    def _settle(self, hooks: WaitingHooks, *, committed: bool | None) -> None:
        if self._hooks is not None:
            self._hooks.settle(hooks, committed=committed)

    async def end_snapshot(self) -> None:
        """End the READ ONLY transaction of a block or a stream."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            await snapshot.rollback("end of the snapshot")

    async def _acquire_for_the_end(self, lock: asyncio.Lock, deadline: float | None, *, commit: bool) -> None:
        """Wait for the statement of another task of the request; bounded, for it may hang."""
        if not lock.locked():
            await lock.acquire()
            return
        loop = asyncio.get_running_loop()
        if self.innermost_block() is None:
            until = loop.time() + (self._policy.commit_timeout_s if commit else _ROLLBACK_WAIT_S)
            try:
                async with asyncio.timeout_at(until if deadline is None or not commit else deadline):
                    await lock.acquire()
                return
            except TimeoutError:
                raise DataError(
                    DataErrorKind.TIMEOUT,
                    "another task of the request still used the session when the response started; wait for it first",
                ) from None
        raise DataError(
            DataErrorKind.QUERY,
            "the response was started inside a transaction() or connection() block; leave the block first",
        )

    def _abandon(self) -> None:
        """Somebody else holds the lock for too long: take the connections away from under it."""
        for transaction in (self._transaction, self._snapshot):
            if transaction is not None and transaction.is_open:
                self._background.spawn(transaction.rollback("abandoned"))
        self._transaction = self._snapshot = None
        self._settle(self._take_hooks(), committed=False)

    def _add_hook(self, function: Hook, *, on_commit: bool) -> None:
        self.check_open()
        if self._hooks is None:
            self._hooks = Hooks()
        self._hooks.add(function, on_commit=on_commit)

    # -- what holds here

    def _endpoint_options(self) -> TransactionOptions | None:
        endpoint = None if self._scope is None else self._scope.get("endpoint")
        return None if endpoint is None else options_of(endpoint, self._method)

    def _current_plan(self) -> Plan:
        frame = current_frame.get()
        endpoint = None if self._scope is None else self._scope.get("endpoint")
        plan = self._plan
        if plan is None or self._plan_frame is not frame or self._plan_endpoint is not endpoint:
            plan = self._plan = make_plan(
                policy=self._policy,
                rule=self._rule,
                endpoint=self._endpoint_options(),
                frame=frame,
                method=self._method,
                started=self._started,
            )
            self._plan_frame, self._plan_endpoint = frame, endpoint
        return plan

    def _explain_read_only(self, statements: Sequence[Statement], error: DataError) -> DataError:
        what = telemetry.summarize(statements[0].text) if statements else "The statement"
        path = "" if self._scope is None else f" of {self._method} {self._scope.get('path', '')}"
        return DataError(
            DataErrorKind.READ_ONLY,
            f"{what} writes, but ran with read intent{path} and was refused. Annotate the route with @transactional"
            " (without read_only), or call it as db.write.execute(...)",
            sqlstate=error.sqlstate or "25006",
        )


_ROLLBACK_WAIT_S: Final = 5.0
"""Seconds that a rollback waits for a statement that has been stopped; then its connection is taken away."""

_OUTLIVED: Final = (
    "the borrowed connection was used after its `async with db.connection()` block; borrow it again, or use it inside"
)


class IntentView:
    """The statement methods of a session with the intent fixed: `db.read`, `db.write`."""

    __slots__ = ("_intent", "_session")

    def __init__(self, session: DataSession, intent: AccessIntent) -> None:
        self._session = session
        self._intent = intent

    async def execute(self, query: Query, params: Params | None = None) -> int:
        """`DataSession.execute` with this intent."""
        return (await self._session.run((Statement(query, params),), self._intent))[0].rowcount

    async def executemany(self, query: Query, params_seq: Iterable[Params]) -> int:
        """`DataSession.executemany` with this intent."""
        statements = [Statement(query, params) for params in params_seq]
        if not statements:
            return 0
        return sum(max(0, result.rowcount) for result in await self._session.run(statements, self._intent))

    @overload
    async def fetch_all(self, query: Query, params: Params | None = None) -> list[Row]: ...

    @overload
    async def fetch_all(self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]) -> list[T]: ...

    async def fetch_all(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> list[Any]:
        """`DataSession.fetch_all` with this intent."""
        return _with_rows(await self._session.run((Statement(query, params),), self._intent)).rows(row_factory)

    @overload
    async def fetch_one(self, query: Query, params: Params | None = None) -> Row | None: ...

    @overload
    async def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T]
    ) -> T | None: ...

    async def fetch_one(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Any | None:
        """`DataSession.fetch_one` with this intent."""
        return _with_rows(await self._session.run((Statement(query, params),), self._intent)).first(row_factory)

    async def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """`DataSession.fetch_value` with this intent."""
        return _with_rows(await self._session.run((Statement(query, params),), self._intent)).scalar()

    @overload
    def stream(self, query: Query, params: Params | None = None, *, size: int = ...) -> AsyncIterator[Row]: ...

    @overload
    def stream(
        self, query: Query, params: Params | None = None, *, row_factory: RowFactory[T], size: int = ...
    ) -> AsyncIterator[T]: ...

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        size: int = 500,
    ) -> AsyncIterator[Any]:
        """`DataSession.stream` with this intent."""
        return self._session.stream_as(self._intent, query, params, row_factory, size)


def _with_rows(results: Sequence[Result]) -> Result:
    """The one result, which has to be of a command that returns rows."""
    result = results[0]
    if not result.returns_rows:
        raise DataError(
            DataErrorKind.QUERY,
            f"{result.status_message or 'the statement'} returns no rows; use execute(), or add RETURNING",
        )
    return result


async def _nothing() -> None:
    """For a session that has ended already."""


def _closed() -> SessionClosed:
    return SessionClosed(
        "the session was used after its response had started: its transaction is over. In a background task, a"
        " streaming body or a task that outlives the request, open one of your own:"
        " `async with db.registry.session(tenant=db.tenant.name) as later:`"
    )


def deadline_passed() -> DataError:
    """The error of a request whose time is up."""
    return DataError(DataErrorKind.TIMEOUT, "the request's deadline has passed; nothing was committed")


def current_session() -> DataSession:
    """The session of the request, or of the `registry.session()` block, that runs here.

    Raises:
        DataError: QUERY: there is none.
    """
    runner = current_runner.get()
    if runner is None:
        raise DataError(
            DataErrorKind.QUERY,
            "no session here: call this inside a request behind DataSourceMiddleware, or inside"
            " `async with registry.session(tenant=...)`",
        )
    return cast("SessionHolder", runner).session


def _find_session(request: HTTPConnection | MutableMapping[str, Any]) -> DataSession:
    scope: MutableMapping[str, Any] = getattr(request, "scope", cast("MutableMapping[str, Any]", request))
    found = scope.get(SCOPE_KEY)
    if found is None:
        raise DataError(
            DataErrorKind.QUERY,
            "no session in this request: add DataSourceMiddleware to the application, or take the path out of"
            " `tenancy.exempt`",
        )
    db = cast("SessionHolder", found).session
    db.observe(scope)
    return db


if TYPE_CHECKING:

    def session(request: HTTPConnection | MutableMapping[str, Any]) -> DataSession:
        """The request's handle on its tenant's data; see below."""
        ...

else:
    # FastAPI hands in the request by this annotation: `Annotated[DataSession, Depends(session)]`.
    def session(request: HTTPConnection) -> DataSession:
        """The request's handle on its tenant's data.

        Args:
            request: A request or websocket of Starlette, FastAPI, Litestar or Quart, or the ASGI scope.

        Raises:
            DataError: QUERY: the middleware is missing, or the path is exempt.
        """
        return _find_session(request)
