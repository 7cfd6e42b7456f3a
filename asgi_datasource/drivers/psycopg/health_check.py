"""Health check of one server over a connection of its own, so that a full pool does not affect it."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from psycopg import Error
from psycopg.errors import ConnectionTimeout

from ...errors import DataError, DataErrorKind
from ...routing import Observation, Position, parse_lsn
from ..statements import Statement
from .connection import PsycopgConnection
from .pipeline import Pipeline
from .settings import without_location
from .socket import ConnectionObserver, WatchedSocket

_POSITION: Final = (
    "case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()"
    " else pg_catalog.pg_current_wal_insert_lsn() end::pg_catalog.text"
)


SERVER: Final = "pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.text"
"""What tells a server, since its start, from others: the microsecond in which it was started."""


def _question(timeline: str, system: str) -> Statement:
    standby = "pg_catalog.pg_is_in_recovery()"
    return Statement(
        f"select {standby} as is_standby,"
        f" {_POSITION} as position,"
        f" case when {standby} then pg_catalog.pg_last_wal_receive_lsn() end::pg_catalog.text as received,"
        f" {SERVER} as server,"
        f" {timeline} as timeline, {system} as system"
    )


PRIMARY_TIMELINE: Final = (
    "('x' operator(pg_catalog.||) pg_catalog.left("
    "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int"
)
STANDBY_TIMELINE: Final = (
    "greatest((pg_catalog.pg_control_checkpoint()).timeline_id,"
    " (pg_catalog.pg_control_recovery()).min_recovery_end_timeline,"
    " (select received_tli from pg_catalog.pg_stat_wal_receiver))"
)
"""Timeline of a standby, from three sources, each of which may be late but never early: the last restart point; the
furthest point made safe; and, for roles with the privileges of `pg_read_all_stats`, the WAL receiver (PostgreSQL
manual, "Control Data Functions" and "pg_stat_wal_receiver")."""
TIMELINE: Final = f"case when pg_catalog.pg_is_in_recovery() then {STANDBY_TIMELINE} else {PRIMARY_TIMELINE} end"
SYSTEM: Final = "(select system_identifier from pg_catalog.pg_control_system())::pg_catalog.text"

_QUESTION: Final = _question(TIMELINE, SYSTEM)
_SIMPLE_QUESTION: Final = _question("0", "null::pg_catalog.text")
"""For services without those functions: they report a single timeline."""


class CheckedServer(Protocol):
    """The server that is checked."""

    check_limit_s: float
    prepares: bool
    is_pooled: bool
    shares_sessions: bool

    async def connect(self, *, observer: ConnectionObserver) -> PsycopgConnection:
        """Connect outside the pool."""
        ...

    def error_of(self, exchange: Pipeline, *, is_write: bool) -> DataError:
        """Classify the error of an exchange."""
        ...

    def error(self, kind: DataErrorKind, text: str, /) -> DataError:
        """An error of the server."""
        ...

    def connect_failed(self, error: Error) -> Error:
        """A connection could not be made; returns the error without secrets."""
        ...

    def suspect(self) -> None:
        """A connection was lost: check the idle ones, which may be dead as well."""
        ...

    def went_silent(self) -> None:
        """The server does not answer."""
        ...

    def note_checked(self, server: str | None) -> None:
        """The connection of the check leads to this server."""
        ...


class HealthCheck:
    """Queries the state of one server over a dedicated connection.

    Failures of that connection drive the server's circuit breaker like all others.
    """

    def __init__(self, server: CheckedServer) -> None:
        self._server = server
        self._question = _QUESTION
        self._connection: PsycopgConnection | None = None
        self._attempt: asyncio.Task[PsycopgConnection] | None = None
        self.check_limit_s = server.check_limit_s
        self.prepares = server.prepares
        self.is_pooled = server.is_pooled
        self.shares_sessions = server.shares_sessions
        self.attempts: set[asyncio.Timeout] = set()

    async def ask(self, *, limit_s: float) -> Observation:
        """Query the state; connects first if there is no connection.

        Args:
            limit_s: Timeout in seconds; half a second more if the server does not answer.

        Raises:
            DataError: The server did not answer, or refused the query.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        connection = await self._connect(deadline)
        while True:
            asked_at = loop.time()
            try:
                exchange = await connection.exchange((self._question,), deadline=deadline)
            except BaseException:
                self.close()
                raise
            if exchange.error is None:
                row = None if exchange.results[0] is None else exchange.results[0].first()
                if row is None or row["position"] is None:
                    raise self._server.error(DataErrorKind.OTHER, "it does not say where its log is")
                self._server.note_checked(row["server"])
                return _read(row, asked_at, loop.time())
            if exchange.is_lost or exchange.timed_out or self._question is _SIMPLE_QUESTION:
                self.close()
                raise self._server.error_of(exchange, is_write=False) from exchange.error
            self._question = _SIMPLE_QUESTION

    def close(self) -> None:
        """Close the connection at once."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut("the health check was stopped")

    async def _connect(self, deadline: float) -> PsycopgConnection:
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        # One connect may outlast several checks. Checks time out early, so a server that does not answer a connect
        # within the connect timeout must not be treated as one that merely missed a check.
        attempt = self._attempt
        if attempt is None or attempt.done():
            attempt = self._attempt = asyncio.get_running_loop().create_task(self._connect_once())
            # It may fail between two checks.
            attempt.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(attempt)
        except (Error, TimeoutError) as error:
            reason = without_location(str(error) or "no answer")
            raise self._server.error(DataErrorKind.CONNECTION, f"cannot connect: {reason}") from error

    async def _connect_once(self) -> PsycopgConnection:
        try:
            connection = self._connection = await self._server.connect(observer=self)
        except ConnectionTimeout:
            self._server.went_silent()
            raise
        return connection

    # Observer of its connection

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made."""

    def connect_failed(self, error: Error) -> Error:
        """A connection could not be made."""
        return self._server.connect_failed(error)

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """The connection has ended."""
        if was_lost and self._connection is connection:
            self._connection = None
            self._server.suspect()

    def went_silent(self) -> None:
        """The server does not answer."""
        self._server.went_silent()


def _read(row: dict[str, Any], asked_at: float, answered_at: float) -> Observation:
    received = row["received"]
    return Observation(
        asked_at=asked_at,
        answered_at=answered_at,
        is_standby=row["is_standby"],
        position=Position(row["timeline"], parse_lsn(row["position"])),
        received_lsn=None if received is None else parse_lsn(received),
        system=row["system"],
        server=row["server"],
    )
