"""From a statement to a server and back: borrow a connection, one round trip, give it back.

An `Executor` belongs to one session. It knows nothing of requests: only of intents, the tenant, and the servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from opentelemetry.trace import Span

from ..concurrency.tasks import BackgroundTasks
from ..drivers.psycopg import ASK_POSITION, Connection, Exchange, PsycopgServer, Result, Statement
from ..errors import DataError
from ..observability import tracing
from ..observability.metrics import Measure
from ..routing import ANY_FRESHNESS, AccessIntent, Freshness, Route
from ..tenancy import Tenant
from ..transaction import ONE_SNAPSHOT, Isolation, Transaction, control_statements, refuse_transaction_command
from .causal_reads import CausalRead
from .router import Attempt, Router, is_refusal

_READ_ONLY_SETTINGS = (control_statements.READ_ONLY_SETTING,)


@dataclass(frozen=True, slots=True)
class Opened:
    """A transaction that has just been opened, together with its first statements.

    Attributes:
        transaction: It is open, whatever became of the statements.
        results: One for each statement, when all of them worked.
        error: The first failure among the statements.
    """

    transaction: Transaction
    results: list[Result]
    error: DataError | None = None


class Executor:
    """Runs the statements of one session on one datasource, inside its tenant."""

    __slots__ = ("_background", "_is_traced", "_measure", "_tenant", "_traces_statements", "router")

    def __init__(
        self,
        router: Router,
        tenant: Tenant,
        background: BackgroundTasks,
        *,
        is_traced: bool,
        traces_statements: bool,
        measure: Measure | None = None,
    ) -> None:
        self._measure = measure
        self.router = router
        self._tenant = tenant
        self._background = background
        self._is_traced = is_traced
        self._traces_statements = is_traced and traces_statements

    @property
    def last_route(self) -> Route | None:
        """Where the last statement went and why; None before the first."""
        return self.router.last_route

    async def read(
        self, statements: Sequence[Statement], *, deadline: float | None, freshness: Freshness
    ) -> list[Result]:
        """Run statements with read intent in one implicit READ ONLY transaction: one round trip.

        Commands between two Syncs are one transaction of the server's, so there is no BEGIN to send, and the tenant
        and READ ONLY end with it (PostgreSQL manual, "Pipelining" in the extended query protocol).

        Args:
            statements: What to run.
            deadline: Event-loop time at which the server is asked to stop; handed to the server as well.
            freshness: How fresh it has to be.

        Returns:
            A result for each statement.

        Raises:
            DataError: They failed, or no server could be reached; what can safely run elsewhere has been tried there.
        """
        for statement in statements:
            if statement.may_end_transaction:
                return await self._read_in_block(statements, deadline=deadline, freshness=freshness)
        attempt = Attempt()
        proof = self._proof(freshness, attempt)
        lent: tuple[PsycopgServer, Connection] | None = None
        while True:
            endpoint, connection = lent or await self.router.connect(AccessIntent.READ, attempt, deadline, freshness)
            settings = self._settings(connection, deadline, _READ_ONLY_SETTINGS)
            if proof is None:
                first, batch = 1, [settings, *statements]
            else:
                first, batch = proof.wrap(settings, statements, endpoint, connection)
            exchange = await self._exchange(endpoint, connection, batch, statements, deadline, begins=False)
            if proof is not None and not proof.is_met(exchange, endpoint, connection):
                lent = await self._await_proof(proof, attempt, endpoint, connection, deadline)
                continue
            lent = None
            if exchange.error is None:
                results = exchange.answers(first, len(statements))
                command = next((r.status_message for r in results if r.ends_transaction), None)
                if command is None and (connection.is_idle or connection.closed):
                    # It may have been cut behind the answer, which is whole.
                    if proof is not None:
                        proof.note(exchange, endpoint, connection)
                    await endpoint.release(connection)
                    self.router.note_read(endpoint)
                    return results
                await self._give_up(endpoint, connection)
                raise refuse_transaction_command(command or "BEGIN")
            error = endpoint.error_of(exchange, is_write=False)
            await self._give_up(endpoint, connection)
            if not attempt.may_go_on(endpoint, exchange, error):
                try:
                    raise error from exchange.error
                finally:
                    # Its traceback leads to this frame, which must not lead back.
                    del error

    def _proof(self, freshness: Freshness, attempt: Attempt) -> CausalRead | None:
        past = self.router.past
        return None if past is None else CausalRead(self.router, past, freshness, attempt)

    async def _is_proved(
        self,
        proof: CausalRead,
        attempt: Attempt,
        endpoint: PsycopgServer,
        connection: Connection,
        deadline: float | None,
    ) -> bool:
        """Whether a server has what a snapshot needs; if not, its connection is given back."""
        try:
            if await proof.is_met_before(endpoint, connection, deadline):
                return True
        except BaseException:
            await self._give_up(endpoint, connection)
            raise
        attempt.behind |= {endpoint.name}
        await self._give_up(endpoint, connection)
        return False

    async def _await_proof(
        self,
        proof: CausalRead,
        attempt: Attempt,
        endpoint: PsycopgServer,
        connection: Connection,
        deadline: float | None,
    ) -> tuple[PsycopgServer, Connection] | None:
        """The connection to a replica that was behind, once that has caught up; None, and it is given back, if not."""
        try:
            if await proof.catches_up(endpoint, connection, deadline):
                return endpoint, connection
        except BaseException:
            await self._give_up(endpoint, connection)
            raise
        attempt.behind |= {endpoint.name}
        await self._give_up(endpoint, connection)
        return None

    async def begin(
        self,
        statements: Sequence[Statement],
        *,
        deadline: float | None,
        intent: AccessIntent,
        isolation: Isolation | None,
        is_deferrable: bool = False,
        freshness: Freshness = ANY_FRESHNESS,
        savepoints: Sequence[Statement] = (),
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

        Raises:
            DataError: Nothing was opened: no connection, or BEGIN or the tenant's set-up failed.
        """
        read_only = intent is AccessIntent.READ
        attempt = Attempt()
        while True:
            endpoint, connection = await self.router.connect(intent, attempt, deadline, freshness)
            proof = self._proof(freshness, attempt)
            if (
                read_only
                and proof is not None
                and not await self._is_proved(proof, attempt, endpoint, connection, deadline)
            ):
                continue
            head = [control_statements.begin(isolation, read_only=read_only, is_deferrable=is_deferrable)]
            if deadline is not None or self._tenant.settings:
                head.append(self._settings(connection, deadline))
            batch = [*head, *savepoints, *statements]
            binds = proof is not None and proof.binds
            if binds:
                batch.append(ASK_POSITION)
            if not read_only:
                batch.append(control_statements.IDENTIFY)
            exchange = await self._exchange(endpoint, connection, batch, statements, deadline, begins=True)
            error: DataError | None = None
            if exchange.error is not None:
                error = endpoint.error_of(exchange, is_write=not read_only)
                is_open = not exchange.is_lost and exchange.failed_at is not None and exchange.failed_at >= len(head)
                if is_refusal(error):
                    endpoint.refused_write(connection)
                if not is_open or exchange.is_stale_plan or is_refusal(error):
                    await self._give_up(endpoint, connection)
                    if attempt.may_go_on(endpoint, exchange, error):
                        continue
                    raise error from exchange.error
            transaction = Transaction(
                connection,
                endpoint,
                self._background,
                read_only=read_only,
                isolation=isolation,
                is_traced=self._is_traced,
                traces_statements=self._traces_statements,
                measure=self._measure,
            )
            if read_only:
                self.router.note_read(endpoint)
            else:
                self.router.note_write()
            if error is not None:
                error.__cause__ = exchange.error
                transaction.failure = error
                return Opened(transaction, [], error)
            transaction.note_answers(exchange)
            first = len(head) + len(savepoints)
            if proof is not None and binds:
                proof.note_position(exchange.results[first + len(statements)], endpoint)
                if isolation not in ONE_SNAPSHOT:
                    transaction.note_position = partial(proof.note_position, endpoint=endpoint)
            results = exchange.answers(first, len(statements))
            await transaction.check_still_open(results)
            return Opened(transaction, results)

    def note_transaction(self, transaction: Transaction, intent: AccessIntent) -> None:
        """Record that a statement goes to the transaction that is open already."""
        self.router.note_transaction(transaction.endpoint, intent, is_read_only=transaction.read_only)

    async def _read_in_block(
        self, statements: Sequence[Statement], *, deadline: float | None, freshness: Freshness
    ) -> list[Result]:
        """Read in an explicit transaction: a COMMIT from inside would end an implicit one, READ ONLY and tenant too."""
        opened = await self.begin(
            statements, deadline=deadline, intent=AccessIntent.READ, isolation=None, freshness=freshness
        )
        await opened.transaction.rollback("end of the read")
        if opened.error is not None:
            raise opened.error from opened.error.__cause__
        return opened.results

    async def _exchange(
        self,
        endpoint: PsycopgServer,
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
                spans.append(tracing.start_client_span("BEGIN", endpoint.attributes))
            if statements and self._traces_statements:
                spans.append(tracing.start_statement_span(statements[0].text, len(statements), endpoint.attributes))
        measure = self._measure
        started = 0.0 if measure is None else perf_counter()
        failure: BaseException | None = None
        try:
            exchange = await connection.exchange(batch, deadline=deadline)
            if exchange.error is not None and (spans or measure is not None):
                failure = error = endpoint.error_of(exchange, is_write=begins)
                if spans:
                    tracing.fail_span(spans[-1], error)
            return exchange
        except BaseException as error:
            failure = error
            # Cancelled, or a mistake of the caller's that was noticed before anything was sent.
            await self._give_up(endpoint, connection)
            raise
        finally:
            for span in spans:
                span.end()
            if measure is not None:
                operation = tracing.operation_of(statements[0].text) if statements else "BEGIN"
                measure.ran(endpoint, operation, perf_counter() - started, failure)

    async def _give_up(self, endpoint: PsycopgServer, connection: Connection) -> None:
        await self._background.run(endpoint.reclaim(connection))

    def _settings(
        self, connection: Connection, deadline: float | None, constant: tuple[tuple[str, str], ...] = ()
    ) -> Statement:
        """One statement for what the transaction has to know: READ ONLY, its limits, the tenant."""
        pairs: list[tuple[str, str]] = []
        if deadline is not None:
            remaining_s = deadline - asyncio.get_running_loop().time()
            pairs += control_statements.deadline_settings(
                remaining_s, connection.limits, is_single_round_trip=constant is _READ_ONLY_SETTINGS
            )
        pairs += self._tenant.settings
        return control_statements.settings_statement(pairs, constant=constant, schema=self._tenant.schema)
