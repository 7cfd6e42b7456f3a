"""The core of a session: hooks, and its end. `DataSession` adds the public methods.

A session is one object of four classes, each of which inherits from the one before: `SessionBase` (its state),
`StatementRunner` (running statements), `SessionCore` (hooks and its end), `DataSession` (the methods of a handler).
Statements reach a server through the executor (`datasource/executor.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final

from ..concurrency.shared_lock import SharedLock
from ..drivers.protocol import Exchange, Result
from ..drivers.statements import Statement
from ..errors import DataError, DataErrorKind, SessionClosed
from ..observability.tracing import reason_of
from ..routing import AccessIntent
from ..routing.consistency.client_history import ClientHistory
from ..tenancy import TenantState
from ..transaction import (
    Hook,
    HookEvent,
    is_conflict,
)
from .base import SessionState, Writers, closed
from .context import current_frame, current_runner
from .siblings import Sibling
from .statement_runner import StatementRunner
from .unit_of_work import UnitOfWork

_OPEN: Final = SessionState.OPEN
_ACTIVE: Final = TenantState.ACTIVE

_NO_TASKS: Final[frozenset[asyncio.Task[Any]]] = frozenset()

_ROLLBACK_WAIT_S: Final = 5.0
"""Seconds that a rollback waits for an interrupted statement; after that its connection is discarded."""


class SessionCore(StatementRunner):
    """A session without the public methods of `DataSession`."""

    # -- hooks

    def add_hook(self, event: HookEvent, function: Hook) -> None:
        """Register a hook on the running task's unit of work."""
        self.check_open()
        self.make_work_here().add_hook(event, function, self.innermost_scope())

    @property
    def due_hooks(self) -> int:
        """Number of hooks that `run_due_hooks` would run."""
        due = 0 if self.ended_hooks is None else len(self.ended_hooks)
        return due + sum([one.due_hooks for one in self._siblings]) if self._siblings else due

    def forget_due_hooks(self, since: int = 0) -> None:
        """Drop the due hooks after the first `since`: the attempt that added them is retried."""
        if self.ended_hooks is not None:
            self.ended_hooks.forget(since)
        for one in self._siblings:
            one.forget_due_hooks()

    @property
    def has_due_hooks(self) -> bool:
        """Whether `run_due_hooks` has hooks to run, or commits to await."""
        if self.ended_hooks or self.state is SessionState.ENDING:
            return True
        if self._siblings and any(one.has_due_hooks for one in self._siblings):
            return True
        return bool(self.committing) and bool(self._unfinished())

    @property
    def has_hooks_before_commit(self) -> bool:
        """Whether `run_before_commit` has anything to flush, or hooks to run."""
        if self.participants and self._has_pending:
            return True
        work = self.work_here()
        return work is not None and work.has_hooks_before_commit

    async def run_before_commit(self, work: UnitOfWork | None = None) -> None:
        """Flush the participants and run the before-commit hooks; their exceptions propagate.

        Args:
            work: The unit of work to commit; None uses the running task's.
        """
        await self.flush_participants()
        work = work or self.work_here()
        if work is not None:
            await work.run_before_commit()
            # Hooks may change objects of the ORM.
            await self.flush_participants()

    async def flush_participants(self) -> None:
        """Send the pending statements of the participants, unless only a rollback is possible."""
        work = self.work_here() if self.participants else None
        if work is not None and not work.may_commit:
            return
        for participant in self.participants:
            if participant.has_pending:
                await participant.flush()

    async def run_due_hooks(self) -> None:
        """Run the hooks whose transaction has ended, each isolated from the others."""
        for one in self._siblings:
            await one.run_due_hooks()
        unfinished = self._unfinished()
        if unfinished:
            # Await commits whose callers were cancelled: their outcome makes more hooks due.
            await asyncio.wait(unfinished)
        if self.ended_hooks:
            # The hooks see this session and its tenant, even if the function that added them has returned.
            token = current_runner.set(self)
            try:
                await self.ended_hooks.run(is_traced=self._policy.is_traced)
            finally:
                current_runner.reset(token)

    # -- sessions on other datasources

    _siblings: tuple[SessionCore, ...] = ()

    def add_sibling(self, session: SessionCore) -> None:
        """Have a session on another datasource end with this one."""
        session.main = self
        session.outlives_requests = self.outlives_requests
        if self.stopped_by is not None:
            session.stop(self.stopped_by)
        session.share_writers(self)
        self._siblings = (*self._siblings, session)
        self.participants = (*self.participants, Sibling(session, self))

    def sibling(self, name: str) -> SessionCore | None:
        """The session of the request on another datasource; None if there is none yet."""
        return next((one for one in self._siblings if one.tenant.datasource == name), None)

    async def commit_as_part(self) -> None:
        """Commit what was written so far, as a part of the main session's end; this session stays open.

        Raises:
            DataError: The commit failed (CommitUnknown: its outcome is unknown).
        """
        await self.run_before_commit()
        work = self.work_here()
        if work is None or work.is_idle:
            return
        lock = self.lock_of(None)
        await lock.acquire()
        try:
            self.check_open()
            await work.finish(
                commit=work.rollback_reason is None, reason="set_rollback_only()", deadline=self.deadline()
            )
        finally:
            lock.release()

    def abandon(self) -> None:
        """End it without waiting: what was not committed is rolled back in the background."""
        if self.is_unused:
            self.close_unused()
        else:
            self._registry.background.spawn(self.end(commit=False, reason="abandoned"))

    def note_conflict(self, error: DataError) -> None:
        """Record a conflict of a session on another datasource."""
        self._conflict = error

    async def _end_siblings(self, reason: str) -> None:
        """End the sessions on other datasources: what they have not committed is rolled back."""
        for one in self._siblings:
            if one.is_open:
                await self._registry.background.run(one.end(commit=False, reason=reason))
            self.commits += one.commits
            if is_conflict(one.lost_by):
                self._conflict = self._conflict or one.lost_by
            history = one.client_history
            if history is not None:
                mine = self.client_history or self._make_client_history()
                if mine is not None:
                    mine.include(history)

    # -- called by its owner

    @property
    def is_unused(self) -> bool:
        """No statement has run, no hook waits, and nothing is to be flushed: there is nothing to end."""
        return self._work is None and self._executor is None and not (self.participants and self._has_pending)

    @property
    def is_at_rest(self) -> bool:
        """No transaction is open and no statement or commit runs: the end needs no round trip."""
        if self._busy is not None or self.committing or self._commit is not None:
            return False
        if self._work is not None and (self._work.transaction_in_use is not None or self._work.deferred):
            return False
        if self._siblings and any(one.is_open for one in self._siblings):
            return False
        return self._lock is None or not self._lock.is_held

    @property
    def rollback_reason(self) -> str | None:
        """The reason given to `set_rollback_only`; None if it was not called."""
        work = self.work_here()
        return None if work is None else work.rollback_reason

    @property
    def lost_by(self) -> DataError | None:
        """The conflict (40001, 40P01) that its transaction, or a part of it, failed with; None without one."""
        transaction = self.current_transaction
        if transaction is not None and is_conflict(transaction.failure):
            return transaction.failure
        work = self.work_here()
        return self._conflict if work is None else work.lost_by or self._conflict

    def stop(self, error: DataError) -> DataError:
        """Refuse everything but a rollback from now on: the deadline has passed, or the client has disconnected.

        Returns:
            The error of the first call, which later calls do not replace.
        """
        if self.stopped_by is None:
            self.stopped_by = error
            if self.trace is not None and not isinstance(error, SessionClosed):
                self.trace.interruption = error
        for one in self._siblings:
            one.stop(error)
        return self.stopped_by

    def interrupt(self) -> bool:
        """Cancel the running statements; their callers get the error of `stop`.

        Returns:
            Whether one was running.
        """
        interrupted = [one for one in self._siblings if one.interrupt()]
        if self._interrupted:
            return True
        running = self._running if self._busy is None else self._running | {self._busy}
        if not running:
            return bool(interrupted)
        self._interrupted = running
        for task in running:
            if task is not None:
                task.cancel()
        return True

    async def open_for_token(self) -> None:
        """Open the snapshot of a streaming body before the response starts, if the token must include its position.

        Raises:
            DataError: It could not be opened.
        """
        tokens = self._policy.tokens
        if tokens is None or self.transaction_in_use is not None:
            return
        if ClientHistory(tokens, b"").is_monotonic(self.current_plan().freshness):
            await self.run(())

    def share_writers(self, outer: SessionCore) -> None:
        """Share `writers` with the outer session of the same request, so that a second writer is detected."""
        if outer.writers is None:
            outer.writers = Writers(allows_several=self._policy.allows_multiple_writers)
            transaction = outer.current_transaction
            if outer.commits or (transaction is not None and transaction.is_open and not transaction.read_only):
                outer.writers.claim(outer)
        self.writers = outer.writers

    # -- the end

    def close_unused(self) -> None:
        """End a session that was never used."""
        self.state = SessionState.CLOSED

    def end_idle(self) -> bool:
        """End a session that has only read, and has no transaction, hook, failure or streaming body left.

        Returns:
            Whether it was ended; if not, nothing has changed.
        """
        lane = self._lane
        if (
            lane is None
            or lane.streams
            or (self.scope is not None and self.scope.get("endpoint") is not self._lane_endpoint)
            or self.state is not _OPEN
            or self._busy is not None
            or self._executor is None
            or self.stopped_by is not None
            or self._conflict is not None
            or self.committing
            or (self._lock is not None and self._lock.is_held)
            or (self._work is not None and not self._work.is_idle)
            or (self.participants and self._has_pending)
        ):
            return False
        self.state = SessionState.CLOSED
        if self.trace is not None:
            self.close_trace()
        self._datasource.leave()
        return True

    def send_commit(self) -> Exchange | None:
        """Send COMMIT without awaiting anything, and begin to end; None if something has to be awaited first.

        `take_commit` reads the result; if it returns False, or its caller was cancelled, use `finish_commit`.
        """
        work = self._work
        if (
            work is None
            or self.state is not _OPEN
            or self._busy is not None
            or self.stopped_by is not None
            or self.committing
            or (self._lock is not None and self._lock.is_held)
            or (self.participants and self._has_pending)
        ):
            return None
        exchange = work.send_commit(self.request_deadline if current_frame.get() is None else self.deadline())
        if exchange is not None:
            self._commit = exchange
            self.state = SessionState.ENDING
        return exchange

    def take_commit(self) -> bool:
        """Read the result of `send_commit`; True if COMMIT succeeded, which ends the session."""
        work, exchange = self._work, self._commit
        if work is None or exchange is None or not work.take_commit(exchange):
            return False
        self._commit = None
        self.state = SessionState.CLOSED
        if self.trace is not None:
            self.close_trace()
        self._datasource.leave()
        return True

    def finish_commit(self) -> Coroutine[Any, Any, None]:
        """Determine the outcome of the COMMIT of `send_commit`; to be awaited in a background task.

        Raises:
            DataError: The commit failed (CommitUnknown: its outcome is unknown).
        """
        return self._end(commit=True, reason="", deadline=self.deadline(), is_apart=True)

    def end(self, *, commit: bool, reason: str, is_apart: bool = False) -> Coroutine[Any, Any, None]:
        """End the session and its transaction; every use from this call on raises `SessionClosed`.

        Args:
            commit: Commit; otherwise roll back.
            reason: Why it is rolled back, for the span.
            is_apart: It is awaited in a background task, which only shutdown cancels.

        Returns:
            A coroutine to await, here or in another task.

        Raises:
            DataError: The commit failed (CommitUnknown: its outcome is unknown).
        """
        if self.state is not _OPEN:
            return _nothing()
        deadline = self.deadline()
        self.state = SessionState.ENDING
        return self._end(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart)

    async def complete(self) -> None:
        """End the session after success: commit, unless `set_rollback_only` was called.

        Raises:
            DataError: The commit failed (CommitUnknown: its outcome is unknown).
            Exception: Raised by a before-commit hook.
        """
        try:
            await self.run_before_commit()
        except BaseException as error:
            await self._registry.background.run(self.end(commit=False, reason=reason_of(error)))
            raise
        await self.end(commit=self.rollback_reason is None, reason="end of the block")

    async def _end(self, *, commit: bool, reason: str, deadline: float | None, is_apart: bool) -> None:
        self._ending = asyncio.current_task()
        begun, self._commit = self._commit, None
        try:
            if self.is_unused and self._lock is None:
                if commit and self.stopped_by is not None:
                    raise self.stopped_by
                return
            if not commit:
                # Running statements would be rolled back anyway: interrupt them.
                self.stop(closed())
                self.interrupt()
            lock = self.lock_of(None)
            await self._acquire_for_end(lock, deadline, commit=commit)
            try:
                if self.committing:
                    # Await commits whose caller was cancelled before the response starts.
                    await asyncio.wait(self.committing)
                if self._siblings:
                    await self._end_siblings(reason or "the main session has ended")
                # Read only now: a block of another task may have pushed its own unit of work before.
                work = self._work
                if work is not None:
                    await work.finish(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart, begun=begun)
                elif commit and self.stopped_by is not None:
                    raise self.stopped_by
            finally:
                lock.release()
        except BaseException:
            work = self._work
            while work is not None:
                work.abandon()
                work = work.outer
            raise
        finally:
            self.state = SessionState.CLOSED
            if self.trace is not None:
                self.close_trace()
            if self._executor is not None:
                self._datasource.leave()

    def release_references(self) -> None:
        """Break reference cycles so that the session is freed without the cyclic GC.

        Otherwise each request would leave a cycle behind, and each run of the cyclic GC pauses all requests.
        """
        if self.state is SessionState.CLOSED and not (self.committing and self._unfinished()):
            if self._work is not None and (self._work.lost_by is not None or self._work.transaction is not None):
                self._conflict = self.lost_by
            self._work = self._lock = self._owner = self._ending = None
            self.scope = self.writers = self._lane_endpoint = self._facades = None
            if self.tenant_error is not None:
                self.tenant_error = None
            participants, self.participants = self.participants, ()
            for participant in participants:
                participant.close()

    async def end_midway(self, *, commit: bool) -> None:
        """Commit or roll back; the session stays open."""
        self.check_open()
        if self.innermost_scope() is not None:
            raise DataError(
                DataErrorKind.QUERY,
                "commit() and rollback() end the whole transaction; leave the transaction() block first",
            )
        if commit:
            await self.flush_participants()
        work = self.work_here()
        if work is not None:
            if commit:
                await self.run_before_commit(work)
            lock = self.lock_of(None)
            await lock.acquire()
            try:
                self.check_open()
                await work.finish(commit=commit, reason="rollback() was called", deadline=self.deadline())
            finally:
                lock.release()
            if not commit:
                work.rollback_reason = work.doomed_by = work.lost_by = None
        if not commit:
            for one in self._siblings:
                await one.end_midway(commit=False)
        for participant in self.participants:
            participant.ended(committed=commit)
        await self.run_due_hooks()

    async def run_and_commit(self, statement: Statement) -> Result:
        """Run one write and commit it: in one round trip if nothing else has to be sent before COMMIT."""
        result = await self._run_whole(statement)
        if result is None:
            (result,) = await self.run((statement,), AccessIntent.WRITE)
            await self.end_midway(commit=True)
            return result
        for participant in self.participants:
            participant.ended(committed=True)
        if self.ended_hooks or self.committing:
            await self.run_due_hooks()
        return result

    async def _run_whole(self, statement: Statement) -> Result | None:
        """Send a transaction of one statement with its COMMIT; None if it has to be sent in two steps."""
        lane, work = self.lane(), self._work
        if (
            not lane.begins_plainly
            or self.writers is not None
            or self._tenant.state is not _ACTIVE
            or (work is not None and not work.may_send_whole)
            or (self.participants and self._has_pending)
            or (self.outlives_requests and not self._has_current_tenant())
            or not self._take_turn_at_once(is_read=False)
        ):
            return None
        task = self._busy
        query, params, deadline = statement.query, statement.params, self.request_deadline
        try:
            executor = self._executor or self._start()
            sent = executor.send_whole(
                query, params, deadline=deadline, freshness=lane.freshness, now=time.monotonic()
            ) or await executor.wait_to_send_whole(query, params, deadline=deadline, freshness=lane.freshness)
            if sent is None:
                return None
            executor.note_write()
            work = self.make_work()
            try:
                await sent[0].waiter
            except asyncio.CancelledError:
                await work.finish_whole_apart(executor, sent, statement, is_orphaned=True)
                raise
            taken = executor.take_whole(sent, query)
            if taken is None:
                return await work.finish_whole_apart(executor, sent, statement, is_orphaned=False)
            work.take_whole(taken[0])
            return taken[1]
        except asyncio.CancelledError:
            self._reraise_interruption(task)
            raise
        except DataError as error:
            raise self._noted((statement,), error) from error.__cause__
        finally:
            self._busy = None
            if self._interrupted:
                self._interrupted -= {task}
            if self._lock is not None:
                self._lock.release()

    def _unfinished(self) -> frozenset[asyncio.Task[Any]]:
        """Running tasks that end the session, or commit a transaction of it."""
        ending = self._ending if self.state is SessionState.ENDING else None
        if ending is None and not self.committing:
            return _NO_TASKS
        return frozenset(task for task in (ending, *self.committing) if task is not None and not task.done())

    async def _acquire_for_end(self, lock: SharedLock, deadline: float | None, *, commit: bool) -> None:
        """Acquire the session's lock for the end; a statement of another task is awaited for a bounded time."""
        if lock.try_acquire():
            return
        loop = asyncio.get_running_loop()
        if self.innermost_scope() is None:
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
            "the response was started inside a transaction() or connection() block; leave the block first (in a"
            ' dependency of FastAPI: `Depends(..., scope="function")`)',
        )


async def _nothing() -> None:
    """The end of a session that has ended already."""
