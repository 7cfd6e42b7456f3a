"""`DataSession`: what a handler holds.

One object a request: it knows the tenant, what holds for each statement (`plan.py`), and the one transaction of the
request (`work.py`). The statements themselves run in `execution.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from . import loan, telemetry
from .background import BackgroundTasks
from .block import Block, BlockKind, current_block, isolation_refused
from .datasource import DataSource, DataSourceState
from .drivers.psycopg import Params, PsycopgConnection, Query, Result, RowFactory, Statement
from .errors import DataError, DataErrorKind, SessionClosed
from .execution import Executor
from .plan import NO_RULE, Plan, RouteRule, SessionPolicy, make_plan
from .router import Router
from .routing import AccessIntent, ReadAfterWritePin, Route
from .statements import StatementMethods
from .tenancy import Tenant
from .transaction import (
    Frame,
    Hook,
    Isolation,
    Transaction,
    TransactionOptions,
    current_frame,
    options_of,
    parse_isolation,
)
from .work import Work
from .writers import Writers

if TYPE_CHECKING:
    from .registry import DataSourceRegistry

R = TypeVar("R")


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


class DataSession(StatementMethods):
    """The request's handle on its tenant's data; get it with `session(request)`.

    Reads outside a transaction run READ ONLY on a replica, each in one round trip, and hold no connection in
    between. The first write opens the request's transaction on the primary; from then on everything runs in it. It
    is committed before the first byte of the response leaves, or rolled back. Afterwards the handle is dead:
    `SessionClosed`.

    Several tasks of one request may use it; their statements run one after the other.
    """

    __slots__ = (
        "_background",
        "_datasource",
        "_ending",
        "_executor",
        "_is_interrupted",
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
        "_started",
        "_state",
        "_tenant",
        "_verdict",
        "_work",
        "registry",
        "stopped_by",
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
        self._work: Work | None = None
        self._pin = pin
        self._ending: asyncio.Task[Any] | None = None
        self._savepoints = 0
        self._plan: Plan | None = None
        self._plan_frame: Frame | None = None
        self._plan_endpoint: object = None
        self._rollback_reason: str | None = None
        self._verdict: bool | None = None
        self.stopped_by: DataError | None = None
        """Why only the rollback is left, where that is so."""
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
        work = self._work
        return work is not None and work.transaction is not None and work.transaction.is_open

    def __repr__(self) -> str:
        transaction = None if self._work is None else self._work.transaction
        doing = "" if transaction is None else f" in {transaction!r}"
        return f"<DataSession {self._state.value} datasource={self._datasource.name!r}{doing}>"

    # -- statements

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
        return loan.lend(self, intent)

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
        self.check_open()
        self._make_work().add_hook(function, on_commit=True)

    def after_rollback(self, function: Hook) -> None:
        """Run a function once the transaction has been rolled back and the response has been handed over.

        When nobody could tell what became of the commit, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self.check_open()
        self._make_work().add_hook(function, on_commit=False)

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
        return self._work is None

    @property
    def is_at_rest(self) -> bool:
        """No transaction is open and no statement runs: it can be ended without a server."""
        return self._work is None or (self._work.transaction_in_use is None and not self._work.lock.locked())

    @property
    def scope(self) -> MutableMapping[str, Any] | None:
        """The innermost scope in which it was asked for; None outside requests."""
        return self._scope

    @property
    def has_due_hooks(self) -> bool:
        """Whether there is something for `run_due_hooks`."""
        work = self._work
        return work is not None and (
            work.has_due_hooks or self._state is SessionState.ENDING or bool(self._unfinished())
        )

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
        if self.stopped_by is None:
            self.stopped_by = error
        return self.stopped_by

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
            work = self._work
            if work is None or self._executor is None:
                if commit and self.stopped_by is not None:
                    raise self.stopped_by
                if work is not None:
                    work.settle(work.take_hooks(), committed=commit)
                return
            if not commit:
                # Whatever still runs is to be undone: there is no point in waiting for it.
                self.stop(_closed())
                self.interrupt()
            await self._acquire_for_the_end(work.lock, deadline, commit=commit)
            try:
                await work.finish(commit=commit, reason=reason, deadline=deadline)
            finally:
                work.lock.release()
        except BaseException:
            if self._work is not None:
                self._work.abandon()
            raise
        finally:
            self._state = SessionState.CLOSED
            if self._executor is not None:
                self._datasource.leave()

    async def run_due_hooks(self) -> None:
        """Run the hooks whose transaction has ended, each isolated from the others."""
        if self._work is not None:
            unfinished = self._unfinished()
            if unfinished:
                # Whoever asked for the end was cancelled meanwhile; the hooks hear of the truth all the same.
                await asyncio.wait(unfinished)
            await self._work.run_due_hooks()

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
        return None if self._work is None else self._work.transaction_in_use

    @property
    def is_writing(self) -> bool:
        """Whether a transaction that may write is open."""
        transaction = None if self._work is None else self._work.transaction
        return transaction is not None and not transaction.read_only

    @property
    def intent(self) -> AccessIntent:
        """What a statement wants here that says nothing itself."""
        return self._current_plan().intent

    @property
    def hook_count(self) -> int:
        """How many hooks wait for the end of the transaction."""
        return 0 if self._work is None else self._work.hook_count

    def check_open(self) -> None:
        """Refuse a handle that has outlived its request.

        Raises:
            SessionClosed: It has.
            DataError: The deadline has passed, or the client is gone.
        """
        if self._state is not SessionState.OPEN:
            raise _closed()
        if self.stopped_by is not None:
            raise self.stopped_by

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
        if self._executor is None:
            self._start()
        return cast("Work", self._work).lock

    def next_savepoint(self) -> str:
        """A name for a savepoint, new in this session."""
        self._savepoints += 1
        return f"ads_{self._savepoints}"

    def undo_hooks(self, since: int) -> None:
        """A block was undone: what it wanted to run after its commit never runs."""
        if self._work is not None:
            self._work.settle(self._work.take_hooks(since), committed=False)

    async def end_snapshot(self) -> None:
        """End the READ ONLY transaction of a block."""
        if self._work is not None:
            await self._work.end_snapshot()

    def spoil(self, reason: str) -> None:
        """Leave only rollback for the transaction that is open."""
        transaction = None if self._work is None else self._work.transaction
        if transaction is not None and transaction.is_open:
            transaction.doom(DataError(DataErrorKind.QUERY, reason))

    async def end_transaction(self, *, commit: bool, reason: str, hooks_since: int = 0) -> None:
        """End the transaction that a block has opened; the block holds the lock."""
        if self._work is not None:
            await self._work.finish(commit=commit, reason=reason, deadline=self.deadline(), hooks_since=hooks_since)

    async def begin_stream(self, intent: AccessIntent | None) -> tuple[AccessIntent, Transaction | None]:
        """What a cursor runs in: the transaction around it, or a snapshot of its own.

        Returns:
            The intent of its statements, and the snapshot where it has one.
        """
        plan = self._current_plan()
        if intent is None:
            intent = plan.intent if plan.is_managed else AccessIntent.READ
        if self.transaction_in_use is not None or intent is not AccessIntent.READ or plan.read_only:
            return intent, None
        async with self.lock_of(self.innermost_block()):
            self.check_open()
            await self._open((), plan, None, read_only=True, is_snapshot=True)
            return intent, cast("Work", self._work).snapshot

    async def end_stream(self, snapshot: Transaction) -> None:
        """The iteration has ended, and its snapshot with it."""
        work = self._work
        if work is not None and work.snapshot is snapshot:
            work.snapshot = None
        await snapshot.rollback("end of the stream")

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
                if self._is_interrupted and task is not None and self.stopped_by is not None:
                    self._is_interrupted = False
                    if task.uncancel() == 0:
                        raise self.stopped_by from None
                raise
            except DataError as error:
                if error.kind is DataErrorKind.READ_ONLY:
                    raise self._explain_read_only(statements, error) from error.__cause__
                raise
            finally:
                self._running = None

    def iterate(
        self, query: Query, params: Params | None, row_factory: RowFactory[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        """What `stream` is made of."""
        return loan.stream(self, None, query, params, row_factory, size)

    def _make_work(self) -> Work:
        if self._work is None:
            self._work = Work(self, self._policy, self._background)
        return self._work

    def _start(self) -> None:
        self.check_open()
        if self._datasource.state is DataSourceState.LEFT:
            # The configuration was loaded anew since the request began, which had no use for its datasource yet.
            self._datasource = self.registry.successor(self._datasource)
        self._datasource.enter()
        self._make_work()
        policy = self._policy
        is_traced = policy.is_traced and telemetry.is_recording()
        self._executor = Executor(
            Router(self._datasource, self._tenant, self.pin, is_traced=is_traced, shows_tenant=policy.shows_tenant),
            self._tenant,
            self._background,
            is_traced=is_traced,
            traces_statements=policy.traces_statements,
        )
        if self._owner is not None:
            self._owner.first_statement(self)

    async def _dispatch(self, statements: Sequence[Statement], intent: AccessIntent, plan: Plan) -> list[Result]:
        if plan.read_only and intent is AccessIntent.WRITE:
            raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
        if intent is AccessIntent.WRITE:
            self._tenant.check_writable()
        executor = cast("Executor", self._executor)
        block = self.innermost_block()
        work = cast("Work", self._work)
        transaction = work.transaction
        if transaction is None and work.snapshot is not None:
            if intent is AccessIntent.WRITE:
                raise DataError(
                    DataErrorKind.QUERY,
                    "a write was sent while a read-only block or a stream holds a replica; end that first, or put"
                    " `async with db.transaction():` around both, so that they share one connection",
                )
            transaction = work.snapshot
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
            return await executor.read(statements, deadline=plan.deadline, freshness=plan.freshness)
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
            await work.finish(
                commit=committed,
                reason="the statement failed",
                deadline=plan.deadline,
                # Those that wait here wait for the end of the session.
                hooks_since=work.hook_count,
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
            freshness=plan.freshness,
            savepoints=savepoints,
        )
        work = cast("Work", self._work)
        if is_snapshot:
            work.snapshot = opened.transaction
        else:
            work.transaction = opened.transaction
        if opened.error is not None:
            raise opened.error from opened.error.__cause__
        return opened.results

    # -- the end

    async def _end_midway(self, *, commit: bool) -> None:
        self.check_open()
        if self.innermost_block() is not None:
            raise DataError(
                DataErrorKind.QUERY,
                "commit() and rollback() end the whole transaction; leave the transaction() block first",
            )
        work = self._work
        if work is not None and self._executor is not None:
            async with work.lock:
                self.check_open()
                await self.end_transaction(commit=commit, reason="rollback() was called")
        elif work is not None:
            work.settle(work.take_hooks(), committed=commit)
        if not commit:
            self._rollback_reason = None
        await self.run_due_hooks()

    def _unfinished(self) -> set[asyncio.Task[Any]]:
        """The tasks that still end the session, or a transaction of it."""
        ending = self._ending if self._state is SessionState.ENDING else None
        committing = None if self._work is None else self._work.committing
        return {task for task in (ending, committing) if task is not None and not task.done()}

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


class IntentView(StatementMethods):
    """The statement methods of a session with the intent fixed: `db.read`, `db.write`."""

    __slots__ = ("_intent", "_session")

    def __init__(self, session: DataSession, intent: AccessIntent) -> None:
        self._session = session
        self._intent = intent

    def run(self, statements: Sequence[Statement]) -> Coroutine[Any, Any, list[Result]]:
        """Run statements in one round trip."""
        return self._session.run(statements, self._intent)

    def iterate(
        self, query: Query, params: Params | None, row_factory: RowFactory[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        """What `stream` is made of."""
        return loan.stream(self._session, self._intent, query, params, row_factory, size)


async def _nothing() -> None:
    """For a session that has ended already."""


def _closed() -> SessionClosed:
    return SessionClosed(
        "the session was used after its response had started: its transaction is over. In a background task, a"
        " streaming body or a task that outlives the request, open one of your own:"
        " `async with db.registry.session(tenant=db.tenant.name) as later:`"
    )
