"""Where a URL leads: the hosts that it names, what a server there is, and which of them takes writes.

libpq tries the hosts of a URL one after the other, for each connection anew. A host that accepts and never answers
costs every one of them its whole timeout then, and of two servers that both take writes, the one that a failover has
left behind may come first. So whoever looks for the server that takes writes asks all hosts at once, and goes by their
timelines; pooled connections then begin with the one that was found.
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
"""Seconds that the other hosts have to answer once one has that could be it."""


@dataclass(frozen=True, slots=True)
class Bearing:
    """What a server is.

    Attributes:
        is_standby: It is in recovery: it takes no writes.
        is_read_only: Its transactions are READ ONLY unless told otherwise: so a primary is fenced off.
        timeline: The timeline that it writes; 0 is not known.
        system: What tells the database cluster from others; None is not known.
        incarnation: What identifies the server's life, for as long as a connection to it lasts; None is not known.
    """

    is_standby: bool = False
    is_read_only: bool = False
    timeline: int = 0
    system: str | None = None
    incarnation: str | None = None

    def is_of_another_cluster(self, system: str | None) -> bool:
        """Whether its timelines have nothing to do with those of that one."""
        return None not in (system, self.system) and system != self.system


def _question(timeline: str, system: str, incarnation: str) -> Statement:
    return Statement(
        "select pg_is_in_recovery() as is_standby, current_setting('default_transaction_read_only') as read_only,"
        f" case when pg_is_in_recovery() then 0 else {timeline} end as timeline, {system} as system,"
        f" {incarnation} as incarnation",
        prepare=False,
    )


ASK_BEARING: Final = _question(PRIMARY_TIMELINE, SYSTEM, INCARNATION)
ASK_SIMPLE_BEARING: Final = _question("0", "null::text", "null::text")
"""For services that do without those functions."""


def read_bearing(answer: Result | None) -> Bearing:
    """The answer of `ASK_BEARING`."""
    row = None if answer is None else answer.first()
    if row is None:
        return Bearing()
    return Bearing(row["is_standby"], row["read_only"] == "on", row["timeline"], row["system"], row["incarnation"])


def is_unknown_there(error: BaseException | None) -> bool:
    """Whether a service refused a question because it does without what that asks for."""
    return isinstance(error, Error) and (error.sqlstate or "")[:2] in ("42", "0A", "55")


def writer_of(bearings: Sequence[Bearing]) -> Bearing:
    """Of servers that are all no standbys, the one that writes go to.

    The newest timeline counts. Where they are of several clusters, as in a move by logical replication, timelines say
    nothing, and the one that is not fenced off comes first.
    """
    systems = {bearing.system for bearing in bearings} - {None}
    if len(systems) > 1:
        return max(bearings, key=lambda bearing: (not bearing.is_read_only, bearing.timeline))
    return max(bearings, key=lambda bearing: (bearing.timeline, not bearing.is_read_only))


class Hosts:
    """The hosts of a URL, in the order in which they are tried.

    Args:
        conninfo: The whole of it.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        parts = conninfo_to_dict(conninfo)
        columns = {name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if parts.get(name)}
        self.count = max([1, *(len(column) for name, column in columns.items() if name != "port")])
        self._columns = {
            # One port may stand for all.
            name: column * self.count if len(column) == 1 else column
            for name, column in columns.items()
        }
        self._order = list(range(self.count))
        self.is_settled = self.count == 1
        """Whether it is known which one is to be tried first."""

    @property
    def conninfo(self) -> str:
        """All of them, for libpq."""
        if self._order[0] == 0:
            return self._conninfo
        return make_conninfo(self._conninfo, **self._named(self._order))

    def alone(self, index: int) -> str:
        """One of them, for libpq."""
        return self._conninfo if self.count == 1 else make_conninfo(self._conninfo, **self._named([index]))

    def address(self, index: int) -> tuple[str, int]:
        """Host and port of one of them."""
        host = self._at("host", index) or self._at("hostaddr", index) or "localhost"
        return host, int(self._at("port", index) or DEFAULT_PORT)

    def find(self, host: str, hostaddr: str, port: str) -> int | None:
        """Which one a connection leads to; None for none of them."""
        for index in range(self.count):
            names = (self._at("host", index) or host, self._at("hostaddr", index) or hostaddr)
            if names == (host, hostaddr) and str(self.address(index)[1]) == port:
                return index
        return None

    def lead_with(self, index: int) -> None:
        """Try this one first from now on."""
        self._order = [index, *(other for other in range(self.count) if other != index)]
        self.is_settled = True

    def unsettle(self) -> None:
        """The first one may not be the right one any more."""
        self.is_settled = self.count == 1

    def _named(self, order: Sequence[int]) -> dict[str, str]:
        return {name: ",".join([column[index] for index in order]) for name, column in self._columns.items()}

    def _at(self, name: str, index: int) -> str:
        column = self._columns.get(name)
        return "" if column is None or index >= len(column) else column[index]


class Visitor(Protocol):
    """On whose behalf a server is visited."""

    check_limit_s: float
    """Seconds that it has for an answer."""
    is_pooled: bool
    """Whether a pooler is in between that gives each transaction another server connection."""
    attempts: set[asyncio.Timeout]
    """The attempts to connect that are under way; rescheduling one ends it."""


class _Scout:
    """Observes the connection of a visit: what it meets is told by the visit's end alone."""

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
        """The connection is gone."""

    def went_silent(self) -> None:
        """The server does not answer."""


async def visit(visitor: Visitor, target: Address, questions: Sequence[Statement]) -> Bearing:
    """Connect to a server, ask what it is, and leave.

    Args:
        visitor: On whose behalf.
        target: Where.
        questions: Which one to ask; the next one where a server does not know the functions of the one before.

    Raises:
        psycopg.Error: It did not work out; the text names host, port and reason only.
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
