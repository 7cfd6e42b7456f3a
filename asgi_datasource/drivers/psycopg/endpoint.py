"""One server of a datasource: its pool, its health, and the way of a connection out and back."""

from __future__ import annotations

import asyncio
import logging
import random
import types
from collections.abc import Coroutine, Generator, Mapping
from typing import Any, Final

from psycopg import OperationalError
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from ...errors import DataError, DataErrorKind
from ...routing import Role
from ...telemetry import AttributeValue, server_attributes
from . import failure
from .connection import Connection
from .result import Exchange
from .settings import EndpointSettings, connect_failure, resolve

logger = logging.getLogger("asgi_datasource.endpoint")

PROBE_FIRST_S: Final = 0.2
PROBE_LAST_S: Final = 2.0
"""Pauses between two attempts to reach a server that is down: they double from the first to the last, with jitter."""


class Endpoint:
    """One server: connections are borrowed here and come back here.

    It is down while nothing can be connected to it, or when it stopped answering; a task of its own then tries until
    it is up again.
    """

    def __init__(self, name: str, datasource: str, role: Role, settings: EndpointSettings) -> None:
        self.name = name
        self.datasource = datasource
        self.role = role
        self.settings = settings
        self._where = f"{datasource}.{name}"
        self._target = resolve(settings, where=f"datasource {datasource!r}, server {name!r}")
        self.address = self._target.host
        self.port = self._target.port
        self.dbname = self._target.dbname
        self.label = f"{self._where} ({self.address}:{self.port})"
        """For messages: names the server, not who connects to it."""
        self.attributes: Mapping[str, AttributeValue] = server_attributes(
            host=self.address, port=self.port, namespace=self.dbname
        )
        self.is_up = True
        self.last_error: str | None = None
        """Why it is, or last was, down; without secrets."""
        self.borrowed = 0
        self.check_limit_s = settings.check_timeout_s
        self.prepares = settings.prepares
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._connections: set[Connection] = set()
        self._connect_error: BaseException | None = None
        self._waiting: set[asyncio.Timeout] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._probe: asyncio.Task[None] | None = None
        self._check: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        return (
            f"<Endpoint {self.label} {self.role.value} {state}, {self.borrowed} of {self.settings.max_size} borrowed>"
        )

    # Opening and closing

    async def open(self) -> None:
        """Open the pool. Returns at once, also when the server cannot be reached."""
        if self._pool is not None:
            return
        settings = self.settings
        self.is_up = True
        self.borrowed = 0
        self._pool = AsyncConnectionPool(
            self._target.conninfo,
            connection_class=Connection,
            kwargs={"observer": self},
            min_size=settings.min_size,
            max_size=settings.max_size,
            open=False,
            name=self._where,
            timeout=settings.acquire_timeout_s,
            max_waiting=settings.max_waiting,
            max_lifetime=settings.max_lifetime_s,
            max_idle=settings.max_idle_s,
            reconnect_timeout=settings.reconnect_timeout_s,
        )
        await self._pool.open(wait=False)

    async def close(self, *, timeout_s: float) -> None:
        """Close the pool and every connection, also those that are still borrowed.

        Args:
            timeout_s: Seconds that it may take.
        """
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for task in (self._probe, self._check):
            if task is not None:
                task.cancel()
        await pool.close(timeout=timeout_s)
        for connection in list(self._connections):
            connection.cut("the pool was closed")
        tasks = [task for task in self._tasks if not task.done()]
        if tasks:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)

    # Borrowing and giving back

    async def acquire(self, *, deadline: float | None, must_be_alive: bool = False) -> Connection:
        """Borrow a connection, outside any transaction.

        Args:
            deadline: Event-loop time at which waiting ends, if that is before the pool's own timeout.
            must_be_alive: Look whether the connection has died in the pool, and take another one then.

        Raises:
            DataError: CONNECTION: the server cannot be reached; the message says why. RESOURCE: all connections are
                in use and stay so, or the queue is full.
        """
        pool = self._pool
        if pool is None:
            raise DataError(DataErrorKind.CONNECTION, f"{self.label}: the pool is not open")
        timeout_s = self.settings.acquire_timeout_s
        if deadline is not None:
            timeout_s = min(timeout_s, deadline - asyncio.get_running_loop().time())
        must_be_alive = must_be_alive or not self.is_up
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        while True:
            connection = await self._take(pool, timeout_s)
            if not must_be_alive or await self._is_alive(connection):
                self.borrowed += 1
                return connection
            self._put(connection)
            timeout_s = give_up_at - asyncio.get_running_loop().time()

    async def release(self, connection: Connection) -> None:
        """Give back a connection that is idle. Never waits, so that no cancellation can come in between."""
        self.borrowed -= 1
        self._put(connection)

    async def reclaim(self, connection: Connection, *, reset: bool = False) -> None:
        """Give back a connection in any state: what runs on it is cancelled, an open transaction rolled back.

        Bounded, whatever the server does: a connection that does not come to rest is cut. Raises nothing.

        Args:
            connection: The connection.
            reset: Also discard what outlives a transaction: settings, temporary tables, prepared statements, locks.
        """
        try:
            await connection.settle(reset=reset)
        except BaseException:
            connection.cut("giving it back was interrupted")
            raise
        finally:
            self.borrowed -= 1
            self._put(connection)

    def discard(self, connection: Connection) -> None:
        """Close a borrowed connection at once; the pool replaces it."""
        connection.cut("it was given up")
        self.borrowed -= 1
        self._put(connection)

    def suspect(self) -> None:
        """A pooled connection turned out to be dead: look at the others, once, in the background."""
        pool = self._pool
        if pool is not None and (self._check is None or self._check.done()):
            self._check = self._spawn(pool.check())

    # Errors

    def error_of(self, exchange: Exchange, *, is_write: bool) -> DataError:
        """Classify what an exchange failed with."""
        return failure.of_exchange(exchange, where=self.label, in_recovery=self.role is Role.REPLICA, is_write=is_write)

    def classify(self, error: BaseException, *, is_write: bool) -> DataError:
        """Classify an error of psycopg's."""
        return failure.to_data_error(
            error,
            where=self.label,
            is_broken=isinstance(error, OperationalError) and error.sqlstate is None,
            timed_out=False,
            in_recovery=self.role is Role.REPLICA,
            is_write=is_write,
        )

    # What connections report

    def opened(self, connection: Connection) -> None:
        """A connection was made: the server is up."""
        self._connections.add(connection)
        self._connect_error = None
        self._mark_up()

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if self._pool is not None and connection.is_pooled:
            self.suspect()

    def failed(self, error: BaseException) -> BaseException:
        """A connection could not be made."""
        text = connect_failure(error, self._target)
        clean = type(error)(text) if isinstance(error, OperationalError) else OperationalError(text)
        self._connect_error = clean
        if not self._connections:
            self._mark_down(text)
            self._end_waits()
        return clean

    def went_silent(self) -> None:
        """The server did not answer a cancel request."""
        self._mark_down(f"{self.address}:{self.port}: no answer")

    # Health

    def _mark_up(self) -> None:
        if not self.is_up:
            logger.info("%s is up again", self.label)
        self.is_up = True

    def _mark_down(self, reason: str) -> None:
        if self.is_up:
            logger.warning("%s is down: %s", self.label, reason)
        self.is_up = False
        self.last_error = reason
        if self._pool is not None and (self._probe is None or self._probe.done()):
            self._probe = self._spawn(self._probe_until_up(self._pool))

    async def _probe_until_up(self, pool: AsyncConnectionPool[Connection]) -> None:
        pause_s = PROBE_FIRST_S
        while True:
            # Jitter, so that the processes of a service do not all knock at once.
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))  # noqa: S311 - not for security
            pause_s = min(PROBE_LAST_S, pause_s * 2)
            try:
                connection = await Connection.connect(self._target.conninfo, observer=self)
            except OperationalError:
                continue
            await connection.close()
            break
        # The pool has given up replacing connections, or waits for its next attempt: let it begin now.
        await pool.check()

    def _end_waits(self) -> None:
        """Nothing can be connected: whoever waits for a connection need not wait any longer."""
        now = asyncio.get_running_loop().time()
        for wait in list(self._waiting):
            wait.reschedule(now)

    # The pool

    async def _take(self, pool: AsyncConnectionPool[Connection], timeout_s: float) -> Connection:
        if timeout_s <= 0:
            raise self._no_connection(timeout_s)
        if self.borrowed < len(self._connections):
            # One is free: nothing to wait for.
            wait = None
        try:
            async with asyncio.timeout(None) as wait:
                self._waiting.add(wait)
                try:
                    return await pool.getconn(timeout_s)
                finally:
                    self._waiting.discard(wait)
        except TooManyRequests as error:
            raise DataError(
                DataErrorKind.RESOURCE,
                f"{self.label}: {self.settings.max_waiting} are waiting for a connection already. Raise"
                " pool.max_size or pool.max_waiting, or shorten transactions",
                http_status=503,
            ) from error
        except (PoolTimeout, TimeoutError) as error:
            raise self._no_connection(timeout_s) from (self._connect_error or error)
        except PoolClosed as error:
            raise DataError(DataErrorKind.CONNECTION, f"{self.label}: the pool is closed") from error

    def _no_connection(self, timeout_s: float) -> DataError:
        reason = self._connect_error
        if reason is not None and not self._connections:
            return DataError(DataErrorKind.CONNECTION, f"{self._where}: cannot connect to {reason}", http_status=503)
        because = "" if reason is None else f"; the last attempt to connect failed: {reason}"
        return DataError(
            DataErrorKind.RESOURCE,
            f"{self.label}: no free connection after {max(0.0, timeout_s):.1f} s ({self.borrowed} of"
            f" {self.settings.max_size} in use, {len(self._waiting)} waiting){because}. Raise pool.max_size or shorten"
            " transactions",
            http_status=503,
        )

    async def _is_alive(self, connection: Connection) -> bool:
        loop = asyncio.get_running_loop()
        exchange = await connection.exchange((), deadline=loop.time() + self.settings.check_timeout_s)
        return exchange.error is None

    def _put(self, connection: Connection) -> None:
        """Give a connection to the pool without waiting: `putconn` waits only where its lock is taken."""
        pool = getattr(connection, "_pool", None)
        if pool is None:
            return
        giving = pool.putconn(connection)
        try:
            waits_for = giving.send(None)
        except StopIteration:
            return
        self._spawn(_finish(giving, waits_for))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: a task of the pool failed", self.label, exc_info=task.exception())


async def _finish(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
    await _go_on(coroutine, waits_for)


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """Run on what was started by hand and had to wait after all."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
            waits_for = coroutine.throw(error)
        else:
            waits_for = coroutine.send(value)
