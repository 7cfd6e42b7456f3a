"""Options of a transaction, and the rules that map outcomes to commit or rollback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, cast

from .propagation import Propagation

MAX_RETRIES: Final = 20
"""Upper bound of `retry`: more attempts do not resolve a conflict."""


class Isolation(StrEnum):
    """Transaction isolation (PostgreSQL manual, "Transaction Isolation")."""

    READ_COMMITTED = "read committed"
    REPEATABLE_READ = "repeatable read"
    SERIALIZABLE = "serializable"


OutcomeEntry = int | str | type[BaseException]
"""A status (409), a class of statuses ("4xx"), or an exception class."""

_STATUS_CLASS: Final = re.compile(r"([1-5])xx", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OutcomeRule:
    """A compiled set of outcomes: statuses and exception classes."""

    statuses: frozenset[int] = frozenset()
    exceptions: tuple[type[BaseException], ...] = ()

    @classmethod
    def of(cls, entries: Iterable[OutcomeEntry], *, where: str) -> OutcomeRule:
        """Compile entries as users write them.

        Args:
            entries: Statuses, classes of statuses such as "4xx", and exception classes.
            where: The option's name, for the error.

        Raises:
            ValueError: An entry is none of these.
        """
        statuses: set[int] = set()
        exceptions: list[type[BaseException]] = []
        for entry in entries:
            if isinstance(entry, type) and issubclass(cast("type[object]", entry), BaseException):
                exceptions.append(entry)
            elif isinstance(entry, int) and not isinstance(entry, bool) and 100 <= entry <= 599:
                statuses.add(entry)
            elif isinstance(entry, str) and (match := _STATUS_CLASS.fullmatch(entry)):
                first = int(match[1]) * 100
                statuses.update(range(first, first + 100))
            else:
                raise ValueError(
                    f"{where}: {entry!r} is not a status (409), a class of statuses ('4xx') or an exception class"
                )
        return cls(frozenset(statuses), tuple(exceptions))


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """The options of one `@transactional`, of one rule of the configuration, or of one block.

    Attributes:
        read_only: One READ ONLY transaction on one replica for all reads.
        isolation: None uses the server's default; REPEATABLE READ for read-only transactions.
        propagation: How it relates to a surrounding transaction.
        timeout_s: Seconds from the request's first byte (for a function: from its call) to the end of COMMIT.
        retry: Most retries after a conflict with another transaction; None inherits the surrounding option.
        deferrable: BEGIN waits for a snapshot that cannot cause a serialization failure.
        stream: A READ ONLY transaction of a route that lasts until the end of the response's body.
        commit_on: Outcomes that commit although the rules of outer levels would roll back.
        rollback_on: Outcomes that roll back although the rules of outer levels would commit.
    """

    read_only: bool = False
    isolation: Isolation | None = None
    propagation: Propagation = Propagation.REQUIRED
    timeout_s: float | None = None
    retry: int | None = None
    deferrable: bool = False
    stream: bool = False
    commit_on: OutcomeRule = OutcomeRule()
    rollback_on: OutcomeRule = OutcomeRule()

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout: {self.timeout_s!r} is not a positive number of seconds")
        if self.retry is not None and (isinstance(self.retry, bool) or not 0 <= self.retry <= MAX_RETRIES):
            raise ValueError(f"retry: {self.retry!r} is not a number of attempts between 0 and {MAX_RETRIES}")
        if self.deferrable and not (self.read_only and self.isolation is Isolation.SERIALIZABLE):
            raise ValueError(
                "deferrable: PostgreSQL has it for read-only serializable transactions alone; add read_only=True and"
                ' isolation="serializable"'
            )
        if self.stream and not self.read_only:
            raise ValueError(
                "stream: a transaction that writes has to end before the response starts; add read_only=True"
            )

    def commits(self, status: int) -> bool | None:
        """Whether a response of this status commits; None if these options do not decide."""
        if status in self.commit_on.statuses:
            return True
        if status in self.rollback_on.statuses:
            return False
        return None

    def decides(self, error: BaseException) -> bool | None:
        """Whether the transaction commits after this exception; None if these options do not decide."""
        if isinstance(error, self.rollback_on.exceptions):
            return False
        return True if isinstance(error, self.commit_on.exceptions) else None


@dataclass(frozen=True, slots=True)
class Terms:
    """Properties of a transaction, and what opens it.

    Attributes:
        is_shared: Writes share one transaction, which ends with its scope; otherwise each statement autocommits.
        read_only: READ ONLY.
        isolation: None uses the server's default.
        deferrable: BEGIN waits for a snapshot that cannot cause a serialization failure.
        opens_with_reads: A read opens it too: its reads belong to one snapshot, or decide what is written.
    """

    is_shared: bool
    read_only: bool = False
    isolation: Isolation | None = None
    deferrable: bool = False
    opens_with_reads: bool = field(init=False)

    def __post_init__(self) -> None:
        opens = self.is_shared and (self.read_only or self.isolation in ONE_SNAPSHOT)
        object.__setattr__(self, "opens_with_reads", opens)


ONE_SNAPSHOT: Final = frozenset({Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE})
"""Isolation levels in which all statements share one snapshot."""


def parse_isolation(value: Isolation | str | None) -> Isolation | None:
    """Parse an isolation level as users write it.

    Raises:
        ValueError: It is not one of the three.
    """
    if value is None:
        return None
    try:
        return Isolation(value.lower().replace("_", " "))
    except ValueError:
        levels = ", ".join(repr(level.value) for level in Isolation)
        raise ValueError(f"isolation: {value!r} is none of {levels}") from None


def parse_propagation(value: Propagation | str) -> Propagation:
    """Parse a propagation as users write it.

    Raises:
        ValueError: It is not one of the seven.
    """
    try:
        return Propagation(value.lower())
    except ValueError:
        names = ", ".join(repr(one.value) for one in Propagation)
        raise ValueError(f"propagation: {value!r} is none of {names}") from None
