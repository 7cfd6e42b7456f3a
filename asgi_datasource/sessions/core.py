"""The core of a session: what the library does with it. `DataSession` adds what a handler uses.

One object a request: it knows the tenant, what holds for each statement (`policy.py`), and what is under way
(`unit_of_work.py`). Statements reach a server through the executor (`datasource/executor.py`).

A statement is sent at once where nothing has to be awaited first, and read at once where it came back with plain
success (`run_one`). Everything else, such as a pool without an idle connection, a block, a batch, a failure, is the
longer way: `run`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, MutableMapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar, cast

from ..concurrency.shared_lock import SharedLock
from ..concurrency.tasks import BackgroundTasks
from ..datasource.datasource import DataSource, DataSourceState
from ..datasource.executor import Executor, SentBegin, SentRead
from ..drivers.protocol import Exchange, Result, Server
from ..drivers.statements import Params, Query, Statement
from ..errors import DataError, DataErrorKind, SessionClosed
from ..observability import tracing
from ..routing import AccessIntent, ReadAfterWritePin, Route
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from ..routing.consistency.token import Token, scope_of
from ..tenancy import Tenant, TenantState
from ..transaction import (
    DeferredWriter,
    DueHooks,
    Hook,
    HookEvent,
    Isolation,
    SurroundingTransaction,
    Terms,
    Transaction,
    TransactionOptions,
    WaitingHooks,
    is_conflict,
)
from .context import Frame, current_frame, current_runner
from .options import options_of
from .policy import NO_RULE, Lane, Plan, RouteRule, SessionPolicy, add_lane, make_lane, make_plan
from .scope import Scope, current_scope
from .unit_of_work import UnitOfWork, open_transaction, run_statements

R = TypeVar("R")

Snapshot = tuple[UnitOfWork, Transaction]
"""What a stream reads from, and the unit of work that it belongs to."""

Sent = tuple[Exchange, SentRead | SentBegin | Transaction, bool]
"""A statement on its way: its round trip, what it belongs to, and whether it has read intent."""


class SessionState(StrEnum):
    """Whether the handle may still be used."""

    OPEN = "open"
    ENDING = "ending"
    """The outcome is decided; COMMIT or ROLLBACK is on its way."""
    CLOSED = "closed"


# Looking a member up on an enumeration costs as much as a call; these are read for every statement.
_OPEN: Final = SessionState.OPEN
_READ: Final = AccessIntent.READ
_ACTIVE: Final = TenantState.ACTIVE


class SessionOwner(Protocol):
    """The request that ends the session."""

    def first_statement(self, session: SessionCore, /) -> None:
        """The session is about to run its first statement."""
        ...

    def tolerates(self, error: BaseException, options: TransactionOptions, /) -> bool:
        """Whether an exception is only a way to respond, with a status that commits: a redirect."""
        ...


class SessionOrigin(Protocol):
    """The registry that a session comes from."""

    background: BackgroundTasks

    def successor(self, datasource: DataSource, /) -> DataSource:
        """What has taken the place of a datasource that is not configured any more."""
        ...

    def session(
        self,
        tenant: str | None = None,
        *,
        read_only: bool = False,
        timeout: float | None = None,
        token: str | None = None,
    ) -> Any:
        """A session outside the request, as an async context manager: `async with registry.session(...) as db:`."""
        ...

    def capability(self, name: str, session: Any, /) -> Any:
        """What a room above the sessions adds to one, by its attribute: `outbox`.

        Raises:
            DataError: CONFIG: the configuration has no section for it.
        """
        ...


class Writers:
    """The sessions of one request that have written: two COMMITs cannot be atomic, so it should be one."""

    __slots__ = ("_allows_several", "_first")

    def __init__(self, *, allows_several: bool) -> None:
        self._allows_several = allows_several
        self._first: SessionCore | None = None

    def claim(self, session: SessionCore) -> None:
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


class SessionCore:
    """A session without the methods of its user."""

    # Defaults on the class: most of a request's cost is what it does not build.
    state = _OPEN
    """Whether the handle may still be used."""
    writers: Writers | None = None
    """Shared with the other sessions of the request, where there are any."""
    stopped_by: DataError | None = None
    """Why only the rollback is left, where that is so."""
    commits = 0
    """How often something was committed, or may have been."""
    past: ClientHistory | None = None
    """Causal-consistency state; None before the first statement, and when tokens are disabled."""
    verdict: bool | None = None
    """Whether an exception that has left the route commits, where the route's annotation names it."""
    is_in_route = False
    """Whether the matched endpoint runs."""
    committing: frozenset[asyncio.Task[None]] = frozenset()
    """Commits in tasks of the library's own, whose caller may have been cancelled."""
    _executor: Executor | None = None
    _work: UnitOfWork | None = None
    _hooks: DueHooks | None = None
    """The hooks whose transaction has ended."""
    _conflict: DataError | None = None
    _ending: asyncio.Task[Any] | None = None
    _commit: Exchange | None = None
    """The COMMIT of `send_commit`, until it was read."""
    _lock: SharedLock | None = None
    """Serialises the session's statements; made for the second task that wants a turn."""
    _busy: asyncio.Task[Any] | None = None
    """The task that has the turn without a lock, or with it on its behalf."""
    _is_reading = False
    """Whether its statement is a read outside a transaction, which others may run beside."""
    _running: frozenset[asyncio.Task[Any] | None] = frozenset()
    _interrupted: frozenset[asyncio.Task[Any] | None] = frozenset()
    _savepoints = 0
    _lane: Lane | None = None
    _lane_endpoint: object = None
    _plan: Plan | None = None
    _plan_frame: Frame | None = None
    request_deadline: float | None = None
    """Event-loop time at which the request's time is up, whatever runs; None where there is no limit."""

    def __init__(
        self,
        registry: SessionOrigin,
        datasource: DataSource,
        tenant: Tenant,
        *,
        policy: SessionPolicy,
        scope: MutableMapping[str, Any] | None = None,
        method: str = "POST",
        rule: RouteRule = NO_RULE,
        started: float | None = None,
        owner: SessionOwner | None = None,
        pin: ReadAfterWritePin | None = None,
        token: Token | None = None,
    ) -> None:
        self._registry = registry
        self._datasource = datasource
        self._tenant = tenant
        self._policy = policy
        self.scope = scope
        """The innermost scope in which it was asked for; None outside requests."""
        self._method = method
        self._rule = rule
        self._started = started
        self._owner = owner
        self._pin = pin
        self._token = token

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
        if self._executor is not None:
            return self._executor.pin
        if self._pin is None:
            self._pin = ReadAfterWritePin()
        return self._pin

    @property
    def last_route(self) -> Route | None:
        """Where the last statement went and why; None before the first."""
        return None if self._executor is None else self._executor.last_route

    @property
    def session(self) -> SessionCore:
        """Itself: where there is no request, the session stands in the context as its own holder."""
        return self

    @property
    def is_open(self) -> bool:
        """Whether it may still be used."""
        return self.state is _OPEN

    def __repr__(self) -> str:
        transaction = None if self._work is None else self._work.transaction
        doing = "" if transaction is None else f" in {transaction!r}"
        return f"<DataSession {self.state.value} datasource={self._datasource.name!r}{doing}>"

    # -- one statement: the short way

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
            intent: None takes what holds here.
            read: Makes the answer of the result and the row factory.
            row_factory: Makes rows; None makes dictionaries.
        """
        lane = self.lane()
        is_read = (intent or lane.intent) is _READ
        if not self._take_turn_at_once(is_read=is_read):
            results = await self.run((Statement(query, params),), intent)
            return read(results[0], row_factory)
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
                self._lock.leave()
        return read(cast("Result", result), row_factory)

    def _take_turn_at_once(self, *, is_read: bool) -> bool:
        """Take the turn for a statement outside of any block, where it has not to be waited for."""
        lock, work = self._lock, self._work
        if (
            self.state is not _OPEN
            or self.stopped_by is not None
            or self._busy is not None
            or current_scope.get() is not None
            or current_frame.get() is not None
            or (work is not None and (work.outer is not None or work.snapshot is not None or work.terms is not None))
            or (lock is not None and not lock.take())
        ):
            return False
        self._busy = asyncio.current_task()
        self._is_reading = is_read and (work is None or work.transaction is None)
        return True

    def _send_at_once(self, query: Query, params: Params | None, lane: Lane, *, is_read: bool) -> Sent | None:
        """Send a statement where a connection lies at hand, and it needs no more than that."""
        executor = self._executor or self._start()
        work = self._work
        transaction = None if work is None else work.transaction
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
        """Wait for a connection where that is all that is missing, and send; the result, where there was more to do."""
        executor = cast("Executor", self._executor)
        intent = _READ if is_read else AccessIntent.WRITE
        statements = (Statement(query, params),)
        plan = self.current_plan()
        if (self._work is not None and self._work.transaction is not None) or not (
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
        """The result of a statement that came back with plain success; None: `_take_over` has to look at it."""
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
        """Go the longer way from the middle: the statement was sent, and something unusual came back."""
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
        """The caller of a statement was cancelled while it waited for the answer."""
        _, way, _ = sent
        if isinstance(way, Transaction):
            await way.abandon(statement)
        else:
            await cast("Executor", self._executor).abandon(way, statement)

    # -- statements: the longer way

    async def run(self, statements: Sequence[Statement], intent: AccessIntent | None = None) -> Sequence[Result]:
        """Run statements in one round trip.

        Args:
            statements: What to run.
            intent: None takes what holds here.
        """
        self.check_open()
        scope = self.innermost_scope()
        lock = self.lock_of(scope)
        may_share = lock.can_be_shared and self._may_share(intent)
        if not lock.take(may_share=may_share):
            scope, lock = await self.take_turn(may_share=may_share)
        task = asyncio.current_task()
        try:
            # Second check: the session may have ended while this task waited for its turn.
            self.check_open()
            if scope is not None:
                scope.check_surroundings()
            plan = self.current_plan()
            self._running |= {task}
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
            lock.leave()

    def _reraise_interruption(self, task: asyncio.Task[Any] | None) -> None:
        """Raise why the session was stopped, where the cancellation of this task is the session's own interruption."""
        is_ours = task is not None and task in self._interrupted and task.uncancel() == 0
        if is_ours and self.stopped_by is not None:
            raise self.stopped_by from None

    def _noted(self, statements: Sequence[Statement], error: DataError) -> DataError:
        """Take note of what a statement has failed with; the error to raise."""
        if is_conflict(error) and self.current_transaction is None:
            # No transaction that goes on remembers it.
            self._conflict = error
        if error.kind is DataErrorKind.READ_ONLY:
            return self._explain_read_only(statements, error)
        return error

    def _may_share(self, intent: AccessIntent | None) -> bool:
        """Whether a statement is a read outside of a transaction, which others may run beside."""
        plan = self.current_plan()
        return (intent or plan.intent) is _READ and not self._terms().opens_with_reads

    def _is_in_use(self) -> bool:
        return self.transaction_in_use is not None

    def about_to_write(self) -> None:
        """A statement with write intent is about to open a transaction."""
        self._tenant.check_writable()
        if self.writers is not None:
            self.writers.claim(self)

    def _start(self) -> Executor:
        if self._datasource.state is DataSourceState.LEFT:
            # The configuration was loaded anew since the request began, which had no use for its datasource yet.
            self._datasource = self._registry.successor(self._datasource)
        self._datasource.enter(self._rule.priority)
        policy = self._policy
        is_traced = policy.is_traced and tracing.is_recording()
        executor = self._executor = Executor(
            self._datasource,
            self._tenant,
            self._registry.background,
            pin=self._pin,
            past=None if policy.tokens is None else self._make_past(),
            priority=self._rule.priority,
            is_traced=is_traced,
            traces_statements=policy.traces_statements,
            shows_tenant=policy.shows_tenant,
            measure=None if policy.metrics is None else policy.metrics.measure(self._tenant.name),
        )
        if self._owner is not None:
            self._owner.first_statement(self)
        return executor

    def _make_past(self) -> ClientHistory | None:
        tokens = self._policy.tokens
        if tokens is None:
            return None
        carried = self._token
        if carried is None:
            texts = () if self.scope is None else tokens.carrier.find(self.scope)
            carried = tokens.signer.read(texts, now=time.time())
        self.past = ClientHistory(tokens, scope_of(self._tenant.name, self._datasource.name), carried)
        return self.past

    # -- what holds here

    def lane(self) -> Lane:
        """What holds for the request."""
        endpoint = None if self.scope is None else self.scope.get("endpoint")
        lane = self._lane
        if lane is None or endpoint is not self._lane_endpoint:
            try:
                lane = self._policy.lanes.get((self._rule, self._method, endpoint))
            except TypeError:
                # An endpoint that cannot be hashed.
                lane = make_lane(self._policy, self._rule, self._method, options_of(endpoint, self._method))
            lane = self._lane = lane or add_lane(self._policy, self._rule, self._method, endpoint)
            self._lane_endpoint = endpoint
            self._plan = None
            if self._started is not None:
                self.request_deadline = None if lane.timeout_s is None else self._started + lane.timeout_s
        return lane

    def current_plan(self) -> Plan:
        """What holds for a statement of the running function."""
        lane = self.lane()
        frame = current_frame.get()
        plan = self._plan
        if plan is None or self._plan_frame is not frame:
            plan = self._plan = make_plan(lane, frame, self._started)
            self._plan_frame = frame
        return plan

    def _terms(self) -> Terms:
        work = self.work_here()
        return (None if work is None else work.terms) or self.current_plan().terms

    def deadline(self) -> float | None:
        """Event-loop time at which the time of the running function is up; None where there is no limit."""
        return self.current_plan().deadline

    def is_route(self, options: TransactionOptions) -> bool:
        """Whether these options are the matched endpoint's own."""
        return options is self.lane().endpoint

    def note_failure(self, options: TransactionOptions, error: BaseException) -> None:
        """An exception leaves the route: its annotation may name the exception.

        A handler of the application may turn the exception into a response, whose status then says nothing about it.
        """
        self.verdict = options.decides(error)

    def tolerates(self, error: BaseException, options: TransactionOptions) -> bool:
        """Whether an exception is only a way to respond, with a status that commits."""
        return self._owner is not None and self._owner.tolerates(error, options)

    @property
    def intent(self) -> AccessIntent:
        """The intent of a statement that says nothing itself."""
        return self.current_plan().intent

    def _explain_read_only(self, statements: Sequence[Statement], error: DataError) -> DataError:
        what = tracing.summarize(statements[0].text) if statements else "The statement"
        path = "" if self.scope is None else f" of {self._method} {self.scope.get('path', '')}"
        return DataError(
            DataErrorKind.READ_ONLY,
            f"{what} writes, but ran with read intent{path} and was refused. Annotate the route with @transactional"
            " (without read_only), or call it as db.write.execute(...)",
            sqlstate=error.sqlstate or "25006",
        )

    # -- the unit of work

    def work_here(self) -> UnitOfWork | None:
        """What the running task's statements belong to: not what another task's block has put in front of that."""
        work = self._work
        if work is None or work.outer is None:
            return work
        scope = self.innermost_scope()
        if scope is not None:
            return scope.work
        root = work
        while (outer := root.outer) is not None:
            root = outer
        return root

    def make_work(self) -> UnitOfWork:
        """The innermost unit of work; made when it is first asked for."""
        if self._work is None:
            self._work = UnitOfWork(self, self._policy, self._registry.background)
        return self._work

    def make_work_here(self) -> UnitOfWork:
        """What the running task's statements belong to; made when it is first asked for."""
        return self.work_here() or self.make_work()

    @property
    def current_transaction(self) -> Transaction | None:
        """The transaction around the running task that is open, or has failed and waits for its end."""
        work = self.work_here()
        return None if work is None else work.transaction

    @property
    def transaction_in_use(self) -> Transaction | None:
        """The transaction that statements run in; that of a stream counts."""
        return None if self._work is None else self._work.transaction_in_use

    @property
    def is_writing(self) -> bool:
        """Whether a transaction that may write is open."""
        transaction = self.current_transaction
        return transaction is not None and not transaction.read_only

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

    def defer(self, writer: DeferredWriter, item: object, *, what: str) -> None:
        """Write something in the round trip of the COMMIT that ends the transaction around; a rollback drops it.

        Args:
            writer: Writes it.
            item: What to write.
            what: Names it in errors.

        Raises:
            DataError: QUERY: there is no transaction to wait for the end of. READ_ONLY: it must not write.
            SessionClosed: The request's response has started.
        """
        self.check_open()
        around = self.surroundings()
        if around is SurroundingTransaction.NOTHING:
            raise DataError(
                DataErrorKind.QUERY,
                f"{what} belongs to a transaction, and there is none here: annotate the function with @transactional,"
                " or open `async with db.transaction():` around it",
            )
        if around is SurroundingTransaction.READ_ONLY:
            raise DataError(DataErrorKind.READ_ONLY, f"{what} was asked for in a read-only transaction")
        if self.current_transaction is None:
            self.about_to_write()
        if self._executor is None:
            self._start()
        self.make_work_here().defer(writer, item, self.innermost_scope())

    async def open_to_write(self, work: UnitOfWork, statements: Sequence[Statement], terms: Terms | None) -> None:
        """Open a transaction in `work` with these writes, which have waited for its end."""
        executor, plan = self._executor or self._start(), self.current_plan()
        await open_transaction(work, executor, statements, plan, terms or plan.terms, None)

    def adopt_isolation(self, isolation: Isolation) -> None:
        """The transaction around has no isolation of its own: it takes that of the block that has joined it."""
        if self.current_transaction is None:
            self.make_work_here().terms = replace(self._terms(), isolation=isolation)

    def surroundings(self) -> SurroundingTransaction:
        """What surrounds a place in the code that asks for a transaction."""
        frame = current_frame.get()
        work = self.work_here()
        plan = self.current_plan()
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
        route = self.lane().terms
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
        timeout_s = self.lane().timeout_s
        return None if timeout_s is None else time.monotonic() + timeout_s

    def doom(self, error: BaseException) -> None:
        """Leave the transaction around, or its innermost savepoint, nothing but a rollback; its commit fails."""
        if isinstance(error, DataError):
            reason = error
        else:
            what = f"{type(error).__name__} left a function that had joined the transaction"
            reason = DataError(DataErrorKind.OTHER, what)
            reason.__cause__ = error
        scope = self.innermost_scope()
        if scope is None or not scope.doom(reason):
            work = self.make_work_here()
            work.doomed_by = work.doomed_by or reason
        self.note_event(tracing.DOOMED, {tracing.ROLLBACK_REASON: type(error).__name__})

    def suspend(self, terms: Terms) -> UnitOfWork:
        """Begin something beside the transaction around, which waits; the caller has the session to itself."""
        outer = self.make_work()
        work = self._work = UnitOfWork(self, self._policy, self._registry.background, terms=terms, outer=outer)
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
        held: list[Server] = []
        work = None if self._work is None else self._work.outer
        while work is not None:
            if work.transaction_in_use is not None:
                held.append(work.transaction_in_use.server)
            work = work.outer
        (self._executor or self._start()).held = tuple(held)

    def spoil(self, reason: str) -> None:
        """Leave only rollback for the transaction that is open."""
        transaction = self.current_transaction
        if transaction is not None and transaction.is_open:
            transaction.doom(DataError(DataErrorKind.QUERY, reason))

    def next_savepoint(self) -> str:
        """A name for a savepoint, new in this session."""
        self._savepoints += 1
        return f"ads_{self._savepoints}"

    def undo_hooks(self, scope: Scope) -> None:
        """A block was undone: what was to run after its commit never runs."""
        if scope.work is not None:
            scope.work.settle(committed=False, within=scope)

    def note_event(self, name: str, attributes: Mapping[str, tracing.AttributeValue]) -> None:
        """Add an event to the current span."""
        if self._policy.is_traced:
            tracing.add_event(name, attributes)

    # -- turns

    def check_open(self) -> None:
        """Refuse a handle that has outlived its request.

        Raises:
            SessionClosed: It has.
            DataError: The deadline has passed, or the client is gone.
        """
        if self.state is not _OPEN:
            if self._policy.metrics is not None:
                self._policy.metrics.measure(self._tenant.name).used_late(self._datasource.name)
            raise _closed()
        if self.stopped_by is not None:
            raise self.stopped_by

    def innermost_scope(self) -> Scope | None:
        """The innermost open scope of this session that the running task belongs to."""
        scope = current_scope.get()
        while scope is not None and not (scope.is_open and scope.belongs_to(self)):
            scope = scope.parent
        return scope

    def lock_of(self, scope: Scope | None) -> SharedLock:
        """What serialises the statements of a scope; without one, those of the session."""
        if scope is not None:
            return scope.lock
        if self._lock is None:
            self._lock = SharedLock(self._policy.max_parallel, self._is_in_use)
            if self._busy is not None:
                # On behalf of the task whose statement runs without it.
                self._lock.take(may_share=self._is_reading)
        return self._lock

    async def take_turn(self, *, may_share: bool = False) -> tuple[Scope | None, SharedLock]:
        """Wait until it is the running task's turn.

        Args:
            may_share: Others who may share can have their turn at the same time.

        Returns:
            The innermost scope around it, and the lock that it has to leave in the end.
        """
        while True:
            scope = self.innermost_scope()
            lock = self.lock_of(scope)
            if lock.take(may_share=may_share):
                return scope, lock
            await lock.wait(may_share=may_share)
            if scope is None or scope.is_open:
                return scope, lock
            # It has ended meanwhile: what goes on is what was around it.
            lock.leave()

    # -- streams

    async def begin_stream(self, intent: AccessIntent | None) -> tuple[AccessIntent, Snapshot | None]:
        """What a cursor runs in: the transaction around it, or a snapshot of its own.

        Returns:
            The intent of its statements, and the snapshot where it reads from one, for `end_stream`.
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
            work, executor = self.make_work(), self._executor or self._start()
            if work.transaction is not None:
                return intent, None
            if work.snapshot is None:
                await open_transaction(work, executor, (), plan, _SNAPSHOT, None, is_snapshot=True)
            work.streams += 1
            return intent, (work, cast("Transaction", work.snapshot))
        finally:
            lock.leave()

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
            _, lock = await self.take_turn()
        except BaseException:
            if work.snapshot is transaction and work.streams == 0:
                work.snapshot = None
                self._registry.background.spawn(transaction.rollback("cancelled"))
            raise
        try:
            # Another one may have begun meanwhile.
            if work.snapshot is transaction and work.streams == 0:
                await work.end_snapshot()
        finally:
            lock.leave()

    # -- hooks

    def add_hook(self, event: HookEvent, function: Hook) -> None:
        """Wait with `function` for the end of what the running task's statements belong to."""
        self.check_open()
        self.make_work_here().add_hook(event, function, self.innermost_scope())

    def settle_hooks(self, hooks: WaitingHooks, *, committed: bool | None) -> None:
        """The outcome that these hooks waited for is known: they become due, or are dropped."""
        if hooks:
            if self._hooks is None:
                self._hooks = DueHooks()
            self._hooks.settle(hooks, committed=committed)

    @property
    def due_hooks(self) -> int:
        """How many hooks wait for `run_due_hooks`."""
        return 0 if self._hooks is None else len(self._hooks)

    def forget_due_hooks(self, since: int = 0) -> None:
        """Run none of those that became due after there were `since`: what they belong to is tried again."""
        if self._hooks is not None:
            self._hooks.forget(since)

    @property
    def has_due_hooks(self) -> bool:
        """Whether there is something for `run_due_hooks`."""
        if self._hooks or self.state is SessionState.ENDING:
            return True
        return bool(self.committing) and bool(self._unfinished())

    @property
    def has_hooks_before_commit(self) -> bool:
        """Whether there is something for `run_before_commit`."""
        work = self.work_here()
        return work is not None and work.has_hooks_before_commit

    async def run_before_commit(self) -> None:
        """Run the hooks that come before the commit; what one raises goes to the caller."""
        work = self.work_here()
        if work is not None:
            await work.run_before_commit()

    async def run_due_hooks(self) -> None:
        """Run the hooks whose transaction has ended, each isolated from the others."""
        unfinished = self._unfinished()
        if unfinished:
            # Their callers were cancelled meanwhile; the hooks hear of the outcome all the same.
            await asyncio.wait(unfinished)
        if self._hooks:
            # They know whose they are, also where the call that has added them is over.
            token = current_runner.set(self)
            try:
                await self._hooks.run(is_traced=self._policy.is_traced)
            finally:
                current_runner.reset(token)

    # -- for its owner

    @property
    def is_unused(self) -> bool:
        """No statement has run and no hook waits: there is nothing to end."""
        return self._work is None and self._executor is None

    @property
    def is_at_rest(self) -> bool:
        """No transaction is open and no statement or commit runs: it can be ended without a server."""
        if self._busy is not None or self.committing or self._commit is not None:
            return False
        if self._work is not None and (self._work.transaction_in_use is not None or self._work.deferred):
            return False
        return self._lock is None or not self._lock.is_taken

    @property
    def rollback_reason(self) -> str | None:
        """What `set_rollback_only` was told; None where only the outcome decides."""
        work = self.work_here()
        return None if work is None else work.rollback_reason

    @property
    def lost_by(self) -> DataError | None:
        """The conflict that its transaction, or another part of it, has lost; None where nothing has."""
        transaction = self.current_transaction
        if transaction is not None and is_conflict(transaction.failure):
            return transaction.failure
        work = self.work_here()
        return self._conflict if work is None else work.lost_by or self._conflict

    def stop(self, error: DataError) -> DataError:
        """From now on refuse everything but the rollback: the deadline has passed, or the client is gone.

        Returns:
            What the session is stopped by: the first call counts.
        """
        if self.stopped_by is None:
            self.stopped_by = error
        return self.stopped_by

    def interrupt(self) -> bool:
        """Stop the statements that run: their callers get the error that the session was stopped by.

        Returns:
            Whether one was running.
        """
        if self._interrupted:
            return True
        running = self._running if self._busy is None else self._running | {self._busy}
        if not running:
            return False
        self._interrupted = running
        for task in running:
            if task is not None:
                task.cancel()
        return True

    async def open_for_token(self) -> None:
        """Open the snapshot of a response's body before the response starts, where its token has to tell of it.

        Raises:
            DataError: It could not be opened.
        """
        tokens = self._policy.tokens
        if tokens is None or self.transaction_in_use is not None:
            return
        if ClientHistory(tokens, b"").is_monotonic(self.current_plan().freshness):
            await self.run(())

    def share_writers(self, outer: SessionCore) -> None:
        """It is nested in a request that has a session already: of the two only one should write."""
        if outer.writers is None:
            outer.writers = Writers(allows_several=self._policy.allows_multiple_writers)
            transaction = outer.current_transaction
            if transaction is not None and transaction.is_open:
                outer.writers.claim(outer)
        self.writers = outer.writers

    # -- the end

    def close_unused(self) -> None:
        """End a session that was never used."""
        self.state = SessionState.CLOSED

    def end_idle(self) -> bool:
        """End a session that has nothing to commit, to roll back or to tell, nor a body to read for.

        Returns:
            Whether that was so: it has only read; otherwise nothing has changed.
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
            or (self._lock is not None and self._lock.is_taken)
            or (self._work is not None and not self._work.is_idle)
        ):
            return False
        self.state = SessionState.CLOSED
        self._datasource.leave()
        return True

    def send_commit(self) -> Exchange | None:
        """Send COMMIT without waiting; the session is ending then. None where anything has to be awaited before.

        `take_commit` reads the answer; where it says no, or was cancelled, `finish_commit` learns the outcome.
        """
        work = self._work
        if (
            work is None
            or self.state is not _OPEN
            or self._busy is not None
            or self.stopped_by is not None
            or self.committing
            or (self._lock is not None and self._lock.is_taken)
        ):
            return None
        exchange = work.send_commit(self.request_deadline if current_frame.get() is None else self.deadline())
        if exchange is not None:
            self._commit = exchange
            self.state = SessionState.ENDING
        return exchange

    def take_commit(self) -> bool:
        """Whether the COMMIT of `send_commit` has come back with plain success: the session has ended then."""
        work, exchange = self._work, self._commit
        if work is None or exchange is None or not work.take_commit(exchange):
            return False
        self._commit = None
        self.state = SessionState.CLOSED
        self._datasource.leave()
        return True

    def finish_commit(self) -> Coroutine[Any, Any, None]:
        """Learn the outcome of the COMMIT of `send_commit`; to be awaited in a task of the library's own.

        Raises:
            DataError: It was not committed (for CommitUnknown: that is not known).
        """
        return self._end(commit=True, reason="", deadline=self.deadline(), is_apart=True)

    def end(self, *, commit: bool, reason: str, is_apart: bool = False) -> Coroutine[Any, Any, None]:
        """End the session and its transaction; every use from this call on raises `SessionClosed`.

        Args:
            commit: Commit; otherwise roll back.
            reason: Why it is rolled back, for the span.
            is_apart: It is awaited in a task of the library's own, where no cancellation but shutdown's reaches it.

        Returns:
            What has to be awaited, here or in another task.

        Raises:
            DataError: It was to be committed and was not (for CommitUnknown: that is not known).
        """
        if self.state is not _OPEN:
            return _nothing()
        deadline = self.deadline()
        self.state = SessionState.ENDING
        return self._end(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart)

    async def complete(self) -> None:
        """End the session after all went well: commit, unless `set_rollback_only` was called.

        Raises:
            DataError: Nothing was committed (for CommitUnknown: that is not known).
            Exception: What a hook before the commit has raised.
        """
        try:
            await self.run_before_commit()
        except BaseException as error:
            await self._registry.background.run(self.end(commit=False, reason=type(error).__name__))
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
                # What still runs is to be undone: there is no point in waiting for it.
                self.stop(_closed())
                self.interrupt()
            lock = self.lock_of(None)
            await self._take_for_the_end(lock, deadline, commit=commit)
            try:
                if self.committing:
                    # Await commits whose caller was cancelled before the response starts.
                    await asyncio.wait(self.committing)
                # Another task's block may have been in front of it until now.
                work = self._work
                if work is not None:
                    await work.finish(commit=commit, reason=reason, deadline=deadline, is_apart=is_apart, begun=begun)
                elif commit and self.stopped_by is not None:
                    raise self.stopped_by
            finally:
                lock.leave()
        except BaseException:
            work = self._work
            while work is not None:
                work.abandon()
                work = work.outer
            raise
        finally:
            self.state = SessionState.CLOSED
            if self._executor is not None:
                self._datasource.leave()

    def let_go(self) -> None:
        """Break reference cycles so that the session is freed without the cyclic GC.

        Otherwise each request leaves a cycle behind, and the garbage collector stops every request for as long as it
        takes to look for them.
        """
        if self.state is SessionState.CLOSED and not (self.committing and self._unfinished()):
            if self._work is not None and (self._work.lost_by is not None or self._work.transaction is not None):
                self._conflict = self.lost_by
            self._work = self._lock = self._owner = self._ending = None
            self.scope = self.writers = self._lane_endpoint = None

    async def end_midway(self, *, commit: bool) -> None:
        """Commit, or roll back, in the middle of the session."""
        self.check_open()
        if self.innermost_scope() is not None:
            raise DataError(
                DataErrorKind.QUERY,
                "commit() and rollback() end the whole transaction; leave the transaction() block first",
            )
        work = self.work_here()
        if work is not None:
            if commit:
                await work.run_before_commit()
            lock = self.lock_of(None)
            await lock.wait()
            try:
                self.check_open()
                await work.finish(commit=commit, reason="rollback() was called", deadline=self.deadline())
            finally:
                lock.leave()
            if not commit:
                work.rollback_reason = work.doomed_by = work.lost_by = None
        await self.run_due_hooks()

    def note_committed(self, transaction: Transaction) -> None:
        """A transaction was committed: its position counts for the reads that follow."""
        if transaction.identified is None:
            # What only read can be done again.
            return
        self.commits += 1
        if self.past is not None:
            self.past.note(transaction.position or NOWHERE)
        if transaction.wal_position is not None and self._executor is not None:
            self._executor.commit_lsn = transaction.wal_position

    def note_committing(self, task: asyncio.Task[None]) -> None:
        """A commit goes on in a task of the library's own."""
        self.committing |= {task}
        task.add_done_callback(self.forget_committing)

    def forget_committing(self, task: asyncio.Task[None]) -> None:
        """That commit is done."""
        self.committing -= {task}

    def _unfinished(self) -> frozenset[asyncio.Task[Any]]:
        """The tasks that still end the session, or a transaction of it."""
        ending = self._ending if self.state is SessionState.ENDING else None
        if ending is None and not self.committing:
            return _NO_TASKS
        return frozenset(task for task in (ending, *self.committing) if task is not None and not task.done())

    async def _take_for_the_end(self, lock: SharedLock, deadline: float | None, *, commit: bool) -> None:
        """Wait for the statement of another task of the request; bounded, for it may hang."""
        if lock.take():
            return
        loop = asyncio.get_running_loop()
        if self.innermost_scope() is None:
            until = loop.time() + (self._policy.commit_timeout_s if commit else _ROLLBACK_WAIT_S)
            try:
                async with asyncio.timeout_at(until if deadline is None or not commit else deadline):
                    await lock.wait()
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


_NO_TASKS: Final[frozenset[asyncio.Task[Any]]] = frozenset()

_SNAPSHOT: Final = Terms(is_shared=False, read_only=True)

_ROLLBACK_WAIT_S: Final = 5.0
"""Seconds that a rollback waits for a statement that has been stopped; then its connection is taken away."""


async def _nothing() -> None:
    """For a session that has ended already."""


def _closed() -> SessionClosed:
    return SessionClosed(
        "the session was used after its response had started: its transaction is over. In a background task, a"
        " streaming body or a task that outlives the request, open one of your own:"
        " `async with db.registry.session(tenant=db.tenant.name) as later:`"
    )
