"""`DataSession`: what a handler holds.

One object a request: it knows the tenant, what holds for each statement (`plan.py`), and the one transaction of the
request (`work.py`). The statements themselves run in `execution.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from starlette.exceptions import HTTPException

from ..concurrency.shared_lock import SharedLock
from ..concurrency.tasks import BackgroundTasks
from ..datasource.datasource import DataSource, DataSourceState
from ..datasource.executor import Executor
from ..datasource.router import Router
from ..drivers.psycopg import Params, PsycopgServer, Query, RawConnection, Result, RowFactory, Statement
from ..errors import DataError, DataErrorKind, SessionClosed
from ..observability import tracing
from ..routing import AccessIntent, ReadAfterWritePin, Route
from ..routing.consistency.client_history import ClientHistory
from ..routing.consistency.token import Token, scope_of
from ..tenancy import Tenant
from ..transaction import (
    DueHooks,
    Hook,
    HookEvent,
    Isolation,
    Propagation,
    SurroundingTransaction,
    Terms,
    Transaction,
    TransactionOptions,
    is_conflict,
    parse_isolation,
)
from . import raw_connection, transactional_call
from .advisory_lock import LockKey, take_lock
from .context import Frame, current_frame, current_runner
from .decorator import options_of
from .dispatch import dispatch, open_transaction
from .policy import NO_RULE, Plan, RouteRule, SessionPolicy, make_plan, timeout_of
from .statement_api import StatementMethods
from .transaction_block import TransactionBlock, current_block
from .unit_of_work import UnitOfWork
from .writers import Writers

if TYPE_CHECKING:
    from ..registry.registry import DataSourceRegistry

R = TypeVar("R")

Snapshot = tuple[UnitOfWork, Transaction]
"""What a stream reads from, and what that belongs to."""


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
        "_conflict",
        "_datasource",
        "_ending",
        "_executor",
        "_interrupted",
        "_method",
        "_owner",
        "_pin",
        "_plan",
        "_plan_endpoint",
        "_plan_frame",
        "_policy",
        "_rule",
        "_running",
        "_savepoints",
        "_scope",
        "_started",
        "_state",
        "_tenant",
        "_token",
        "_turns",
        "_verdict",
        "_work",
        "commits",
        "committing",
        "due_hooks",
        "is_in_route",
        "past",
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
        token: Token | None = None,
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
        self._turns: SharedLock | None = None
        self._work: UnitOfWork | None = None
        self._pin = pin
        self._ending: asyncio.Task[Any] | None = None
        self._savepoints = 0
        self._plan: Plan | None = None
        self._plan_frame: Frame | None = None
        self._plan_endpoint: object = None
        self._verdict: bool | None = None
        self._running: set[asyncio.Task[Any] | None] = _NO_TASKS
        self._interrupted: set[asyncio.Task[Any] | None] = _NO_TASKS
        self.stopped_by: DataError | None = None
        """Why only the rollback is left, where that is so."""
        self.committing: set[asyncio.Task[None]] = _NO_COMMITS
        """Commits that are still on their way, whoever waits for them."""
        self.due_hooks: DueHooks = _NO_HOOKS
        """The hooks whose transaction has ended."""
        self._conflict: DataError | None = None
        self.is_in_route = False
        """Whether the matched endpoint runs."""
        self.past: ClientHistory | None = None
        """What its client has seen; None before the first statement, and where nobody looks at that."""
        self._token = token
        self.commits = 0
        """How often something was committed, or may have been."""

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
    def token(self) -> str | None:
        """All that its client has seen, for another service or `registry.session(token=...)` to see no less.

        None where the configuration has no tokens, and before the first statement.
        """
        tokens = self._policy.tokens
        return None if tokens is None or self.past is None else tokens.signer.sign(self.past.whole())

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
        transaction = self.current_transaction
        return transaction is not None and transaction.is_open

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

    def connection(self, intent: AccessIntent | None = None) -> AbstractAsyncContextManager[RawConnection]:
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
        return raw_connection.lend(self, intent)

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
        options = TransactionOptions(
            read_only=read_only, isolation=parse_isolation(isolation), propagation=Propagation.NESTED
        )
        return TransactionBlock(self, options)

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

    async def lock(self, key: LockKey, *, timeout: float | None = None) -> None:
        """Take an advisory lock until the transaction ends: whoever else asks for the same key waits that long.

        In one round trip, and without a row to lock. A savepoint that is rolled back gives back what it has taken.

        Args:
            key: A name, which is the tenant's own; or one or two integers as `pg_advisory_xact_lock` takes them, which
                are the database's.
            timeout: Seconds to wait; 0 fails at once, None waits until the deadline.

        Raises:
            DataError: CONFLICT (55P03): it was not to be had in time; the transaction goes on as it was.
                QUERY: there is no transaction that it could last as long as.
        """
        await take_lock(self, key, timeout)

    def set_rollback_only(self, reason: str) -> None:
        """Decide that the transaction is rolled back, whatever the response says; the response itself stays.

        Args:
            reason: Why; it stands on the ROLLBACK's span.
        """
        self.check_open()
        self._make_work_here().rollback_reason = reason
        self.note_event(tracing.DOOMED, {tracing.ROLLBACK_REASON: reason})

    def before_commit(self, function: Hook) -> None:
        """Run a function inside the transaction, right before it is committed; what it raises fails the request.

        It may run statements and add hooks. When the transaction is rolled back, it does not run.

        Args:
            function: Sync or async, without arguments.
        """
        self._add_hook(HookEvent.BEFORE_COMMIT, function)

    def after_commit(self, function: Hook) -> None:
        """Run a function once the transaction is known to be committed and the response has been handed over.

        When nobody could tell what became of the commit, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self._add_hook(HookEvent.AFTER_COMMIT, function)

    def after_rollback(self, function: Hook) -> None:
        """Run a function once the transaction has been rolled back and the response has been handed over.

        When nobody could tell what became of the commit, it does not run.

        Args:
            function: Sync or async, without arguments. Its failure is logged and changes nothing.
        """
        self._add_hook(HookEvent.AFTER_ROLLBACK, function)

    # -- annotations

    def run_annotated(self, options: TransactionOptions, invoke: Callable[[], Awaitable[R]]) -> Awaitable[R]:
        """Run an annotated function in the transaction that it asks for."""
        return transactional_call.run(self, options, invoke)

    def run_annotated_sync(self, options: TransactionOptions, invoke: Callable[[], R]) -> R:
        """Run an annotated function that is not async; it can only use what is around it."""
        return transactional_call.run_sync(self, options, invoke)

    def enter(self, options: TransactionOptions) -> AbstractAsyncContextManager[DataSession]:
        """The block of `async with transactional(...)`."""
        return transactional_call.block(self, options)

    def is_route(self, options: TransactionOptions) -> bool:
        """Whether these options are the matched endpoint's own."""
        return options is self._endpoint_options()

    def note_failure(self, options: TransactionOptions, error: BaseException) -> None:
        """An exception leaves the route: its annotation may name the exception.

        A handler of the application may turn the exception into a response, whose status then says nothing about it.
        """
        self._verdict = options.decides(error)

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
        """No transaction is open and no statement or commit runs: it can be ended without a server."""
        if self._work is None:
            return True
        is_idle = self._work.transaction_in_use is None and not self.committing
        return is_idle and (self._turns is None or not self._turns.is_taken)

    @property
    def scope(self) -> MutableMapping[str, Any] | None:
        """The innermost scope in which it was asked for; None outside requests."""
        return self._scope

    @property
    def has_due_hooks(self) -> bool:
        """Whether there is something for `run_due_hooks`."""
        return self._work is not None and bool(
            self.due_hooks or self._state is SessionState.ENDING or self._unfinished()
        )

    @property
    def rollback_reason(self) -> str | None:
        """What `set_rollback_only` was told; None where only the outcome decides."""
        work = self._work_here()
        return None if work is None else work.rollback_reason

    @property
    def lost_by(self) -> DataError | None:
        """What its transaction, or another part of it, has lost against another one by; None where nothing has."""
        transaction = self.current_transaction
        if transaction is not None and is_conflict(transaction.failure):
            return transaction.failure
        work = self._work_here()
        return self._conflict if work is None else work.lost_by or self._conflict

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
        if self._interrupted:
            return True
        if not self._running:
            return False
        self._interrupted = set(self._running)
        for task in self._interrupted:
            if task is not None:
                task.cancel()
        return True

    def commits_on(self, status: int) -> bool:
        """Whether a response of this status commits.

        An exception that the route's annotation names decides; then the status by the annotation, by the rule, by the
        default.
        """
        if self.rollback_reason is not None:
            return False
        if self._verdict is not None:
            return self._verdict
        return self._commits_by_status(status, self._endpoint_options())

    def _commits_by_status(self, status: int, options: TransactionOptions | None) -> bool:
        for layer in (options, self._rule.options):
            if layer is not None and (verdict := layer.commits(status)) is not None:
                return verdict
        return status not in self._policy.rollback_on.statuses

    def tolerates(self, error: BaseException, options: TransactionOptions) -> bool:
        """Whether an exception is only a way to respond, of a status that commits: a redirect."""
        return isinstance(error, HTTPException) and self._commits_by_status(error.status_code, options)

    def outlives_start(self, status: int) -> bool:
        """Whether a response of this status may start while the snapshot of its route is still open."""
        route = self._endpoint_options() or self._rule.options
        return route is not None and route.stream and self._state is SessionState.OPEN and self.commits_on(status)

    async def open_for_token(self) -> None:
        """Open the snapshot of a response's body before the response starts, where its token has to tell of it.

        Raises:
            DataError: It could not be opened.
        """
        tokens = self._policy.tokens
        if tokens is None or self.transaction_in_use is not None:
            return
        if ClientHistory(tokens, b"").is_monotonic(self._current_plan().freshness):
            await self.run(())

    @property
    def retries(self) -> int:
        """How often the request is run again when it has lost against another one."""
        layers = (layer.retry for layer in (self._endpoint_options(), self._rule.options) if layer is not None)
        return next((retry for retry in layers if retry is not None), self._policy.retry)

    def commits_after(self, error: BaseException) -> bool:
        """Whether the transaction is committed although this exception came out of the application."""
        options = self._endpoint_options()
        return self.rollback_reason is None and options is not None and options.decides(error) is True

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

    def end_idle(self) -> bool:
        """End a session that has nothing to commit, to roll back or to tell: one that has only read.

        Returns:
            Whether that was so; otherwise nothing has changed.
        """
        work, turns = self._work, self._turns
        if (
            work is None
            or turns is None
            or turns.is_taken
            or self.committing
            or self._state is not SessionState.OPEN
            or self.stopped_by is not None
            or self._conflict is not None
            or not work.is_idle
        ):
            return False
        self._state = SessionState.CLOSED
        self._datasource.leave()
        return True

    def end(self, *, commit: bool, reason: str, is_apart: bool = False) -> Coroutine[Any, Any, None]:
        """End the session and its transaction; whatever uses it from this call on gets `SessionClosed`.

        Args:
            commit: Commit; otherwise roll back.
            reason: Why it is rolled back, for the span.
            is_apart: It is awaited in a task of the library's own, where no cancellation but shutdown's reaches it.

        Returns:
            What has to be awaited, here or in another task.

        Raises:
            DataError: It was to be committed and was not (for CommitUnknown: nobody could tell).
        """
        if self._state is not SessionState.OPEN:
            return _nothing()
        deadline = self.deadline()
        self._state = SessionState.ENDING
        return self._end(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart)

    async def complete(self) -> None:
        """End the session after all went well: commit, unless `set_rollback_only` was called.

        Raises:
            DataError: Nothing was committed (for CommitUnknown: nobody could tell).
            Exception: What a hook before the commit has raised.
        """
        try:
            await self.run_before_commit()
        except BaseException as error:
            await self._background.run(self.end(commit=False, reason=type(error).__name__))
            raise
        await self.end(commit=self.rollback_reason is None, reason="end of the block")

    @property
    def has_hooks_before_commit(self) -> bool:
        """Whether there is something for `run_before_commit`."""
        work = self._work_here()
        return work is not None and work.has_hooks_before_commit

    async def run_before_commit(self) -> None:
        """Run the hooks that come before the commit; what one raises goes to the caller."""
        work = self._work_here()
        if work is not None:
            await work.run_before_commit()

    async def _end(self, *, commit: bool, reason: str, deadline: float | None, is_apart: bool) -> None:
        self._ending = asyncio.current_task()
        try:
            work, turns = self._work, self._turns
            if work is None or turns is None:
                if commit and self.stopped_by is not None:
                    raise self.stopped_by
                if work is not None:
                    await work.finish(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart)
                return
            if not commit:
                # Whatever still runs is to be undone: there is no point in waiting for it.
                self.stop(_closed())
                self.interrupt()
            await self._take_for_the_end(turns, deadline, commit=commit)
            try:
                if self.committing:
                    # Whoever has asked for these was cancelled; what they have come to is known before anything leaves.
                    await asyncio.wait(self.committing)
                # Another task's block may have been in front of it until now.
                work = cast("UnitOfWork", self._work)
                await work.finish(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart)
            finally:
                turns.leave()
        except BaseException:
            work = self._work
            while work is not None:
                work.abandon()
                work = work.outer
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
            if self.due_hooks:
                # They know whose they are, also where the call that has added them is over.
                token = current_runner.set(self)
                try:
                    await self.due_hooks.run(is_traced=self._policy.is_traced)
                finally:
                    current_runner.reset(token)

    def let_go(self) -> None:
        """All is over: part from whatever knows the session in turn; what still ends it needs that.

        Otherwise each request leaves a cycle behind, and the garbage collector stops every request that runs for as
        long as it takes to look for them.
        """
        if self._state is SessionState.CLOSED and not self._unfinished():
            self._conflict = self.lost_by
            self._work = self._turns = self._owner = self._scope = self._ending = self.writers = None

    # -- for blocks

    @property
    def is_open(self) -> bool:
        """Whether it may still be used."""
        return self._state is SessionState.OPEN

    @property
    def current_transaction(self) -> Transaction | None:
        """The transaction around the running task that is open, or has failed and waits for its end."""
        work = self._work_here()
        return None if work is None else work.transaction

    @property
    def transaction_in_use(self) -> Transaction | None:
        """The transaction that statements run in; that of a stream counts."""
        return None if self._work is None else self._work.transaction_in_use

    @property
    def isolation(self) -> Isolation | None:
        """The isolation of the transaction around, as far as that is settled."""
        transaction = self.current_transaction
        if transaction is not None:
            return transaction.isolation
        terms = self._terms()
        return Isolation.REPEATABLE_READ if terms.read_only and terms.isolation is None else terms.isolation

    @property
    def is_isolation_settled(self) -> bool:
        """Whether it is too late for another isolation: the transaction around is open."""
        return self.current_transaction is not None

    def adopt_isolation(self, isolation: Isolation) -> None:
        """The transaction around has none of its own: it takes that of who has joined it."""
        if self.current_transaction is None:
            self._make_work_here().terms = replace(self._terms(), isolation=isolation)

    def around(self) -> SurroundingTransaction:
        """What surrounds a place in the code that asks for a transaction."""
        frame = current_frame.get()
        work = self._work_here()
        plan = self._current_plan()
        terms = self._terms()
        if frame is not None and frame.is_transactional and frame.reads_only:
            return SurroundingTransaction.READ_ONLY
        if work is not None and work.transaction is not None:
            return SurroundingTransaction.READ_ONLY if work.transaction.read_only else SurroundingTransaction.OPEN
        if not terms.is_shared:
            return SurroundingTransaction.NOTHING
        if terms.read_only:
            return SurroundingTransaction.READ_ONLY
        if terms.opens_with_reads:
            return SurroundingTransaction.OPEN
        is_demanded = plan.is_demanded or (work is not None and work.outer is not None)
        return SurroundingTransaction.PENDING if is_demanded else SurroundingTransaction.OFFERED

    def with_route(self, terms: Terms) -> Terms:
        """The terms of a block with a transaction of its own in a route without one: it inherits the annotation."""
        route = self._current_plan().terms
        if not route.read_only and (route.isolation is None or terms.isolation is not None):
            return terms
        return replace(
            terms,
            read_only=terms.read_only or route.read_only,
            isolation=terms.isolation or route.isolation,
            deferrable=terms.deferrable or route.deferrable,
        )

    def block_deadline(self) -> float | None:
        """Event-loop time until which such a block has time, where the request as a whole has no limit."""
        if self._started is not None:
            return None
        timeout_s = timeout_of(self._policy, self._rule, self._endpoint_options())
        return None if timeout_s is None else time.monotonic() + timeout_s

    def doom(self, error: BaseException) -> None:
        """Leave the transaction around, or its innermost savepoint, nothing but a rollback; its commit fails."""
        if isinstance(error, DataError):
            reason = error
        else:
            what = f"{type(error).__name__} left a function that had joined the transaction"
            reason = DataError(DataErrorKind.OTHER, what)
            reason.__cause__ = error
        block = self.innermost_block()
        if block is None or not block.doom(reason):
            work = self._make_work_here()
            work.doomed_by = work.doomed_by or reason
        self.note_event(tracing.DOOMED, {tracing.ROLLBACK_REASON: type(error).__name__})

    def suspend(self, terms: Terms) -> UnitOfWork:
        """Begin something beside the transaction around, which waits; the caller has the session to itself."""
        outer = self.make_work()
        work = self._work = UnitOfWork(self, self._policy, self._background, terms=terms, outer=outer)
        self._note_held()
        return work

    def resume(self, work: UnitOfWork) -> None:
        """What was around a block goes on; what is left in front of that is rolled back."""
        inner = self._work
        if inner is work:
            return
        while inner is not None and inner is not work:
            # Something is left where it was cancelled before it could end anything.
            inner.abandon()
            self._conflict = inner.lost_by
            inner = inner.outer
        self._work = inner
        self._note_held()

    def _note_held(self) -> None:
        held: list[PsycopgServer] = []
        work = None if self._work is None else self._work.outer
        while work is not None:
            if work.transaction_in_use is not None:
                held.append(work.transaction_in_use.endpoint)
            work = work.outer
        cast("Executor", self._executor).router.held = tuple(held)

    def note_event(self, name: str, attributes: Mapping[str, tracing.AttributeValue]) -> None:
        """Tell the current span about it."""
        if self._policy.is_traced:
            tracing.add_event(name, attributes)

    @property
    def is_writing(self) -> bool:
        """Whether a transaction that may write is open."""
        transaction = self.current_transaction
        return transaction is not None and not transaction.read_only

    @property
    def intent(self) -> AccessIntent:
        """What a statement wants here that says nothing itself."""
        return self._current_plan().intent

    def check_open(self) -> None:
        """Refuse a handle that has outlived its request.

        Raises:
            SessionClosed: It has.
            DataError: The deadline has passed, or the client is gone.
        """
        if self._state is not SessionState.OPEN:
            if self._policy.metrics is not None:
                self._policy.metrics.measure(self._tenant.name).used_late(self._datasource.name)
            raise _closed()
        if self.stopped_by is not None:
            raise self.stopped_by

    def innermost_block(self) -> TransactionBlock | None:
        """The innermost open block of this session that the running task belongs to."""
        block = current_block.get()
        while block is not None and not (block.is_open and block.belongs_to(self)):
            block = block.parent
        return block

    def turns_of(self, block: TransactionBlock | None) -> SharedLock:
        """What serialises the statements of a block; without one, those of the session."""
        if block is not None:
            return block.turns
        if self._turns is None:
            self._start()
        return cast("SharedLock", self._turns)

    async def take_turn(self, *, may_share: bool = False) -> tuple[TransactionBlock | None, SharedLock]:
        """Wait until it is the running task's turn.

        Args:
            may_share: Others who may share can have their turn at the same time.

        Returns:
            The innermost block around it, and what it has to leave in the end.
        """
        while True:
            block = self.innermost_block()
            turns = self.turns_of(block)
            if turns.take(may_share=may_share):
                return block, turns
            await turns.wait(may_share=may_share)
            if block is None or block.is_open:
                return block, turns
            # It has ended meanwhile: what goes on is what was around it.
            turns.leave()

    def next_savepoint(self) -> str:
        """A name for a savepoint, new in this session."""
        self._savepoints += 1
        return f"ads_{self._savepoints}"

    def undo_hooks(self, block: TransactionBlock) -> None:
        """A block was undone: what it wanted to run after its commit never runs."""
        if block.work is not None:
            block.work.settle(committed=False, within=block)

    def spoil(self, reason: str) -> None:
        """Leave only rollback for the transaction that is open."""
        transaction = self.current_transaction
        if transaction is not None and transaction.is_open:
            transaction.doom(DataError(DataErrorKind.QUERY, reason))

    async def begin_stream(self, intent: AccessIntent | None) -> tuple[AccessIntent, Snapshot | None]:
        """What a cursor runs in: the transaction around it, or a snapshot of its own.

        Returns:
            The intent of its statements, and the snapshot where it reads from one, for `end_stream`.
        """
        plan, terms = self._current_plan(), self._terms()
        if intent is None:
            intent = plan.intent if terms.is_shared else AccessIntent.READ
        if intent is not AccessIntent.READ or terms.opens_with_reads:
            return intent, None
        block, turns = await self.take_turn()
        try:
            self.check_open()
            if block is not None:
                block.check_surroundings()
            work, executor = self.make_work(), cast("Executor", self._executor)
            if work.transaction is not None:
                return intent, None
            if work.snapshot is None:
                await open_transaction(work, executor, (), plan, _SNAPSHOT, None, is_snapshot=True)
            work.streams += 1
            return intent, (work, cast("Transaction", work.snapshot))
        finally:
            turns.leave()

    async def end_stream(self, snapshot: Snapshot) -> None:
        """The iteration has ended, and its snapshot with the last one that reads from it."""
        work, transaction = snapshot
        if work.snapshot is not transaction:
            # It has ended before.
            return
        work.streams -= 1
        if work.streams > 0:
            return
        try:
            # An iterator that was left behind is closed by the event loop, whenever it is found: the session may be in
            # the middle of another statement on the same connection.
            _, turns = await self.take_turn()
        except BaseException:
            if work.snapshot is transaction and work.streams == 0:
                work.snapshot = None
                self._background.spawn(transaction.rollback("cancelled"))
            raise
        try:
            # Another one may have begun meanwhile.
            if work.snapshot is transaction and work.streams == 0:
                await work.end_snapshot()
        finally:
            turns.leave()

    # -- inside

    async def run(self, statements: Sequence[Statement], intent: AccessIntent | None = None) -> list[Result]:
        """Run statements in one round trip: what `execute`, `fetch_all` and the others are made of.

        Args:
            statements: What to run.
            intent: None takes what holds here.
        """
        self.check_open()
        block = self.innermost_block()
        turns = self.turns_of(block)
        may_share = turns.can_be_shared and self._may_share(intent)
        if not turns.take(may_share=may_share):
            block, turns = await self.take_turn(may_share=may_share)
        task = asyncio.current_task()
        try:
            # Second check: the session may have ended while this task waited for its turn.
            self.check_open()
            if block is not None:
                block.check_surroundings()
            plan = self._current_plan()
            self._running.add(task)
            work, executor = cast("UnitOfWork", self._work), cast("Executor", self._executor)
            return await dispatch(work, executor, statements, intent or plan.intent, plan, block)
        except asyncio.CancelledError:
            is_ours = task is not None and task in self._interrupted and task.uncancel() == 0
            if is_ours and self.stopped_by is not None:
                raise self.stopped_by from None
            raise
        except DataError as error:
            if is_conflict(error) and self.current_transaction is None:
                # No transaction that goes on remembers it.
                self._conflict = error
            if error.kind is DataErrorKind.TENANT:
                self._tenant.note_failure(error)
            if error.kind is DataErrorKind.READ_ONLY:
                raise self._explain_read_only(statements, error) from error.__cause__
            raise
        finally:
            self._running.discard(task)
            if self._interrupted:
                self._interrupted.discard(task)
            turns.leave()

    def _may_share(self, intent: AccessIntent | None) -> bool:
        """Whether a statement is a read outside of a transaction, which others may run beside."""
        plan = self._current_plan()
        return (intent or plan.intent) is AccessIntent.READ and not self._terms().opens_with_reads

    def _is_in_use(self) -> bool:
        return self.transaction_in_use is not None

    def about_to_write(self) -> None:
        """A statement with write intent is about to open a transaction."""
        self._tenant.check_writable()
        if self.writers is not None:
            self.writers.claim(self)

    def iterate(
        self, query: Query, params: Params | None, row_factory: RowFactory[Any] | None, size: int
    ) -> AsyncIterator[Any]:
        """What `stream` is made of."""
        return raw_connection.stream(self, None, query, params, row_factory, size)

    def make_work(self) -> UnitOfWork:
        """What is under way; made when it is first asked for."""
        if self._work is None:
            self.due_hooks = DueHooks()
            self._work = UnitOfWork(self, self._policy, self._background)
        return self._work

    def _terms(self) -> Terms:
        work = self._work_here()
        return (None if work is None else work.terms) or self._current_plan().terms

    def _work_here(self) -> UnitOfWork | None:
        """What the running task's statements belong to: not what another task's block has put in front of that."""
        work = self._work
        if work is None or work.outer is None:
            return work
        block = self.innermost_block()
        if block is not None:
            return block.work
        root = work
        while (outer := root.outer) is not None:
            root = outer
        return root

    def _make_work_here(self) -> UnitOfWork:
        return self._work_here() or self.make_work()

    def _add_hook(self, event: HookEvent, function: Hook) -> None:
        self.check_open()
        self._make_work_here().add_hook(event, function, self.innermost_block())

    def _start(self) -> None:
        self.check_open()
        if self._datasource.state is DataSourceState.LEFT:
            # The configuration was loaded anew since the request began, which had no use for its datasource yet.
            self._datasource = self.registry.successor(self._datasource)
        self._datasource.enter(self._rule.priority)
        self.make_work()
        self._running, self.committing = set(), set()
        self._turns = SharedLock(self._policy.max_parallel, self._is_in_use)
        policy = self._policy
        is_traced = policy.is_traced and tracing.is_recording()
        measure = None if policy.metrics is None else policy.metrics.measure(self._tenant.name)
        self._executor = Executor(
            Router(
                self._datasource,
                self._tenant,
                self.pin,
                past=self._make_past(),
                priority=self._rule.priority,
                is_traced=is_traced,
                shows_tenant=policy.shows_tenant,
                measure=measure,
            ),
            self._tenant,
            self._background,
            is_traced=is_traced,
            traces_statements=policy.traces_statements,
            measure=measure,
        )
        if self._owner is not None:
            self._owner.first_statement(self)

    def _make_past(self) -> ClientHistory | None:
        """What its client has seen before, where that is looked at."""
        tokens = self._policy.tokens
        if tokens is None:
            return None
        carried = self._token
        if carried is None:
            texts = () if self._scope is None else tokens.carrier.find(self._scope)
            carried = tokens.signer.read(texts, now=time.time())
        self.past = ClientHistory(tokens, scope_of(self._tenant.name, self._datasource.name), carried)
        return self.past

    # -- the end

    async def _end_midway(self, *, commit: bool) -> None:
        self.check_open()
        if self.innermost_block() is not None:
            raise DataError(
                DataErrorKind.QUERY,
                "commit() and rollback() end the whole transaction; leave the transaction() block first",
            )
        work, turns = self._work_here(), self._turns
        if work is not None:
            if commit:
                await work.run_before_commit()
            if turns is not None:
                await turns.wait()
            try:
                self.check_open()
                await work.finish(commit=commit, reason="rollback() was called", deadline=self.deadline())
            finally:
                if turns is not None:
                    turns.leave()
            if not commit:
                work.rollback_reason = work.doomed_by = work.lost_by = None
        await self.run_due_hooks()

    def _unfinished(self) -> set[asyncio.Task[Any]]:
        """The tasks that still end the session, or a transaction of it."""
        ending = self._ending if self._state is SessionState.ENDING else None
        return {task for task in (ending, *self.committing) if task is not None and not task.done()}

    async def _take_for_the_end(self, turns: SharedLock, deadline: float | None, *, commit: bool) -> None:
        """Wait for the statement of another task of the request; bounded, for it may hang."""
        if turns.take():
            return
        loop = asyncio.get_running_loop()
        if self.innermost_block() is None:
            until = loop.time() + (self._policy.commit_timeout_s if commit else _ROLLBACK_WAIT_S)
            try:
                async with asyncio.timeout_at(until if deadline is None or not commit else deadline):
                    await turns.wait()
                return
            except TimeoutError:
                raise DataError(
                    DataErrorKind.TIMEOUT,
                    "another task of the request still used the session when the response started; wait for it first",
                ) from None
        raise DataError(
            DataErrorKind.QUERY,
            "the response was started inside a transaction() or connection() block; leave the block first (in a"
            ' dependency of FastAPI: `Depends(..., scope="function")`)',
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
        what = tracing.summarize(statements[0].text) if statements else "The statement"
        path = "" if self._scope is None else f" of {self._method} {self._scope.get('path', '')}"
        return DataError(
            DataErrorKind.READ_ONLY,
            f"{what} writes, but ran with read intent{path} and was refused. Annotate the route with @transactional"
            " (without read_only), or call it as db.write.execute(...)",
            sqlstate=error.sqlstate or "25006",
        )


_NO_TASKS: Final[set[asyncio.Task[Any] | None]] = set()
_NO_COMMITS: Final[set[asyncio.Task[None]]] = set()
_NO_HOOKS: Final = DueHooks()
"""Stand in until there is something to put in; nothing is ever added to these."""

_SNAPSHOT: Final = Terms(is_shared=False, read_only=True)

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
        return raw_connection.stream(self._session, self._intent, query, params, row_factory, size)


async def _nothing() -> None:
    """For a session that has ended already."""


def _closed() -> SessionClosed:
    return SessionClosed(
        "the session was used after its response had started: its transaction is over. In a background task, a"
        " streaming body or a task that outlives the request, open one of your own:"
        " `async with db.registry.session(tenant=db.tenant.name) as later:`"
    )
