"""The transactional outbox: events that leave exactly when their transaction did.

`writer.py` is `db.outbox`: it buffers events, and COMMIT's own round trip inserts them. `relay.py` delivers them, at
least once and in the order of their keys, through one of `publishers/`.
"""

from .entry import OutboxEntry
from .protocols import OutboxPublisher, OutboxRelay, OutboxStore, Outcome, OutcomeKind, Refused, Unreachable

__all__ = [
    "OutboxEntry",
    "OutboxPublisher",
    "OutboxRelay",
    "OutboxStore",
    "Outcome",
    "OutcomeKind",
    "Refused",
    "Unreachable",
]
