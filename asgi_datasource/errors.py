"""The one tree of errors, and the table that turns a SQLSTATE into a kind.

Everything that can go wrong below the handler reaches it as a `DataError`: classified once, with the driver's
exception as `__cause__`. Match on `kind` with a default branch: kinds may be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class DataErrorKind(StrEnum):
    """What kind of failure this is: decides the answer's status and whether a new try can help."""

    CONFIG = "config"
    """The configuration is wrong; the application does not start."""
    TENANT = "tenant"
    """The tenant is missing, unknown, suspended or not allowed here."""
    CONNECTION = "connection"
    """No connection to be had, or the one in use was lost."""
    RESOURCE = "resource"
    """A limit was reached: the pool's queue, the server's connections, memory or disk."""
    TIMEOUT = "timeout"
    """A statement, a transaction or the request ran out of time."""
    CONFLICT = "conflict"
    """Serialization failure, deadlock, or a lock that was not available."""
    CONSTRAINT = "constraint"
    """The data breaks a constraint (SQLSTATE class 23)."""
    READ_ONLY = "read_only"
    """A write was sent with read intent."""
    QUERY = "query"
    """The statement is wrong, or was sent where it cannot run."""
    CLOSED = "closed"
    """The handle outlived its request."""
    COMMIT_UNKNOWN = "commit_unknown"
    """The connection was lost during COMMIT and nobody could tell whether it took effect."""
    OTHER = "other"
    """Anything else."""


HTTP_STATUS: Final[dict[DataErrorKind, int]] = {
    DataErrorKind.CONFIG: 500,
    DataErrorKind.TENANT: 404,
    DataErrorKind.CONNECTION: 503,
    DataErrorKind.RESOURCE: 503,
    DataErrorKind.TIMEOUT: 504,
    DataErrorKind.CONFLICT: 409,
    DataErrorKind.CONSTRAINT: 409,
    DataErrorKind.READ_ONLY: 500,
    DataErrorKind.QUERY: 500,
    DataErrorKind.CLOSED: 500,
    DataErrorKind.COMMIT_UNKNOWN: 500,
    DataErrorKind.OTHER: 500,
}
"""The status that answers an error of a kind where neither the error nor the configuration says otherwise."""


class DataError(Exception):
    """Raised when the data layer cannot do what was asked; `kind` says why.

    Args:
        kind: What kind of failure this is.
        message: What happened, where, and what to do. Holds no password, token, bind value or connection string.
        sqlstate: The server's five-character SQLSTATE, where there was one (PostgreSQL manual, appendix A).
        http_status: The status of the problem answer, where the kind's own does not fit.
        is_retryable: Whether the same work in a new transaction may succeed; by default decided by the kind.
        constraint, table, column: What the server named as the culprit of a constraint violation.
    """

    def __init__(
        self,
        kind: DataErrorKind,
        message: str,
        *,
        sqlstate: str | None = None,
        http_status: int | None = None,
        is_retryable: bool | None = None,
        constraint: str | None = None,
        table: str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.sqlstate = sqlstate
        self.http_status = HTTP_STATUS[kind] if http_status is None else http_status
        self.is_retryable = kind in RETRYABLE_KINDS if is_retryable is None else is_retryable
        self.constraint = constraint
        self.table = table
        self.column = column

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind.value!r}, message={self.message!r}, sqlstate={self.sqlstate!r})"

    def __str__(self) -> str:
        return self.message


RETRYABLE_KINDS: Final = frozenset(
    {DataErrorKind.CONNECTION, DataErrorKind.RESOURCE, DataErrorKind.TIMEOUT, DataErrorKind.CONFLICT}
)


class SessionClosed(DataError):
    """Raised when a session, or anything got from it, is used after its request or block has ended."""

    def __init__(self, message: str) -> None:
        super().__init__(DataErrorKind.CLOSED, message)


class UnexpectedRollback(DataError):
    """Raised when a commit was asked for but the transaction could only be rolled back.

    The usual cause is a statement that failed and whose error was caught: PostgreSQL ignores everything in that
    transaction from then on. Wrap what may fail in `async with db.transaction():`, a savepoint.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(DataErrorKind.OTHER, message, sqlstate=sqlstate)


class CommitUnknown(DataError):
    """Raised when the connection was lost during COMMIT and no server could tell whether it took effect."""

    def __init__(self, message: str) -> None:
        super().__init__(DataErrorKind.COMMIT_UNKNOWN, message)


@dataclass(frozen=True, slots=True)
class Classification:
    """One row of the SQLSTATE table."""

    kind: DataErrorKind
    is_retryable: bool = False
    http_status: int | None = None
    """Where it differs from the kind's own."""


_CONNECTION: Final = Classification(DataErrorKind.CONNECTION, is_retryable=True)
_CONNECTION_FINAL: Final = Classification(DataErrorKind.CONNECTION)
_TIMEOUT: Final = Classification(DataErrorKind.TIMEOUT)
_CONFLICT: Final = Classification(DataErrorKind.CONFLICT, is_retryable=True)
_CONSTRAINT: Final = Classification(DataErrorKind.CONSTRAINT)
_CONSTRAINT_INPUT: Final = Classification(DataErrorKind.CONSTRAINT, http_status=422)
_QUERY: Final = Classification(DataErrorKind.QUERY)
_RESOURCE: Final = Classification(DataErrorKind.RESOURCE)
_IN_DOUBT: Final = Classification(DataErrorKind.COMMIT_UNKNOWN)
_OTHER: Final = Classification(DataErrorKind.OTHER)

SQLSTATE_TABLE: Final[dict[str, Classification]] = {
    "08": _CONNECTION,
    "08007": _IN_DOUBT,
    "08P01": _CONNECTION_FINAL,
    "0A000": _QUERY,
    "22": _QUERY,
    "23": _CONSTRAINT_INPUT,
    "23001": _CONSTRAINT,
    "23503": _CONSTRAINT,
    "23505": _CONSTRAINT,
    "23P01": _CONSTRAINT,
    "25": _QUERY,
    "25006": Classification(DataErrorKind.READ_ONLY),
    "25P03": _TIMEOUT,
    "25P04": _TIMEOUT,
    "26000": _QUERY,
    "28": _CONNECTION_FINAL,
    "3D000": _CONNECTION_FINAL,
    "40001": _CONFLICT,
    "40002": _CONSTRAINT_INPUT,
    "40003": _IN_DOUBT,
    "40P01": _CONFLICT,
    "42": _QUERY,
    "44000": _CONSTRAINT_INPUT,
    "53": _RESOURCE,
    "53300": Classification(DataErrorKind.RESOURCE, is_retryable=True),
    "54": _QUERY,
    "55P03": _CONFLICT,
    "57014": _TIMEOUT,
    "57P01": _CONNECTION,
    "57P02": _CONNECTION,
    "57P03": _CONNECTION,
    "57P04": _CONNECTION_FINAL,
    "57P05": _CONNECTION,
    "58030": _RESOURCE,
    "72000": _CONFLICT,
    "P0": _QUERY,
}
"""SQLSTATE, or a prefix of it, to its classification; the longest prefix wins (PostgreSQL manual, appendix A)."""


NO_PLACE: Final = "asgi-datasource: the tenant has no schema here"
"""A name that no schema has. A tenant's set-up asks the server for it where the tenant's own schema is not to be had:
this text in an error 3F000 tells that from all others."""


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What the driver knows of a failed statement, in plain values.

    Attributes:
        sqlstate: Five characters, or None: connect failures and lost connections have none.
        is_broken: The connection is unusable.
        in_recovery: The server said that it is a hot standby.
        is_write: It ran with write intent, in a transaction that was not READ ONLY by our doing.
    """

    sqlstate: str | None
    is_broken: bool
    in_recovery: bool = False
    is_write: bool = False


def classify(detail: ErrorDetail) -> Classification:
    """Classify a failure by SQLSTATE and connection state, never by its message: messages are localised.

    Args:
        detail: What the driver knows of the failure.

    Returns:
        The row of the longest matching SQLSTATE prefix; without one, CONNECTION when the connection is gone.

    Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
    """
    state = detail.sqlstate
    if state is None:
        return _CONNECTION if detail.is_broken else _QUERY
    if state == "25006" or (state == "55000" and detail.in_recovery):
        # With write intent the server is a standby or fenced, a failover and not the caller's mistake.
        return _CONNECTION if detail.is_write else SQLSTATE_TABLE["25006"]
    for length in range(5, 1, -1):
        found = SQLSTATE_TABLE.get(state[:length])
        if found is not None:
            # 40001 can arrive with a connection that is gone: the kind stays, only the connection is lost with it.
            return found
    return _CONNECTION if detail.is_broken else _OTHER


class ClientDisconnected(DataError):
    """Raised from a statement whose request's client has gone away; the transaction is rolled back."""

    def __init__(self) -> None:
        super().__init__(DataErrorKind.CLOSED, "the client has disconnected; the request's transaction is rolled back")


class ConfigError(DataError):
    """Raised when the configuration cannot be used; the message lists every problem found, one a line."""

    def __init__(self, message: str) -> None:
        super().__init__(DataErrorKind.CONFIG, message)
