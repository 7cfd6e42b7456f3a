"""The one tree of errors, and the table that maps a SQLSTATE to a kind.

Every failure of the data layer reaches the handler as a `DataError`: classified once, with the driver's exception as
`__cause__`. Match on `kind` with a default branch: kinds may be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class DataErrorKind(StrEnum):
    """Kind of a failure: decides the response's status and whether a retry can help."""

    CONFIG = "config"
    """The configuration is wrong; the application does not start."""
    TENANT = "tenant"
    """The tenant is missing, unknown, suspended or not allowed here."""
    CONNECTION = "connection"
    """No connection could be made, or the one in use was lost."""
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
    VALUE = "value"
    """A value is out of range, malformed, or cannot be encoded (SQLSTATE class 22 but 22023)."""
    CLOSED = "closed"
    """The handle outlived its request."""
    COMMIT_UNKNOWN = "commit_unknown"
    """The connection was lost during COMMIT, and no server could tell whether the transaction was committed."""
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
    DataErrorKind.VALUE: 422,
    DataErrorKind.CLOSED: 500,
    DataErrorKind.COMMIT_UNKNOWN: 500,
    DataErrorKind.OTHER: 500,
}
"""Status of the response to an error, where neither the error nor the configuration sets another one."""


class DataError(Exception):
    """Raised when the data layer cannot do what was requested; `kind` says why.

    Args:
        kind: Kind of the failure.
        message: What happened, where, and what to do. Holds no password, token, bind value or connection string.
        sqlstate: The server's five-character SQLSTATE, if it sent one (PostgreSQL manual, appendix A).
        http_status: Status of the problem response, where it differs from the kind's.
        is_retryable: Whether the same work in a new transaction may succeed; by default decided by the kind.
        constraint, table, column: The objects that the server named in a constraint violation.
        server: The address of the server, as `host:port`. The message does not contain it, because applications show
            and report messages; the library's log lines do.
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
        server: str | None = None,
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
        self.server = server

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind.value!r}, message={self.message!r}, sqlstate={self.sqlstate!r})"

    def __str__(self) -> str:
        return self.message

    @property
    def located_message(self) -> str:
        """The message with the address of the server, for logs and the command line."""
        return self.message if self.server is None else f"{self.message} [{self.server}]"


RETRYABLE_KINDS: Final = frozenset(
    {DataErrorKind.CONNECTION, DataErrorKind.RESOURCE, DataErrorKind.TIMEOUT, DataErrorKind.CONFLICT}
)


class SessionClosed(DataError):
    """Raised when a session, or an object obtained from it, is used after its request or block has ended."""

    def __init__(self, message: str) -> None:
        super().__init__(DataErrorKind.CLOSED, message)


class UnexpectedRollback(DataError):
    """Raised when a commit was requested but the transaction could only be rolled back.

    The usual cause is a statement that failed and whose error was caught: PostgreSQL ignores everything in that
    transaction from then on. Wrap what may fail in `async with db.transaction():`, a savepoint.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(DataErrorKind.OTHER, message, sqlstate=sqlstate)


class CommitUnknown(DataError):
    """Raised when the connection was lost during COMMIT and no server could tell whether it took effect."""

    def __init__(self, message: str, *, server: str | None = None) -> None:
        super().__init__(DataErrorKind.COMMIT_UNKNOWN, message, server=server)


@dataclass(frozen=True, slots=True)
class Classification:
    """One row of the SQLSTATE table."""

    kind: DataErrorKind
    is_retryable: bool = False
    http_status: int | None = None
    """Status, where it differs from the kind's."""


_CONNECTION: Final = Classification(DataErrorKind.CONNECTION, is_retryable=True)
_CONNECTION_FINAL: Final = Classification(DataErrorKind.CONNECTION)
_TIMEOUT: Final = Classification(DataErrorKind.TIMEOUT)
_CONFLICT: Final = Classification(DataErrorKind.CONFLICT, is_retryable=True)
_CONSTRAINT: Final = Classification(DataErrorKind.CONSTRAINT)
_CONSTRAINT_INPUT: Final = Classification(DataErrorKind.CONSTRAINT, http_status=422)
_QUERY: Final = Classification(DataErrorKind.QUERY)
_VALUE: Final = Classification(DataErrorKind.VALUE)
_RESOURCE: Final = Classification(DataErrorKind.RESOURCE)
_IN_DOUBT: Final = Classification(DataErrorKind.COMMIT_UNKNOWN)
_OTHER: Final = Classification(DataErrorKind.OTHER)

SQLSTATE_TABLE: Final[dict[str, Classification]] = {
    "08": _CONNECTION,
    "08007": _IN_DOUBT,
    "08P01": _CONNECTION_FINAL,
    "0A000": _QUERY,
    # An invalid value of a setting, or of a function's option: a mistake of the configuration or the statement.
    "22023": _QUERY,
    "22": _VALUE,
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
    """The driver's description of a failed statement, in plain values.

    Attributes:
        sqlstate: Five characters; None for failed connects and lost connections.
        is_broken: The connection is unusable.
        in_recovery: The server reported that it is a hot standby.
        is_write: The statement ran with write intent, in a transaction that the library did not make READ ONLY.
    """

    sqlstate: str | None
    is_broken: bool
    in_recovery: bool = False
    is_write: bool = False


def classify(detail: ErrorDetail) -> Classification:
    """Classify a failure by SQLSTATE and connection state, never by its message, which is localised.

    Args:
        detail: The driver's description of the failure.

    Returns:
        The row of the longest matching SQLSTATE prefix; without one, CONNECTION when the connection is gone.

    Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
    """
    state = detail.sqlstate
    if state is None:
        return _CONNECTION if detail.is_broken else _QUERY
    if state == "25006" or (state == "55000" and detail.in_recovery):
        # With write intent the server is a standby or fenced: a failover, not a mistake of the caller.
        return _CONNECTION if detail.is_write else SQLSTATE_TABLE["25006"]
    for length in range(5, 1, -1):
        found = SQLSTATE_TABLE.get(state[:length])
        if found is not None:
            # 40001 can arrive with a lost connection: it stays a conflict.
            return found
    return _CONNECTION if detail.is_broken else _OTHER


class ClientDisconnected(DataError):
    """Raised by a statement whose request's client has disconnected; the transaction is rolled back."""

    def __init__(self) -> None:
        super().__init__(DataErrorKind.CLOSED, "the client has disconnected; the request's transaction is rolled back")


class ConfigError(DataError):
    """Raised when the configuration cannot be used; the message lists every problem found, one a line."""

    def __init__(self, message: str) -> None:
        super().__init__(DataErrorKind.CONFIG, message)
