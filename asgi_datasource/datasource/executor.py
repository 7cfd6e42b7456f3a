"""From a statement to a server and back: borrow a connection, one round trip, give it back.

An `Executor` belongs to one session. It knows nothing of requests: only of intents, the tenant, and the servers.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import monotonic, perf_counter
from typing import Final

from opentelemetry.trace import Span

from ..concurrency.priority_queue import Priority
from ..concurrency.tasks import BackgroundTasks
from ..drivers.protocol import Connection, Exchange, Result, Server
from ..drivers.statements import Control, Envelope, Params, Query, Settings, Statement
from ..errors import DataError
from ..observability import tracing
from ..observability.metrics import Measure
from ..routing import ANY_FRESHNESS, AccessIntent, Freshness, ReadAfterWritePin, Role
from ..routing.consistency.client_history import ClientHistory
from ..transaction import ONE_SNAPSHOT, Isolation, Transaction, control_statements, refuse_transaction_command
from .causal_reads import READ, CausalRead
from .datasource import DataSource
from .router import Attempt, Router, TenantSettings, is_refusal

SentRead = tuple[Exchange, Server, Connection, CausalRead | None]
"""A read on its way: its round trip, where it went, and what has to be proved."""

SentBegin = tuple[Exchange, Server, Connection]
"""The first statement of a transaction on its way."""

Lent = tuple[Server, Connection, CausalRead | None]
"""A connection that was waited for, and over which nothing was sent yet; of a read, what has to be proved there."""

_UNTRIED: Final = Attempt()
"""Stands for the attempt of a read that has met nothing yet; never changed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A transaction that has just been opened, together with its first statements.

    Attributes:
        transaction: It is open, whatever became of the statements.
        results: One for each statement, when all of them worked.
        error: The first failure among the statements.
    """

    transaction: Transaction
    results: Sequence[Result]
    error: DataError | None = None


class Executor(Router):
    """Runs the statements of one session on one datasource, inside its tenant.

    What begins with `send` starts a round trip without waiting, where nothing has to be awaited first, and what begins
    with `take` reads it where it came back with plain success. The coroutines `read` and `begin` tell the whole story:
    they wait for connections, and take over a round trip that has met anything unusual.
    """

    _started = 0.0

    def __init__(
        self,
        datasource: DataSource,
        tenant: TenantSettings,
        background: BackgroundTasks,
        *,
        pin: ReadAfterWritePin | None = None,
        past: ClientHistory | None = None,
        priority: Priority = Priority.NORMAL,
        is_traced: bool = False,
        traces_statements: bool = False,
        shows_tenant: bool = False,
        measure: Measure | None = None,
    ) -> None:
        """Make it for one session.

        Args:
            datasource, tenant: The session's.
            background: Where connections are given back when the caller is cancelled.
            pin: The caller's own; None makes one when it is first asked for.
            past: What the session's client has seen before; None when tokens are disabled.
            priority: Who is served first of those who wait for a connection.
            is_traced: Whether there are spans.
            traces_statements: Whether statements have spans of their own.
            shows_tenant: Whether the tenant's name stands on them.
            measure: What is told of decisions, waits and statements; None where nothing is measured.
        """
        self._datasource = datasource
        self._tenant = tenant
        applied = tenant.applied
        self._settings = tenant.apply() if applied is None else applied
        self._background = background
        self._priority = priority
        self._is_traced = is_traced
        self._traces_statements = is_traced and traces_statements
        self._shows_tenant = shows_tenant
        self._measure = measure
        if pin is not None:
            self._pin = pin
        self.past = past

    # -- reads outside a transaction

    def send_read(
        self, query: Query, params: Params | None, *, deadline: float | None, freshness: Freshness, now: float
    ) -> SentRead | None:
        """Send one read without waiting; None where something has to be awaited or done first.

        Args:
            query, params: The statement.
            deadline: Event-loop time at which the server is asked to stop; handed to the server as well.
            freshness: How fresh the data has to be.
            now: The event loop's time.
        """
        if self._is_traced:
            return None
        past = self.past
        if past is not None and past.is_blank and not past.is_monotonic(freshness):
            # Nothing to prove, and nothing that binds.
            past = None
        attempt = _UNTRIED if past is None else Attempt()
        borrowed = self.borrow_at_hand(AccessIntent.READ, attempt, freshness)
        if borrowed is None:
            return None
        server, connection, route = borrowed
        proof = None if past is None else CausalRead(self, past, freshness, attempt)
        envelope = READ if proof is None else proof.envelope(server, connection)
        exchange = connection.send_one(envelope, self._settings, query, params, deadline=deadline, now=now)
        if exchange is None:
            server.put_back(connection)
            return None
        self.note_borrowed(server, connection, route)
        if self._measure is not None:
            self._started = perf_counter()
        return exchange, server, connection, proof

    async def wait_to_send(
        self, query: Query, params: Params | None, *, intent: AccessIntent, deadline: float | None, freshness: Freshness
    ) -> tuple[SentRead | SentBegin | None, Lent]:
        """Do as `send_read` or `send_begin` where a connection has to be waited for.

        Returns:
            The round trip, or None where the statement needs more than this; and what was borrowed.
        """
        is_read = intent is AccessIntent.READ
        proof = self._proof(freshness) if is_read else None
        attempt = Attempt() if proof is None else proof.attempt
        server, connection = await self.connect(intent, attempt, deadline, freshness)
        past = self.past
        if self._is_traced or (not is_read and past is not None and past.is_monotonic(freshness)):
            return None, (server, connection, proof)
        if is_read:
            envelope = READ if proof is None else proof.envelope(server, connection)
        else:
            envelope = _begin_envelope(connection.incarnation is None)
        exchange = connection.send_one(envelope, self._settings, query, params, deadline=deadline, now=monotonic())
        if exchange is None:
            return None, (server, connection, proof)
        if self._measure is not None:
            self._started = perf_counter()
        sent = (exchange, server, connection, proof) if is_read else (exchange, server, connection)
        return sent, (server, connection, proof)

    def take_read(self, sent: SentRead, query: Query) -> Result | None:
        """The result of `send_read` once it has come back; None where anything was not plain success.

        With a result the connection has been given back; without one, `read` takes over.
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
        server.release(connection)
        if server.role is Role.REPLICA:
            self._sticky = server.name
        if self._measure is not None:
            self._measure.ran(server, tracing.operation_of(str(query)), perf_counter() - self._started, None)
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

        Commands between two Syncs are one transaction of the server's, so there is no BEGIN to send, and the tenant
        and READ ONLY end with it (PostgreSQL manual, "Pipelining" in the extended query protocol).

        Args:
            statements: What to run.
            deadline: Event-loop time at which the server is asked to stop; handed to the server as well.
            freshness: How fresh the data has to be.
            lent: What `wait_to_send` has borrowed for them.
            begun: The round trip of the one statement where `send_read` has started it.

        Returns:
            A result for each statement.

        Raises:
            DataError: They failed, or no server could be reached; what can safely run elsewhere has been tried there.
        """
        for statement in statements:
            if statement.may_end_transaction:
                if lent is not None:
                    lent[0].put_back(lent[1])
                return await self._read_in_block(statements, deadline=deadline, freshness=freshness)
        proof = begun[3] if begun is not None else self._proof(freshness) if lent is None else lent[2]
        attempt = Attempt() if proof is None else proof.attempt
        while True:
            if begun is None:
                if lent is None:
                    server, connection = await self.connect(AccessIntent.READ, attempt, deadline, freshness)
                else:
                    server, connection, _ = lent
                envelope = READ if proof is None else proof.envelope(server, connection)
                settings = Settings(self._settings, is_read=True, deadline=deadline)
                batch = [settings, *envelope.between, *statements, *envelope.closing]
                exchange = await self._exchange(server, connection, batch, statements, deadline, begins=False)
            else:
                exchange, server, connection, _ = begun
                envelope = READ if proof is None else proof.asked
                await self._finish(server, connection, exchange, statements)
                begun = None
            if proof is not None and not proof.is_met(exchange, server, connection):
                lent = await self._await_proof(proof, server, connection, deadline)
                continue
            lent = None
            if exchange.error is None:
                results = exchange.answers(envelope.index, len(statements))
                command = next((result.status_message for result in results if result.ends_transaction), None)
                if command is None and (connection.is_idle or connection.closed):
                    # It may have been cut behind the answer, which is whole.
                    if proof is not None:
                        proof.note(exchange, envelope.index + len(statements), server)
                    server.release(connection)
                    self.note_read(server)
                    return results
                await self._give_up(server, connection)
                raise refuse_transaction_command(command or "BEGIN")
            error = server.error_of(exchange, is_write=False)
            await self._give_up(server, connection)
            if not attempt.may_go_on(server, exchange, error):
                try:
                    raise error from exchange.error
                finally:
                    # Its traceback leads to this frame, which must not lead back.
                    del error

    def _proof(self, freshness: Freshness, attempt: Attempt | None = None) -> CausalRead | None:
        return None if self.past is None else CausalRead(self, self.past, freshness, attempt or Attempt())

    async def _is_proved(
        self, proof: CausalRead, server: Server, connection: Connection, deadline: float | None
    ) -> bool:
        """Whether a server has what a snapshot needs; if not, its connection is given back."""
        try:
            if await proof.is_met_before(server, connection, deadline):
                return True
        except BaseException:
            await self._give_up(server, connection)
            raise
        proof.attempt.behind |= {server.name}
        await self._give_up(server, connection)
        return False

    async def _await_proof(
        self, proof: CausalRead, server: Server, connection: Connection, deadline: float | None
    ) -> Lent | None:
        """The connection to a replica that was behind, once that has caught up; None, and it is given back, if not."""
        try:
            if await proof.catches_up(server, connection, deadline):
                return server, connection, proof
        except BaseException:
            await self._give_up(server, connection)
            raise
        proof.attempt.behind |= {server.name}
        await self._give_up(server, connection)
        return None

    async def _read_in_block(
        self, statements: Sequence[Statement], *, deadline: float | None, freshness: Freshness
    ) -> Sequence[Result]:
        """Read in an explicit transaction: a COMMIT from inside would end an implicit one, READ ONLY and tenant too."""
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
        """Send BEGIN and the first statement of a transaction that writes, without waiting; None as for `send_read`."""
        if self._is_traced:
            return None
        past = self.past
        if past is not None and past.is_monotonic(freshness):
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
        """The transaction and the result of `send_begin` once it has come back; None where `begin` has to take over."""
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
            self._measure.ran(server, tracing.operation_of(str(query)), perf_counter() - self._started, None)
        return transaction, result

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
    ) -> Opened:
        """Open a transaction in the round trip of its first statements: `[BEGIN; tenant; statements]`.

        Args:
            statements: The first statements; may be empty.
            deadline: Event-loop time at which the transaction's time is up; handed to the server as well.
            intent: Read is a READ ONLY transaction, on a replica where there is one.
            isolation: None leaves it to the server.
            is_deferrable: It waits for a snapshot that cannot fail.
            freshness: How fresh a read-only one has to be.
            savepoints: Those of the blocks that are open, in front of the statements.
            lent: What `wait_to_send` has borrowed for them; they write.
            begun: The round trip of the one statement where `send_begin` has started it.

        Raises:
            DataError: Nothing was opened: no connection, or BEGIN or the tenant's set-up failed.
        """
        read_only = intent is AccessIntent.READ
        attempt = Attempt()
        while True:
            if begun is None:
                if lent is None:
                    server, connection = await self.connect(intent, attempt, deadline, freshness)
                else:
                    server, connection, _ = lent
                    lent = None
            else:
                _, server, connection = begun
            proof = self._proof(freshness, attempt)
            if read_only and proof is not None and not await self._is_proved(proof, server, connection, deadline):
                continue
            head: list[Statement] = [
                control_statements.begin(isolation, read_only=read_only, is_deferrable=is_deferrable)
            ]
            if deadline is not None or self._settings or begun is not None:
                head.append(Settings(self._settings, is_read=False, deadline=deadline))
            batch = [*head, *savepoints, *statements]
            binds = proof is not None and proof.binds
            if binds:
                batch.append(control_statements.ASK_POSITION)
            if not read_only:
                is_told = connection.incarnation is not None
                batch.append(control_statements.IDENTIFY_XID if is_told else control_statements.IDENTIFY)
            if begun is None:
                exchange = await self._exchange(server, connection, batch, statements, deadline, begins=True)
            else:
                exchange = begun[0]
                await self._finish(server, connection, exchange, statements)
                begun = None
            error: DataError | None = None
            if exchange.error is not None:
                error = server.error_of(exchange, is_write=not read_only)
                is_open = not exchange.is_lost and exchange.failed_at is not None and exchange.failed_at >= len(head)
                if is_refusal(error):
                    server.refused_write(connection)
                if not is_open or exchange.is_stale_plan or is_refusal(error):
                    await self._give_up(server, connection)
                    if attempt.may_go_on(server, exchange, error):
                        continue
                    raise error from exchange.error
            transaction = self._made(server, connection, read_only=read_only, isolation=isolation)
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

    def _made(
        self, server: Server, connection: Connection, *, read_only: bool, isolation: Isolation | None
    ) -> Transaction:
        return Transaction(
            connection,
            server,
            self._background,
            read_only=read_only,
            isolation=isolation,
            is_traced=self._is_traced,
            traces_statements=self._traces_statements,
            measure=self._measure,
        )

    def note_in_transaction(self, transaction: Transaction, intent: AccessIntent) -> None:
        """Record that a statement goes to the transaction that is open already."""
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
        begins: bool,
    ) -> Exchange:
        spans: list[Span] = []
        if self._is_traced:
            if begins:
                spans.append(tracing.start_client_span("BEGIN", server.attributes))
            if statements and self._traces_statements:
                spans.append(tracing.start_statement_span(statements[0].text, len(statements), server.attributes))
        started = 0.0 if self._measure is None else perf_counter()
        failure: BaseException | None = None
        try:
            exchange = await connection.exchange(batch, deadline=deadline)
            if exchange.error is not None and (spans or self._measure is not None):
                failure = error = server.error_of(exchange, is_write=begins)
                if spans:
                    tracing.fail_span(spans[-1], error)
            return exchange
        except BaseException as error:
            failure = error
            # Cancelled, or a mistake of the caller's that was noticed before anything was sent.
            await self._give_up(server, connection)
            raise
        finally:
            for span in spans:
                span.end()
            self._note_run(server, statements, started, failure)

    async def _finish(
        self, server: Server, connection: Connection, exchange: Exchange, statements: Sequence[Statement]
    ) -> None:
        """Bring a round trip that was sent without waiting to its end."""
        failure: BaseException | None = None
        try:
            await connection.finish(exchange)
            if exchange.error is not None and self._measure is not None:
                failure = server.error_of(exchange, is_write=False)
        except BaseException as error:
            failure = error
            await self._give_up(server, connection)
            raise
        finally:
            self._note_run(server, statements, self._started, failure)

    def _note_run(
        self, server: Server, statements: Sequence[Statement], started: float, failure: BaseException | None
    ) -> None:
        if self._measure is not None:
            operation = tracing.operation_of(statements[0].text) if statements else "BEGIN"
            self._measure.ran(server, operation, perf_counter() - started, failure)

    async def abandon(self, sent: SentRead | SentBegin, statement: Statement) -> None:
        """The caller of `send_read` or `send_begin` was cancelled: stop the statement, and give the connection back."""
        _, server, connection = sent[:3]
        if self._measure is not None:
            took_s = perf_counter() - self._started
            self._measure.ran(server, tracing.operation_of(statement.text), took_s, CancelledError())
        await self._give_up(server, connection)

    async def _give_up(self, server: Server, connection: Connection) -> None:
        await self._background.run(server.reclaim(connection))


@lru_cache(maxsize=2)
def _begin_envelope(asks_all: bool) -> Envelope:
    identify = control_statements.IDENTIFY if asks_all else control_statements.IDENTIFY_XID
    return Envelope(opening=(control_statements.begin(None, read_only=False),), closing=(identify,))
