"""What is known of one server after it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ...config import DiagnosticPath
from ...drivers.settings import ServerSettings
from ...tenancy import Finding


class PoolerMode(StrEnum):
    """How a pooler between this machine and the server hands out the server's connections."""

    NONE = "none"
    """There is no pooler."""
    SESSION = "session"
    """One server connection for one client, as long as it stays."""
    TRANSACTION = "transaction"
    """One for a transaction."""
    STATEMENT = "statement"
    """One for a statement: transactions are refused."""


@dataclass(frozen=True, slots=True)
class Target:
    """One server to ask.

    Attributes:
        datasource: The datasource's name.
        node: `primary`, or the replica's name.
        tenant: Whose database is asked, where each has its own.
        most_pools: How many pools to this server one process may have.
        path: Its URL's place in the document.
        settings: How it is reached.
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
        whose = "" if self.tenant is None else f" of {self.tenant}"
        return f"{self.datasource}/{self.node}{whose}"


@dataclass(slots=True)
class Facts:
    """What one server told.

    Attributes:
        target: Which one.
        failure: Why it could not be asked; None when it could.
        unanswered: Questions it did not answer, with its words.
        version: `server_version_num`.
        is_standby: Whether it is in recovery.
        system_id: The cluster's identifier, which all of its standbys share.
        position: How far it has written, or replayed, in bytes of WAL.
        behind: Bytes of WAL that a replica had not replayed when the wait for it was over; None for a primary.
        is_ahead: Whether a replica has replayed what its primary has not written: it replays somebody else's WAL.
        is_paused: Whether replay is paused.
        most_connections: How many connections this login may have there.
        address: The server's own address and port, the same for all ways that lead to it.
        clock_offset_s: How far its clock is ahead of this machine's.
        clock_error_s: How far off that may be: half of the round trip.
        pooler: What stands in between.
        is_in_the_clear: Whether the connection crosses a network without TLS.
        holes: What is wrong with how tenants are kept apart.
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
    holes: list[Finding] = field(default_factory=list[Finding])
