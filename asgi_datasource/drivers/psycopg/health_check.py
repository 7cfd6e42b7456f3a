"""A connection of its own to one server, to ask how it is: beside the pool, so that a full pool hides nothing."""

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
from .socket import ConnectionObserver, WatchedSocket

_POSITION: Final = (
    "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text"
)


def _question(timeline: str, system: str) -> Statement:
    standby = "pg_is_in_recovery()"
    return Statement(
        f"select {standby} as is_standby,"
        f" {_POSITION} as position,"
        f" case when {standby} then pg_last_wal_receive_lsn() end::text as received,"
        " date_part('epoch', pg_postmaster_start_time())::text as server,"
        f" {timeline} as timeline, {system} as system"
    )


PRIMARY_TIMELINE: Final = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"
STANDBY_TIMELINE: Final = (
    "greatest((pg_control_checkpoint()).timeline_id, (pg_control_recovery()).min_recovery_end_timeline,"
    " (select received_tli from pg_stat_wal_receiver))"
)
"""A standby tells its timeline in three ways, each of which may be late, and none of which is early: as of its last
restart point; of the furthest point that was made safe; and, to roles with the privileges of `pg_read_all_stats`, of
what it receives (PostgreSQL manual, "Control Data Functions" and "pg_stat_wal_receiver")."""
TIMELINE: Final = f"case when pg_is_in_recovery() then {STANDBY_TIMELINE} else {PRIMARY_TIMELINE} end"
SYSTEM: Final = "(select system_identifier from pg_control_system())::text"

_QUESTION: Final = _question(TIMELINE, SYSTEM)
_SIMPLE_QUESTION: Final = _question("0", "null::text")
"""For services that do without those functions: there is one timeline, as far as they say."""


class CheckedServer(Protocol):
    """The server that is asked."""

    label: str
    check_limit_s: float
    prepares: bool
    is_pooled: bool
    shares_sessions: bool

    async def connect(self, *, observer: ConnectionObserver) -> PsycopgConnection:
        """Connect outside the pool."""
        ...

    def error_of(self, exchange: Pipeline, *, is_write: bool) -> DataError:
        """Classify what an exchange failed with."""
        ...

    def connect_failed(self, error: Error) -> Error:
        """A connection could not be made; returns the error without secrets."""
        ...

    def suspect(self) -> None:
        """A connection was lost: the idle ones may be dead, too."""
        ...

    def went_silent(self) -> None:
        """The server does not answer."""
        ...


class HealthCheck:
    """Asks one server how it is, over a connection that is kept for that.

    What it meets there is evidence for the endpoint's breaker like everything else.
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
        """Ask; connects first where there is no connection.

        Args:
            limit_s: Seconds that it may take; half a second more where the server does not answer.

        Raises:
            DataError: It did not answer, or could not.
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
                    raise DataError(DataErrorKind.OTHER, f"{self._server.label}: it does not say where its log is")
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
            connection.cut("nobody asks any more")

    async def _connect(self, deadline: float) -> PsycopgConnection:
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        # One attempt outlives several questions: those are short, and a server that does not even answer an attempt to
        # connect within the time that it has must not pass for one that was only asked too briefly.
        attempt = self._attempt
        if attempt is None or attempt.done():
            attempt = self._attempt = asyncio.get_running_loop().create_task(self._connect_once())
            # It may fail between two questions.
            attempt.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(attempt)
        except (Error, TimeoutError) as error:
            raise DataError(
                DataErrorKind.CONNECTION, f"{self._server.label}: cannot connect: {error or 'no answer'}"
            ) from error

    async def _connect_once(self) -> PsycopgConnection:
        try:
            connection = self._connection = await self._server.connect(observer=self)
        except ConnectionTimeout:
            self._server.went_silent()
            raise
        return connection

    # What its connection reports

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made."""

    def connect_failed(self, error: Error) -> Error:
        """A connection could not be made."""
        return self._server.connect_failed(error)

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """The connection is gone."""
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
