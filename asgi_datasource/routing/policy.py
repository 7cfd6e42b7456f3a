"""Configured policies of server choice and read consistency."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Balance(StrEnum):
    """How reads are spread over the replicas that qualify."""

    ROUND_ROBIN = "round_robin"
    """In turn."""
    WEIGHTED = "weighted"
    """In turn, by weight."""
    LEAST_BUSY = "least_busy"
    """To the replica with the fewest borrowed connections for its weight."""
    NEAREST = "nearest"
    """In turn among those with the lowest round-trip time."""


class NoReplica(StrEnum):
    """What answers reads when no replica qualifies."""

    PRIMARY = "primary"
    """The primary."""
    FAIL = "fail"
    """Reads fail: the primary is reserved for writes."""
    STALE = "stale"
    """The primary; when it is down, a replica even if it lags."""


class Consistency(StrEnum):
    """What a read must see across requests; within a request it always sees the request's own writes."""

    STRONG = "strong"
    """Everything committed anywhere: the primary answers."""
    SESSION = "session"
    """The client's own writes, and no older state than it has seen before."""
    TOKEN = "token"  # noqa: S105 - a word of the configuration
    """The client's own writes."""
    EVENTUAL = "eventual"
    """Any state; the client's token is ignored."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """Required freshness of a read.

    Attributes:
        consistency: Consistency across requests; None uses the configured default.
        max_lag_s: Maximum age of the data in seconds; None uses the datasource's bound.
        is_strong: Whether the primary is required.
    """

    consistency: Consistency | None = None
    max_lag_s: float | None = None
    is_strong: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_strong", self.consistency is Consistency.STRONG)


ANY_FRESHNESS: Final = Freshness()


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """Policy of a datasource's server choice.

    Attributes:
        balance: How reads are spread over replicas.
        max_lag_s: Maximum age of the data of a read in seconds; None sets no bound.
        no_replica: What answers when no replica qualifies.
        zone: Zone of this process; replicas in the same zone are preferred.
        warmup_s: Seconds in which a server that came back returns to its full share.
        check_interval_s: Seconds between two health checks of each server.
        reach_s: Seconds for which the primary's positions are kept.
    """

    balance: Balance = Balance.ROUND_ROBIN
    max_lag_s: float | None = None
    no_replica: NoReplica = NoReplica.PRIMARY
    zone: str | None = None
    warmup_s: float = 0.0
    check_interval_s: float = 1.0
    reach_s: float = 600.0
