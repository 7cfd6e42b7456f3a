"""The state of a session: tenant, options in force, unit of work, and the lock that serialises its statements."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import quote

from opentelemetry.context import Context
from opentelemetry.trace import Span

from ..concurrency.shared_lock import SharedLock
from ..concurrency.tasks import BackgroundTasks
from ..datasource.datasource import DataSource, DataSourceState
from ..datasource.executor import Executor
from ..drivers.protocol import Exchange, Server
from ..drivers.statements import Statement
from ..errors import DataError, DataErrorKind, SessionClosed
from ..observability import names, tracing
from ..observability.decision_log import line_of_caller, log_decision
from ..observability.query_tags import route_of
from ..observability.session_trace import SessionTrace, start_trace
from ..routing import AccessIntent, ReadAfterWritePin, Route
from ..routing.consistency.client_history import NOWHERE, ClientHistory
from ..routing.consistency.token import Token, scope_of
from ..tenancy import Tenant, TenantState
from ..transaction import (
    DeferredWriter,
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
from .unit_of_work import UnitOfWork, open_transaction

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger("asgi_datasource.session")


class SessionState(StrEnum):
    """Whether the session may still be used."""

    OPEN = "open"
    ENDING = "ending"
    """The outcome is decided; COMMIT or ROLLBACK is in progress."""
    CLOSED = "closed"


# Looking a member up on an enumeration costs as much as a call; these are read for every statement.
_OPEN: Final = SessionState.OPEN
_READ: Final = AccessIntent.READ
_ACTIVE: Final = TenantState.ACTIVE


class SessionOwner(Protocol):
    """The request that ends the session."""

    @property
    def request_span(self) -> Span | None:
        """The request's span; None where it does not record."""
        ...

    @property
    def attempt(self) -> int:
        """Number of the request's attempt."""
        ...

    def first_statement(self, session: SessionBase, /) -> None:
        """The session is about to run its first statement."""
        ...

    def tolerates(self, error: BaseException, options: TransactionOptions, /) -> bool:
        """Whether an exception becomes a response whose status commits, such as a redirect."""
        ...


class Participant(Protocol):
    """A unit of work on top of the session, such as an ORM's: flushed before COMMIT, told about its end."""

    @property
    def has_pending(self) -> bool:
        """Whether `flush` has statements to send."""
        ...

    async def flush(self) -> None:
        """Send the pending statements."""
        ...

    def ended(self, *, committed: bool) -> None:
        """The transaction was committed or rolled back, and the session goes on."""
        ...

    def close(self) -> None:
        """The session is closed: break reference cycles."""
        ...


class SessionOrigin(Protocol):
    """The registry that a session comes from."""

    background: BackgroundTasks

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the registry is open in."""
        ...

    def make_sibling(self, session: Any, datasource: str, /) -> Any:
        """A session of the same request on another of the tenant's datasources.

        Raises:
            DataError: CONFIG: the tenant has no datasource of this name.
        """
        ...

    def make_facade(self, name: str, session: SessionBase, /) -> Any:
        """Create the object behind an attribute such as `DataSession.sqlalchemy` or `DataSession.outbox`.

        Raises:
            ConfigError: The library that it is for is not installed.
            DataError: CONFIG: the configuration has no section for it.
        """
        ...

    def known_tenant(self, name: str, /) -> Tenant | None:
        """The listed and served tenant of a name; None if it has to be searched."""
        ...

    async def find_tenant(self, name: str, /) -> Tenant:
        """The current tenant of a name; raises `DataError` (TENANT) if there is none, or it is not served."""
        ...

    def successor(self, datasource: DataSource, /) -> DataSource:
        """The datasource of the current configuration with the name of one from before a reload."""
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
    """Detects a second writing session in one request: two COMMITs cannot be atomic."""

    __slots__ = ("_allows_several", "_first")

    def __init__(self, *, allows_several: bool) -> None:
        self._allows_several = allows_several
        self._first: SessionBase | None = None

    def claim(self, session: SessionBase) -> None:
        """Register `session` as a writer of the request.

        Raises:
            DataError: QUERY: another session of the request has written, and `multiple_writers` forbids a second one.
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
    """The state of a session. `StatementRunner` adds running statements, `SessionCore` adds hooks and the end."""

    # Defaults on the class: most requests never set these, so that they cost nothing to create.
    state = _OPEN
    """Whether the session may still be used."""
    writers: Writers | None = None
    """Shared by the nested sessions of one request; None with a single session."""
    stopped_by: DataError | None = None
    """The error of `stop`: statements and commits raise it, only a rollback is possible."""
    commits: int = 0
    """Number of writing transactions whose COMMIT succeeded or has an unknown outcome."""
    client_history: ClientHistory | None = None
    """Causal-consistency state; None before the first statement, and when tokens are disabled."""
    verdict: bool | None = None
    """Whether the exception that left the route commits; None if the route's annotation does not name it."""
    is_in_route = False
    """Whether the matched endpoint is running."""
    committing: frozenset[asyncio.Task[None]] = frozenset()
    """Commits in background tasks; their callers may have been cancelled."""
    outlives_requests = False
    """The tenant may be suspended, changed or dropped during the session: it is looked up at each read and BEGIN."""
    tenant_error: DataError | None = None
    """The error of the last look-up of the tenant."""
    _executor: Executor | None = None
    _work: UnitOfWork | None = None
    ended_hooks: DueHooks | None = None
    """The hooks whose transaction has ended."""
    _conflict: DataError | None = None
    _ending: asyncio.Task[Any] | None = None
    _commit: Exchange | None = None
    """The round trip of `send_commit`, until its result is read."""
    _lock: SharedLock | None = None
    """Serialises the session's statements; created by the first statement that does not run through `run_one`."""
    _busy: asyncio.Task[Any] | None = None
    """The task whose statement runs through `run_one`; it holds `_lock`, if there is one."""
    _is_reading = False
    """Whether that statement is a read outside a transaction, which may run in parallel with other reads."""
    _running: frozenset[asyncio.Task[Any] | None] = frozenset()
    _interrupted: frozenset[asyncio.Task[Any] | None] = frozenset()
    _savepoints = 0
    _facades: dict[str, Any] | None = None
    """The facades of the session, by attribute."""
    main: SessionBase | None = None
    """The session of the request, if this one is on another of the tenant's datasources (`DataSession.using`)."""
    _own_tenant: Tenant | None = None
    participants: tuple[Participant, ...] = ()
    """Units of work that are flushed before COMMIT."""
    _lane: Lane | None = None
    _lane_endpoint: object = None
    _plan: Plan | None = None
    _plan_frame: Frame | None = None
    trace: SessionTrace | None = None
    """Makes the session's spans; None before the first statement, and where its trace is not sampled."""
    request_deadline: float | None = None
    """Event-loop time of the request's deadline, regardless of annotated functions; None without a limit."""

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
        """The innermost ASGI scope in which the session was requested; None outside requests."""
        self._method = method
        self._rule = rule
        self._started = started
        self._owner = owner
        self._pin = pin
        self._token = token

    # -- identity

    @property
    def tenant(self) -> Tenant:
        """The tenant that every statement runs as."""
        return self._tenant

    def serve_instead_of(self, own: Tenant) -> None:
        """Record that a rule has put the session on another datasource than the tenant's own."""
        self._own_tenant = own

    def make_like(self, tenant: Tenant, datasource: DataSource) -> Self:
        """A session with the same options, on another datasource."""
        made = type(self)(
            self._registry,
            datasource,
            tenant,
            policy=self._policy,
            scope=self.scope,
            method=self._method,
            rule=self._rule,
            started=self._started,
            owner=self._owner,
            token=self._token,
        )
        made._own_tenant = self.own_tenant
        return made

    @property
    def own_tenant(self) -> Tenant:
        """The tenant on its own datasource, which a rule of `routes` may have replaced."""
        return self._own_tenant or self._tenant

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
        """Itself: outside a request the session is its own `SessionRunner`."""
        return self

    @property
    def is_open(self) -> bool:
        """Whether the session may still be used."""
        return self.state is _OPEN

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of the scope belongs to the same request."""
        return self

    def __repr__(self) -> str:
        transaction = None if self._work is None else self._work.transaction
        doing = "" if transaction is None else f" in {transaction!r}"
        return f"<DataSession {self.state.value} datasource={self._datasource.name!r}{doing}>"

    # -- facades

    def facade(self, name: str) -> Any:
        """The object behind an attribute such as `DataSession.sqlalchemy`; created by the first access.

        Args:
            name: The attribute.
        """
        self.check_open()
        if self._facades is None:
            self._facades = {}
        found = self._facades.get(name)
        if found is None:
            found = self._facades[name] = self._registry.make_facade(name, self)
        return found

    @property
    def registry_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the registry is open in."""
        return self._registry.loop

    @property
    def _has_pending(self) -> bool:
        return any(participant.has_pending for participant in self.participants)

    # -- options in force

    def lane(self) -> Lane:
        """The options of the request: those of its rule, method and endpoint."""
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
        """The options of a statement in the running function."""
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
        """Event-loop time of the running function's deadline; None without a limit."""
        return self.current_plan().deadline

    def is_route(self, options: TransactionOptions) -> bool:
        """Whether these options are the matched endpoint's own."""
        return options is self.lane().endpoint

    def note_failure(self, options: TransactionOptions, error: BaseException) -> None:
        """Record whether an exception that leaves the route commits by the route's annotation.

        An exception handler of the application may turn it into a response whose status no longer shows the exception.
        """
        self.verdict = options.decides(error)

    def tolerates(self, error: BaseException, options: TransactionOptions) -> bool:
        """Whether an exception becomes a response whose status commits, such as a redirect."""
        return self._owner is not None and self._owner.tolerates(error, options)

    @property
    def intent(self) -> AccessIntent:
        """The intent of a statement without an explicit one."""
        return self.current_plan().intent

    def _start(self) -> Executor:
        if self._datasource.state is DataSourceState.LEFT:
            # The configuration was reloaded between the start of the request and its first statement.
            self._datasource = self._registry.successor(self._datasource)
        self._datasource.enter(self._rule.priority)
        policy = self._policy
        if policy.is_traced and tracing.has_provider():
            self.trace = self._start_trace()
        executor = self._executor = Executor(
            self._datasource,
            self._tenant,
            self._registry.background,
            pin=self._pin,
            client_history=None if policy.tokens is None else self._make_client_history(),
            priority=self._rule.priority,
            trace=self.trace,
            measure=None if policy.recorder is None else policy.recorder.measure(self._tenant.name, self.scope),
        )
        if policy.tags is not None:
            route = None if self.scope is None else route_of(self.scope, self._method)
            executor.use_tags(policy.tags.tag(route, self._tenant.name), policy.tags.settings(route))
        if self._owner is not None:
            self._owner.first_statement(self)
        return executor

    def _start_trace(self) -> SessionTrace | None:
        owner = self._owner
        return start_trace(
            self._policy.trace_options,
            self._datasource.name,
            self._tenant,
            request=None if owner is None else owner.request_span,
            attempt=1 if owner is None else owner.attempt,
            is_request=owner is not None,
        )

    def use_executor(self) -> Executor:
        """The executor; the first call counts the session as a user of its datasource."""
        return self._executor or self._start()

    def use_primary(self) -> Server:
        """The primary of the datasource, of which the session counts as a user from now on."""
        self.use_executor()
        return self._datasource.servers["primary"]

    def note_written_outside(self) -> None:
        """Statements have taken effect outside of the session's transactions: the request is not retried."""
        self.commits += 1
        if self.client_history is not None:
            self.client_history.note(NOWHERE)

    def _make_client_history(self) -> ClientHistory | None:
        tokens = self._policy.tokens
        if tokens is None:
            return None
        carried = self._token
        if carried is None:
            texts = () if self.scope is None else tokens.transport.find(self.scope)
            carried = tokens.signer.read(texts, now=time.time())
        self.client_history = ClientHistory(tokens, scope_of(self._tenant.name, self._datasource.name), carried)
        return self.client_history

    def _is_in_use(self) -> bool:
        return self.transaction_in_use is not None

    # -- the unit of work

    def work_here(self) -> UnitOfWork | None:
        """The unit of work of the running task's statements; ignores units that blocks of other tasks have pushed."""
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
        """The innermost unit of work; created on first use."""
        if self._work is None:
            self._work = UnitOfWork(self, self._policy, self._registry.background)
        return self._work

    def make_work_here(self) -> UnitOfWork:
        """The unit of work of the running task's statements; created on first use."""
        return self.work_here() or self.make_work()

    @property
    def current_transaction(self) -> Transaction | None:
        """The transaction around the running task: open, or failed and not ended yet."""
        work = self.work_here()
        return None if work is None else work.transaction

    @property
    def transaction_in_use(self) -> Transaction | None:
        """The transaction in which statements run, including the snapshot of a stream."""
        return None if self._work is None else self._work.transaction_in_use

    @property
    def is_writing(self) -> bool:
        """Whether a transaction that may write is open."""
        transaction = self.current_transaction
        return transaction is not None and not transaction.read_only

    @property
    def isolation(self) -> Isolation | None:
        """The isolation of the surrounding transaction; None if it is the server's default."""
        transaction = self.current_transaction
        if transaction is not None:
            return transaction.isolation
        terms = self._terms()
        return Isolation.REPEATABLE_READ if terms.read_only and terms.isolation is None else terms.isolation

    @property
    def is_isolation_settled(self) -> bool:
        """Whether the isolation can no longer be changed: the surrounding transaction is open."""
        return self.current_transaction is not None

    def defer(self, writer: DeferredWriter, item: object, *, what: str) -> None:
        """Write something in the round trip of the COMMIT of the surrounding transaction; a rollback drops it.

        Args:
            writer: Turns the buffered items into statements.
            item: What to write.
            what: Names it in errors.

        Raises:
            DataError: QUERY: there is no transaction. READ_ONLY: the transaction is read only.
            SessionClosed: The request's response has started.
        """
        work = self._work
        if (
            self.state is _OPEN
            and self.stopped_by is None
            and work is not None
            and work.outer is None
            and work.transaction is not None
            and not work.transaction.read_only
            and current_frame.get() is None
        ):
            # In the open transaction of the request: nothing else has to be looked at.
            work.defer(writer, item, self.innermost_scope())
            return
        self.check_open()
        around = self.surroundings()
        if around is SurroundingTransaction.NOTHING:
            raise DataError(
                DataErrorKind.QUERY,
                f"{what} belongs to a transaction, and there is none here: annotate the function with @transactional,"
                " or open `async with db.transaction():` around it",
            )
        if around is SurroundingTransaction.READ_ONLY:
            raise DataError(DataErrorKind.READ_ONLY, f"{what} was called in a read-only transaction")
        if self.current_transaction is None:
            self.about_to_write()
        if self._executor is None:
            self._start()
        self.make_work_here().defer(writer, item, self.innermost_scope())

    async def open_to_write(self, work: UnitOfWork, statements: Sequence[Statement], terms: Terms | None) -> None:
        """Open a transaction in `work` with deferred writes, when nothing else has opened one."""
        executor, plan = self._executor or self._start(), self.current_plan()
        await open_transaction(work, executor, statements, plan, terms or plan.terms, None)

    def adopt_isolation(self, isolation: Isolation) -> None:
        """Give the surrounding transaction the isolation of a block that joins it, unless it is open already."""
        if self.current_transaction is None:
            self.make_work_here().terms = replace(self._terms(), isolation=isolation)

    def surroundings(self) -> SurroundingTransaction:
        """The kind of transaction around the running code, for the propagation table."""
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
        """Complete the terms of an outermost block with those of the route's annotation."""
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
        """Event-loop time of an outermost block's deadline; None without a limit, and where the request has one."""
        if self._started is not None:
            return None
        timeout_s = self.lane().timeout_s
        return None if timeout_s is None else time.monotonic() + timeout_s

    def doom(self, error: BaseException) -> None:
        """Mark the innermost savepoint, or else the surrounding transaction, rollback-only: its commit raises."""
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
        self.note_event(names.DOOMED, {names.ROLLBACK_REASON: tracing.reason_of(error)})

    def suspend(self, terms: Terms) -> UnitOfWork:
        """Push a unit of work and suspend the surrounding one; the caller must hold the session's lock."""
        outer = self.make_work()
        work = self._work = UnitOfWork(self, self._policy, self._registry.background, terms=terms, outer=outer)
        self._note_held()
        return work

    def resume(self, work: UnitOfWork) -> None:
        """Make `work` the innermost unit again; units above it that were not ended are rolled back."""
        inner = self._work
        if inner is work:
            return
        while inner is not None and inner is not work:
            # The block of this unit was cancelled before it could end it.
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
        """Mark the open transaction rollback-only."""
        transaction = self.current_transaction
        if transaction is not None and transaction.is_open:
            transaction.doom(DataError(DataErrorKind.QUERY, reason))

    def next_savepoint(self) -> str:
        """A name for a savepoint, unique in this session."""
        self._savepoints += 1
        return f"ads_{self._savepoints}"

    def undo_hooks(self, scope: Scope) -> None:
        """Settle the hooks of a block that was rolled back: its after-commit hooks are dropped."""
        if scope.work is not None:
            scope.work.settle(committed=False, within=scope)

    def note_event(self, name: str, attributes: Mapping[str, names.AttributeValue]) -> None:
        """Add an event to the span of the transaction around the running task, or else to the current one."""
        if not self._policy.is_traced:
            return
        transaction = self.current_transaction
        if transaction is not None and transaction.trace is not None and transaction.is_open:
            transaction.trace.span.add_event(name, attributes)
        else:
            tracing.add_event(name, attributes)

    def waiting_to_retry(self, attempt: int, delay_s: float, conflict: DataError) -> AbstractContextManager[None]:
        """The span of the wait before a retry; arguments as of `tracing.retry_span`."""
        return tracing.retry_span(attempt, delay_s, conflict, is_traced=self._policy.is_traced)

    def close_trace(self) -> None:
        """The session ends: complete the spans that describe it as a whole."""
        if self.trace is not None:
            self.trace.close(has_lost=self._conflict is not None)

    # -- called by its unit of work

    def _has_current_tenant(self) -> bool:
        """Whether the tenant is listed as it was at the last look-up."""
        if self.main is not None:
            return self.main._has_current_tenant()
        own = self.own_tenant
        name = own.name
        return name is None or (self.tenant_error is None and self._registry.known_tenant(name) is own)

    async def renew_tenant(self) -> None:
        """Look the tenant up again, outside any transaction, in a session that outlives requests.

        Raises:
            DataError: TENANT: the tenant is suspended or unknown, or has moved to another datasource.
        """
        if self.main is not None:
            await self.main.renew_tenant()
            self._adopt_tenant(self.main.own_tenant)
            return
        name = self.own_tenant.name
        if name is None or self.transaction_in_use is not None or self._has_current_tenant():
            return
        try:
            found = await self._registry.find_tenant(name)
        except DataError as error:
            if error.kind is not DataErrorKind.TENANT:
                raise
            self.tenant_error = DataError(
                DataErrorKind.TENANT,
                f"{error.message}: that has changed since the session was opened",
                http_status=error.http_status,
            )
            raise self.tenant_error from error
        former = self.own_tenant
        if (found.datasource, found.database) != (former.datasource, former.database):
            self.tenant_error = DataError(
                DataErrorKind.TENANT,
                "the tenant has moved since the session was opened; open another one",
                http_status=503,
                is_retryable=True,
            )
            raise self.tenant_error
        self.tenant_error = None
        self._adopt_tenant(found)

    def _adopt_tenant(self, own: Tenant) -> None:
        """Use the settings that the tenant has now, on the datasource of the session."""
        tenant = own if own.name is None else own.on(self._tenant.datasource)
        self._own_tenant = None if tenant is own else own
        if tenant is not self._tenant and tenant.name is not None:
            self._tenant = tenant
            if self._executor is not None:
                self._executor.serve(tenant)

    def about_to_write(self) -> None:
        """Check that a statement with write intent may open a transaction."""
        self._tenant.check_writable()
        if self.writers is not None:
            self.writers.claim(self)

    def note_committing(self, task: asyncio.Task[None]) -> None:
        """Track a commit that runs in a background task."""
        self.committing |= {task}
        task.add_done_callback(self.forget_committing)

    def forget_committing(self, task: asyncio.Task[None]) -> None:
        """Stop tracking a commit that is done."""
        self.committing -= {task}

    def note_committed(self, transaction: Transaction) -> None:
        """Record a commit: the reads that follow must see its WAL position."""
        if transaction.identified is None:
            # It has written nothing, so that the request can still be retried.
            return
        self.commits += 1
        if self.client_history is not None:
            self.client_history.note(transaction.position or NOWHERE)
        if transaction.wal_position is not None and self._executor is not None:
            self._executor.commit_lsn = transaction.wal_position

    def settle_hooks(self, hooks: WaitingHooks, *, committed: bool | None, within: Context | None = None) -> None:
        """Make hooks due, or drop them, by the outcome of their transaction; None if the outcome is unknown."""
        if hooks:
            if self.ended_hooks is None:
                self.ended_hooks = DueHooks()
            self.ended_hooks.settle(hooks, committed=committed, within=within)

    # -- locking

    def check_open(self) -> None:
        """Raise if the session can no longer be used.

        Raises:
            SessionClosed: It is ending, or has ended.
            DataError: The deadline has passed, or the client has disconnected.
        """
        if self.state is not _OPEN:
            self._note_late_use()
            raise closed()
        if self.stopped_by is not None:
            raise self.stopped_by

    def _note_late_use(self) -> None:
        """Count and log a use after the end, with the line that has made it."""
        if self._policy.recorder is not None:
            self._policy.recorder.measure(self._tenant.name).used_late(self._datasource.name)
        line = line_of_caller()
        # Encoded, as a path may contain line breaks.
        request = "" if self.scope is None else f" of {self._method} {quote(self.scope.get('path', ''))}"
        log_decision(
            logger,
            logging.WARNING,
            "session_used_late",
            "the session%s was used after its end, at %s; open one with registry.session()",
            request,
            line or "an unknown line",
            fields={names.DATASOURCE: self._datasource.name, names.CODE_LINE: line},
            once_for=("session_used_late", line),
        )

    def innermost_scope(self) -> Scope | None:
        """The innermost open scope of this session that the running task belongs to."""
        scope = current_scope.get()
        while scope is not None and not (scope.is_open and scope.belongs_to(self)):
            scope = scope.around
        return scope

    def lock_of(self, scope: Scope | None) -> SharedLock:
        """The lock that serialises the statements of a scope; for None, those of the session."""
        if scope is not None:
            return scope.lock
        if self._lock is None:
            self._lock = SharedLock(self._policy.max_parallel, self._is_in_use)
            if self._busy is not None:
                # Acquired on behalf of the task whose statement runs through `run_one`.
                self._lock.try_acquire(shared=self._is_reading)
        return self._lock

    async def take_turn(self, *, shared: bool = False) -> tuple[Scope | None, SharedLock]:
        """Acquire the lock of the running task's innermost scope.

        Args:
            shared: Acquire it in shared mode.

        Returns:
            The innermost scope, and the lock, which the caller must release.
        """
        while True:
            scope = self.innermost_scope()
            lock = self.lock_of(scope)
            if lock.try_acquire(shared=shared):
                return scope, lock
            await lock.acquire(shared=shared)
            if scope is None or scope.is_open:
                return scope, lock
            # The scope ended during the wait: use the one around it.
            lock.release()


def closed() -> SessionClosed:
    return SessionClosed(
        "the session was used after its response had started: its transaction is over. In a background task, a"
        " streaming body or a task that outlives the request, open one of your own:"
        " `async with db.registry.session(tenant=db.tenant.name) as later:`"
    )
