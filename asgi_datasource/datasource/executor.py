"""Runs statements: borrow a connection, make one round trip, return the connection.

An `Executor` belongs to one session. It depends on intents, the tenant and the servers only, not on requests.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import monotonic, perf_counter, time_ns
from typing import Final, cast

from opentelemetry.trace import Span

from ..concurrency.priority_queue import Priority
from ..concurrency.tasks import BackgroundTasks
from ..drivers.protocol import Connection, Exchange, Result, Server
from ..drivers.statements import Control, ControlKind, Envelope, Params, Query, Settings, Statement
from ..errors import CommitUnknown, DataError, DataErrorKind
from ..observability import names
from ..observability.query_tags import QueryTag
from ..observability.recording import SessionRecorder
from ..observability.session_trace import SessionTrace, TransactionTrace, description_of, note_failed_statement
from ..observability.summary import analyze
from ..routing import ANY_FRESHNESS, AccessIntent, Freshness, ReadAfterWritePin, Role
from ..routing.consistency.client_history import ClientHistory
from ..transaction import ONE_SNAPSHOT, Isolation, Transaction, TxState, control_statements, refuse_transaction_command
from ..transaction.transaction import returned_rows
from .causal_reads import READ, CausalRead
from .datasource import DataSource
from .router import Attempt, Router, TenantSettings, is_refusal

SentRead = tuple[Exchange, Server, Connection, CausalRead | None]
"""A read in progress: its round trip, server and connection, and its proof if one is required."""

SentBegin = tuple[Exchange, Server, Connection]
"""The first statement of a transaction in progress."""

Lent = tuple[Server, Connection, CausalRead | None]
"""A borrowed connection on which nothing was sent yet, and the proof that the read requires there."""

_UNTRIED: Final = Attempt()
"""The attempt of a read without failures so far; shared, never changed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A transaction that was just opened, with the results of its first statements.

    Attributes:
        transaction: The transaction; it is open even if a statement failed.
        results: A result for each statement, if all of them succeeded.
        error: The first failure of a statement.
    """

    transaction: Transaction
    results: Sequence[Result]
    error: DataError | None = None


class Executor(Router):
    """Runs the statements of one session on one datasource, as its tenant.

    The `send...` methods start a round trip without waiting, or return None where something must be awaited first; the
    `take...` methods read it if it succeeded. The coroutines `read` and `begin` handle all cases: they wait for
    connections, and take over round trips that did not succeed.
    """

    _started = 0.0
    _tag_settings: tuple[tuple[str, str], ...] = ()
    """Settings of all transactions that name the route."""
    _span: Span | None = None
    """The span of the read that was sent without waiting."""

    def __init__(
        self,
        datasource: DataSource,
        tenant: TenantSettings,
        background: BackgroundTasks,
        *,
        pin: ReadAfterWritePin | None = None,
        client_history: ClientHistory | None = None,
        priority: Priority = Priority.NORMAL,
        trace: SessionTrace | None = None,
        measure: SessionRecorder | None = None,
    ) -> None:
        """Create the executor of one session.

        Args:
            datasource, tenant: The session's datasource and tenant.
            background: Returns connections whose borrower was cancelled.
            pin: An existing pin; None creates one on demand.
            client_history: The positions that the session's client has seen; None when tokens are disabled.
            priority: Order of service among requests that wait for a connection.
            trace: Makes the spans; None where the session's trace is not sampled.
            measure: Recorder for decisions, waits and statements; None when metrics are disabled.
        """
        self._datasource = datasource
        self._tenant = tenant
        applied = tenant.applied
        self._settings = tenant.apply() if applied is None else applied
        self._background = background
        self._priority = priority
        self.trace = trace
        self._measure = measure
        if pin is not None:
            self._pin = pin
        self.client_history = client_history

    def serve(self, tenant: TenantSettings) -> None:
        """Use these settings of the session's tenant from the next transaction on."""
        self._tenant = tenant
        self._settings = (*tenant.apply(), *self._tag_settings)
        if self.trace is not None:
            self.trace.serve(tenant)

    def use_tags(self, tag: QueryTag | None, settings: tuple[tuple[str, str], ...]) -> None:
        """Tag all statements.

        Args:
            tag: The comment behind them; None for none.
            settings: Settings of all transactions that name the route.
        """
        self._tag = tag
        self._tag_settings = settings
        self._settings = (*self._settings, *settings)

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """The tenant's settings."""
        return self._settings

    async def give_back(self, server: Server, connection: Connection) -> None:
        """Return a connection in any state."""
        await self._give_up(server, connection)

    # -- reads outside a transaction

    def send_read(
        self, query: Query, params: Params | None, *, deadline: float | None, freshness: Freshness, now: float
    ) -> SentRead | None:
        """Send one read without waiting; None where something must be awaited or done first.

        Args:
            query, params: The statement.
            deadline: Event-loop time at which the server is asked to stop; sent to the server as well.
            freshness: Required freshness of the data.
            now: Event-loop time.
        """
        trace = self.trace
        chosen_ns = 0 if trace is None else time_ns()
        client_history = self.client_history
        if client_history is not None and client_history.is_blank and not client_history.is_monotonic(freshness):
            # No proof required, and no lower bound for later reads.
            client_history = None
        attempt = _UNTRIED if client_history is None else Attempt()
        borrowed = self.borrow_at_hand(AccessIntent.READ, attempt, freshness, query if type(query) is str else None)
        if borrowed is None:
            return None
        server, connection, route = borrowed
        if server.leads_to_several:
            server.put_back(connection)
            return None
        proof = None if client_history is None else CausalRead(self, client_history, freshness, attempt)
        envelope = READ if proof is None else proof.envelope(server, connection)
        sent_ns = 0 if trace is None else time_ns()
        exchange = connection.send_one(envelope, self._settings, query, params, deadline=deadline, now=now)
        if exchange is None:
            server.put_back(connection)
            return None
        self.note_borrowed(server, connection, route)
        if self._measure is not None or trace is not None:
            self._started = perf_counter()
        if trace is not None:
            # Spans are made while the server works.
            chosen = self.trace_route(trace, route, attempt, None, chosen_ns)
            if envelope.between:
                attempt.route = chosen
            else:
                chosen.end(is_ready=True, ended_ns=sent_ns)
            self._span = trace.query(server, cast("str", query), started_ns=sent_ns)
        return exchange, server, connection, proof

    async def wait_to_send(
        self, query: Query, params: Params | None, *, intent: AccessIntent, deadline: float | None, freshness: Freshness
    ) -> tuple[SentRead | SentBegin | None, Lent | None]:
        """Wait for a connection, then do as `send_read` or `send_begin`.

        Returns:
            The round trip, or None where the statement needs `read` or `begin`; and the connection that was borrowed
            for them.
        """
        is_read = intent is AccessIntent.READ
        proof = self._proof(freshness) if is_read else None
        attempt = Attempt() if proof is None else proof.attempt
        read = query if is_read and type(query) is str else None
        server, connection = await self.connect(intent, attempt, deadline, freshness, read=read)
        client_history = self.client_history
        if (is_read and server.leads_to_several) or (
            not is_read and client_history is not None and client_history.is_monotonic(freshness)
        ):
            if proof is None:
                attempt.end_route()
            return None, self._lent(server, connection, proof)
        if is_read:
            envelope = READ if proof is None else proof.envelope(server, connection)
        else:
            envelope = _begin_envelope(connection.incarnation is None)
        if attempt.route is not None and not envelope.between:
            attempt.end_route()
        trace = self.trace
        sent_ns = 0 if trace is None else time_ns()
        exchange = connection.send_one(envelope, self._settings, query, params, deadline=deadline, now=monotonic())
        if exchange is None:
            return None, self._lent(server, connection, proof)
        if self._measure is not None or trace is not None:
            self._started = perf_counter()
        if trace is not None:
            self._span = trace.query(server, cast("str", query), started_ns=sent_ns)
        sent = (exchange, server, connection, proof) if is_read else (exchange, server, connection)
        return sent, (server, connection, proof)

    @staticmethod
    def _lent(server: Server, connection: Connection, proof: CausalRead | None) -> Lent | None:
        """A connection on which nothing was sent, for `read` or `begin`; None if it is shared, and was returned."""
        if not connection.is_shared:
            return server, connection, proof
        if proof is not None:
            proof.attempt.end_route(is_ready=False)
        server.put_back(connection)
        return None

    def take_read(self, sent: SentRead, query: Query) -> Result | None:
        """The result of `send_read` once it has arrived; None unless it succeeded.

        With a result, the connection was returned; without one, `read` takes over.
        """
        exchange, server, connection, proof = sent
        index = 1
        if proof is not None:
            if not exchange.has_landed or not proof.is_met(exchange, server, connection):
                return None
            index = proof.asked.index
        result = exchange.take(index, in_transaction=False)
        if result is None:
            return None
        if proof is not None:
            proof.note(exchange, index + 1, server)
            if proof.attempt.route is not None:
                self.note_proof(proof.attempt, server, "met")
        if self._span is not None:
            if exchange.began_at is not None:
                waited_ms = round((exchange.began_at - self._started) * 1000, 3)
                self._span.set_attribute(names.POOL_WAIT_MS, max(0.0, waited_ms))
            self._end_span()
        server.release(connection)
        if server.role is Role.REPLICA:
            self._sticky = server.name
        if self._measure is not None:
            analysis = analyze(query if isinstance(query, str) else Statement(query).text)
            rows = result.rowcount if analysis.operation == "SELECT" else -1
            started = self._started if exchange.began_at is None else exchange.began_at
            self._measure.ran(server, analysis, perf_counter() - started, None, rows)
        return result

    async def read(
        self,
        statements: Sequence[Statement],
        *,
        deadline: float | None,
        freshness: Freshness,
        lent: Lent | None = None,
        begun: SentRead | None = None,
    ) -> Sequence[Result]:
        """Run statements with read intent in one implicit READ ONLY transaction: one round trip.

        Statements between two Syncs are one transaction on the server. So no BEGIN is needed, and the tenant's settings
        and READ ONLY end with it (PostgreSQL manual, "Pipelining" in the extended query protocol).

        Args:
            statements: What to run.
            deadline: Event-loop time at which the server is asked to stop; sent to the server as well.
            freshness: Required freshness of the data.
            lent: The connection that `wait_to_send` has borrowed.
            begun: The round trip, if `send_read` has started it for the one statement.

        Returns:
            A result for each statement.

        Raises:
            DataError: They failed, or no server could be reached, after retries on other servers where that is safe.
        """
        for statement in statements:
            if statement.may_end_transaction:
                if lent is not None:
                    lent[0].put_back(lent[1])
                return await self._read_in_block(statements, deadline=deadline, freshness=freshness)
        proof = begun[3] if begun is not None else self._proof(freshness) if lent is None else lent[2]
        attempt = Attempt() if proof is None else proof.attempt
        while True:
            is_alone = True
            if begun is None:
                if lent is None:
                    server, connection = await self.connect(AccessIntent.READ, attempt, deadline, freshness)
                else:
                    server, connection, _ = lent
                if server.leads_to_several:
                    is_needed = self.needs_age(server, attempt, freshness)
                    if is_needed is None:
                        lent = None
                        attempt.end_route(is_ready=False)
                        attempt.behind |= {server.name}
                        await self._give_up(server, connection)
                        continue
                    if is_needed and proof is None:
                        proof = CausalRead(self, self.client_history, freshness, attempt)
                envelope = READ if proof is None else proof.envelope(server, connection)
                settings = Settings(self._settings, is_read=True, deadline=deadline)
                batch = [settings, *envelope.between, *statements, *envelope.closing]
                if attempt.route is not None and not envelope.between:
                    attempt.end_route()
                exchange = await self._exchange(server, connection, batch, statements, deadline, attempt=attempt)
            else:
                exchange, server, connection, _ = begun
                envelope = READ if proof is None else proof.asked
                await self._finish(server, connection, exchange, statements, first=envelope.index)
                begun = None
                # Behind its answer, reads whose callers have left may still be in progress.
                is_alone = connection.stop_sharing() and not connection.is_midway
            if proof is not None and not exchange.is_withdrawn and not proof.is_met(exchange, server, connection):
                if not is_alone:
                    # It is polled on a connection of its own.
                    await self._give_up(server, connection)
                    continue
                catch_up = proof.catches_up(server, connection, deadline)
                has_caught_up = await self._is_proved(proof, catch_up, server, connection)
                lent = (server, connection, proof) if has_caught_up else None
                continue
            if attempt.route is not None and exchange.was_answered(0):
                self.note_proof(attempt, server, "met")
            attempt.end_route(is_ready=False)
            lent = None
            if exchange.error is None:
                results = exchange.answers(envelope.index, len(statements))
                command = next((result.status_message for result in results if result.ends_transaction), None)
                if command is None and (not is_alone or connection.is_idle or connection.closed):
                    # The connection may be lost after a complete answer.
                    if proof is not None:
                        proof.note(exchange, envelope.index + len(statements), server)
                    server.release(connection)
                    self.note_read(server)
                    return results
                await self._give_up(server, connection)
                raise refuse_transaction_command(command or "BEGIN")
            error = server.error_of(exchange, is_write=False)
            if is_alone:
                await self._give_up(server, connection)
            else:
                server.release(connection)
            if not attempt.may_go_on(server, exchange, error):
                try:
                    raise error from exchange.error
                finally:
                    # Its traceback refers to this frame: break the reference cycle.
                    del error

    def _proof(self, freshness: Freshness, attempt: Attempt | None = None) -> CausalRead | None:
        return (
            None
            if self.client_history is None
            else CausalRead(self, self.client_history, freshness, attempt or Attempt())
        )

    async def _is_proved(self, proof: CausalRead, met: Awaitable[bool], server: Server, connection: Connection) -> bool:
        """Whether the server proves the required position; if not, its connection is returned.

        Args:
            proof: The proof, whose attempt remembers that the server is behind.
            met: `proof.is_met_before` or `proof.catches_up`, not awaited yet.
            server, connection: The server, and the connection borrowed from it.
        """
        started = monotonic()
        try:
            if await met:
                how = "waited" if proof.has_waited else "met"
                self.note_proof(proof.attempt, server, how, monotonic() - started)
                return True
        except BaseException:
            proof.attempt.end_route(is_ready=False)
            await self._give_up(server, connection)
            raise
        self.note_proof(proof.attempt, server, "failed", monotonic() - started)
        proof.attempt.behind |= {server.name}
        await self._give_up(server, connection)
        return False

    async def _read_in_block(
        self, statements: Sequence[Statement], *, deadline: float | None, freshness: Freshness
    ) -> Sequence[Result]:
        """Read in an explicit transaction: a procedure's COMMIT would end an implicit one, and its settings with it."""
        opened = await self.begin(
            statements, deadline=deadline, intent=AccessIntent.READ, isolation=None, freshness=freshness
        )
        await opened.transaction.rollback("end of the read")
        if opened.error is not None:
            raise opened.error from opened.error.__cause__
        return opened.results

    # -- the first statement of a transaction

    def send_begin(
        self, query: Query, params: Params | None, *, deadline: float | None, freshness: Freshness, now: float
    ) -> SentBegin | None:
        """Send BEGIN and the first statement of a transaction that writes, without waiting; None as in `send_read`."""
        if self.trace is not None:
            return None
        client_history = self.client_history
        if client_history is not None and client_history.is_monotonic(freshness):
            return None
        borrowed = self.borrow_at_hand(AccessIntent.WRITE, _UNTRIED, freshness)
        if borrowed is None:
            return None
        server, connection, route = borrowed
        exchange = connection.send_one(
            _begin_envelope(connection.incarnation is None),
            self._settings,
            query,
            params,
            deadline=deadline,
            now=now,
        )
        if exchange is None:
            server.put_back(connection)
            return None
        self.note_borrowed(server, connection, route)
        if self._measure is not None:
            self._started = perf_counter()
        return exchange, server, connection

    def take_begin(self, sent: SentBegin, query: Query) -> tuple[Transaction, Result] | None:
        """The transaction and the result of `send_begin` once it has arrived; None unless it succeeded."""
        exchange, server, connection = sent
        result = exchange.take(2, in_transaction=True)
        if result is None:
            return None
        transaction = Transaction(
            connection, server, self._background, read_only=False, isolation=None, measure=self._measure
        )
        xid = exchange.value(3)
        if xid is not None:
            transaction.identified = (xid,) if connection.incarnation is not None else exchange.values(3)
        self.note_write()
        if self._measure is not None:
            analysis = analyze(query if isinstance(query, str) else Statement(query).text)
            rows = result.rowcount if analysis.operation == "SELECT" else -1
            self._measure.ran(server, analysis, perf_counter() - self._started, None, rows)
        return transaction, result

    # -- a whole transaction in one round trip

    def send_whole(
        self, query: Query, params: Params | None, *, deadline: float | None, freshness: Freshness, now: float
    ) -> SentBegin | None:
        """Send a transaction of one statement, COMMIT included, without waiting; None as in `send_read`."""
        if not self._may_send_whole(freshness):
            return None
        borrowed = self.borrow_at_hand(AccessIntent.WRITE, _UNTRIED, freshness)
        if borrowed is None:
            return None
        server, connection, route = borrowed
        exchange = self._send_whole(server, connection, query, params, deadline, now)
        if exchange is None:
            server.put_back(connection)
            return None
        self.note_borrowed(server, connection, route)
        return exchange, server, connection

    async def wait_to_send_whole(
        self, query: Query, params: Params | None, *, deadline: float | None, freshness: Freshness
    ) -> SentBegin | None:
        """Wait for a connection, then do as `send_whole`."""
        if not self._may_send_whole(freshness):
            return None
        server, connection = await self.connect(AccessIntent.WRITE, Attempt(), deadline, freshness)
        exchange = self._send_whole(server, connection, query, params, deadline, monotonic())
        if exchange is None:
            server.put_back(connection)
            return None
        return exchange, server, connection

    def _may_send_whole(self, freshness: Freshness) -> bool:
        client_history = self.client_history
        return self.trace is None and (client_history is None or not client_history.is_monotonic(freshness))

    def _send_whole(
        self,
        server: Server,
        connection: Connection,
        query: Query,
        params: Params | None,
        deadline: float | None,
        now: float,
    ) -> Exchange | None:
        if connection.incarnation is None or connection.timeline < server.timeline:
            # A lost COMMIT could not be looked up, or would be on a former primary.
            return None
        self._started = perf_counter()
        return connection.send_one(_WHOLE, self._settings, query, params, deadline=deadline, now=now)

    def take_whole(self, sent: SentBegin, query: Query) -> tuple[Transaction, Result] | None:
        """The committed transaction and the result of `send_whole`; None unless all of it succeeded."""
        exchange = sent[0]
        result = exchange.take(_WHOLE.index, in_transaction=False)
        if result is None or exchange.tag(WHOLE_COMMIT) != "COMMIT":
            return None
        transaction = self._whole(sent)
        transaction.take_whole(exchange, WHOLE_COMMIT)
        if self._measure is not None:
            analysis = analyze(query if isinstance(query, str) else Statement(query).text)
            self._measure.ran(transaction.server, analysis, perf_counter() - self._started, None)
        return transaction, result

    async def end_whole(self, sent: SentBegin, statement: Statement) -> Transaction | None:
        """Examine a whole transaction that did not plainly succeed.

        Returns:
            The transaction, whose COMMIT was reached: `Transaction.commit` determines its outcome. None if nothing took
            effect, and it is safe to send it again.

        Raises:
            DataError: It failed before COMMIT, and nothing took effect.
            CommitUnknown: The connection was lost, and the server has not told the transaction's id.
        """
        exchange, server, connection = sent
        await self._finish(server, connection, exchange, (statement,), first=_WHOLE.index)
        if exchange.was_answered(_WHOLE_IDENTITY):
            return self._whole(sent)
        error = server.error_of(exchange, is_write=True)
        if is_refusal(error):
            server.refused_write(connection)
        await self._give_up(server, connection)
        was_sent = exchange.failed_at is not None
        if exchange.is_lost and was_sent and error.sqlstate is None:
            # The id arrives before COMMIT begins, unless the network has lost it.
            raise CommitUnknown(
                f"the connection to {server.full_name} was lost during a write that commits at once, before the server"
                " had told its transaction's id; look before you send the request again",
                server=server.location,
            ) from exchange.error
        if exchange.is_lost:
            server.suspect()
        if not exchange.timed_out and (exchange.is_lost or exchange.is_stale_plan or is_refusal(error)):
            return None
        raise error from exchange.error

    def _whole(self, sent: SentBegin) -> Transaction:
        """The transaction of `send_whole`, whose COMMIT was sent."""
        exchange, server, connection = sent
        transaction = Transaction(
            connection, server, self._background, read_only=False, isolation=None, measure=self._measure
        )
        transaction.state = TxState.COMMITTING
        xid = exchange.value(_WHOLE_IDENTITY)
        if xid is not None:
            transaction.identified = (xid,)
        return transaction

    async def begin(
        self,
        statements: Sequence[Statement],
        *,
        deadline: float | None,
        intent: AccessIntent,
        isolation: Isolation | None,
        is_deferrable: bool = False,
        freshness: Freshness = ANY_FRESHNESS,
        savepoints: Sequence[Control] = (),
        lent: Lent | None = None,
        begun: SentBegin | None = None,
        is_requests: bool = False,
    ) -> Opened:
        """Open a transaction in the round trip of its first statements: `[BEGIN; tenant; statements]`.

        Args:
            statements: The first statements; may be empty.
            deadline: Event-loop time at which the transaction times out; sent to the server as well.
            intent: READ opens a READ ONLY transaction, on a replica if there is one.
            isolation: None uses the server's default.
            is_deferrable: BEGIN waits for a snapshot that cannot cause a serialization failure.
            freshness: Required freshness of a read-only transaction.
            savepoints: Savepoints of the open blocks, sent in front of the statements.
            lent: The connection that `wait_to_send` has borrowed; the statements write.
            begun: The round trip, if `send_begin` has started it for the one statement.
            is_requests: It is the transaction of the whole session, not of a block.

        Raises:
            DataError: Nothing was opened: no connection, or BEGIN or the tenant's settings failed.
        """
        traced = None if self.trace is None else self.trace.begin(is_requests=is_requests)
        try:
            return await self._begin(
                statements,
                deadline=deadline,
                intent=intent,
                isolation=isolation,
                is_deferrable=is_deferrable,
                freshness=freshness,
                savepoints=savepoints,
                lent=lent,
                begun=begun,
                traced=traced,
            )
        except BaseException as error:
            if traced is not None and traced.span.is_recording():
                traced.not_opened(error)
            raise

    async def _begin(
        self,
        statements: Sequence[Statement],
        *,
        deadline: float | None,
        intent: AccessIntent,
        isolation: Isolation | None,
        is_deferrable: bool,
        freshness: Freshness,
        savepoints: Sequence[Control],
        lent: Lent | None,
        begun: SentBegin | None,
        traced: TransactionTrace | None,
    ) -> Opened:
        read_only = intent is AccessIntent.READ
        attempt = Attempt()
        while True:
            if begun is None:
                if lent is None:
                    server, connection = await self.connect(intent, attempt, deadline, freshness, traced)
                else:
                    server, connection, _ = lent
                    lent = None
            else:
                _, server, connection = begun
            proof = self._proof(freshness, attempt)
            if read_only and server.leads_to_several:
                is_needed = self.needs_age(server, attempt, freshness)
                if is_needed is None:
                    attempt.end_route(is_ready=False)
                    attempt.behind |= {server.name}
                    await self._give_up(server, connection)
                    continue
                if is_needed and proof is None:
                    proof = CausalRead(self, None, freshness, attempt)
            if read_only and proof is not None and self.must_prove(server, connection, attempt):
                met = proof.is_met_before(server, connection, deadline)
                if not await self._is_proved(proof, met, server, connection):
                    continue
            begin = control_statements.begin(isolation, read_only=read_only, is_deferrable=is_deferrable)
            head: list[Statement] = [begin]
            if traced is not None:
                attempt.end_route()
                traced.connected(server, begin=begin.text, isolation=begin.isolation, read_only=read_only)
                for control in savepoints:
                    if control.kind is ControlKind.SAVEPOINT:
                        traced.savepoint(control.name)
            if deadline is not None or self._settings or begun is not None:
                head.append(Settings(self._settings, is_read=False, deadline=deadline))
            batch = [*head, *savepoints, *statements]
            binds = proof is not None and proof.binds
            if binds:
                batch.append(control_statements.ASK_SEEN_POSITION)
            if not read_only:
                is_told = connection.incarnation is not None
                batch.append(control_statements.IDENTIFY_XID if is_told else control_statements.IDENTIFY)
            if begun is None:
                exchange = await self._exchange(
                    server, connection, batch, statements, deadline, begins=True, traced=traced
                )
            else:
                exchange = begun[0]
                await self._finish(server, connection, exchange, statements, first=2)
                begun = None
            error: DataError | None = None
            if exchange.error is not None:
                error = server.error_of(exchange, is_write=not read_only)
                is_open = not exchange.is_lost and exchange.failed_at is not None and exchange.failed_at >= len(head)
                if is_refusal(error):
                    server.refused_write(connection)
                # Recovery may cancel the first statements of a snapshot: nothing of it was seen yet, so that another
                # server's is as good.
                moves = read_only and error.kind is DataErrorKind.CONFLICT and server.role is Role.REPLICA
                if traced is not None and not is_open and exchange.failed_at is not None:
                    traced.failed_before("settings" if exchange.failed_at else "begin")
                if not is_open or exchange.is_stale_plan or is_refusal(error) or moves:
                    await self._give_up(server, connection)
                    if attempt.may_go_on(server, exchange, error):
                        continue
                    raise error from exchange.error
            if read_only and error is None and connection.closed and attempt.losses < 2:
                # It was cut behind the answer: its snapshot is gone, and nothing of it was seen yet.
                attempt.losses += 1
                await self._give_up(server, connection)
                continue
            transaction = Transaction(
                connection,
                server,
                self._background,
                read_only=read_only,
                isolation=isolation,
                trace=traced,
                measure=self._measure,
            )
            if savepoints:
                named = [control.name for control in savepoints if control.kind is ControlKind.SAVEPOINT]
                transaction.savepoints = tuple(named)
            if read_only:
                self.note_read(server)
            else:
                self.note_write()
            if error is not None:
                error.__cause__ = exchange.error
                transaction.failure = error
                return Opened(transaction, (), error)
            first = len(head) + len(savepoints)
            if proof is not None and binds:
                proof.note_position(exchange.values(first + len(statements)), server)
                if isolation not in ONE_SNAPSHOT:
                    transaction.note_position = partial(proof.note_position, server=server)
            if not read_only:
                transaction.note_identity(exchange, len(batch) - 1)
            results = exchange.answers(first, len(statements))
            await transaction.check_still_open(results)
            return Opened(transaction, results)

    def note_in_transaction(self, transaction: Transaction, intent: AccessIntent) -> None:
        """Record that a statement uses the open transaction."""
        self.note_transaction(transaction.server, intent, is_read_only=transaction.read_only)

    # -- a round trip

    async def _exchange(
        self,
        server: Server,
        connection: Connection,
        batch: Sequence[Statement],
        statements: Sequence[Statement],
        deadline: float | None,
        *,
        begins: bool = False,
        traced: TransactionTrace | None = None,
        attempt: Attempt | None = None,
    ) -> Exchange:
        trace = self.trace
        span = None
        if traced is not None:
            span = traced.statement(statements)
        elif trace is not None:
            span = trace.statement(server, statements, context=trace.parent())
        started = 0.0 if self._measure is None else perf_counter()
        failure: BaseException | None = None
        rows = -1
        try:
            exchange = await connection.exchange(batch, deadline=deadline)
            if exchange.error is not None and (span is not None or self._measure is not None):
                failure = error = server.error_of(exchange, is_write=begins)
                if trace is not None and span is not None:
                    first = next((index for index, one in enumerate(batch) if one is statements[0]), 0)
                    if begins and exchange.failed_at is not None and exchange.failed_at < first:
                        # BEGIN or the settings have failed: the statement has not run, and its span is dropped.
                        span = None
                    else:
                        trace.fail(span, error)
                        note_failed_statement(span, exchange.failed_at, first, len(statements))
            elif self._measure is not None and exchange.error is None:
                rows = returned_rows(exchange, batch, statements)
            return exchange
        except Exception as error:  # noqa: BLE001 - whichever class the driver, or an adapter, has raised
            # A mistake of the caller's that was noticed before anything was sent.
            failure = mistake = server.mistake_of(error)
            if attempt is not None:
                attempt.end_route(is_ready=False)
            if trace is not None and span is not None:
                trace.fail(span, mistake)
            await self._give_up(server, connection)
            try:
                raise mistake from error
            finally:
                # Their tracebacks lead to this frame, which must not lead back.
                del mistake
        except BaseException as error:
            failure = error
            if attempt is not None:
                attempt.end_route(is_ready=False)
            if trace is not None and span is not None:
                trace.fail(span, error)
            await self._give_up(server, connection)
            raise
        finally:
            if span is not None:
                span.end()
            self._note_run(server, statements, started, failure, rows)

    async def _finish(
        self, server: Server, connection: Connection, exchange: Exchange, statements: Sequence[Statement], *, first: int
    ) -> None:
        """Complete a round trip that was sent without waiting, whose statement has the index `first`."""
        failure: BaseException | None = None
        try:
            await connection.finish(exchange)
            if exchange.error is not None and (self._measure is not None or self._span is not None):
                failure = server.error_of(exchange, is_write=False)
                if self._span is not None:
                    note_failed_statement(self._span, exchange.failed_at, first, 1)
        except BaseException as error:
            failure = error
            await self._give_up(server, connection)
            raise
        finally:
            if exchange.is_withdrawn:
                # It runs again, with another span.
                self._span = None
            else:
                self._end_span(failure)
                self._note_run(server, statements, exchange.began_at or self._started, failure)

    def _end_span(self, failure: BaseException | None = None) -> None:
        """End the span of the read that was sent without waiting."""
        span, self._span = self._span, None
        if span is None or self.trace is None:
            return
        if failure is not None:
            self.trace.fail(span, failure)
        span.end()

    def _note_run(
        self,
        server: Server,
        statements: Sequence[Statement],
        started: float,
        failure: BaseException | None,
        rows: int = -1,
    ) -> None:
        if self._measure is not None:
            self._measure.ran(server, description_of(statements), perf_counter() - started, failure, rows)

    async def abandon(self, sent: SentRead | SentBegin, statement: Statement) -> None:
        """The caller of `send_read` or `send_begin` was cancelled: stop the statement, and return the connection."""
        _, server, connection = sent[:3]
        self._end_span(CancelledError())
        if self._measure is not None:
            took_s = perf_counter() - self._started
            self._measure.ran(server, analyze(statement.text), took_s, CancelledError())
        await self._give_up(server, connection)

    async def _give_up(self, server: Server, connection: Connection) -> None:
        await self._background.run(server.reclaim(connection))


_WHOLE: Final = Envelope(
    opening=(control_statements.begin(None, read_only=False),),
    closing=(control_statements.IDENTIFY_XID, control_statements.COMMIT, control_statements.WAL_POSITION),
    flushes=True,
)
"""A transaction of one statement. Its id is sent before COMMIT begins, so that the outcome of a lost one is known."""

WHOLE_STATEMENT: Final = _WHOLE.index
_WHOLE_IDENTITY: Final = _WHOLE.index + 1
WHOLE_COMMIT: Final = _WHOLE.index + 2
"""Index of COMMIT in the round trip of `send_whole`."""


@lru_cache(maxsize=2)
def _begin_envelope(asks_all: bool) -> Envelope:
    identify = control_statements.IDENTIFY if asks_all else control_statements.IDENTIFY_XID
    return Envelope(opening=(control_statements.begin(None, read_only=False),), closing=(identify,))
