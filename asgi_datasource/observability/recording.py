"""What a session records while it runs: the interface of metrics and of the console's activity.

A session has one recorder or None. Without metrics and without a console it is None, and nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .names import AttributeValue
from .summary import Analysis


class RecordedPool(Protocol):
    """A server's pool, as recorders name it."""

    @property
    def datasource(self) -> str:
        """The datasource's name."""
        ...

    @property
    def name(self) -> str:
        """The server's name."""
        ...

    @property
    def full_name(self) -> str:
        """Datasource and server: `orders.primary`."""
        ...

    @property
    def dimensions(self) -> Mapping[str, AttributeValue]:
        """Attributes that identify it in metrics."""
        ...


class RecordedConnection(Protocol):
    """A borrowed connection, as recorders see it."""

    backend_pid: int
    """Process id of the server process."""
    is_shared: bool
    """It is a part of a connection that other reads use."""

    @property
    def began_at(self) -> float | None:
        """`perf_counter` time at which the reads in front of its read were done; None if there were none."""
        ...

    @property
    def is_in_transaction(self) -> bool:
        """Inside a transaction that has not failed."""
        ...

    @property
    def has_failed_transaction(self) -> bool:
        """Inside a failed transaction, which only a rollback can end."""
        ...


class UseRecorder(Protocol):
    """The time between borrowing a connection and returning it."""

    def end(self) -> None:
        """The connection was returned."""
        ...


class SessionRecorder(Protocol):
    """Records what one session does."""

    def chose(self, decision: Mapping[str, AttributeValue]) -> None:
        """A server was chosen for a statement; datasource, node, role and reason, by their attribute names."""
        ...

    def lent(self, pool: Any, waited_s: float, connection: RecordedConnection) -> UseRecorder:
        """A connection was borrowed after `waited_s` seconds; call `end` of the result when it returns."""
        ...

    def refused(self, pool: Any, error: Exception) -> None:
        """No connection could be borrowed."""
        ...

    def ran(self, pool: Any, statement: Analysis, took_s: float, failure: BaseException | None, rows: int = -1) -> None:
        """A statement or command was sent, and answered or given up after `took_s` seconds."""
        ...

    def ended(self, datasource: str, outcome: str) -> None:
        """A transaction has ended: `committed`, `rolled_back` or `unknown`."""
        ...

    def used_late(self, datasource: str) -> None:
        """A session was used after its end."""
        ...


class Recorder(Protocol):
    """Makes the recorder of each session."""

    def measure(self, tenant: str | None, scope: Mapping[str, Any] | None = None) -> SessionRecorder:
        """The recorder of a session.

        Args:
            tenant: The tenant's name; None for requests without one.
            scope: The ASGI scope of its request; None outside of requests.
        """
        ...
