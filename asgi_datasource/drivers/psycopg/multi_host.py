"""URLs with several hosts: the role of each server, and which one takes writes.

libpq tries the hosts of a URL one after the other, for each connection anew. A host that accepts a connection and never
answers then costs each of them the whole timeout; and of two servers that both take writes, the one that a failover has
left behind may come first. So primary discovery asks all hosts at once and compares their timelines; pooled connections
then start with the host that was found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from psycopg import Error, OperationalError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..protocol import Result
from ..statements import INCARNATION, Statement
from .connection import PsycopgConnection
from .health_check import PRIMARY_TIMELINE, SYSTEM
from .settings import DEFAULT_PORT, Address, connect_failure
from .socket import WatchedSocket

GRACE_S: Final = 0.25
"""Seconds that the other hosts have to answer, once one may be the primary."""


@dataclass(frozen=True, slots=True)
class Bearing:
    """Role and identity of a server.

    Attributes:
        is_standby: It is in recovery: it takes no writes.
        is_read_only: Its transactions are READ ONLY by default: a fenced primary.
        timeline: Its timeline; 0 if unknown.
        system: Identifies the database cluster; None if unknown.
        incarnation: See `INCARNATION`; constant during a connection; None if unknown.
    """

    is_standby: bool = False
    is_read_only: bool = False
    timeline: int = 0
    system: str | None = None
    incarnation: str | None = None

    def is_of_another_cluster(self, system: str | None) -> bool:
        """Whether it belongs to another cluster, so that timelines cannot be compared."""
        return None not in (system, self.system) and system != self.system


def _question(timeline: str, system: str, incarnation: str) -> Statement:
    return Statement(
        "select pg_catalog.pg_is_in_recovery() as is_standby,"
        " pg_catalog.current_setting('default_transaction_read_only') as read_only,"
        f" case when pg_catalog.pg_is_in_recovery() then 0 else {timeline} end as timeline, {system} as system,"
        f" {incarnation} as incarnation",
        prepare=False,
    )


ASK_BEARING: Final = _question(PRIMARY_TIMELINE, SYSTEM, INCARNATION)
ASK_SIMPLE_BEARING: Final = _question("0", "null::pg_catalog.text", "null::pg_catalog.text")
"""For services without those functions."""


def read_bearing(answer: Result | None) -> Bearing:
    """Read the answer to `ASK_BEARING`."""
    row = None if answer is None else answer.first()
    if row is None:
        return Bearing()
    return Bearing(row["is_standby"], row["read_only"] == "on", row["timeline"], row["system"], row["incarnation"])


def is_unknown_there(error: BaseException | None) -> bool:
    """Whether a service refused a query because it lacks the functions."""
    return isinstance(error, Error) and (error.sqlstate or "")[:2] in ("42", "0A", "55")


def writer_of(bearings: Sequence[Bearing]) -> Bearing:
    """The server that takes writes, among servers that are no standbys.

    The newest timeline wins. If they belong to several clusters, as in a migration by logical replication, timelines
    cannot be compared: a server that is not fenced wins.
    """
    systems = {bearing.system for bearing in bearings} - {None}
    if len(systems) > 1:
        return max(bearings, key=lambda bearing: (not bearing.is_read_only, bearing.timeline))
    return max(bearings, key=lambda bearing: (bearing.timeline, not bearing.is_read_only))


class Hosts:
    """The hosts of a URL, in the order in which they are tried.

    Args:
        conninfo: The connection string with all hosts.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        parts = conninfo_to_dict(conninfo)
        columns = {name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if parts.get(name)}
        self.count = max([1, *(len(column) for name, column in columns.items() if name != "port")])
        self._columns = {
            # A single port applies to all hosts.
            name: column * self.count if len(column) == 1 else column
            for name, column in columns.items()
        }
        self._order = list(range(self.count))
        self.is_settled = self.count == 1
        """Whether the host to try first is known."""

    @property
    def conninfo(self) -> str:
        """Connection string with all hosts, for libpq."""
        if self._order[0] == 0:
            return self._conninfo
        return make_conninfo(self._conninfo, **self._named(self._order))

    def alone(self, index: int) -> str:
        """Connection string with one host, for libpq."""
        return self._conninfo if self.count == 1 else make_conninfo(self._conninfo, **self._named([index]))

    def address(self, index: int) -> tuple[str, int]:
        """Host and port of one of them."""
        host = self._at("host", index) or self._at("hostaddr", index) or "localhost"
        return host, int(self._at("port", index) or DEFAULT_PORT)

    def find(self, host: str, hostaddr: str, port: str) -> int | None:
        """Index of the host that a connection leads to; None if it is none of them."""
        for index in range(self.count):
            names = (self._at("host", index) or host, self._at("hostaddr", index) or hostaddr)
            if names == (host, hostaddr) and str(self.address(index)[1]) == port:
                return index
        return None

    def lead_with(self, index: int) -> None:
        """Try this host first from now on."""
        self._order = [index, *(other for other in range(self.count) if other != index)]
        self.is_settled = True

    def unsettle(self) -> None:
        """The first host may no longer be the right one."""
        self.is_settled = self.count == 1

    def _named(self, order: Sequence[int]) -> dict[str, str]:
        return {name: ",".join([column[index] for index in order]) for name, column in self._columns.items()}

    def _at(self, name: str, index: int) -> str:
        column = self._columns.get(name)
        return "" if column is None or index >= len(column) else column[index]


class Visitor(Protocol):
    """The server on whose behalf a host is visited."""

    check_limit_s: float
    """Timeout of an answer in seconds."""
    is_pooled: bool
    """Whether a pooler in between gives each transaction another server connection."""
    attempts: set[asyncio.Timeout]
    """Connects in progress; rescheduling one ends it."""


class _Scout:
    """Observer of a visit's connection; only the result of the visit is reported."""

    def __init__(self, visitor: Visitor, target: Address) -> None:
        self.check_limit_s = visitor.check_limit_s
        self.prepares = False
        self.is_pooled = visitor.is_pooled
        self.shares_sessions = visitor.is_pooled
        self.attempts = visitor.attempts
        self._target = target

    def connected(self, connection: WatchedSocket) -> None:
        """A connection was made."""

    def connect_failed(self, error: Error) -> Error:
        """A connection could not be made."""
        return type(error)(connect_failure(error, self._target))

    def disconnected(self, connection: WatchedSocket, *, was_lost: bool) -> None:
        """The connection has ended."""

    def went_silent(self) -> None:
        """The server does not answer."""


async def visit(visitor: Visitor, target: Address, questions: Sequence[Statement]) -> Bearing:
    """Connect to a server, query its role, and disconnect.

    Args:
        visitor: The server on whose behalf the host is visited.
        target: Its address.
        questions: Queries in order of preference; the next one is used if a server lacks the functions of one.

    Raises:
        psycopg.Error: It failed; the text names host, port and reason only.
    """
    loop = asyncio.get_running_loop()
    connection = await PsycopgConnection.connect(target.conninfo, observer=_Scout(visitor, target))
    try:
        error: Error | None = None
        for question in questions:
            exchange = await connection.exchange((question,), deadline=loop.time() + visitor.check_limit_s)
            if exchange.error is None:
                return read_bearing(exchange.results[0])
            error = OperationalError(f"{target.host}:{target.port}: it does not say what it is")
            if not is_unknown_there(exchange.error):
                break
        raise error or OperationalError("nothing to ask")
    finally:
        await connection.close()
