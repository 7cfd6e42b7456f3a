"""The driver protocol: what a database driver provides.

A driver makes servers; a server lends connections; a connection runs statements in one round trip. `drivers/psycopg/`
is the default driver and the reference. `docs/drivers.md` shows how to write another one, and
`asgi_datasource.testing.driver_contract` contains the tests that it must pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..concurrency.fair_queue import TenantQuota
from ..concurrency.priority_queue import Priority
from ..errors import DataError
from ..observability.metrics import Attributes, Metrics
from ..observability.query_tags import QueryTag
from ..observability.recording import UseRecorder
from ..routing import CircuitBreaker, Observation, Position, Role
from .settings import ServerSettings
from .statements import Control, Envelope, Params, Query, Statement

T_co = TypeVar("T_co", covariant=True)


class RowFactory(Protocol[T_co]):
    """Makes rows as psycopg's factories do (`psycopg.rows`): called with a cursor, returns a function of the values."""

    def __call__(self, cursor: Any, /) -> Callable[[Sequence[Any]], T_co]:
        """The function that makes one row."""
        ...


class Result(Protocol):
    """Result of one successful statement; independent of the connection."""

    @property
    def status_message(self) -> str | None:
        """The command tag: `INSERT 0 1`."""
        ...

    @property
    def rowcount(self) -> int:
        """Rows returned or changed; -1 where that does not apply."""
        ...

    @property
    def returns_rows(self) -> bool:
        """Whether the statement returns rows, even if there were none."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        ...

    @property
    def description(self) -> Sequence[tuple[Any, ...]]:
        """The columns as DB-API 2.0 describes them: seven values each, the name and the type's code in front."""
        ...

    @property
    def ends_transaction(self) -> bool:
        """Whether the statement itself began or ended a transaction."""
        ...

    def rows(self, row_factory: RowFactory[Any] | None = None) -> list[Any]:
        """All rows; without a factory as dictionaries. Raises the driver's error if the statement returns no rows."""
        ...

    def tuples(self) -> list[tuple[Any, ...]]:
        """All rows, each as a tuple."""
        ...

    def first(self, row_factory: RowFactory[Any] | None = None) -> Any | None:
        """The first row; None without one."""
        ...

    def scalar(self) -> Any | None:
        """The first column of the first row; None without a row."""
        ...


class Exchange(Protocol):
    """One round trip: the answers before the first error, and that error.

    A driver that sends without waiting (`Connection.send_one`) returns it in progress, and resolves `waiter` when there
    is an answer or an error to read.
    """

    @property
    def error(self) -> BaseException | None:
        """The first error, as the driver raises it."""
        ...

    @property
    def failed_at(self) -> int | None:
        """Index of the statement that failed, or, if the connection was lost, of the first one without an answer; None
        if nothing was sent."""
        ...

    @property
    def is_lost(self) -> bool:
        """The connection is lost."""
        ...

    @property
    def timed_out(self) -> bool:
        """The caller's deadline has passed."""
        ...

    @property
    def waiter(self) -> asyncio.Future[None]:
        """Resolved when the answer is complete, and when the deadline has passed."""
        ...

    @property
    def results(self) -> Sequence[Result | None]:
        """A result for each statement; None for control statements, and for those without an answer."""
        ...

    @property
    def began_at(self) -> float | None:
        """`perf_counter` time at which the reads in front of it were done; None if it has not waited for any."""
        ...

    @property
    def is_withdrawn(self) -> bool:
        """The driver has taken a read back from a connection that it shared with a slow one: run it on another."""
        ...

    @property
    def has_landed(self) -> bool:
        """Whether the answer is complete, so that the connection is free again."""
        ...

    @property
    def is_stale_plan(self) -> bool:
        """The server refused a statement only because its prepared form is outdated: a retry is likely to succeed."""
        ...

    def take(self, index: int, *, in_transaction: bool) -> Result | None:
        """Read the result of one statement if the round trip succeeded; None if not.

        Args:
            index: Index of the statement.
            in_transaction: Required state of the connection afterwards: inside a transaction, or outside.
        """
        ...

    def answers(self, first: int, count: int) -> Sequence[Result]:
        """The results of a range of statements, all of which succeeded."""
        ...

    def value(self, index: int) -> str | None:
        """The first value of a control statement's answer, as text; None without one."""
        ...

    def values(self, index: int) -> Sequence[str | None] | None:
        """The first row of a control statement's answer, as text; None without an answer."""
        ...

    def was_answered(self, index: int) -> bool:
        """Whether a statement, control statements included, has run."""
        ...

    def tag(self, index: int) -> str | None:
        """The command tag of a statement, control statements included; None without an answer."""
        ...


class BorrowedConnection(Protocol):
    """The driver's own connection, given to the user for the length of a block."""

    @property
    def connection(self) -> Any:
        """The connection that the user gets."""
        ...

    @property
    def refusal(self) -> DataError | None:
        """The error of a statement that was refused because it would have begun or ended a transaction."""
        ...

    def expire(self, message: str) -> None:
        """Make all further use raise `SessionClosed(message)`."""
        ...


class TenantIdentity(Protocol):
    """Whom a connection is borrowed for. Another name, or other settings, is another tenant."""

    @property
    def name(self) -> str | None:
        """The tenant's name; None for requests that name none."""
        ...

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Applied inside every transaction: names and values."""
        ...


class Connection(Protocol):
    """One connection to one server; outside any transaction when it is borrowed."""

    timeline: int
    """Timeline of the primary that it leads to; 0 if unknown."""
    incarnation: str | None
    """The server's incarnation, if it is constant for the life of the connection; see `INCARNATION`."""
    leads_to: str | None
    """Identifies the server that the connection leads to for its whole life; None if unknown, or behind a pooler."""
    use: UseRecorder | None
    """Records the time of use when metrics are enabled; ended when the connection is returned."""
    tag: QueryTag | None
    """A comment to send behind each statement of the application, until the connection is returned. A driver whose
    server shows no statements may ignore it."""

    is_shared: bool
    """It is a part of a connection that other borrowers use: it runs one read, by `send_one`, and nothing else."""
    backend_pid: int
    """Process id of the server process, as reported at connect."""
    when_gone: Callable[[], None] | None
    """Called once when the connection is lost."""

    @property
    def held(self) -> Position | None:
        """A position that the server has proved on this connection; its position only increases."""
        ...

    @held.setter
    def held(self, position: Position | None, /) -> None: ...

    @property
    def began_at(self) -> float | None:
        """Of a shared one: `perf_counter` time at which the reads in front of its read were done; None without any."""
        ...

    @property
    def is_usable(self) -> bool:
        """Whether it is open and no round trip is in progress."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it is closed or lost."""
        ...

    @property
    def is_idle(self) -> bool:
        """Outside any transaction."""
        ...

    @property
    def is_in_transaction(self) -> bool:
        """Inside a transaction that has not failed."""
        ...

    @property
    def has_failed_transaction(self) -> bool:
        """Inside a failed transaction, which only a rollback can end."""
        ...

    @property
    def is_midway(self) -> bool:
        """Whether a user's own operation on it was interrupted."""
        ...

    def send_one(
        self,
        envelope: Envelope,
        settings: tuple[tuple[str, str], ...],
        query: Query,
        params: Params | None,
        *,
        deadline: float | None,
        now: float,
    ) -> Exchange | None:
        """Send one statement inside its envelope, without waiting.

        Args:
            envelope: The control statements around it.
            settings: The tenant's settings, applied if the envelope says so.
            query, params: The statement. A query other than text, such as a t-string, needs `exchange`, which gets it
                as text.
            deadline: Event-loop time at which the server is asked to cancel.
            now: Event-loop time.

        Returns:
            The round trip in progress; None if something must be awaited first, or the statement needs `exchange`:
            then nothing was sent.
        """
        ...

    def send_controls(self, statements: tuple[Control, ...], *, deadline: float | None) -> Exchange | None:
        """Send control statements alone, without waiting; None as for `send_one`.

        Args:
            statements: One of a few constant tuples, for which a connection keeps the encoded messages.
            deadline: Event-loop time at which the server is asked to cancel.
        """
        ...

    def stop_sharing(self) -> bool:
        """Let no other borrower's read join any more; returns whether the caller is the only borrower now."""
        ...

    async def arrival(self, exchange: Any, /) -> None:
        """Wait until the answer is complete or the deadline has passed, even if `waiter` was cancelled."""
        ...

    async def finish(self, exchange: Any, /) -> None:
        """Complete a round trip: after the deadline stop it on the server, then read the rest of the answer."""
        ...

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> Exchange:
        """Send statements in one round trip and collect their results.

        Outside a transaction they are one implicit transaction. Errors of the server and of the connection are not
        raised: the exchange has them, beside the answers that arrived before.

        Args:
            statements: The statements; empty to test whether the server answers.
            deadline: Event-loop time at which the server is asked to cancel.
            flush_after: Index of a statement whose answer the server is asked to send at once.

        Raises:
            Exception: A mistake of the caller, as the driver raises it; nothing was sent.
            asyncio.CancelledError: The round trip is still in progress: pass the connection to `Server.reclaim`.
        """
        ...

    async def stop_statement(self) -> None:
        """Stop what is under way, and read its end: a transaction that is open stays open, and has failed, or not.

        A connection that cannot be brought to that is closed.
        """
        ...

    def add_notify_handler(self, callback: Callable[[Any], None], /) -> None:
        """Call this with each notification of a channel that the connection listens to."""
        ...

    def cut(self, reason: str) -> None:
        """Close the connection at once, without waiting for the server."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class HealthCheck(Protocol):
    """Queries the state of one server, outside its pool."""

    async def ask(self, *, limit_s: float) -> Observation:
        """Query the state; raises `DataError` if the server does not answer within `limit_s` seconds."""
        ...

    def close(self) -> None:
        """Close its connection at once."""
        ...


class PoolKeeper(Protocol):
    """Decides which pools are open, for pools that are opened on first use."""

    async def make_room(self, server: Any, /, *, timeout_s: float) -> None:
        """Open the server's pool, as soon as the bound on open pools allows it."""
        ...

    def used(self, server: Any, /) -> None:
        """A connection of the server is about to be borrowed."""
        ...

    def rested(self, server: Any, /) -> None:
        """The last borrowed connection of the server was returned."""
        ...

    def reached(self, server: Any, /) -> None:
        """The first connection of the server was made."""
        ...


class Server(Protocol):
    """One server of a datasource, with its pool of connections."""

    name: str
    datasource: str
    full_name: str
    """Datasource and server: `orders.primary`."""
    label: str
    """Names the server and its address in log lines, without the login. Errors have the address apart."""
    location: str
    """Its address, as `host:port`."""
    role: Role
    settings: ServerSettings
    attributes: Attributes
    """The server's attributes on spans."""
    dimensions: Attributes
    """The server's attributes on metrics."""
    metrics: Metrics | None
    configurers: Sequence[Callable[[Any], Any]]
    """Functions to run for each new connection of the pool, before it is lent; sync or async."""
    breaker: CircuitBreaker
    """The circuit breaker, driven by the outcome of connections, never by errors that the server reports."""
    last_error: str | None
    """Reason of the last failed connect or silence, without secrets."""
    was_reached: bool
    """Whether a connection was ever made."""
    is_pooled: bool
    """A pooler in transaction mode is in between: session state does not last beyond a transaction."""
    is_fair: bool
    """Tenants take turns: each borrower names its tenant."""
    leads_to_several: bool
    """The pool's connections and the health check lead to more than one server, or may do so: the result of the health
    check then says nothing about the server of a connection."""
    server_version: int
    """The version as libpq reports it (180004), once a connection was made; 0 before, and without such a number."""
    identifies_writes: bool
    """`IDENTIFY` is answered in every transaction that has written: without an answer nothing was written."""

    @property
    def is_up(self) -> bool:
        """Whether the circuit breaker is closed."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether its pool is open."""
        ...

    @property
    def is_in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be borrowed; for pools with a keeper."""
        ...

    @property
    def borrowed(self) -> int:
        """Number of borrowed connections."""
        ...

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        ...

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a connection."""
        ...

    @property
    def timeline(self) -> int:
        """The newest timeline seen on a primary; 0 if unknown."""
        ...

    # Life cycle

    async def open(self) -> None:
        """Open the pool. Returns at once, even if the server cannot be reached."""
        ...

    async def close(self, *, timeout_s: float) -> None:
        """Close the pool and all connections, borrowed ones included."""
        ...

    def abandon(self) -> None:
        """The event loop in which the pool was opened is closed: close its connections, and the pool, without it."""
        ...

    def retire(self) -> None:
        """Keep no idle connections from now on."""
        ...

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` when the server goes down or comes up, and when its pool is opened or closed."""
        ...

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Remove a watcher."""
        ...

    def health_check(self) -> HealthCheck:
        """A health check of the server, over a connection of its own."""
        ...

    # Borrowing and returning connections

    def try_acquire(
        self, quota: TenantQuota | None = None, tenant: TenantIdentity | None = None, read: str | None = None
    ) -> Connection | None:
        """Borrow an idle connection; None where the caller would have to wait or to queue.

        Args:
            quota, tenant, read: As of `acquire`.
        """
        ...

    async def acquire(
        self,
        *,
        deadline: float | None,
        must_be_alive: bool = False,
        quota: TenantQuota | None = None,
        priority: Priority = Priority.NORMAL,
        tenant: TenantIdentity | None = None,
        read: str | None = None,
    ) -> Connection:
        """Borrow a connection, outside any transaction.

        A driver that applies settings clears what the connection's session has kept of another tenant (settings,
        temporary objects, locks, cursors, sequence values, channels) before the first statement of this borrower runs.

        Args:
            deadline: Event-loop time at which the wait ends, if that is before the pool's own timeout.
            must_be_alive: Check the connection first, and take another one if the server does not answer.
            quota: The tenant that it counts for, if tenants take turns or have limits.
            priority: Order of service among callers that wait.
            tenant: The tenant that it is borrowed for; None for queries of the library.
            read: Text of the one read that it is borrowed for, sent by `send_one` with an envelope that is READ ONLY:
                such reads may share a connection. None for all else.

        Raises:
            DataError: CONNECTION: the server cannot be reached. RESOURCE: all connections are in use and stay so, or
                the queue is full. TIMEOUT: the deadline has passed.
        """
        ...

    async def connect_apart(self, *, deadline: float, purpose: str = "check") -> Connection:
        """Connect outside the pool; the caller closes the connection. Raises `DataError`."""
        ...

    def release(self, connection: Any, /) -> None:
        """Return an idle connection. Never waits."""
        ...

    def put_back(self, connection: Any, /) -> None:
        """Return a connection of `try_acquire` on which nothing was sent, without counting it as borrowed."""
        ...

    async def reclaim(self, connection: Any, /) -> None:
        """Return a connection in any state: bring it back to idle first, or close it."""
        ...

    def discard(self, connection: Any, /) -> None:
        """Close a borrowed connection; the pool replaces it."""
        ...

    def lend(self, connection: Any, /) -> BorrowedConnection:
        """Give a connection itself to the user, inside its open transaction."""
        ...

    # State of the server

    def error_of(self, exchange: Any, /, *, is_write: bool) -> DataError:
        """Classify the error of an exchange."""
        ...

    def mistake_of(self, error: Exception, /) -> DataError:
        """Classify what `Connection.exchange` has raised before it sent anything: QUERY or VALUE, without values."""
        ...

    def suspect(self) -> None:
        """A connection was found dead: check the idle ones in the background."""
        ...

    def refused_write(self, connection: Any, /) -> None:
        """A server that should be the primary has refused a write: find the primary."""
        ...

    def hear_of(self, timeline: int) -> None:
        """A newer timeline was seen: look for its primary in the background."""
        ...

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """Look for the primary of this timeline until `deadline`. Raises nothing."""
        ...


class ConnectionTemplate(Protocol):
    """A connection string with a placeholder for the tenant."""

    def dbname(self, name: str) -> str | None:
        """Name of a tenant's database; None if the placeholder is elsewhere, and tenants share the database."""
        ...

    def fill(self, name: str) -> str:
        """The connection string of a tenant; raises `DataError` (TENANT) if the name is not valid in it."""
        ...


class Driver(Protocol):
    """Entry point of a driver package, found by `load_driver`."""

    @property
    def has_settings(self) -> bool:
        """Whether it can apply a tenant's settings: schema, role, row security."""
        ...

    def make_server(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> Server:
        """Make a server; its pool is not open yet.

        Raises:
            ConfigError: The connection string is invalid.
        """
        ...

    def make_template(self, conninfo: str, *, where: str) -> ConnectionTemplate:
        """Parse the connection string of a datasource with a database for each tenant.

        Raises:
            ConfigError: It is invalid; `where` names the server in the message.
        """
        ...
