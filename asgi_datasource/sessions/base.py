"""The state of a session: its tenant, what holds for a statement, its unit of work, and whose turn it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, Protocol

from ..concurrency.shared_lock import SharedLock
from ..concurrency.tasks import BackgroundTasks
from ..datasource.datasource import DataSource, DataSourceState
from ..datasource.executor import Executor
from ..drivers.protocol import Exchange, Server
from ..errors import DataError, DataErrorKind, SessionClosed
from ..observability import tracing
from ..routing import AccessIntent, ReadAfterWritePin, Route
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from ..routing.consistency.token import Token, scope_of
from ..tenancy import Tenant, TenantState
from ..transaction import (
    DueHooks,
    Isolation,
    SurroundingTransaction,
    Terms,
    Transaction,
    TransactionOptions,
    WaitingHooks,
)
from .context import Frame, current_frame
from .options import options_of
from .policy import NO_RULE, Lane, Plan, RouteRule, SessionPolicy, add_lane, make_lane, make_plan
from .scope import Scope, current_scope
from .unit_of_work import UnitOfWork


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

    def first_statement(self, session: SessionBase, /) -> None:
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


class Writers:
    """The sessions of one request that have written: two COMMITs cannot be atomic, so it should be one."""

    __slots__ = ("_allows_several", "_first")

    def __init__(self, *, allows_several: bool) -> None:
        self._allows_several = allows_several
        self._first: SessionBase | None = None

    def claim(self, session: SessionBase) -> None:
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


class SessionBase:
    """What a session knows. `StatementRunner` runs statements with it, and `SessionCore` ends it."""

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
    def session(self) -> SessionBase:
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

    def _is_in_use(self) -> bool:
        return self.transaction_in_use is not None

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

    # -- what its unit of work reports

    def about_to_write(self) -> None:
        """A statement with write intent is about to open a transaction."""
        self._tenant.check_writable()
        if self.writers is not None:
            self.writers.claim(self)

    def note_committing(self, task: asyncio.Task[None]) -> None:
        """A commit goes on in a task of the library's own."""
        self.committing |= {task}
        task.add_done_callback(self.forget_committing)

    def forget_committing(self, task: asyncio.Task[None]) -> None:
        """That commit is done."""
        self.committing -= {task}

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

    def settle_hooks(self, hooks: WaitingHooks, *, committed: bool | None) -> None:
        """The outcome that these hooks waited for is known: they become due, or are dropped."""
        if hooks:
            if self._hooks is None:
                self._hooks = DueHooks()
            self._hooks.settle(hooks, committed=committed)

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
            raise closed()
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
                self._lock.try_acquire(shared=self._is_reading)
        return self._lock

    async def take_turn(self, *, shared: bool = False) -> tuple[Scope | None, SharedLock]:
        """Wait until it is the running task's turn.

        Args:
            shared: Others who may share can have their turn at the same time.

        Returns:
            The innermost scope around it, and the lock that it has to leave in the end.
        """
        while True:
            scope = self.innermost_scope()
            lock = self.lock_of(scope)
            if lock.try_acquire(shared=shared):
                return scope, lock
            await lock.acquire(shared=shared)
            if scope is None or scope.is_open:
                return scope, lock
            # It has ended meanwhile: what goes on is what was around it.
            lock.release()


def closed() -> SessionClosed:
    return SessionClosed(
        "the session was used after its response had started: its transaction is over. In a background task, a"
        " streaming body or a task that outlives the request, open one of your own:"
        " `async with db.registry.session(tenant=db.tenant.name) as later:`"
    )
