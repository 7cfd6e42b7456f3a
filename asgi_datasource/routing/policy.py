"""What the configuration says about the choice of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Balance(StrEnum):
    """How reads are spread over the replicas that may answer."""

    ROUND_ROBIN = "round_robin"
    """They take turns."""
    WEIGHTED = "weighted"
    """They take turns by weight."""
    LEAST_BUSY = "least_busy"
    """The one with the fewest borrowed connections for its weight."""
    NEAREST = "nearest"
    """Those whose answers come soonest take turns."""


class NoReplica(StrEnum):
    """Who answers reads when no replica may."""

    PRIMARY = "primary"
    """The primary stands in."""
    FAIL = "fail"
    """Nobody: the primary is spared."""
    STALE = "stale"
    """The primary; when that is down, a replica although it lags."""


class Consistency(StrEnum):
    """What a read must see across requests; inside a request it always sees the request's own writes."""

    STRONG = "strong"
    """Everything that was committed anywhere: the primary answers."""
    SESSION = "session"
    """The client's own writes, and no older state than it has seen before."""
    TOKEN = "token"  # noqa: S105 - a word of the configuration
    """The client's own writes."""
    EVENTUAL = "eventual"
    """Whatever the server has; the client's token is not looked at."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How fresh a read has to be.

    Attributes:
        consistency: What it must see of the client's past; None is what the configuration says of all.
        max_lag_s: How old its data may be, in seconds; None is what the datasource says.
        is_strong: Whether the primary was asked for.
    """

    consistency: Consistency | None = None
    max_lag_s: float | None = None
    is_strong: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_strong", self.consistency is Consistency.STRONG)


ANY_FRESHNESS: Final = Freshness()


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """How a datasource's servers are chosen from.

    Attributes:
        balance: How reads are spread.
        max_lag_s: How old the data of a read may be, in seconds; None sets no bound.
        no_replica: Who answers when no replica may.
        zone: Where this process runs; replicas of the same zone go first.
        warmup_s: Seconds in which a server that came back gets back to its whole share.
        check_interval_s: Seconds between two questions to each server how it is.
        reach_s: Seconds for which the primary's positions are remembered.
    """

    balance: Balance = Balance.ROUND_ROBIN
    max_lag_s: float | None = None
    no_replica: NoReplica = NoReplica.PRIMARY
    zone: str | None = None
    warmup_s: float = 0.0
    check_interval_s: float = 1.0
    reach_s: float = 600.0
