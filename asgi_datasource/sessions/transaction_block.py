"""Entering and leaving a scope: savepoints, transactions of their own, and autocommit.

A block with a savepoint or a transaction of its own holds the session's lock: statements of other tasks wait until it
ends, so that none runs between a savepoint and its release. Tasks started inside the block belong to it: they inherit
the context. A block that only joins the surrounding transaction does not hold the lock, unless it is exclusive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, TypeVar

from ..concurrency.shared_lock import SharedLock
from ..concurrency.threads import is_on_a_loop, wait_in_thread
from ..errors import DataError, DataErrorKind
from ..observability.tracing import reason_of
from ..routing import AccessIntent
from ..transaction import (
    Isolation,
    Propagation,
    PropagationAction,
    SurroundingTransaction,
    Terms,
    TransactionOptions,
    control_statements,
    decide,
    isolation_refused,
    unexpected_rollback,
)
from .context import Frame, current_frame
from .core import SessionCore
from .scope import Scope, current_scope, cut_off
from .unit_of_work import UnitOfWork

T = TypeVar("T")

_ANY: Final = Terms(is_shared=True)

INTERRUPT_AFTER_S: Final = 0.25
"""Seconds after its deadline at which a block is cancelled: until then a running statement ends by its own timeout,
which keeps the surrounding transaction usable."""


class TransactionBlock(Scope):
    """An annotated function or a transaction block; created by the session.

    Args:
        session: The session.
        options: The requested options.
        is_exclusive: It holds the session's lock even if it only joins.
        demotes: In a READ ONLY transaction a writing block becomes read-only; otherwise it is refused there.
        dooms: An exception that leaves it marks the transaction that it has joined rollback-only.
        deadline: Event-loop time of its own deadline.
        runs_hooks: Its end runs the hooks that became due; otherwise its caller does.
    """

    def __init__(
        self,
        session: SessionCore,
        options: TransactionOptions,
        *,
        is_exclusive: bool = True,
        demotes: bool = False,
        dooms: bool = True,
        deadline: float | None = None,
        runs_hooks: bool = True,
    ) -> None:
        super().__init__(session, reads_only=options.read_only)
        self._session = session
        self._options = options
        self._is_exclusive = is_exclusive
        self._demotes = demotes
        self._dooms = dooms
        self._deadline = deadline
        self._runs_hooks = runs_hooks
        self.attempt = 1
        """Number of the attempt, for the span of its transaction."""
        self._is_outermost = False
        self._outer_lock: SharedLock | None = None
        self._timeout: asyncio.Timeout | None = None
        self._scope_token: Token[Scope | None] | None = None
        self._frame_token: Token[Frame | None] | None = None

    async def __aenter__(self) -> Any:
        session = self._session
        session.check_open()
        self._decide()
        if self._is_exclusive or self.action not in (PropagationAction.JOIN, PropagationAction.AS_IS):
            self.parent, lock = await self._take_turn()
            self._outer_lock = lock
            try:
                session.check_open()
                self.check_surroundings()
                # Second time: another task may have opened or ended a transaction while this one waited for its turn.
                self._decide()
                self._open()
            except BaseException:
                lock.release()
                raise
            self.is_open = True
            self.around = current_scope.get()
            self._scope_token = current_scope.set(self)
        elif self.action is PropagationAction.JOIN and self._options.isolation is not None:
            session.adopt_isolation(self._options.isolation)
        try:
            self._frame_token = current_frame.set(self._frame())
            await self._set_timeout()
        except BaseException:
            self._close()
            raise
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A before-commit hook or the timeout can fail the block, whatever the outcome of its body.
        failure: BaseException | None = None
        try:
            if not self._is_undone_by(error):
                failure = await self._run_before_commit()
            if self._timeout is not None:
                kind = kind if failure is None else type(failure)
                try:
                    await self._timeout.__aexit__(kind, failure or error, traceback)
                except TimeoutError:
                    failure = _too_late()
            is_undone = failure is not None or self._is_undone_by(error)
            if self._outer_lock is None:
                self._note_failure(failure or error)
            else:
                await self._leave(failure or error, is_undone=is_undone)
        finally:
            self._close()
        if self.own_work is not None and self._runs_hooks:
            await self._session.run_due_hooks()
        if failure is not None:
            raise failure

    # -- enter

    @contextlib.contextmanager
    def joined(self) -> Generator[None]:
        """The block of a sync function.

        Raises:
            DataError: QUERY: it would have to open or end a transaction or a savepoint in the thread of the event loop.
        """
        self._decide()
        if self.action not in (PropagationAction.JOIN, PropagationAction.AS_IS):
            if is_on_a_loop():
                raise DataError(
                    DataErrorKind.QUERY,
                    f'@transactional(propagation="{self._options.propagation.value}") needs a transaction of its own'
                    " here, which a function that is not async cannot open in the thread of the event loop: make it"
                    " async, call it inside a transaction, or in a thread of its own",
                )
            with self.in_thread():
                yield
            return
        if self.action is PropagationAction.JOIN and self._options.isolation is not None:
            self._session.adopt_isolation(self._options.isolation)
        token = current_frame.set(self._frame())
        try:
            yield
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            current_frame.reset(token)

    @contextlib.contextmanager
    def in_thread(self) -> Generator[None]:
        """The block of code in a thread of its own: it is entered and exited in the event loop.

        Raises:
            DataError: As `__aenter__` and `__aexit__`; QUERY: this is the thread of the event loop.
        """
        loop = self._session.registry_loop
        scope, frame = wait_in_thread(loop, self._enter())
        # What `__aenter__` has set ends with the context of its task.
        tokens = current_scope.set(scope), current_frame.set(frame)
        try:
            try:
                yield
            except BaseException as error:
                wait_in_thread(loop, self.__aexit__(type(error), error, error.__traceback__))
                raise
            wait_in_thread(loop, self.__aexit__(None, None, None))
        finally:
            current_frame.reset(tokens[1])
            current_scope.reset(tokens[0])

    async def _enter(self) -> tuple[Scope | None, Frame | None]:
        await self.__aenter__()
        return current_scope.get(), current_frame.get()

    def _decide(self) -> None:
        options = self._options
        around = self._session.surroundings()
        action = decide(options.propagation, around, read_only=options.read_only)
        if action is PropagationAction.REFUSE:
            raise refused(options.propagation, around)
        self._is_outermost = around is SurroundingTransaction.NOTHING
        self._reads_only = options.read_only or (self._is_outermost and self._session.with_route(_ANY).read_only)
        if action in (PropagationAction.JOIN, PropagationAction.SAVEPOINT):
            if around is SurroundingTransaction.READ_ONLY and not options.read_only:
                if not self._demotes:
                    raise DataError(
                        DataErrorKind.READ_ONLY,
                        "a transaction() block that writes was opened inside a read-only transaction; open it first",
                    )
                self._reads_only = True
            present = self._session.isolation
            if not _agree(options.isolation, present, is_open=self._session.is_isolation_settled):
                raise isolation_refused(options.isolation, present)
        self.action = action

    def _open(self) -> None:
        session, options = self._session, self._options
        self.outer_work = session.make_work()
        if self.action is PropagationAction.OWN:
            terms = Terms(
                is_shared=True,
                read_only=self._reads_only,
                isolation=options.isolation,
                deferrable=options.deferrable,
            )
            self.own_work = session.suspend(session.with_route(terms) if self._is_outermost else terms)
            self.own_work.propagation = options.propagation.value
            self.own_work.attempt = self.attempt
        elif self.action is PropagationAction.ALONE:
            self.own_work = session.suspend(Terms(is_shared=False))
        elif self.action in (PropagationAction.JOIN, PropagationAction.SAVEPOINT) and options.isolation is not None:
            session.adopt_isolation(options.isolation)
        transaction = session.current_transaction
        if self.action is PropagationAction.SAVEPOINT and transaction is not None:
            transaction.pending += self.name_savepoint(is_guarded=not transaction.read_only)

    def _frame(self) -> Frame:
        outer = current_frame.get()
        is_transactional = self.action not in (PropagationAction.AS_IS, PropagationAction.ALONE)
        intent: AccessIntent | None = None
        if self._reads_only:
            intent = AccessIntent.READ
        elif is_transactional:
            intent = AccessIntent.WRITE
        if self._deadline is None and self._is_outermost:
            self._deadline = self._session.block_deadline()
        limits = [limit for limit in (self._deadline, None if outer is None else outer.deadline) if limit is not None]
        return Frame(intent, self._reads_only, is_transactional, min(limits, default=None))

    async def _take_turn(self) -> tuple[Scope | None, SharedLock]:
        """Acquire the session's lock before the block's deadline.

        Returns:
            The surrounding scope, and the lock to release in the end.

        Raises:
            DataError: TIMEOUT: the deadline passed first.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._session.take_turn()
        except TimeoutError:
            raise _too_late() from None

    async def _set_timeout(self) -> None:
        if self._deadline is not None:
            self._timeout = asyncio.timeout_at(self._deadline + INTERRUPT_AFTER_S)
            await self._timeout.__aenter__()

    # -- exit

    def _is_undone_by(self, error: BaseException | None) -> bool:
        return error is not None and self._options.decides(error) is not True

    def _note_failure(self, error: BaseException | None) -> None:
        if (
            error is not None
            and self.action is PropagationAction.JOIN
            and self._dooms
            # A block that only reads leaves no partial write behind.
            and not self._reads_only
            and self._is_undone_by(error)
            and not self._session.tolerates(error, self._options)
        ):
            self._session.doom(error)

    async def _run_before_commit(self) -> BaseException | None:
        """Run the before-commit hooks of its own transaction, within its timeout; returns the exception of one."""
        if self.own_work is not None:
            try:
                await self._session.run_before_commit(self.own_work)
            except BaseException as failure:  # noqa: BLE001 - raised once the block has ended
                return failure
        return None

    async def _leave(self, error: BaseException | None, *, is_undone: bool) -> None:
        # Wait for running statements of the tasks inside the block; later statements find the block closed.
        is_held = False
        try:
            await self.lock.acquire()
            is_held = True
            if self.is_cut_off:
                if error is None:
                    raise unexpected_rollback(cut_off())
            elif self.action is PropagationAction.SAVEPOINT:
                await self._leave_savepoint(error, is_undone=is_undone)
            elif self.own_work is not None:
                await self._leave_work(self.own_work, error, is_undone=is_undone)
            else:
                self._note_failure(error)
        except BaseException as failure:
            if self.own_work is None and not isinstance(failure, DataError) and not self.is_cut_off:
                # Cancelled during the exit: the savepoint was neither released nor rolled back, so everything must be.
                self._session.spoil("a transaction() block was cancelled while it ended")
            raise
        finally:
            self.is_open = False
            if is_held:
                self.lock.release()

    async def _leave_work(self, work: UnitOfWork, error: BaseException | None, *, is_undone: bool) -> None:
        if self.action is PropagationAction.OWN:
            await work.finish(
                commit=not is_undone and work.rollback_reason is None,
                reason="end of the block" if error is None else reason_of(error),
                deadline=self._session.deadline(),
            )
        else:
            await work.end_snapshot()
            work.settle(committed=not is_undone)

    async def _leave_savepoint(self, error: BaseException | None, *, is_undone: bool) -> None:
        session = self._session
        transaction = session.current_transaction
        is_undone = is_undone or self.doomed_by is not None
        name = self.savepoint
        if transaction is None or name is None or transaction.forget_pending_savepoint(name):
            # Nothing was sent inside it.
            if is_undone:
                session.undo_hooks(self)
            if error is None and self.doomed_by is not None:
                raise unexpected_rollback(self.doomed_by) from self.doomed_by
            return
        if not is_undone and transaction.failure is None:
            transaction.pending.append(control_statements.release(name))
            if transaction.trace is not None:
                transaction.trace.savepoint_ended(name, "released")
            return
        session.undo_hooks(self)
        if transaction.is_open:
            cause = self.doomed_by or transaction.failure
            await transaction.rollback_to(name, deadline=session.deadline())
            if error is None:
                raise unexpected_rollback(cause) from cause

    def _close(self) -> None:
        self.is_open = False
        if self._scope_token is not None:
            _reset(current_scope, self._scope_token)
        if self._frame_token is not None:
            _reset(current_frame, self._frame_token)
        if self.outer_work is not None and not self.is_cut_off:
            # Drop the units of work of this block and of blocks inside it, should they not have been ended.
            self._session.resume(self.outer_work)
        if self._outer_lock is not None:
            lock, self._outer_lock = self._outer_lock, None
            lock.release()


def _agree(wanted: Isolation | None, present: Isolation | None, *, is_open: bool) -> bool:
    """Whether a transaction has, or can still get, the requested isolation."""
    if wanted is None or wanted is present:
        return True
    # Every default of the server is at least READ COMMITTED.
    return present is None and (not is_open or wanted is Isolation.READ_COMMITTED)


def refused(propagation: Propagation, around: SurroundingTransaction) -> DataError:
    """The error for a propagation that the surrounding transaction does not allow."""
    if propagation is Propagation.NEVER:
        what = "was called inside a transaction; call it before the transaction begins, or after its end"
    elif around is SurroundingTransaction.OFFERED:
        what = (
            "was called where nothing asks for a transaction; annotate the route, or call it from a method that writes"
        )
    else:
        what = "was called outside a transaction; annotate the caller, or open `async with db.transaction():` around it"
    return DataError(DataErrorKind.QUERY, f'a function with propagation "{propagation.value}" {what}')


def _too_late() -> DataError:
    return DataError(DataErrorKind.TIMEOUT, "the timeout of the function or block has passed; it was rolled back")


def _reset(variable: ContextVar[T], token: Token[T]) -> None:
    """Restore a context variable; in another context (a fixture's teardown) there is nothing to restore."""
    with contextlib.suppress(ValueError):
        variable.reset(token)
