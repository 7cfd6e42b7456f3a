"""A unit of work: an open transaction or snapshot, the hooks that wait for its end, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from opentelemetry.context import Context

from ..concurrency.tasks import BackgroundTasks
from ..datasource.executor import WHOLE_COMMIT, WHOLE_STATEMENT, Executor, Lent, SentBegin
from ..drivers.protocol import Exchange, Result
from ..drivers.statements import Control, Statement
from ..errors import CommitUnknown, DataError, DataErrorKind
from ..observability.tracing import hook_span
from ..routing import AccessIntent
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from ..transaction import (
    DeferredWriter,
    DeferredWrites,
    Hook,
    HookEvent,
    Isolation,
    Terms,
    Transaction,
    WaitingHooks,
    call_hook,
    is_conflict,
    name_of_hook,
    refuse_transaction_command,
    unexpected_rollback,
)
from .policy import Plan, SessionPolicy, opening


class WorkOwner(Protocol):
    """The session that a unit of work belongs to."""

    stopped_by: DataError | None
    """The error of `stop`: commits raise it, only a rollback is possible."""

    commits: int
    """Number of writing transactions whose COMMIT succeeded or has an unknown outcome."""

    client_history: ClientHistory | None
    """Causal-consistency state; None before the first statement, and when tokens are disabled."""

    def note_committing(self, task: asyncio.Task[None]) -> None:
        """Track a commit that runs in a background task."""
        ...

    def forget_committing(self, task: asyncio.Task[None]) -> None:
        """Stop tracking a commit that is done."""
        ...

    def settle_hooks(self, hooks: WaitingHooks, *, committed: bool | None, within: Context | None = None) -> None:
        """Make hooks due, or drop them, by the outcome of their transaction; None if the outcome is unknown.

        Args:
            hooks: The hooks.
            committed: The outcome.
            within: The context of the transaction's span; None without one.
        """
        ...

    def note_committed(self, transaction: Transaction) -> None:
        """Record a commit: the reads that follow must see its WAL position."""
        ...

    def about_to_write(self) -> None:
        """Check that a statement with write intent may open a transaction.

        Raises:
            DataError: The tenant is not writable, or another session of the request has written.
        """
        ...

    async def open_to_write(self, work: UnitOfWork, statements: Sequence[Statement], terms: Terms | None, /) -> None:
        """Open a transaction in `work` with deferred writes, when nothing else has opened one.

        Raises:
            DataError: It could not be opened, or one of the writes failed.
        """
        ...


class Place(Protocol):
    """The scope in which a statement runs or a hook was added."""

    @property
    def is_guarded(self) -> bool:
        """Whether a savepoint makes its statements READ ONLY in a writing transaction."""
        ...

    def is_inside(self, other: object, /) -> bool:
        """Whether it is `other`, or nested in it."""
        ...

    def savepoints_to_send(self) -> list[Control]:
        """The statements that must follow BEGIN in a transaction that is opened inside."""
        ...


class UnitOfWork:
    """The statements of a session up to a COMMIT or ROLLBACK, with their transaction and hooks.

    A session has one for the transaction of the request. A block with a transaction of its own, or in autocommit,
    pushes another one for its duration.

    Args:
        owner: The session.
        policy: The configuration's settings.
        background: Runs the commits and rollbacks that outlive a cancelled caller.
        terms: The terms of its transaction; None uses those of the request's plan.
        outer: The unit of work that is suspended until this one ends.
    """

    # Defaults on the class: most units never set these.
    transaction: Transaction | None = None
    snapshot: Transaction | None = None
    """The READ ONLY transaction of a stream."""
    streams = 0
    """Number of streams that read from the snapshot."""
    doomed_by: DataError | None = None
    """The error that made it rollback-only, although the server would commit; a commit raises from it."""
    lost_by: DataError | None = None
    """The conflict (40001, 40P01) that its transaction failed with; a retry may succeed."""
    rollback_reason: str | None = None
    """The reason given to `set_rollback_only`: the end of the session rolls back without an error."""
    propagation = "required"
    """The propagation of the block or function that has pushed it."""
    attempt = 1
    """Number of the attempt of that function."""
    deferred: DeferredWrites | None = None
    """Writes that are sent in the round trip of COMMIT; None without any."""
    _hooks: Sequence[tuple[HookEvent, Hook, Place | None]] = ()
    _orphaned_commit: asyncio.Task[None] | None = None
    """A commit whose caller was cancelled before it got the outcome."""

    def __init__(
        self,
        owner: WorkOwner,
        policy: SessionPolicy,
        background: BackgroundTasks,
        *,
        terms: Terms | None = None,
        outer: UnitOfWork | None = None,
    ) -> None:
        self._owner = owner
        self._policy = policy
        self._background = background
        self.terms = terms
        self.outer = outer

    @property
    def transaction_in_use(self) -> Transaction | None:
        """The transaction that statements run in; one that has failed stays until it is ended."""
        return self.transaction or self.snapshot

    @property
    def is_idle(self) -> bool:
        """Whether it has no transaction to end, no hook to run and no failure to report."""
        return not (
            self.transaction
            or self.snapshot
            or self._hooks
            or self.deferred
            or self._orphaned_commit
            or self.outer
            or self.doomed_by
            or self.lost_by
            or self.rollback_reason is not None
        )

    # -- hooks

    def add_hook(self, event: HookEvent, function: Hook, place: Place | None) -> None:
        """Register a hook for the end of the transaction, or of `place` if that is rolled back alone."""
        self._hooks = [*self._hooks, (event, function, place)]

    def about_to_write(self) -> None:
        """Check that a statement with write intent may open a transaction."""
        self._owner.about_to_write()

    def defer(self, writer: DeferredWriter, item: object, place: Place | None) -> None:
        """Write `item` in the round trip of COMMIT; a rollback of `place` drops it."""
        if self.deferred is None:
            self.deferred = DeferredWrites()
        self.deferred.add(writer, item, place)

    async def run_before_commit(self) -> None:
        """Run the before-commit hooks, and those that they add; their exceptions propagate.

        No further hook runs once the transaction is rollback-only.
        """
        while self.may_commit and (first := next(self._hooks_before_commit(), None)) is not None:
            self._hooks = [hook for hook in self._hooks if hook is not first]
            event, function, _ = first
            within = context_of(self.transaction)
            name = name_of_hook(function)
            with hook_span(event.value, name, is_traced=self._policy.is_traced, within=within) as fail:
                try:
                    await call_hook(function)
                except Exception as error:
                    fail(error)
                    raise

    @property
    def has_hooks_before_commit(self) -> bool:
        """Whether `run_before_commit` has hooks to run."""
        return next(self._hooks_before_commit(), None) is not None

    def _hooks_before_commit(self) -> Iterator[tuple[HookEvent, Hook, Place | None]]:
        return (hook for hook in self._hooks if hook[0] is HookEvent.BEFORE_COMMIT)

    @property
    def may_commit(self) -> bool:
        """Whether anything but a rollback is left."""
        failure = None if self.transaction is None else self.transaction.failure
        return (self.rollback_reason or self.doomed_by or failure or self._owner.stopped_by) is None

    def settle(self, *, committed: bool, within: Place | None = None) -> None:
        """Settle its hooks, or those added inside `within`, when no transaction ends with them."""
        if self.deferred is not None and not committed:
            if within is None:
                self.deferred = None
            else:
                self.deferred.drop(lambda place: bool(place.is_inside(within)))
        self._owner.settle_hooks(self._take_hooks(within), committed=committed, within=context_of(self.transaction))

    def _take_hooks(self, within: Place | None = None) -> WaitingHooks:
        if not self._hooks:
            return []
        taken: WaitingHooks = []
        left: list[tuple[HookEvent, Hook, Place | None]] = []
        for event, function, place in self._hooks:
            if within is None or (place is not None and place.is_inside(within)):
                taken.append((event, function))
            else:
                left.append((event, function, place))
        self._hooks = left
        return taken

    # -- the end

    def send_commit(self, deadline: float | None) -> Exchange | None:
        """Send COMMIT without awaiting anything; None if something has to be awaited, refused or run first.

        Args:
            deadline: Event-loop time of the deadline; None uses `commit_timeout_s`.
        """
        transaction = self.transaction
        if (
            transaction is None
            or self.snapshot is not None
            or self.outer is not None
            or self._orphaned_commit is not None
            or self.doomed_by is not None
            or self.rollback_reason is not None
            or (self._hooks and self.has_hooks_before_commit)
        ):
            return None
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._policy.commit_timeout_s
        if self.deferred:
            return _send_with(transaction, self.deferred, deadline)
        return transaction.send_commit(deadline=deadline)

    def take_commit(self, exchange: Exchange) -> bool:
        """Read the result of `send_commit`: True if COMMIT succeeded; otherwise call `finish`."""
        transaction, deferred = self.transaction, self.deferred or None
        if transaction is None or not transaction.take_commit(exchange, behind=0 if deferred is None else 1):
            return False
        if self._hooks:
            self.settle(committed=True)
        self.transaction = None
        self._owner.note_committed(transaction)
        if deferred is not None:
            self.deferred = None
            deferred.committed()
        return True

    @property
    def may_send_whole(self) -> bool:
        """Whether a transaction of one statement may be sent with its COMMIT: nothing has to be sent before that."""
        return not (
            self.transaction
            or self.snapshot
            or self.outer
            or self.terms
            or self._orphaned_commit
            or self.doomed_by
            or self.rollback_reason is not None
            or self.deferred
            or (self._hooks and self.has_hooks_before_commit)
        )

    def take_whole(self, transaction: Transaction) -> None:
        """A transaction that was sent with its COMMIT was committed."""
        if self._hooks:
            self.settle(committed=True)
        self._owner.note_committed(transaction)

    async def finish_whole(self, executor: Executor, sent: SentBegin, statement: Statement) -> Result | None:
        """Determine the outcome of a transaction that was sent with its COMMIT.

        Returns:
            The result of its statement; None if nothing took effect, and it is safe to send it again.

        Raises:
            DataError: It failed (CommitUnknown: its outcome is unknown).
        """
        exchange, _, connection = sent
        hooks = self._take_hooks()
        try:
            await connection.arrival(exchange)
            transaction = await executor.end_whole(sent, statement)
        except BaseException as error:
            is_unknown = not isinstance(error, DataError) or isinstance(error, CommitUnknown)
            self._owner.commits += is_unknown
            if is_unknown and self._owner.client_history is not None:
                # It may have been committed: the client's later reads must see it then.
                self._owner.client_history.note(NOWHERE)
            if is_conflict(error):
                self.lost_by = error
            self._owner.settle_hooks(hooks, committed=None if is_unknown else False)
            raise
        if transaction is None:
            self._hooks = [*((event, function, None) for event, function in hooks), *self._hooks]
            return None
        deadline = asyncio.get_running_loop().time() + self._policy.commit_timeout_s
        await self._commit(transaction, hooks, deadline, exchange, at=WHOLE_COMMIT)
        return exchange.results[WHOLE_STATEMENT]

    async def finish_whole_apart(
        self, executor: Executor, sent: SentBegin, statement: Statement, *, is_orphaned: bool
    ) -> Result | None:
        """The same, in a background task, which a cancelled caller leaves behind.

        Args:
            executor, sent, statement: As of `finish_whole`.
            is_orphaned: Its caller was cancelled already: do not wait.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found: list[Result | None] = []
        committing = self._background.spawn(self._finish_whole_into(found, executor, sent, statement), waiter=waiter)
        self._owner.note_committing(committing)
        if is_orphaned:
            self._orphaned_commit = committing
            waiter.cancel()
            return None
        try:
            await waiter
        except asyncio.CancelledError:
            self._orphaned_commit = committing
            raise
        self._owner.forget_committing(committing)
        return found[0]

    async def _finish_whole_into(
        self, found: list[Result | None], executor: Executor, sent: SentBegin, statement: Statement
    ) -> None:
        result = await self.finish_whole(executor, sent, statement)
        found.append(result)
        if result is None and self._orphaned_commit is asyncio.current_task():
            # Its caller does not send it again.
            self.settle(committed=False)

    async def finish(
        self,
        *,
        commit: bool,
        reason: str,
        deadline: float | None,
        takes_hooks: bool = True,
        is_apart: bool = False,
        begun: Exchange | None = None,
    ) -> None:
        """End the open transaction and snapshot; the caller must hold the session's lock.

        Args:
            commit: Commit; otherwise roll back.
            reason: Why it is rolled back, for the span.
            deadline: Event-loop time of the deadline.
            takes_hooks: This end settles its hooks.
            is_apart: It is awaited in a background task already.
            begun: The round trip of `send_commit`, if that was called.

        Raises:
            DataError: The commit failed (CommitUnknown: its outcome is unknown).
        """
        hooks = self._take_hooks() if takes_hooks else []
        deferred, self.deferred = self.deferred or None, None
        committed = False
        transaction, self.transaction = self.transaction, None
        terms = self.terms
        if self.outer is None:
            self.terms = None
        try:
            if begun is not None and transaction is not None:
                commit_, hooks = self._commit(transaction, hooks, deadline, begun, deferred=deferred), []
                await commit_
                return
            try:
                await self.end_snapshot()
                missed = await self._missed_failure() if commit else None
            except BaseException:
                if transaction is not None:
                    self._background.spawn(transaction.rollback("cancelled"))
                raise
            refusal = (missed or self._refusal(None if transaction is None else deadline)) if commit else None
            if transaction is None:
                if refusal is not None:
                    raise refusal
                if deferred is None or not commit:
                    committed = commit
                    return
                transaction = await self._open_to_write(deferred, terms)
            if is_conflict(transaction.failure):
                self.lost_by = transaction.failure
            if refusal is not None:
                await transaction.rollback(self.rollback_reason or self._why_doomed() or refusal.kind.value)
                raise refusal
            if not commit:
                await transaction.rollback(self.rollback_reason or reason)
                return
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + self._policy.commit_timeout_s
            # From here on the commit settles the hooks, even if this caller is cancelled.
            if is_apart:
                commit_, hooks = self._commit(transaction, hooks, deadline, deferred=deferred), []
                await commit_
                return
            commit_, hooks = self._commit_or_leave(transaction, hooks, deadline, deferred, is_awaited=takes_hooks), []
            await commit_
        finally:
            self._owner.settle_hooks(hooks, committed=committed, within=context_of(transaction))
            if transaction is not None and not transaction.is_open:
                # Break the reference cycle: the traceback of the failure refers to the transaction.
                transaction.failure = None

    async def _commit_or_leave(
        self,
        transaction: Transaction,
        hooks: WaitingHooks,
        deadline: float,
        deferred: DeferredWrites | None,
        *,
        is_awaited: bool,
    ) -> None:
        """Commit; if this caller is cancelled meanwhile, the rest runs in a background task.

        Args:
            transaction, hooks, deadline, deferred: As of `_commit`.
            is_awaited: The next end of this unit awaits that task.
        """
        if deferred is None or deferred.are_sent:
            begun = transaction.send_commit(deadline=deadline)
        else:
            begun = _send_with(transaction, deferred, deadline)
        committing: asyncio.Task[None] | None = None
        try:
            if begun is not None:
                await begun.waiter
                if transaction.take_commit(begun, behind=_count(deferred)):
                    self._owner.settle_hooks(hooks, committed=True, within=context_of(transaction))
                    self._owner.note_committed(transaction)
                    if deferred is not None:
                        deferred.committed()
                    return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            committing = self._spawn_commit(transaction, hooks, deadline, begun, deferred, waiter)
            await waiter
        except asyncio.CancelledError:
            committing = committing or self._spawn_commit(transaction, hooks, deadline, begun, deferred)
            if is_awaited:
                self._orphaned_commit = committing
            raise
        self._owner.forget_committing(committing)

    def _spawn_commit(
        self,
        transaction: Transaction,
        hooks: WaitingHooks,
        deadline: float,
        begun: Exchange | None,
        deferred: DeferredWrites | None,
        waiter: asyncio.Future[None] | None = None,
    ) -> asyncio.Task[None]:
        committing = self._background.spawn(
            self._commit(transaction, hooks, deadline, begun, deferred=deferred), waiter=waiter
        )
        self._owner.note_committing(committing)
        return committing

    async def _open_to_write(self, deferred: DeferredWrites, terms: Terms | None) -> Transaction:
        """Open a transaction for deferred writes, when nothing else has opened one."""
        try:
            await self._owner.open_to_write(self, deferred.statements(), terms)
            deferred.are_sent = True
            return cast("Transaction", self.transaction)
        except BaseException as error:
            if self.transaction is not None:
                self._background.spawn(self.transaction.rollback("a deferred write failed"))
            if isinstance(error, DataError):
                raise deferred.explain(error) from error
            raise
        finally:
            self.transaction = None

    async def _missed_failure(self) -> DataError | None:
        """Await an earlier commit whose caller was cancelled; returns its failure."""
        orphaned = self._orphaned_commit
        if orphaned is None:
            return None
        await asyncio.wait({orphaned})
        self._orphaned_commit = None
        if orphaned.cancelled():
            return CommitUnknown("a commit before this one was cut short by the end of the application")
        error = orphaned.exception()
        return error if isinstance(error, DataError) else None

    def _refusal(self, deadline: float | None) -> DataError | None:
        """The error that forbids the commit; None allows it."""
        if self._owner.stopped_by is not None:
            return self._owner.stopped_by
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            return deadline_passed()
        if self.rollback_reason is not None:
            return unexpected_rollback(DataError(DataErrorKind.OTHER, self.rollback_reason))
        return None if self.doomed_by is None else unexpected_rollback(self.doomed_by)

    def _why_doomed(self) -> str | None:
        """The class of `doomed_by` for the span; its message may quote data."""
        doomed_by = self.doomed_by
        return None if doomed_by is None else f"doomed by {type(doomed_by.__cause__ or doomed_by).__name__}"

    async def _commit(
        self,
        transaction: Transaction,
        hooks: WaitingHooks,
        deadline: float | None,
        begun: Exchange | None = None,
        *,
        at: int = 0,
        deferred: DeferredWrites | None = None,
    ) -> None:
        committed: bool | None = None
        owner = self._owner
        try:
            if begun is None:
                final = () if deferred is None else await _send_before(transaction, deferred, deadline)
            else:
                final = () if deferred is None or deferred.are_sent else deferred.statements()
            await transaction.commit(
                deadline=deadline, doubt_timeout_s=self._policy.doubt_timeout_s, begun=begun, at=at, final=final
            )
            committed = True
        except CommitUnknown:
            owner.commits += 1
            raise
        except DataError as error:
            committed = False
            if is_conflict(error):
                self.lost_by = error
            if deferred is not None and (explained := deferred.explain(error)) is not error:
                raise explained from error
            raise
        finally:
            owner.settle_hooks(hooks, committed=committed, within=context_of(transaction))
            if committed is None and owner.client_history is not None and transaction.identified is not None:
                # It may have been committed: the client's later reads must see it then.
                owner.client_history.note(transaction.position or NOWHERE)
        owner.note_committed(transaction)
        if deferred is not None:
            deferred.committed()

    async def end_snapshot(self) -> None:
        """End the READ ONLY transaction of a stream."""
        snapshot, self.snapshot, self.streams = self.snapshot, None, 0
        if snapshot is not None:
            await snapshot.rollback("end of the snapshot")

    def abandon(self) -> None:
        """Roll back in the background without the session's lock, even if a statement still runs."""
        for transaction in (self.transaction, self.snapshot):
            if transaction is not None and transaction.is_open:
                self._background.spawn(transaction.rollback("abandoned"))
        self.transaction = self.snapshot = None
        self.streams = 0
        self.settle(committed=False)


def context_of(transaction: Transaction | None) -> Context | None:
    """The context in which the span of a transaction is current; None without a span."""
    return None if transaction is None or transaction.trace is None else transaction.trace.context


def _send_with(transaction: Transaction, deferred: DeferredWrites, deadline: float) -> Exchange | None:
    """Send the deferred writes and COMMIT without waiting; None where `_commit` has to."""
    final = deferred.one_statement()
    return None if final is None else transaction.send_commit(deadline=deadline, final=final)


def _count(deferred: DeferredWrites | None) -> int:
    """How many writes stand in front of the COMMIT that `_send_with` has sent."""
    return 0 if deferred is None or deferred.are_sent else 1


async def _send_before(
    transaction: Transaction, deferred: DeferredWrites, deadline: float | None
) -> Sequence[Statement]:
    """The statements in front of COMMIT in its round trip.

    A transaction that has no id yet writes them in a round trip before that, which returns the id: the outcome of a
    COMMIT whose connection is lost can only be looked up by it.
    """
    if deferred.are_sent or transaction.failure is not None or not transaction.is_open:
        return ()
    statements = deferred.statements()
    if transaction.identified is not None:
        return statements
    try:
        await transaction.run(statements, deadline=deadline)
    except DataError:
        await transaction.rollback("a deferred write failed")
        raise
    return ()


def deadline_passed() -> DataError:
    """The error of a request whose deadline has passed."""
    return DataError(
        DataErrorKind.TIMEOUT, "the request's deadline has passed; what it had not committed was rolled back"
    )


async def run_statements(
    work: UnitOfWork,
    executor: Executor,
    statements: Sequence[Statement],
    intent: AccessIntent,
    plan: Plan,
    scope: Place | None,
) -> Sequence[Result]:
    """Run statements in the open transaction, in one that they open, or in autocommit.

    The caller must hold the session's lock, exclusively or shared with other reads.

    Args:
        work: Their unit of work.
        executor: Routes and sends them.
        statements: The statements.
        intent: Their intent.
        plan: Their options.
        scope: The innermost block around them.
    """
    check_commands(work, statements)
    is_write = intent is AccessIntent.WRITE
    if plan.reads_only and is_write:
        raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
    transaction = work.transaction
    if transaction is None and work.snapshot is not None:
        if is_write:
            raise DataError(
                DataErrorKind.QUERY,
                "a write was sent while a stream holds a replica; end that first, or put"
                " `async with db.transaction():` around both, so that they share one connection",
            )
        transaction = work.snapshot
    if transaction is not None:
        if transaction.read_only and is_write:
            raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
        executor.note_in_transaction(transaction, intent)
        return await transaction.run(
            statements,
            deadline=plan.deadline,
            as_read=not is_write,
            is_guarded=scope is not None and scope.is_guarded,
        )
    terms = work.terms or plan.terms
    if not is_write and not terms.opens_with_reads:
        return await executor.read(statements, deadline=plan.deadline, freshness=plan.freshness)
    if is_write:
        work.about_to_write()
    if terms.is_shared:
        return await open_transaction(work, executor, statements, plan, terms, scope)
    # Autocommit: the statement is a transaction by itself.
    committed = False
    try:
        results = await open_transaction(work, executor, statements, plan, terms, scope)
        committed = True
    finally:
        # The hooks of this unit wait for a later end.
        await work.finish(commit=committed, reason="the statement failed", deadline=plan.deadline, takes_hooks=False)
    return results


def check_commands(work: UnitOfWork | None, statements: Sequence[Statement]) -> None:
    """Refuse statements that begin or end a transaction, before anything is sent.

    An open transaction is left nothing but a rollback: a caller that has caught the error may have meant ROLLBACK.

    Args:
        work: What they belong to; None where nothing has been made yet.
        statements: What is about to be sent.

    Raises:
        DataError: QUERY: one of them is BEGIN, COMMIT, ROLLBACK or another name of these.
    """
    command = next((command for one in statements if (command := one.transaction_command) is not None), None)
    if command is None:
        return
    error = refuse_transaction_command(command)
    transaction = None if work is None else work.transaction_in_use
    if transaction is not None and transaction.failure is None:
        transaction.failure = error
    raise error


async def open_transaction(
    work: UnitOfWork,
    executor: Executor,
    statements: Sequence[Statement],
    plan: Plan,
    terms: Terms,
    scope: Place | None,
    *,
    is_snapshot: bool = False,
    lent: Lent | None = None,
    begun: SentBegin | None = None,
) -> Sequence[Result]:
    """Open a transaction, and the savepoints of the blocks that are open, in its first statements' round trip.

    Args:
        work: Holds the transaction.
        executor: Routes and sends the statements.
        statements: The first statements; may be empty.
        plan: The options of the statements.
        terms: The terms of the transaction.
        scope: The innermost block around the statements.
        is_snapshot: It is the snapshot of a stream.
        lent: A connection that was borrowed for it already.
        begun: The round trip of `Executor.send_begin`, if that was called.
    """
    isolation = terms.isolation
    if terms.read_only and isolation is None:
        isolation = Isolation.REPEATABLE_READ
    intent, freshness = opening(terms, plan.freshness)
    opened = await executor.begin(
        statements,
        deadline=plan.deadline,
        intent=intent,
        isolation=isolation,
        is_deferrable=terms.deferrable,
        freshness=freshness,
        savepoints=[] if scope is None else scope.savepoints_to_send(),
        lent=lent,
        begun=begun,
        is_requests=work.outer is None,
    )
    if opened.transaction.trace is not None:
        opened.transaction.trace.describe("not_supported" if not terms.is_shared else work.propagation, work.attempt)
    if is_snapshot:
        work.snapshot = opened.transaction
    else:
        work.transaction = opened.transaction
    error = opened.error
    if error is not None:
        try:
            raise error from error.__cause__
        finally:
            # Break the reference cycle: the traceback of the error refers to this frame.
            del opened, error
    return opened.results
