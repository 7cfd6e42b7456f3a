"""A psycopg connection whose hot path drives libpq's pipeline directly: one exchange, one round trip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextvars import Context
from math import inf
from typing import Any, Final, Protocol, cast

from psycopg import InterfaceError, OperationalError, ProgrammingError
from psycopg import errors as e
from psycopg.pq import TransactionStatus

from ...concurrency.fair_queue import TenantQuota
from ...observability.query_tags import QueryTag
from ...observability.recording import UseRecorder
from ...routing import Position
from ..protocol import TenantIdentity
from ..statement_analysis import is_listen
from ..statements import Begin, Control, ControlKind, CursorDeclaration, Envelope, Params, Query, Settings, Statement
from .pipeline import COPY_REFUSED, Command, Drain, Pipeline, PipelineHost
from .prepared import OwnPlans, Plan, StatementCache
from .session_reset import SessionReset
from .shared_pipeline import SharedPipeline, give_up
from .socket import BAD, CANCEL_LIMIT_S, IN_USE, Receiver, WatchedSocket, shut_down
from .statement import MAX_CACHED_LENGTH, MAX_PARAMS, ConvertedQuery, convert
from .transaction_settings import SettingsCache

_IDLE: Final = int(TransactionStatus.IDLE)
_INTRANS: Final = int(TransactionStatus.INTRANS)
_INERROR: Final = int(TransactionStatus.INERROR)
_ACTIVE: Final = int(TransactionStatus.ACTIVE)

_CLOCK_STEP_S: Final = 0.001
"""Resolution of uvloop's clock: its timers fire up to this much early."""

HEAD_PATIENCE_S: Final = 0.02
MAX_HEAD_PATIENCE_S: Final = 0.1
"""A read may hold back those behind it for as long as its connection took to connect, which is several round trips of
the network, within these bounds; and for at most twice as long."""

_PROGRESS: Final = 16
"""Connections that the pool gets back meanwhile if the read is slow, and not the whole server."""

_CANCEL_NEXT_S: Final = 0.05
"""Seconds between the cancel requests for several reads on one connection."""

MAX_KNOWN_QUERIES: Final = 500
"""Most converted texts that a connection caches."""

_ROLLBACK: Final = Control(ControlKind.ROLLBACK, "rollback", prepare=False)
_DISCARD: Final = Statement("discard all", prepare=False)

OUTLIVES_REFUSED: Final = (
    "this statement may change the session itself, and behind a pooler in transaction mode the session is shared with"
    " other tenants; use SET LOCAL, set_config(name, value, true), pg_advisory_xact_lock, a table that is not temporary"
)

LISTEN_REFUSED: Final = (
    "LISTEN would end with the loan of this connection; use `async for notification in db.listen('channel'):`, which"
    " has a connection of its own"
)

OUTLIVES_TRANSACTION: Final = (
    "behind a pooler in transaction mode, the tenant's settings cannot outlive a transaction, as db.autocommit() needs;"
    " use a datasource whose URL leads to the server itself"
)

_NOTHING: Final[Command] = (b"", None, (), None, None, False)
"""Placeholder in the command list where there are no settings to apply."""


class Home(Protocol):
    """The pool that a connection returns to."""

    def give(self, connection: PsycopgConnection, /) -> None:
        """Take back a connection that is idle or closed."""
        ...


class Sharing(Protocol):
    """The pool's knowledge about reads that may share a connection."""

    slow: dict[str, float]
    """Texts that have held back others, which do not share."""

    @property
    def has_idle(self) -> bool:
        """Whether a connection of the pool is idle."""
        ...

    @property
    def returns(self) -> int:
        """How often a borrower has returned a connection of the pool, or its part of one."""
        ...

    def note_slow(self, query: str, /) -> None:
        """A read with this text has held back others."""
        ...


class KnownQuery:
    """Cached knowledge about a text that was sent before."""

    __slots__ = ("converted", "count", "formats", "is_plain", "names", "plan", "text", "types")

    def __init__(self, converted: ConvertedQuery | None) -> None:
        self.converted = converted
        self.plan: Plan | None = None
        """Its last plan, if it is prepared."""
        self.types: tuple[int, ...] = ()
        """Parameter types of this plan."""
        self.is_plain = converted is not None and not (
            converted.is_client_copy or converted.outlives_transaction or converted.may_end_transaction
        )
        """It needs no special treatment before it is sent."""
        if converted is not None:
            self.text = converted.text
            self.formats = converted.formats
            self.names = converted.names
            self.count = converted.count


class PsycopgConnection(WatchedSocket, PipelineHost):  # pyright: ignore[reportIncompatibleMethodOverride] - see WatchedSocket.connect
    """One connection of a pool, in autocommit mode: BEGIN and COMMIT are ordinary statements."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipelines = 0
        self.parses_answered = 0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.has_changed_schema = False
        self.needs_reset = False
        """State that outlives a transaction may have changed; it is reset before the next loan."""
        self.sharing: Sharing | None = None
        """What its pool knows about reads that may share it; None where they may not."""
        self.shares = 0
        """Number of borrowers that share it, beside its owner."""
        self.is_owned = True
        """It has a borrower of its own, unless it was lent to several reads at once."""
        self.has_dropped_reads = False
        """Reads may be in progress that no caller waits for; they are stopped before the next loan."""
        self.is_open_to_reads = False
        """Only reads are in progress, and more of them may join."""
        self.is_joining = False
        """What is sent now is a read that joins others."""
        self.tenancy = 0
        """Number of times that it has changed from one tenant to another."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._seen_head: Pipeline | None = None
        self._head_checks = 0
        self._seen_returns = 0
        self.quota: TenantQuota | None = None
        """The tenant that it counts for, where that is counted."""
        self.tenant: TenantIdentity | None = None
        """The tenant that it was lent to last; None for the library, which leaves no session state."""
        self.is_unclean = False
        """Its session may hold state of another tenant: its next transaction begins with a reset."""
        self._has_reset = False
        """The open transaction began with a reset, which takes effect with COMMIT."""
        self.has_written = False
        """Since the last reset, something other than a READ ONLY round trip has run."""
        self.use: UseRecorder | None = None
        """Records the time of use when metrics are enabled."""
        self.tag: QueryTag | None = None
        """A comment behind each statement of its borrower."""
        self.is_kept = False
        """Its pool's keeper counts it as in use."""
        self.due_at = inf
        """Event-loop time after which it is not lent again, and its pool replaces it."""
        self.home: Home | None = None
        """The pool that it returns to; None while it is there."""
        self.plans = StatementCache()
        self.own_plans = self._prepared = OwnPlans()
        self.types_generation = 0
        """The generation of its plans at which its pool has last looked for changes of the schema."""
        self.settings = SettingsCache(self.plans)
        self.reset = SessionReset(self.pgconn, self.plans)
        self._known: dict[str, KnownQuery] = {}
        self._known_bare: dict[str, KnownQuery] = {}
        """Texts sent without parameters, in which placeholders are not parsed."""
        self._envelopes: dict[Envelope, tuple[int, list[Command], list[Command], list[Command]]] = {}
        self._batches: dict[tuple[Control, ...], tuple[int, list[Command]]] = {}
        self.server_version = self.pgconn.server_version
        """As libpq reports it: 180004."""
        self.held: Position | None = None
        """A position that the server has proved on this connection; its position only increases."""
        self.leads_to: str | None = None
        """Identifies the server that the connection leads to; None if unknown, or behind a pooler."""
        self.timeline = 0
        """Timeline of the primary that it leads to; 0 if unknown."""
        self.incarnation: str | None = None
        """The server's incarnation; None if it can change during the connection: behind a pooler."""
        self.backend_pid = self.pgconn.backend_pid
        """Process id of the server process, as reported at connect."""

    # State

    @property
    def transaction_status(self) -> TransactionStatus:
        """Transaction status as of the server's last answer."""
        return TransactionStatus(self.pgconn.transaction_status)

    @property
    def is_midway(self) -> bool:
        """Whether one of psycopg's own operations is in progress, or was interrupted."""
        pgconn = self.pgconn
        return bool(self._foreign_waits or pgconn.transaction_status == _ACTIVE or pgconn.pipeline_status)

    @property
    def is_idle(self) -> bool:
        """Outside any transaction."""
        return self.pgconn.transaction_status == _IDLE

    @property
    def is_in_transaction(self) -> bool:
        """Inside a transaction that has not failed."""
        return self.pgconn.transaction_status == _INTRANS

    @property
    def has_failed_transaction(self) -> bool:
        """Inside a failed transaction, which only a rollback can end."""
        return self.pgconn.transaction_status == _INERROR

    @property
    def in_recovery(self) -> bool | None:
        """Whether the server reports that it is a hot standby; None before version 14, which does not report it."""
        if self.pgconn.status == BAD:
            return None
        state = self.pgconn.parameter_status(b"in_hot_standby")
        return None if state is None else state == b"on"

    @property
    def takes_writes(self) -> bool:
        """Whether the server reports that it is no standby, and that transactions may write by default.

        Servers report both by themselves, with each change (PostgreSQL manual, "Asynchronous Operations" of the
        protocol); servers before version 14, and some poolers, do not.
        """
        if self.pgconn.status == BAD:
            return False
        status = self.pgconn.parameter_status
        return status(b"in_hot_standby") == b"off" and status(b"default_transaction_read_only") == b"off"

    @property
    def may_prepare(self) -> bool:
        """Whether statements can be prepared on the server."""
        return self._observer is None or self._observer.prepares

    is_shared = False
    began_at: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a round trip is in progress."""
        return self._receiver is not None

    def retire(self) -> None:
        """Have its pool replace it at its return."""
        self.due_at = -inf

    def serve(self, tenant: TenantIdentity | None) -> None:
        """Lend it to this tenant; a session of another tenant is marked for a reset."""
        served = self.tenant
        if served is not None and (tenant is None or not is_same(served, tenant)):
            self.is_unclean = True
            self.tenancy += 1
        self.tenant = tenant

    # The hot path

    def send_one(
        self,
        envelope: Envelope,
        settings: tuple[tuple[str, str], ...],
        query: Query,
        params: Params | None,
        *,
        deadline: float | None,
        now: float,
    ) -> Pipeline | None:
        """Send one statement inside its envelope, without waiting; see `drivers.protocol.Connection`."""
        if (
            type(query) is not str
            or (self._receiver is not None and not self.is_joining)
            or self._is_gone
            or self._foreign_waits
            or self._cancel_request is not None
            or self._was_psycopgs
            or not self._is_watched
            or self.plans.to_close
            or self._counting_adapters.changes != self._adapter_changes
            or (self.is_unclean and self._has_other_encoding)
        ):
            return None
        observer = self._observer
        prepares = observer is None or observer.prepares
        plans = self.plans
        known = (self._known_bare if params is None else self._known).get(query) or self._learn(query, params)
        if not known.is_plain:
            return None
        values = formats = left_s = head = None
        types: tuple[int, ...] = ()
        if deadline is not None:
            left_s = deadline - now
            if left_s <= 0:
                return None
        try:
            if params:
                kind = type(params)
                if known.names is not None or (kind is not list and kind is not tuple) or len(params) != known.count:
                    params = known.converted.order(params)  # type: ignore[union-attr]  # plain ones have one
                transformer = self.transformer
                values = transformer.dump_sequence(params, known.formats)  # type: ignore[arg-type]  # in order now
                types = transformer.types or ()
                formats = transformer.formats
            elif known.count:
                return None
            if envelope.settings:
                head = self.settings.command(
                    settings,
                    self.transformer.encoding,
                    left_s,
                    is_read=envelope.is_read,
                    prepares=prepares,
                    clears=self._calls_of_reset() if self.is_unclean else b"",
                )
        except Exception:  # noqa: BLE001 - a mistake of the caller's, which `exchange` raises in its place
            return None
        text, plan = known.text, known.plan
        if self.tag is not None:
            text = self.tag.behind(text)
            plan = plans.plan(text, types, at_once=False) if prepares and self.tag.is_constant else None
        elif plan is None or not plan.is_kept or types != known.types:
            plan = plans.plan(text, types, at_once=False) if prepares else None
            known.plan, known.types = plan, types
        else:
            plan.was_used = True
        wrapped = self._envelopes.get(envelope)
        if wrapped is None or wrapped[0] != plans.generation:
            wrapped = self._wrap(envelope, prepares=prepares)
        _, opening, between, closing = wrapped
        command = (text, values, types, formats, plan, True)
        if envelope.settings:
            commands = [*opening, head or _NOTHING, *between, command, *closing]
        else:
            commands = [*opening, *between, command, *closing]
        pipeline = Pipeline(self, commands)
        if self.is_unclean and (self.is_joining or self.pgconn.transaction_status == _IDLE):
            self._put_reset(pipeline, behind=len(opening), is_read=envelope.is_read, has_calls=head is not None)
        if not envelope.is_read:
            self.has_written = True
        elif self.sharing is not None:
            pipeline.query = query
            self.is_open_to_reads = query not in self.sharing.slow
        return self._start(pipeline, deadline, envelope.flush_after)

    def send_controls(self, statements: tuple[Control, ...], *, deadline: float | None) -> Pipeline | None:
        """Send control statements alone, without waiting; see `drivers.protocol.Connection`."""
        if (
            self._receiver is not None
            or self._is_gone
            or self._foreign_waits
            or self._cancel_request is not None
            or self._was_psycopgs
            or not self._is_watched
            or self.plans.to_close
            or (deadline is not None and deadline <= self._loop.time())
        ):
            return None
        batch = self._batches.get(statements)
        if batch is None or batch[0] != self.plans.generation:
            prepares = self._observer is None or self._observer.prepares
            commands = [self._control_command(statement, prepares=prepares) for statement in statements]
            batch = self._batches[statements] = (self.plans.generation, commands)
        return self._start(Pipeline(self, batch[1]), deadline, None)

    def _put_reset(self, pipeline: Pipeline, *, behind: int, is_read: bool, has_calls: bool) -> None:
        """Begin a transaction with a reset.

        Args:
            pipeline: What opens it.
            behind: How many of its commands come first: BEGIN, so that a failing reset fails the transaction.
            is_read: The transaction is READ ONLY, and ends with this round trip.
            has_calls: Its settings begin with the function calls of the reset.
        """
        observer = self._observer
        is_shared = observer is not None and observer.shares_sessions
        pipeline.reset = self.reset.commands(
            has_written=self.has_written or is_shared, is_shared=is_shared, has_calls=has_calls
        )
        pipeline.reset_at = behind
        pipeline.is_read = is_read
        pipeline.tenancy = self.tenancy

    def _calls_of_reset(self) -> bytes:
        """What the settings of the next transaction begin with; nothing inside a transaction."""
        if not self.is_unclean or (not self.is_joining and self.pgconn.transaction_status != _IDLE):
            return b""
        return self.reset.calls(is_shared=self._observer is not None and self._observer.shares_sessions)

    @property
    def _has_other_encoding(self) -> bool:
        """Whether values would be sent in an encoding that the reset takes back before they are read."""
        return self.pgconn.parameter_status(b"client_encoding") != self.reset.encoding

    async def _reset_apart(self, deadline: float | None) -> None:
        """Reset in a round trip of its own."""
        pipeline = Pipeline(self, ())
        self._put_reset(pipeline, behind=0, is_read=True, has_calls=False)
        self._start(pipeline, deadline, None)
        await pipeline.waiter
        await self.finish(pipeline)
        if pipeline.error is None:
            self.reset.encoding = self.pgconn.parameter_status(b"client_encoding")

    def _note_reset(self, receiver: Receiver | None) -> None:
        """Clear the mark once the transaction of a reset has committed."""
        if not isinstance(receiver, Pipeline):
            return
        if receiver.reset is not None:
            self._has_reset = True
        if self._has_reset and self.pgconn.transaction_status == _IDLE:
            self._has_reset = False
            if receiver.has_committed:
                if receiver.is_read:
                    self.has_written = False
                if receiver.reset is None or receiver.tenancy == self.tenancy:
                    # Behind a pooler the next transaction may be in another session. After a later change of the
                    # tenant, by a read that was about to join this one, the session has to be reset once more.
                    self.is_unclean = self._observer is not None and self._observer.shares_sessions

    def _learn(self, query: str, params: Params | None) -> KnownQuery:
        """Convert and cache a new text; also records whether it needs special treatment."""
        converted: ConvertedQuery | None = None
        if len(query) <= MAX_CACHED_LENGTH:
            try:
                converted = convert(query, self.transformer, has_params=params is not None)
            except Exception:  # noqa: BLE001 - `exchange` raises it in its place
                converted = None
        known = KnownQuery(converted)
        kept = self._known_bare if params is None else self._known
        if len(kept) >= MAX_KNOWN_QUERIES:
            kept.clear()
        kept[query] = known
        return known

    def _wrap(self, envelope: Envelope, *, prepares: bool) -> tuple[int, list[Command], list[Command], list[Command]]:
        opening, between, closing = [
            [self._control_command(statement, prepares=prepares) for statement in statements]
            for statements in (envelope.opening, envelope.between, envelope.closing)
        ]
        wrapped = self._envelopes[envelope] = (self.plans.generation, opening, between, closing)
        return wrapped

    def _start(self, pipeline: Pipeline, deadline: float | None, flush_after: int | None) -> Pipeline:
        """Send a pipeline. If that fails, the connection is lost, and the pipeline holds the error."""
        if self._receiver is not None:
            return self._join(pipeline, deadline)
        pipeline.waiter = self._waiter = self._loop.create_future()
        pipeline.deadline = deadline
        self._receiver = pipeline
        try:
            pipeline.send(flush_after)
            is_pending = self.pgconn.flush()
        except e.Error as error:
            self._lose(error)
            pipeline.failed_at = None
            return pipeline
        self._was_psycopgs = False
        if not self._is_watched:
            self._watch()
        if is_pending:
            self._write_later()
        if deadline is not None:
            # A timer that fires too early re-arms itself, so that hardly any exchange needs a timer of its own: that of
            # an earlier exchange serves thousands of later ones.
            if self._timer is not None and self._timer_at <= deadline:
                self._deadline = deadline
            else:
                self._set_deadline(deadline)
        return pipeline

    def _join(self, pipeline: Pipeline, deadline: float | None) -> Pipeline:
        """Send a read behind those that are in progress."""
        pipeline.waiter = self._loop.create_future()
        pipeline.deadline = deadline
        shared = self._receiver
        if not isinstance(shared, SharedPipeline):
            shared = self._receiver = SharedPipeline(self, cast("Pipeline", shared))
            self._waiter = None
        if self._head_timer is None:
            self._watch_head()
        shared.queue.append(pipeline)
        try:
            pipeline.send(None)
            is_pending = self.pgconn.flush()
        except e.Error as error:
            self._lose(error)
            pipeline.failed_at = None
            return pipeline
        if is_pending and not self._is_writing:
            self._write_later()
        if deadline is not None and (self._deadline is None or deadline < self._deadline):
            self._set_deadline(deadline)
        return pipeline

    async def arrival(self, exchange: Pipeline) -> None:
        """Wait until the answer is complete or the deadline has passed, even if the waiter was cancelled."""
        while True:
            if exchange.waiter.cancelled() and self._receiver is exchange:
                if exchange.deadline is not None and self._loop.time() >= exchange.deadline - _CLOCK_STEP_S:
                    # The timer has woken the cancelled waiter.
                    return
                exchange.waiter = self._waiter = self._loop.create_future()
            # Not awaited directly: a cancellation of this caller must not cancel the shared waiter.
            await asyncio.wait({exchange.waiter})
            if not exchange.waiter.cancelled() or self._receiver is not exchange:
                return

    async def finish(self, exchange: Pipeline) -> None:
        """Complete a round trip: after the deadline stop it on the server, then read the rest of the answer.

        While other borrowers' reads are in progress nothing is stopped, and the rest of the answer is dropped.
        """
        receiver = self._receiver
        if receiver is not None and (
            receiver is exchange or (isinstance(receiver, SharedPipeline) and exchange in receiver.queue)
        ):
            if self.stop_sharing():
                await self._stop(receiver)
                exchange.timed_out = exchange.error is not None
            elif exchange.error is None:
                give_up(exchange)
        exchange.load()

    def stop_sharing(self) -> bool:
        """Let no other borrower's read join any more; returns whether none uses the connection now."""
        self.is_open_to_reads = False
        return not self.shares

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> Pipeline:
        """Send statements and one Sync, and collect their results: one round trip.

        Outside a transaction they are one implicit transaction, which ends at the Sync. Errors of the server and of
        the connection are not raised: the exchange has them, beside the answers that arrived before.

        Args:
            statements: The statements; empty to test whether the server answers.
            deadline: Event-loop time at which the server is asked to cancel. A server that does not react within
                `CANCEL_LIMIT_S` is cut off.
            flush_after: Index of a statement whose answer the server is asked to send at once. An answer that the
                server still buffers is lost with the connection.

        Raises:
            psycopg.Error, TypeError, ...: A mistake of the caller, as psycopg's cursor raises it for the same
                statement; nothing was sent.
            asyncio.CancelledError: The round trip is still in progress: pass the connection to `PsycopgServer.reclaim`.
        """
        if self._receiver is not None or self._foreign_waits:
            raise InterfaceError(IN_USE)
        if self._cancel_request is not None:
            await self._outlast_cancel()
        if self.is_unclean and self.is_idle and self._has_other_encoding and not self._is_gone:
            await self._reset_apart(deadline)
        # Without protocol messages for it, names are closed by a statement, which could fail an open transaction.
        closes = self.plans.take_closes() if self.plans.closes_by_message or self.is_idle else ()
        try:
            pipeline = Pipeline(self, self._to_commands(statements))
        except BaseException:
            self.plans.put_back_closes(closes)
            raise
        pipeline.closes = closes
        pipeline.resets_mode = self._was_psycopgs
        is_read = bool(statements) and isinstance(statements[0], Settings) and statements[0].is_read
        if self.is_unclean and statements and self.is_idle:
            behind = int(isinstance(statements[0], Begin))
            head = statements[behind : behind + 1]
            has_calls = bool(head) and isinstance(head[0], Settings) and pipeline.sends(behind)
            self._put_reset(pipeline, behind=behind, is_read=is_read, has_calls=has_calls)
        if statements and not is_read:
            self.has_written = True
        if self._is_gone:
            pipeline.error, pipeline.is_lost = self.reason_of_end, True
            return pipeline
        if deadline is not None and deadline <= self._loop.time():
            self.plans.put_back_closes(closes)
            pipeline.error = OperationalError("the deadline had passed before the statement was sent")
            pipeline.timed_out = True
            return pipeline
        self._start(pipeline, deadline, flush_after)
        # After a cancellation the rest of the answer is read and dropped.
        await pipeline.waiter
        await self.finish(pipeline)
        return pipeline

    def _to_commands(self, statements: Sequence[Statement]) -> list[Command]:
        if self.adapters.changes != self._adapter_changes:
            self.refresh_transformer()
        transformer = self.transformer
        prepares = self._observer is None or self._observer.prepares
        commands: list[Command] = []
        for statement in statements:
            if isinstance(statement, Control):
                commands.append(self._control_command(statement, prepares=prepares))
                continue
            params = statement.params
            converted = convert(statement.query, transformer, has_params=params is not None)
            if converted.is_client_copy:
                raise ProgrammingError(COPY_REFUSED)
            if converted.outlives_transaction:
                if self.is_lent and self._observer is not None and self._observer.is_pooled:
                    raise ProgrammingError(OUTLIVES_REFUSED)
                if self.is_lent and is_listen(converted.text):
                    raise ProgrammingError(LISTEN_REFUSED)
                self.needs_reset = True
            text = converted.text
            if isinstance(statement, CursorDeclaration):
                text = statement.prefix.encode("ascii") + text
            values = formats = None
            types: tuple[int, ...] = ()
            if params is not None:
                ordered = converted.order(params)
                if len(ordered) > MAX_PARAMS:
                    raise OperationalError(
                        f"sending query and params failed: number of parameters must be between 0 and {MAX_PARAMS}"
                    )
                if ordered:
                    values = transformer.dump_sequence(ordered, converted.formats)
                    types = transformer.types or ()
                    formats = transformer.formats
            prepare = statement.prepare
            if self.tag is not None and (not statement.is_auxiliary or isinstance(statement, CursorDeclaration)):
                text = self.tag.behind(text)
                if not self.tag.is_constant:
                    # Each request's text is another one, which would only evict others.
                    prepare = False
            plan = None
            if prepare is not False and prepares and (prepare or len(text) <= MAX_CACHED_LENGTH):
                plan = self.plans.plan(text, types, at_once=prepare is True)
            commands.append((text, values, types, formats, plan, True))
        return commands

    def _control_command(self, statement: Control, *, prepares: bool) -> Command:
        if isinstance(statement, Settings):
            if statement.lasts:
                return self._lasting_settings(statement)
            left_s = None if statement.deadline is None else statement.deadline - self._loop.time()
            command = self.settings.command(
                statement.pairs,
                self.transformer.encoding,
                left_s,
                is_read=statement.is_read,
                prepares=prepares,
                clears=self._calls_of_reset(),
            )
            return command or _NOTHING
        plan = self.plans.control_plan(statement.encoded) if prepares and statement.prepare else None
        return (statement.encoded, None, (), None, plan, False)

    def _lasting_settings(self, statement: Settings) -> Command:
        """Settings of the session, which is cleared before the connection is lent again."""
        observer = self._observer
        if statement.pairs and observer is not None and observer.shares_sessions:
            raise ProgrammingError(OUTLIVES_TRANSACTION)
        self.needs_reset = True
        calls = self._calls_of_reset()
        return self.settings.lasting_command(statement.pairs, self.transformer.encoding, clears=calls) or _NOTHING

    def _land(self) -> None:
        """The answer is complete: the connection is an ordinary psycopg connection again."""
        self._deadline = None
        receiver, self._receiver = self._receiver, None
        if type(receiver) is Pipeline:
            self.pgconn.exit_pipeline_mode()
            self.parses_answered = self.pipelines
            if self.is_unclean:
                self._note_reset(receiver)
        elif type(receiver) is SharedPipeline:
            self.pgconn.exit_pipeline_mode()
            if self.pgconn.transaction_status != _IDLE:
                self.cut("a read has left a transaction open")
                return
        told = self.pgconn.parameter_status
        formatting = (told(b"TimeZone"), told(b"DateStyle"), told(b"IntervalStyle"), told(b"client_encoding"))
        if self._formatting != formatting:
            self.refresh_transformer()
        if self._loans:
            self._unwatch()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _lose(self, cause: BaseException) -> None:
        self._deadline = None
        self.is_open_to_reads = False
        if isinstance(self._receiver, Pipeline):
            self._receiver.lose(self._farewell or cause)
            # Now, while libpq still has the connection's parameters.
            self._receiver.load()
        elif isinstance(self._receiver, SharedPipeline):
            self._receiver.lose(self._farewell or cause)
        for timer in (self._timer, self._head_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._head_timer = self._seen_head = None
        super()._lose(cause)

    # Reads of several borrowers

    def note_read_landed(self, read: Pipeline) -> None:
        """The answer to a read that shares the connection is complete."""
        if read.number:
            self.parses_answered = read.number
        if self.pgconn.status == BAD:
            return
        told = self.pgconn.parameter_status
        if self._formatting != (
            told(b"TimeZone"),
            told(b"DateStyle"),
            told(b"IntervalStyle"),
            told(b"client_encoding"),
        ):
            self.refresh_transformer()
        if read.reset is not None and read.has_committed:
            self.has_written = False
            if read.tenancy == self.tenancy:
                # Otherwise another tenant's read is on its way behind it, with a reset of its own.
                self.is_unclean = False

    def _watch_head(self) -> None:
        patience_s = min(MAX_HEAD_PATIENCE_S, max(HEAD_PATIENCE_S, self.connect_s))
        self._head_timer = self._loop.call_later(patience_s, self._check_head, context=Context())

    def _check_head(self) -> None:
        """Do not let a slow read hold back others: one that was running at the last check as well."""
        self._head_timer = None
        shared, sharing = self._receiver, self.sharing
        if not isinstance(shared, SharedPipeline) or sharing is None:
            self._seen_head = None
            return
        head = shared.queue[0]
        if head is not self._seen_head:
            self._seen_head, self._head_checks, self._seen_returns = head, 0, sharing.returns
        else:
            self._head_checks += 1
            is_left = head.error is not None or head.waiter.cancelled()
            is_slow = sharing.has_idle or sharing.returns - self._seen_returns >= _PROGRESS
            if is_left or is_slow:
                self.is_open_to_reads = False
                shared.withdraw_followers()
            if is_slow and self._head_checks > 1 and head.query is not None:
                sharing.note_slow(head.query)
        self._watch_head()

    # Deadlines

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer, context=Context())

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        if self._loop.time() < deadline - _CLOCK_STEP_S:
            self._set_deadline(deadline)
            return
        self._deadline = None
        if isinstance(self._receiver, SharedPipeline):
            following = self._receiver.expire(self._loop.time() + _CLOCK_STEP_S)
            if following is not None:
                self._set_deadline(following)
        else:
            self._wake()

    # Back to idle

    async def stop_statement(self) -> None:
        """Stop what is under way, and read its end; a connection that does not come to that in time is cut."""
        if self._receiver is not None:
            await self._stop(self._receiver)

    async def _stop(self, receiver: Receiver) -> None:
        """End the round trip: cancel it on the server and wait for the Sync, or cut the connection."""
        observer = self._observer
        started = time.monotonic()
        is_answered = await self.cancel_on_server(CANCEL_LIMIT_S)
        while is_answered and isinstance(receiver, SharedPipeline) and self._receiver is receiver:
            # A cancel request stops one of its reads, and the next one begins.
            if time.monotonic() - started >= CANCEL_LIMIT_S:
                break
            await self._await_landing(_CANCEL_NEXT_S)
            if self._receiver is receiver:
                is_answered = await self.cancel_on_server(CANCEL_LIMIT_S)
        if not is_answered and observer is not None:
            observer.went_silent()
        if self._receiver is receiver and is_answered:
            await self._await_landing(max(0.1, CANCEL_LIMIT_S - (time.monotonic() - started)))
        if self._receiver is receiver:
            # Read what has arrived by now, such as the answer to a COMMIT.
            self._on_readable()
        if self._receiver is receiver:
            self.cut("the server did not stop the statement in time")
        elif not is_answered and isinstance(receiver, Pipeline | SharedPipeline):
            # The cancel request may still be on its way, and would stop another borrower's statement.
            self.cut("a cancel request was not answered")
            receiver.lose(OperationalError("the connection was cut: a cancel request was not answered"))

    async def _await_landing(self, limit_s: float) -> None:
        # Keep the previous waiter: a task may still await it, and nothing else would wake it.
        before = self._waiter
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(limit_s, self._wake)
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None
            timer.cancel()
            if before is not None and not before.done():
                before.set_result(None)

    async def settle(self, *, limit_s: float = CANCEL_LIMIT_S) -> bool:
        """Bring a connection in any state back to idle: cancel, drain to the Sync, roll back. Otherwise cut it.

        With `needs_reset`, also discard state that outlives a transaction: settings, temporary tables, prepared
        statements, locks.

        Args:
            limit_s: Seconds for the rollback, and for the reset.

        Returns:
            Whether it can be used again.
        """
        self.is_open_to_reads = self.has_dropped_reads = False
        if self._foreign_waits:
            await self._end_foreign_waits()
        self._loans = 0
        self._watch()
        if self._receiver is None and not self._is_gone and self.is_midway:
            # One of psycopg's own operations was cancelled halfway.
            self._receiver = drain = Drain(self.pgconn)
            try:
                drain.begin()
                self._on_readable()
            except e.Error as error:
                self._lose(error)
        if self._receiver is not None:
            await self._stop(self._receiver)
        if not self._is_gone and not self.is_idle:
            await self.exchange((_ROLLBACK,), deadline=self._loop.time() + limit_s)
        if self.needs_reset and self._observer is not None and self._observer.is_pooled:
            # Through a pooler, the reset would reach an arbitrary server connection.
            self.needs_reset = False
        if self.needs_reset and not self._is_gone and self.is_idle:
            # All of it, and so the rest need not be cleared by itself.
            self.is_unclean = False
            discarded = await self.exchange((_DISCARD,), deadline=self._loop.time() + limit_s)
            if discarded.error is None:
                self.needs_reset = False
            elif not self._is_gone:
                self.cut("the connection could not be reset")
        if not self._is_gone and not self.is_idle:
            self.cut("the transaction could not be rolled back")
        return not self._is_gone

    async def _end_foreign_waits(self) -> None:
        """Make a task that still waits in one of psycopg's operations end."""
        if await self.cancel_on_server(CANCEL_LIMIT_S) and await self.foreign_waits_ended(CANCEL_LIMIT_S):
            return
        shut_down(self._fd)
        if not await self.foreign_waits_ended(CANCEL_LIMIT_S):
            self.cut("a task did not release it")


def is_same(served: TenantIdentity, tenant: TenantIdentity) -> bool:
    """Whether two values are the same tenant; a reload creates new objects."""
    return served is tenant or (served.name == tenant.name and served.settings == tenant.settings)
