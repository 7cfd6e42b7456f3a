"""Primary discovery: which host of a server's URL connections lead to, its timeline, and whether it has the right role.

The primary is the host that takes writes on the newest known timeline. A standby, or a primary that a failover has left
behind, is rejected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Final, Protocol

from psycopg import Error, OperationalError

from ...observability.decision_log import log_decision
from ...routing import Role
from ..statements import Statement
from .connection import PsycopgConnection
from .health_check import SERVER
from .multi_host import (
    ASK_BEARING,
    ASK_SIMPLE_BEARING,
    GRACE_S,
    Bearing,
    Hosts,
    Visitor,
    is_unknown_there,
    read_bearing,
    visit,
    writer_of,
)
from .pipeline import Pipeline
from .settings import Address
from .transaction_settings import ASK_TIMEOUTS

logger = logging.getLogger("asgi_datasource.server")

ASK_SERVER: Final = Statement(f"select {SERVER} as server", prepare=False)

_HEARSAY_PAUSE_S: Final = 5.0
"""Seconds until a newer timeline that was not found is looked for again."""


class Seeker(Visitor, Protocol):
    """The server that uses the discovery."""

    role: Role
    full_name: str

    @property
    def named(self) -> Mapping[str, str]:
        """What names the server on log records."""
        ...

    address: str
    port: int
    timeline: int
    """The newest timeline seen on a primary; 0 if unknown."""

    @property
    def is_up(self) -> bool:
        """Whether the circuit breaker is closed."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether its pool is open."""
        ...

    def spawn(self, work: Coroutine[Any, Any, Any], /) -> asyncio.Task[Any]:
        """Start a task that ends with the server."""
        ...

    def search_begins(self) -> None:
        """Primary discovery starts."""
        ...

    def search_ends(self) -> None:
        """Primary discovery has ended, or was cancelled."""
        ...

    def note_failure(self, error: Error, /) -> None:
        """Primary discovery has failed."""
        ...

    def arrived(self, address: tuple[str, int], /) -> None:
        """A server with the right role was found at this address."""
        ...

    def cut_left_behind(self, *, is_other: bool) -> None:
        """Another server has become the primary: cut the connections to the former one."""
        ...


class PrimaryDiscovery:
    """Finds the host that a server's connections have to lead to.

    Args:
        seeker: The server.
        target: The address of its URL.

    Attributes:
        searched_at: Event-loop time of the last search.
    """

    def __init__(self, seeker: Seeker, target: Address) -> None:
        self.searched_at = -inf
        self._seeker = seeker
        self._target = target
        self._hosts = Hosts(target.conninfo)
        self._system: str | None = None
        self._questions: Sequence[Statement] = (ASK_BEARING, ASK_SIMPLE_BEARING)
        """Queries on a new connection, in order of preference; the first one that the server supports."""
        self._identity: tuple[Statement, ...] = (ASK_SERVER,)
        """Further query on a new connection to a replica; empty once a server does not support it."""
        self._search: asyncio.Task[None] | None = None
        self._heard_of = (0, -inf)
        """The newest timeline reported from outside, and when it was last looked for."""

    @property
    def is_searching(self) -> bool:
        """Whether a search is running."""
        return self._search is not None and not self._search.done()

    @property
    def has_several_hosts(self) -> bool:
        """Whether the URL names several hosts."""
        return self._hosts.count > 1

    def unsettle(self) -> None:
        """The first host may no longer be the right one."""
        self._hosts.unsettle()

    # -- search

    async def line_up(self) -> str:
        """Connection string for a new connection, with the known primary's host first."""
        if self._seeker.role is Role.PRIMARY and not self._hosts.is_settled:
            await self.seek()
        return self._hosts.conninfo

    async def seek(self, *, deadline: float | None = None) -> bool:
        """Find the host; concurrent callers share one search.

        Args:
            deadline: Event-loop time at which the wait ends.

        Returns:
            Whether the server is up.
        """
        search = self._search
        if search is None or search.done():
            search = self._search = self._seeker.spawn(self._search_hosts())
        # Cancelling the search, by closing the pool, must not cancel the callers, nor the other way round.
        await asyncio.wait((search,), timeout=None if deadline is None else deadline - search.get_loop().time())
        return self._seeker.is_up

    def hear_of(self, timeline: int) -> bool:
        """A newer timeline was reported: look for its primary in the background.

        Returns:
            Whether it was unknown.
        """
        is_news = self._is_news(timeline)
        if is_news:
            self._seeker.spawn(self.seek())
        return is_news

    async def look_for(self, timeline: int, *, deadline: float | None) -> None:
        """A newer timeline was reported: look for its primary. Raises nothing.

        Args:
            timeline: The reported timeline.
            deadline: Event-loop time at which the wait ends.
        """
        if self._is_news(timeline) or (self.is_searching and timeline > self._seeker.timeline):
            await self.seek(deadline=deadline)

    def _is_news(self, timeline: int) -> bool:
        """Whether a search is worthwhile: the timeline is newer than the known one, and was not looked for recently."""
        now = asyncio.get_running_loop().time()
        heard, heard_at = self._heard_of
        if timeline <= self._seeker.timeline or not self._seeker.timeline or not self._seeker.is_open:
            return False
        if timeline <= heard and now - heard_at < _HEARSAY_PAUSE_S:
            return False
        self._heard_of = (timeline, now)
        return True

    async def _search_hosts(self) -> None:
        """Query the role of all hosts at once; of those that take writes, the newest timeline wins."""
        self._seeker.search_begins()
        try:
            await self._ask_hosts()
        finally:
            self.searched_at = asyncio.get_running_loop().time()
            self._seeker.search_ends()

    async def _ask_hosts(self) -> None:
        hosts = self._hosts
        indexes = range(hosts.count) if self._seeker.role is Role.PRIMARY else (None,)
        found: list[tuple[Bearing, int | None]] = []
        failures: list[str] = []
        visits = {asyncio.create_task(self._visit(index)): index for index in indexes}
        try:
            pending = set(visits)
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=GRACE_S if found else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    try:
                        found.append((task.result(), visits[task]))
                    except Error as error:
                        failures.append(str(error))
        finally:
            for task in visits:
                if not task.cancel() and not task.cancelled():
                    task.exception()
        if not found:
            hosts.unsettle()
            self._seeker.note_failure(OperationalError("; ".join(dict.fromkeys(failures))))
            return
        bearing = writer_of([bearing for bearing, _ in found])
        index = next(index for its, index in found if its is bearing)
        if index is not None:
            hosts.lead_with(index)
        self.arrived(bearing, hosts.address(index or 0))

    async def _visit(self, index: int | None) -> Bearing:
        """Query the role of a host.

        Raises:
            psycopg.Error: It cannot be reached, or has the wrong role.
        """
        target = self._target
        if index is not None:
            host, port = self._hosts.address(index)
            target = replace(target, conninfo=self._hosts.alone(index), host=host, port=port)
        bearing = await visit(self._seeker, target, self._questions)
        reason = self.reason_against(bearing)
        if reason is not None:
            raise OperationalError(f"{target.host}:{target.port}: {reason}")
        return bearing

    # -- check of a connection

    async def ask(self, connection: PsycopgConnection) -> Pipeline:
        """Query a new connection's timeouts, and a primary's role and timeline.

        One round trip; a second one if the server lacks the functions.
        """
        loop = asyncio.get_running_loop()
        is_primary = self._seeker.role is Role.PRIMARY
        while True:
            questions = (ASK_TIMEOUTS, self._questions[0]) if is_primary else (ASK_TIMEOUTS, *self._identity)
            exchange = await connection.exchange(questions, deadline=loop.time() + self._seeker.check_limit_s)
            is_last = len(self._questions) == 1 if is_primary else not self._identity
            if is_last or not is_unknown_there(exchange.error):
                return exchange
            if is_primary:
                self._questions = self._questions[1:]
            else:
                self._identity = ()

    def judge(self, connection: PsycopgConnection, exchange: Pipeline) -> str | None:
        """Evaluate the answer of a new connection to `ask`.

        Returns:
            Why the server has the wrong role, with its address; None if it has the right one.
        """
        if self._seeker.role is not Role.PRIMARY:
            connection.leads_to = exchange.value(1) if self._identity else None
            self.arrived(Bearing(), (self._seeker.address, self._seeker.port))
            return None
        bearing = read_bearing(exchange.results[1])
        address = self._address_of(connection)
        reason = self.reason_against(bearing)
        if reason is not None:
            self._hosts.unsettle()
            return f"{address[0]}:{address[1]}: {reason}"
        connection.timeline = bearing.timeline
        connection.incarnation = bearing.incarnation
        self.arrived(bearing, address)
        return None

    def reason_against(self, bearing: Bearing) -> str | None:
        """Why a server has the wrong role; None if it has the right one."""
        if self._seeker.role is not Role.PRIMARY:
            return None
        if bearing.is_standby:
            return "it is a standby and takes no writes"
        if 0 < bearing.timeline < self._seeker.timeline and not bearing.is_of_another_cluster(self._system):
            return (
                f"a failover has left it behind: it writes timeline {bearing.timeline}, and {self._seeker.timeline} has"
                " begun elsewhere. Take it out of service; where it was restored from a backup, restart the application"
            )
        return None

    def arrived(self, bearing: Bearing, address: tuple[str, int]) -> None:
        """A server with the right role was found."""
        if self._seeker.role is Role.PRIMARY:
            is_other = bearing.is_of_another_cluster(self._system)
            if is_other or bearing.timeline > self._seeker.timeline:
                had_one, self._seeker.timeline = self._seeker.timeline, bearing.timeline
                if had_one:
                    log_decision(
                        logger,
                        logging.WARNING,
                        "failover",
                        "%s: writes go to %s:%d from now on, timeline %d",
                        self._seeker.full_name,
                        *address,
                        bearing.timeline,
                        fields=self._seeker.named,
                    )
                    self._seeker.cut_left_behind(is_other=is_other)
            self._system = bearing.system or self._system
        self._seeker.arrived(address)

    def _address_of(self, connection: PsycopgConnection) -> tuple[str, int]:
        """Address of the host that a connection leads to; it is tried first from now on."""
        pgconn = connection.pgconn
        index = self._hosts.find(pgconn.host.decode(), pgconn.hostaddr.decode(), pgconn.port.decode())
        if index is None:
            return self._seeker.address, self._seeker.port
        if not self._hosts.is_settled:
            self._hosts.lead_with(index)
        return self._hosts.address(index)
