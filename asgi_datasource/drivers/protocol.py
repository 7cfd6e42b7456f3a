"""The seam: what a driver is to the rest of the library.

A driver gives servers; a server lends connections; a connection exchanges statements for results in one round trip.
`drivers/psycopg/` is the default driver and the reference. `docs/drivers.md` shows how to write another one, and
`asgi_datasource.testing.driver_contract` holds what it has to fulfil.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..concurrency.fair_queue import Share
from ..concurrency.limits import Priority
from ..errors import DataError
from ..observability.metrics import Attributes, Metrics, Use
from ..routing import CircuitBreaker, Observation, Position, Role
from .settings import ServerSettings
from .statements import Control, Envelope, Params, Query, Statement

T_co = TypeVar("T_co", covariant=True)


class RowFactory(Protocol[T_co]):
    """Makes rows, as psycopg's do (`psycopg.rows`): called with a cursor, it returns a function of a row's values."""

    def __call__(self, cursor: Any, /) -> Callable[[Sequence[Any]], T_co]:
        """The function that makes one row."""
        ...


class Result(Protocol):
    """The outcome of one statement that worked; reading it needs no connection any more."""

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
        """Whether the statement answers with rows, even if there were none."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
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
        """All rows; without a factory each is a dictionary. Raises the driver's error where there are none to read."""
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
    """One round trip: what came back before the first error, and that error.

    A driver that sends at once (`Connection.send_one`) returns it while it is under way, and resolves `waiter` when
    there is something to look at.
    """

    @property
    def error(self) -> BaseException | None:
        """The first error, as the driver raises it."""
        ...

    @property
    def failed_at(self) -> int | None:
        """Index of the statement that failed, or of the first one without an answer when the connection was lost; None
        when nothing was sent."""
        ...

    @property
    def is_lost(self) -> bool:
        """The connection is gone."""
        ...

    @property
    def timed_out(self) -> bool:
        """The caller's deadline ended it."""
        ...

    @property
    def waiter(self) -> asyncio.Future[None]:
        """Resolved when it has come back, and when its deadline has passed."""
        ...

    @property
    def results(self) -> Sequence[Result | None]:
        """One for each statement; None for control statements, and for those that did not run or were not answered."""
        ...

    @property
    def has_landed(self) -> bool:
        """Whether everything has come back: the connection is free again."""
        ...

    @property
    def is_stale_plan(self) -> bool:
        """The server refused a statement only because of how it had been prepared: run anew it may well work."""
        ...

    def take(self, index: int, *, in_transaction: bool) -> Result | None:
        """Read the result of one statement where all has come back with plain success; None where it has not.

        Args:
            index: Where the statement stands.
            in_transaction: Where the connection has to be afterwards: inside a transaction, or outside of any.
        """
        ...

    def answers(self, first: int, count: int) -> Sequence[Result]:
        """The results of some of the statements, all of which worked."""
        ...

    def value(self, index: int) -> str | None:
        """The first value of a control statement's answer, as text; None where there is none."""
        ...

    def values(self, index: int) -> Sequence[str | None] | None:
        """The first row of a control statement's answer, as text; None where it was not answered."""
        ...

    def was_answered(self, index: int) -> bool:
        """Whether a statement, control statements included, has run."""
        ...

    def tag(self, index: int) -> str | None:
        """The command tag of a statement, control statements included; None where it was not answered."""
        ...


class Loan(Protocol):
    """A connection of the driver's own kind, lent to the user for the length of a block."""

    @property
    def connection(self) -> Any:
        """What the user gets."""
        ...

    def expire(self, message: str) -> None:
        """Let every further use raise `SessionClosed(message)`."""
        ...


class Connection(Protocol):
    """One connection to one server, outside a transaction when it is lent."""

    timeline: int
    """The timeline that the primary at the other end writes; 0 is not known."""
    incarnation: str | None
    """What identifies the server's life, where it holds for as long as the connection does: see `IDENTIFY`."""
    held: Position | None
    """Where the server at the other end has said that it is; it only goes on from there."""
    use: Use | None
    """Is told when the connection is given back, where that is measured."""

    backend_pid: int
    """Process id of the server process, as the server said when the connection was made."""
    when_gone: Callable[[], None] | None
    """Called once when the connection is gone."""

    @property
    def is_usable(self) -> bool:
        """Whether it is open and nothing is under way on it."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more."""
        ...

    @property
    def is_idle(self) -> bool:
        """Outside any transaction."""
        ...

    @property
    def is_in_transaction(self) -> bool:
        """Inside a transaction that can go on."""
        ...

    @property
    def has_failed_transaction(self) -> bool:
        """Inside a transaction that only a rollback can end."""
        ...

    @property
    def is_midway(self) -> bool:
        """Whether a user's own operation on it was cut short."""
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
            settings: The tenant's, applied where the envelope says so.
            query, params: The statement.
            deadline: Event-loop time at which the server is asked to cancel.
            now: The event loop's time.

        Returns:
            The round trip, under way; None where something has to be awaited first, or the statement needs more than
            this: nothing was sent, and `exchange` does all.
        """
        ...

    def send_controls(self, statements: tuple[Control, ...], *, deadline: float | None) -> Exchange | None:
        """Send control statements alone, without waiting; None as for `send_one`.

        Args:
            statements: One of a few constants: a connection keeps them ready.
            deadline: Event-loop time at which the server is asked to cancel.
        """
        ...

    async def arrival(self, exchange: Any, /) -> None:
        """Wait until a round trip has come back, or its deadline has passed, also where its waiter was cancelled."""
        ...

    async def finish(self, exchange: Any, /) -> None:
        """Bring a round trip to its end: stop it on the server when its deadline has passed, and read what came."""
        ...

    async def exchange(
        self, statements: Sequence[Statement], *, deadline: float | None = None, flush_after: int | None = None
    ) -> Exchange:
        """Send statements in one round trip and collect their results.

        Outside a transaction they are one implicit transaction. Errors of the server and of the connection are not
        raised: they are in the answer, beside what arrived before them.

        Args:
            statements: What to send; may be empty, to hear whether the server is there.
            deadline: Event-loop time at which the server is asked to cancel.
            flush_after: Index of a statement whose answer the server is asked to send at once.

        Raises:
            Exception: A mistake of the caller's, as the driver raises it; nothing was sent.
            asyncio.CancelledError: What was sent is still under way: hand the connection to `Server.reclaim`.
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
    """Asks one server how it is, beside its pool."""

    async def ask(self, *, limit_s: float) -> Observation:
        """Ask; raises `DataError` where the server did not answer within `limit_s` seconds."""
        ...

    def close(self) -> None:
        """Close its connection at once."""
        ...


class PoolKeeper(Protocol):
    """Decides when pools are open that open with their first use."""

    async def make_room(self, server: Any, /, *, timeout_s: float) -> None:
        """Open the server's pool, once there is room for it."""
        ...

    def used(self, server: Any, /) -> None:
        """A connection of it is about to be borrowed."""
        ...

    def rested(self, server: Any, /) -> None:
        """All of its connections were given back."""
        ...

    def reached(self, server: Any, /) -> None:
        """A connection was made for the first time."""
        ...


class Server(Protocol):
    """One server of a datasource: connections are borrowed here and come back here."""

    name: str
    datasource: str
    full_name: str
    """Both: `orders.primary`."""
    label: str
    """For messages: names the server, not who connects to it."""
    role: Role
    settings: ServerSettings
    attributes: Attributes
    """What names it on spans."""
    dimensions: Attributes
    """What names it on metrics."""
    metrics: Metrics | None
    breaker: CircuitBreaker
    """Whether it is used; by what happened to its connections, never by errors that it answered with."""
    was_reached: bool
    """Whether a connection could ever be made."""
    is_pooled: bool
    """A pooler in transaction mode is in between: what a session has, the next transaction does not."""
    is_fair: bool
    """Tenants take turns here: each borrower names its tenant."""
    server_version: int
    """As libpq tells it (180004), once a connection was made; 0 before that, and for servers without such a number."""
    identifies_writes: bool
    """`IDENTIFY` is answered in every transaction that has written: one that does not answer has written nothing."""

    @property
    def is_up(self) -> bool:
        """Whether it is used."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether its pool is open."""
        ...

    @property
    def is_in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be; of pools that have a keeper."""
        ...

    @property
    def borrowed(self) -> int:
        """Connections that are lent."""
        ...

    @property
    def idle(self) -> int:
        """Connections that could be borrowed at once."""
        ...

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        ...

    @property
    def timeline(self) -> int:
        """The newest timeline that a primary was seen to write; 0 is not known."""
        ...

    # Its life

    async def open(self) -> None:
        """Open the pool. Returns at once, also when the server cannot be reached."""
        ...

    async def close(self, *, timeout_s: float) -> None:
        """Close the pool and every connection, borrowed ones included."""
        ...

    def retire(self) -> None:
        """Keep no idle connection from now on."""
        ...

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call this whenever the server goes down or comes up, and when its pool is opened or closed."""
        ...

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Call it no more."""
        ...

    def health_check(self) -> HealthCheck:
        """What asks the server how it is, over a connection of its own."""
        ...

    # Borrowing and giving back

    def try_acquire(self, share: Share | None = None) -> Connection | None:
        """Borrow a connection that lies at hand; None where the caller would have to wait, or to queue."""
        ...

    async def acquire(
        self,
        *,
        deadline: float | None,
        must_be_alive: bool = False,
        share: Share | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Connection:
        """Borrow a connection, outside any transaction.

        Args:
            deadline: Event-loop time at which waiting ends, if that is before the pool's own timeout.
            must_be_alive: Ask the server over the connection first, and take another one when it does not answer.
            share: The tenant that it counts for, where tenants take turns or have limits.
            priority: Who is served first of those who wait.

        Raises:
            DataError: CONNECTION: the server cannot be reached. RESOURCE: all connections are in use and stay so, or
                the queue is full. TIMEOUT: the deadline has passed.
        """
        ...

    async def connect_apart(self, *, deadline: float, purpose: str = "check") -> Connection:
        """Connect outside the pool; the caller closes the connection. Raises `DataError`."""
        ...

    def release(self, connection: Any, /) -> None:
        """Give back a connection that is idle. Never waits."""
        ...

    def put_back(self, connection: Any, /) -> None:
        """Give back a connection of `try_acquire` over which nothing was sent: as if it had never been borrowed."""
        ...

    async def reclaim(self, connection: Any, /) -> None:
        """Give back a connection in any state: bring it to rest first, or close it."""
        ...

    def discard(self, connection: Any, /) -> None:
        """Close a borrowed connection; the pool replaces it."""
        ...

    def lend(self, connection: Any, /) -> Loan:
        """Hand a connection itself to the user, inside the transaction that is open on it."""
        ...

    # What is known of it

    def error_of(self, exchange: Any, /, *, is_write: bool) -> DataError:
        """Classify what an exchange failed with."""
        ...

    def suspect(self) -> None:
        """A connection turned out to be dead: look at the idle ones, in the background."""
        ...

    def refused_write(self, connection: Any, /) -> None:
        """A server that should be the primary has refused a write: find out which server is."""
        ...

    def hear_of(self, timeline: int) -> None:
        """A newer timeline was seen: look in the background for the primary that writes it."""
        ...

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """Look for the primary that writes this timeline, until `deadline`. Raises nothing."""
        ...


class ConnectionTemplate(Protocol):
    """A connection string with a place for the tenant."""

    def dbname(self, name: str) -> str | None:
        """The name of a tenant's database; None where the tenant stands elsewhere, and shares its database."""
        ...

    def fill(self, name: str) -> str:
        """The connection string for a tenant; raises `DataError` (TENANT) where the name cannot stand in it."""
        ...


class Driver(Protocol):
    """What a driver package offers as its entry: `load_driver` finds it."""

    @property
    def has_settings(self) -> bool:
        """Whether the settings of a tenant can be applied: its schema, its role, row security."""
        ...

    def make_server(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> Server:
        """One server, not opened yet.

        Raises:
            ConfigError: The connection string cannot be read.
        """
        ...

    def make_template(self, conninfo: str, *, where: str) -> ConnectionTemplate:
        """The connection string of a datasource with a database for each tenant.

        Raises:
            ConfigError: It cannot be read; `where` names the server in the message.
        """
        ...
