"""From a statement to a server and back: route, borrow, one round trip, give back.

An `Executor` belongs to one session. It knows nothing of requests: only of intents, the pin, and the servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.trace import Span, SpanContext

from . import telemetry
from .background import BackgroundTasks
from .datasource import DataSource
from .drivers.psycopg import Connection, Endpoint, Exchange, Result, Statement
from .errors import DataError, DataErrorKind
from .routing import AccessIntent, ReadAfterWritePin, Reason, Role, Route, choose
from .tenancy import Tenant
from .transaction import Isolation, Transaction, commands, refuse_transaction_command

_TAKES_A_TURN = frozenset({Reason.BALANCED, Reason.FAILOVER})
_READ_ONLY_SETTINGS = (("transaction_read_only", "on"),)


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

    __slots__ = (
        "_background",
        "_datasource",
        "_is_traced",
        "_pinned_by",
        "_shows_tenant",
        "_sticky",
        "_tenant",
        "_traces_statements",
        "last_route",
        "pin",
    )

    def __init__(
        self,
        datasource: DataSource,
        tenant: Tenant,
        pin: ReadAfterWritePin,
        background: BackgroundTasks,
        *,
        is_traced: bool,
        traces_statements: bool,
        shows_tenant: bool,
    ) -> None:
        self._datasource = datasource
        self._tenant = tenant
        self._background = background
        self._is_traced = is_traced
        self._traces_statements = is_traced and traces_statements
        self._shows_tenant = shows_tenant
        self._pinned_by: SpanContext | None = None
        self._sticky: str | None = None
        self.pin = pin
        self.last_route: Route | None = None

    async def read(self, statements: Sequence[Statement], *, deadline: float | None, is_strong: bool) -> list[Result]:
        """Run statements with read intent in one implicit READ ONLY transaction: one round trip.

        Commands between two Syncs are one transaction of the server's, so there is no BEGIN to send, and the tenant
        and READ ONLY end with it (PostgreSQL manual, "Pipelining" in the extended query protocol).

        Args:
            statements: What to run.
            deadline: Event-loop time at which the server is asked to stop; handed to the server as well.
            is_strong: The route asked for the primary.

        Returns:
            A result for each statement.

        Raises:
            DataError: They failed, or no server could be reached; what can safely run elsewhere has been tried there.
        """
        for statement in statements:
            if statement.may_end_transaction:
                return await self._read_in_block(statements, deadline=deadline, is_strong=is_strong)
        attempt = _Attempt()
        while True:
            endpoint, connection = await self._connect(AccessIntent.READ, attempt, deadline, is_strong=is_strong)
            batch = [self._settings(connection, deadline, _READ_ONLY_SETTINGS), *statements]
            exchange = await self._exchange(endpoint, connection, batch, statements, deadline, begins=False)
            if exchange.error is None:
                results = exchange.answers(1, len(statements))
                command = next((r.status_message for r in results if r.ends_transaction), None)
                if command is None and connection.is_idle:
                    await endpoint.release(connection)
                    if endpoint.role is Role.REPLICA:
                        self._sticky = endpoint.name
                    return results
                await self._give_up(endpoint, connection)
                raise refuse_transaction_command(command or "BEGIN")
            error = endpoint.error_of(exchange, is_write=False)
            await self._give_up(endpoint, connection)
            if not attempt.may_go_on(endpoint, exchange, error):
                raise error from exchange.error

    async def begin(
        self,
        statements: Sequence[Statement],
        *,
        deadline: float | None,
        read_only: bool,
        isolation: Isolation | None,
        is_strong: bool = False,
        savepoints: Sequence[Statement] = (),
    ) -> Opened:
        """Open a transaction in the round trip of its first statements: `[BEGIN; tenant; statements]`.

        Args:
            statements: The first statements; may be empty.
            deadline: Event-loop time at which the transaction's time is up; handed to the server as well.
            read_only: A READ ONLY transaction, on a replica where there is one.
            isolation: None leaves it to the server.
            is_strong: A read-only one that has to run on the primary.
            savepoints: Those of the blocks that are open, in front of the statements.

        Raises:
            DataError: Nothing was opened: no connection, or BEGIN or the tenant's set-up failed.
        """
        intent = AccessIntent.READ if read_only else AccessIntent.WRITE
        attempt = _Attempt()
        while True:
            endpoint, connection = await self._connect(intent, attempt, deadline, is_strong=is_strong)
            head = [commands.begin(isolation, read_only=read_only)]
            if deadline is not None or self._tenant.settings:
                head.append(self._settings(connection, deadline))
            batch = [*head, *savepoints, *statements]
            if not read_only:
                batch.append(commands.IDENTIFY)
            exchange = await self._exchange(endpoint, connection, batch, statements, deadline, begins=True)
            error: DataError | None = None
            if exchange.error is not None:
                error = endpoint.error_of(exchange, is_write=not read_only)
                is_open = not exchange.is_lost and exchange.failed_at is not None and exchange.failed_at >= len(head)
                if not is_open or exchange.is_stale_plan:
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
            )
            if not read_only:
                self._set_pin()
            elif endpoint.role is Role.REPLICA:
                self._sticky = endpoint.name
            if error is not None:
                error.__cause__ = exchange.error
                transaction.failure = error
                return Opened(transaction, [], error)
            transaction.note_answers(exchange)
            results = exchange.answers(len(head) + len(savepoints), len(statements))
            await transaction.check_still_open(results)
            return Opened(transaction, results)

    async def _read_in_block(
        self, statements: Sequence[Statement], *, deadline: float | None, is_strong: bool
    ) -> list[Result]:
        """Read in an explicit transaction: a COMMIT from inside would end an implicit one, READ ONLY and tenant too."""
        opened = await self.begin(statements, deadline=deadline, read_only=True, isolation=None, is_strong=is_strong)
        await opened.transaction.rollback("end of the read")
        if opened.error is not None:
            raise opened.error from opened.error.__cause__
        return opened.results

    def note_transaction(self, transaction: Transaction, intent: AccessIntent) -> None:
        """Record that a statement goes to the transaction that is open already."""
        is_pinned_read = intent is AccessIntent.READ and not transaction.read_only
        reason = Reason.PINNED if is_pinned_read else Reason.TRANSACTION
        endpoint = transaction.endpoint
        name = self._datasource.name
        self.last_route = Route(name, intent, endpoint.role, endpoint.name, reason, self._datasource.picture())
        if self._is_traced and is_pinned_read:
            self._start_route_span(self.last_route).end()

    def _set_pin(self) -> None:
        if self._is_traced and not self.pin.is_set:
            self._pinned_by = telemetry.current_span_context()
        self.pin.set()

    async def _connect(
        self, intent: AccessIntent, attempt: _Attempt, deadline: float | None, *, is_strong: bool
    ) -> tuple[Endpoint, Connection]:
        """Choose a server and borrow a connection of it; on to the next while servers cannot be reached."""
        datasource = self._datasource
        while True:
            picture = datasource.picture()
            choice = choose(
                picture,
                intent,
                turn=datasource.turn,
                is_pinned=self.pin.is_set,
                is_strong=is_strong,
                sticky=self._sticky,
                failed=attempt.failed,
            )
            if choice is None:
                raise attempt.last_error
            if choice.reason in _TAKES_A_TURN:
                datasource.take_turn()
            route = Route(datasource.name, intent, choice.node.role, choice.node.name, choice.reason, picture)
            self.last_route = route
            endpoint = datasource.endpoints[choice.node.name]
            connection = await self._borrow(endpoint, route, attempt, deadline)
            if connection is not None:
                return endpoint, connection

    async def _borrow(
        self, endpoint: Endpoint, route: Route, attempt: _Attempt, deadline: float | None
    ) -> Connection | None:
        """A connection, or None when the server cannot be reached and another may be."""
        span = self._start_route_span(route) if self._is_traced else None
        started = asyncio.get_running_loop().time() if span is not None else 0.0
        try:
            return await endpoint.acquire(deadline=deadline, must_be_alive=attempt.has_met_a_dead_one)
        except DataError as error:
            if span is not None:
                telemetry.fail_span(span, error)
            if error.kind is not DataErrorKind.CONNECTION:
                raise
            attempt.note(endpoint.name, error)
            return None
        finally:
            if span is not None:
                waited = asyncio.get_running_loop().time() - started
                span.set_attribute(telemetry.POOL_WAIT_MS, round(waited * 1000, 3))
                span.end()

    async def _exchange(
        self,
        endpoint: Endpoint,
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
                spans.append(telemetry.start_client_span("BEGIN", endpoint.attributes))
            if statements and self._traces_statements:
                spans.append(telemetry.start_statement_span(statements[0].text, len(statements), endpoint.attributes))
        try:
            exchange = await connection.exchange(batch, deadline=deadline)
            if exchange.error is not None and spans:
                telemetry.fail_span(spans[-1], endpoint.error_of(exchange, is_write=begins))
            return exchange
        except BaseException:
            # Cancelled, or a mistake of the caller's that was noticed before anything was sent.
            await self._give_up(endpoint, connection)
            raise
        finally:
            for span in spans:
                span.end()

    async def _give_up(self, endpoint: Endpoint, connection: Connection) -> None:
        await self._background.run(endpoint.reclaim(connection))

    def _settings(
        self, connection: Connection, deadline: float | None, first: tuple[tuple[str, str], ...] = ()
    ) -> Statement:
        """One statement for what the transaction has to know: READ ONLY, its limits, the tenant."""
        pairs = list(first)
        if deadline is not None:
            remaining_s = deadline - asyncio.get_running_loop().time()
            pairs += commands.deadline_settings(
                remaining_s, connection.limits, is_single_round_trip=first is _READ_ONLY_SETTINGS
            )
        pairs += self._tenant.settings
        return commands.settings_statement(pairs)

    def _start_route_span(self, route: Route) -> Span:
        return telemetry.start_route_span(
            route,
            strategy=self._tenant.strategy.value,
            tenant=self._tenant.name if self._shows_tenant else None,
            pin_age_ms=self.pin.age_ms,
            pin_lsn=self.pin.lsn,
            pinned_by=self._pinned_by,
        )


class _Attempt:
    """What one statement has met so far on its way to a server that runs it."""

    __slots__ = ("_errors", "_has_replanned", "failed", "has_met_a_dead_one")

    def __init__(self) -> None:
        self.failed: frozenset[str] = frozenset()
        self.has_met_a_dead_one = False
        self._has_replanned = False
        self._errors: list[DataError] = []

    @property
    def last_error(self) -> DataError:
        """The error for the caller when no server is left."""
        return self._errors[-1]

    def note(self, name: str, error: DataError) -> None:
        """This server could not be reached, or not run the statement for a reason that is its own."""
        self.failed = self.failed | {name}
        self._errors.append(error)

    def may_go_on(self, endpoint: Endpoint, exchange: Exchange, error: DataError) -> bool:
        """Whether the statement can safely run again on another connection: nothing was committed, and it may help."""
        if exchange.timed_out:
            return False
        if exchange.is_lost:
            endpoint.suspect()
            if not self.has_met_a_dead_one:
                # Most likely it had died in the pool. From here on connections are looked at before they are used,
                # so a statement that itself kills its backend does so no more than once again.
                self.has_met_a_dead_one = True
                self._errors.append(error)
                return True
            self.note(endpoint.name, error)
            return True
        if exchange.is_stale_plan and not self._has_replanned:
            self._has_replanned = True
            return True
        if error.kind is DataErrorKind.CONFLICT and endpoint.role is Role.REPLICA:
            # Recovery has to go on and cancelled the query (PostgreSQL manual, "Handling Query Conflicts").
            self.note(endpoint.name, error)
            return True
        return False
