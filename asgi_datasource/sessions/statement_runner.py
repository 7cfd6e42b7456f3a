"""Running statements: `run_one` takes the short path, `run` the general path.

The short path sends a statement without awaiting if the pool has an idle connection, and reads a plain success without
further checks. Everything else, such as a pool without an idle connection, a block, a batch or a failure, takes the
general path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from ..datasource.executor import Executor, SentBegin, SentRead
from ..drivers.protocol import Exchange, Result
from ..drivers.statements import Params, Query, Statement
from ..errors import DataError, DataErrorKind
from ..observability.summary import summarize
from ..routing import AccessIntent
from ..tenancy import TenantState
from ..transaction import (
    Terms,
    Transaction,
    is_conflict,
)
from .base import SessionBase, SessionState
from .context import current_frame
from .policy import Lane
from .scope import current_scope
from .statement_api import fail_reading
from .unit_of_work import UnitOfWork, check_commands, open_transaction, run_statements

R = TypeVar("R")

Snapshot = tuple[UnitOfWork, Transaction]
"""The READ ONLY transaction that a stream reads from, and its unit of work."""

Sent = tuple[Exchange, SentRead | SentBegin | Transaction, bool]
"""A statement that was sent: its round trip, the read, BEGIN or transaction of it, and whether it has read intent."""

_SNAPSHOT: Final = Terms(is_shared=False, read_only=True)

# Looking a member up on an enumeration costs as much as a call; these are read for every statement.
_OPEN: Final = SessionState.OPEN
_READ: Final = AccessIntent.READ
_ACTIVE: Final = TenantState.ACTIVE


class StatementRunner(SessionBase):
    """A session that runs statements."""

    # -- the short path: one statement

    async def run_one(
        self,
        query: Query,
        params: Params | None,
        intent: AccessIntent | None,
        read: Callable[[Result, Any], R],
        row_factory: Any,
    ) -> R:
        """Run one statement in one round trip.

        Args:
            query, params: The statement.
            intent: None uses the intent in force.
            read: Converts the result with the row factory.
            row_factory: Makes rows; None makes dictionaries.
        """
        lane = self.lane()
        is_read = (intent or lane.intent) is _READ
        if not self._take_turn_at_once(is_read=is_read):
            results = await self.run((Statement(query, params),), intent)
            try:
                return read(results[0], row_factory)
            except Exception as error:  # noqa: BLE001 - raised again, some of it as a DataError
                fail_reading(results[0], error)
        task = self._busy
        result: Result | None = None
        try:
            sent = self._send_at_once(query, params, lane, is_read=is_read)
            if sent is None:
                sent, result = await self._wait_to_send(query, params, lane, is_read=is_read)
            if sent is not None:
                try:
                    await sent[0].waiter
                except asyncio.CancelledError:
                    await self._abandon(sent, Statement(query, params))
                    raise
                result = self._take_at_once(sent, query)
                if result is None:
                    result = await self._take_over(sent, Statement(query, params))
        except asyncio.CancelledError:
            self._reraise_interruption(task)
            raise
        except DataError as error:
            raise self._noted((Statement(query, params),), error) from error.__cause__
        finally:
            self._busy = None
            if self._interrupted:
                self._interrupted -= {task}
            if self._lock is not None:
                self._lock.release()
        result = cast("Result", result)
        try:
            return read(result, row_factory)
        except Exception as error:  # noqa: BLE001 - raised again, some of it as a DataError
            fail_reading(result, error)

    def _take_turn_at_once(self, *, is_read: bool) -> bool:
        """Acquire the session for a statement outside of any block; False if that takes the general path."""
        lock, work = self._lock, self._work
        if (
            self.state is not _OPEN
            or self.stopped_by is not None
            or self._busy is not None
            or current_scope.get() is not None
            or current_frame.get() is not None
            or (work is not None and (work.outer is not None or work.snapshot is not None or work.terms is not None))
            or (lock is not None and not lock.try_acquire())
        ):
            return False
        self._busy = asyncio.current_task()
        self._is_reading = is_read and (work is None or work.transaction is None)
        return True

    def _send_at_once(self, query: Query, params: Params | None, lane: Lane, *, is_read: bool) -> Sent | None:
        """Send a statement if that needs only an idle connection, and there is one; None otherwise."""
        executor = self._executor or self._start()
        work = self._work
        transaction = None if work is None else work.transaction
        if self.outlives_requests and transaction is None and not self._has_current_tenant():
            return None
        now = time.monotonic()
        deadline = self.request_deadline
        if transaction is not None:
            if is_read or not (lane.reads_only or transaction.read_only):
                exchange = transaction.send(query, params, deadline=deadline, now=now, as_read=is_read)
                if exchange is not None:
                    executor.note_in_transaction(transaction, _READ if is_read else AccessIntent.WRITE)
                    return exchange, transaction, is_read
        elif is_read:
            if not lane.terms.opens_with_reads:
                read = executor.send_read(query, params, deadline=deadline, freshness=lane.freshness, now=now)
                return None if read is None else (read[0], read, True)
        elif lane.begins_plainly and self.writers is None and self._tenant.state is _ACTIVE:
            begin = executor.send_begin(query, params, deadline=deadline, freshness=lane.freshness, now=now)
            return None if begin is None else (begin[0], begin, False)
        return None

    async def _wait_to_send(
        self, query: Query, params: Params | None, lane: Lane, *, is_read: bool
    ) -> tuple[Sent | None, Result | None]:
        """Wait for a connection and send, if nothing else is missing; otherwise run the statement to its result."""
        executor = cast("Executor", self._executor)
        intent = _READ if is_read else AccessIntent.WRITE
        statements = (Statement(query, params),)
        check_commands(self._work, statements)
        plan = self.current_plan()
        if self.outlives_requests:
            await self.renew_tenant()
        if (
            (executor.trace is not None and not is_read)
            or (self._work is not None and self._work.transaction is not None)
        ) or not (
            not lane.terms.opens_with_reads
            if is_read
            else lane.begins_plainly and self.writers is None and self._tenant.state is _ACTIVE
        ):
            results = await run_statements(self.make_work(), executor, statements, intent, plan, None)
            return None, results[0]
        sent, lent = await executor.wait_to_send(
            query, params, intent=intent, deadline=self.request_deadline, freshness=lane.freshness
        )
        if sent is not None:
            return (sent[0], sent, is_read), None
        if is_read:
            results = await executor.read(statements, deadline=plan.deadline, freshness=plan.freshness, lent=lent)
        else:
            results = await open_transaction(self.make_work(), executor, statements, plan, plan.terms, None, lent=lent)
        return None, results[0]

    def _take_at_once(self, sent: Sent, query: Query) -> Result | None:
        """The result of a statement that plainly succeeded; None if `_take_over` has to examine the round trip."""
        exchange, way, is_read = sent
        executor = cast("Executor", self._executor)
        if isinstance(way, Transaction):
            return way.take(exchange, query, as_read=is_read)
        if is_read:
            return executor.take_read(cast("SentRead", way), query)
        begun = executor.take_begin(cast("SentBegin", way), query)
        if begun is None:
            return None
        work = self.make_work()
        work.transaction, result = begun
        return result

    async def _take_over(self, sent: Sent, statement: Statement) -> Result:
        """Continue on the general path with a statement that was sent and did not plainly succeed."""
        exchange, way, is_read = sent
        executor = cast("Executor", self._executor)
        plan = self.current_plan()
        results: Sequence[Result]
        if isinstance(way, Transaction):
            results = await way.run((statement,), deadline=plan.deadline, as_read=is_read, begun=exchange)
        elif is_read:
            results = await executor.read(
                (statement,), deadline=plan.deadline, freshness=plan.freshness, begun=cast("SentRead", way)
            )
        else:
            results = await open_transaction(
                self.make_work(), executor, (statement,), plan, plan.terms, None, begun=cast("SentBegin", way)
            )
        return results[0]

    async def _abandon(self, sent: Sent, statement: Statement) -> None:
        """Abandon a statement whose caller was cancelled while it waited for the result."""
        _, way, _ = sent
        if isinstance(way, Transaction):
            await way.abandon(statement)
        else:
            await cast("Executor", self._executor).abandon(way, statement)

    # -- the general path

    async def run(self, statements: Sequence[Statement], intent: AccessIntent | None = None) -> Sequence[Result]:
        """Run statements in one round trip.

        Args:
            statements: What to run.
            intent: None uses the intent in force.
        """
        self.check_open()
        scope = self.innermost_scope()
        lock = self.lock_of(scope)
        shared = lock.is_shareable and self._may_share(intent)
        if not lock.try_acquire(shared=shared):
            scope, lock = await self.take_turn(shared=shared)
        task = asyncio.current_task()
        try:
            # Second check: the session may have ended while this task waited for its turn.
            self.check_open()
            if scope is not None:
                scope.check_surroundings()
            plan = self.current_plan()
            self._running |= {task}
            if self.outlives_requests:
                await self.renew_tenant()
            executor = self._executor or self._start()
            return await run_statements(self.make_work(), executor, statements, intent or plan.intent, plan, scope)
        except asyncio.CancelledError:
            self._reraise_interruption(task)
            raise
        except DataError as error:
            raise self._noted(statements, error) from error.__cause__
        finally:
            self._running -= {task}
            if self._interrupted:
                self._interrupted -= {task}
            lock.release()

    def _reraise_interruption(self, task: asyncio.Task[Any] | None) -> None:
        """Raise the error of `stop` if `interrupt` has cancelled this task; return if another cancellation has."""
        is_ours = task is not None and task in self._interrupted and task.uncancel() == 0
        if is_ours and self.stopped_by is not None:
            raise self.stopped_by from None

    def _noted(self, statements: Sequence[Statement], error: DataError) -> DataError:
        """Record the failure of a statement; returns the error to raise."""
        if is_conflict(error) and self.current_transaction is None:
            # No open transaction records it.
            self._conflict = error
        if error.kind is DataErrorKind.TENANT:
            self._tenant.note_failure(error)
        if error.kind is DataErrorKind.READ_ONLY:
            return self._explain_read_only(statements, error)
        return error

    def _may_share(self, intent: AccessIntent | None) -> bool:
        """Whether a statement is a read outside a transaction, which may run in parallel with other reads."""
        plan = self.current_plan()
        return (intent or plan.intent) is _READ and not self._terms().opens_with_reads

    def _explain_read_only(self, statements: Sequence[Statement], error: DataError) -> DataError:
        what = summarize(statements[0].text) if statements else "The statement"
        path = "" if self.scope is None else f" of {self._method} {self.scope.get('path', '')}"
        transaction = self.current_transaction
        if self.current_plan().reads_only or (transaction is not None and transaction.read_only):
            return DataError(
                DataErrorKind.READ_ONLY,
                f"{what} writes, but runs in a read_only transaction{path} and was refused. Remove read_only from its"
                " annotation, its rule in `routes`, its block or its session(read_only=True)",
                sqlstate=error.sqlstate or "25006",
            )
        return DataError(
            DataErrorKind.READ_ONLY,
            f"{what} writes, but ran with read intent{path} and was refused. Annotate the route with @transactional"
            " (without read_only), or call it as db.write.execute(...)",
            sqlstate=error.sqlstate or "25006",
        )

    # -- streams

    async def begin_stream(self, intent: AccessIntent | None) -> tuple[AccessIntent, Snapshot | None]:
        """Prepare the transaction of a cursor: the surrounding one, or a snapshot of its own.

        Returns:
            The intent of its statements, and its snapshot for `end_stream`; None in a surrounding transaction.
        """
        plan, terms = self.current_plan(), self._terms()
        if intent is None:
            intent = plan.intent if terms.is_shared else _READ
        if intent is not _READ or terms.opens_with_reads:
            return intent, None
        scope, lock = await self.take_turn()
        try:
            self.check_open()
            if scope is not None:
                scope.check_surroundings()
            if self.outlives_requests:
                await self.renew_tenant()
            work, executor = self.make_work(), self._executor or self._start()
            if work.transaction is not None:
                return intent, None
            if work.snapshot is None:
                await open_transaction(work, executor, (), plan, _SNAPSHOT, None, is_snapshot=True)
            work.streams += 1
            return intent, (work, cast("Transaction", work.snapshot))
        finally:
            lock.release()

    async def end_stream(self, snapshot: Snapshot) -> None:
        """End an iteration; the last one that reads from the snapshot ends the snapshot."""
        work, transaction = snapshot
        if work.snapshot is not transaction:
            # The snapshot was ended before.
            return
        work.streams -= 1
        if work.streams > 0:
            return
        try:
            # The event loop closes an abandoned iterator at an arbitrary time: another statement of the session may be
            # running on the same connection.
            _, lock = await self.take_turn()
        except BaseException:
            if work.snapshot is transaction and work.streams == 0:
                work.snapshot = None
                self._registry.background.spawn(transaction.rollback("cancelled"))
            raise
        try:
            # Another stream may have started during the wait.
            if work.snapshot is transaction and work.streams == 0:
                await work.end_snapshot()
        finally:
            lock.release()
