"""The facts about one server that the queries find."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ...config import DiagnosticPath
from ...drivers.settings import ServerSettings
from ...outbox.vacuum import OutboxFault
from ...tenancy import Finding


class PoolerMode(StrEnum):
    """The mode of a pooler between this machine and the server."""

    NONE = "none"
    """There is no pooler."""
    SESSION = "session"
    """A server connection for each client connection."""
    TRANSACTION = "transaction"
    """A server connection for each transaction."""
    STATEMENT = "statement"
    """A server connection for each statement; transactions are refused."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to query.

    Attributes:
        datasource: The datasource's name.
        node: `primary`, or the replica's name.
        tenant: The tenant of the database, where each tenant has its own.
        most_pools: Most pools of one process to this server.
        path: The path of its URL in the document.
        settings: Its connection settings.
    """

    datasource: str
    node: str
    path: DiagnosticPath
    settings: ServerSettings
    tenant: str | None = None
    most_pools: int = 1

    @property
    def is_primary(self) -> bool:
        """Whether it is the datasource's primary."""
        return self.node == "primary"

    def __str__(self) -> str:
        suffix = "" if self.tenant is None else f" of {self.tenant}"
        return f"{self.datasource}/{self.node}{suffix}"


@dataclass(slots=True)
class Facts:
    """The facts about one server.

    Attributes:
        target: The server.
        failure: Why it could not be queried; None when it could.
        unanswered: Messages of queries that failed.
        version: `server_version_num`.
        is_standby: Whether it is in recovery.
        system_id: The cluster's identifier, which all of its standbys share.
        position: The position that it has written or replayed, in bytes of WAL.
        behind: Bytes of WAL that a replica had not replayed at the end of the wait; None for a primary.
        is_ahead: Whether a replica has replayed WAL that its primary has not written: it follows another server.
        is_paused: Whether replay is paused.
        most_connections: Most connections of this login.
        clock_offset_s: How far its clock is ahead of this machine's.
        clock_error_s: The uncertainty of the offset: half of the round trip.
        pooler: The pooler in between.
        is_in_the_clear: Whether the connection crosses a network without TLS.
        servers: What identifies each server that its connections have led to.
        holes: Holes in the isolation of tenants.
        outbox: What is wrong with the tables of the outbox.
    """

    target: Target
    failure: str | None = None
    unanswered: list[str] = field(default_factory=list[str])
    version: int = 0
    is_standby: bool | None = None
    system_id: int | None = None
    position: int | None = None
    behind: int | None = None
    is_ahead: bool = False
    is_paused: bool = False
    most_connections: int | None = None
    clock_offset_s: float = 0.0
    clock_error_s: float = 0.0
    pooler: PoolerMode = PoolerMode.NONE
    is_in_the_clear: bool = False
    servers: set[str] = field(default_factory=set[str])
    holes: list[Finding] = field(default_factory=list[Finding])
    outbox: list[OutboxFault] = field(default_factory=list[OutboxFault])
