"""Which server: the intent, the pin, the picture of the servers, and the one function that chooses."""

from .breaker import Breaker, Event, Health, Pauses
from .choose import choose
from .intent import AccessIntent, intent_of_method
from .lag import Observation, Standing, Track, choose_interval, smooth
from .picture import Node, Picture, Reason, Role, Route
from .pin import ReadAfterWritePin
from .policy import ANY_FRESHNESS, Balance, Consistency, Freshness, NoReplica, RoutingPolicy
from .position import Lineage, Position, format_lsn, parse_lsn
from .token import NOTHING_SEEN, Mark, Token, TokenSigner, scope_of
from .verdict import MEANINGS, Asked, Judgement, Verdict, judge

__all__ = [
    "ANY_FRESHNESS",
    "MEANINGS",
    "NOTHING_SEEN",
    "AccessIntent",
    "Asked",
    "Balance",
    "Breaker",
    "Consistency",
    "Event",
    "Freshness",
    "Health",
    "Judgement",
    "Lineage",
    "Mark",
    "NoReplica",
    "Node",
    "Observation",
    "Pauses",
    "Picture",
    "Position",
    "ReadAfterWritePin",
    "Reason",
    "Role",
    "Route",
    "RoutingPolicy",
    "Standing",
    "Token",
    "TokenSigner",
    "Track",
    "Verdict",
    "choose",
    "choose_interval",
    "format_lsn",
    "intent_of_method",
    "judge",
    "parse_lsn",
    "scope_of",
    "smooth",
]
