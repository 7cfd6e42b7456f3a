"""Server choice: intent, pin, policy, the topology, and the one function that chooses."""

from .choose import choose
from .circuit_breaker import CircuitBreaker, Event, Health, Pauses
from .explain_choice import MEANINGS, Asked, Judgement, Verdict, judge
from .intent import AccessIntent, intent_of_method
from .pin import ReadAfterWritePin
from .policy import ANY_FRESHNESS, Balance, Consistency, Freshness, NoReplica, RoutingPolicy
from .position import Lineage, Position, format_lsn, parse_lsn
from .replication_lag import Observation, Standing, Track, choose_interval, smooth
from .topology import Node, Reason, Role, Route, Topology

__all__ = [
    "ANY_FRESHNESS",
    "MEANINGS",
    "AccessIntent",
    "Asked",
    "Balance",
    "CircuitBreaker",
    "Consistency",
    "Event",
    "Freshness",
    "Health",
    "Judgement",
    "Lineage",
    "NoReplica",
    "Node",
    "Observation",
    "Pauses",
    "Position",
    "ReadAfterWritePin",
    "Reason",
    "Role",
    "Route",
    "RoutingPolicy",
    "Standing",
    "Topology",
    "Track",
    "Verdict",
    "choose",
    "choose_interval",
    "format_lsn",
    "intent_of_method",
    "judge",
    "parse_lsn",
    "smooth",
]
