"""What relays have done, and how much is left to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class RelayStats:
    """The numbers of one database, as the relay of this process sees them.

    Attributes:
        name: The database.
        published, refused, unreachable: How often a message was published, refused, and found its destination away.
        acknowledged: Published messages that were taken out of the outbox.
        leases_lost: Lanes that another relay has taken while this one owned them.
        lanes: Lanes that this relay owns.
        backlog: Events that wait, counted up to 100,000.
        oldest_s: Age of the oldest of them.
        held, dead: Events of keys that wait for a refused one, and dead ones.
        measured_at: When these four were read; None: not yet.
    """

    name: str
    published: int = 0
    refused: int = 0
    unreachable: int = 0
    acknowledged: int = 0
    leases_lost: int = 0
    lanes: int = 0
    backlog: int = 0
    oldest_s: float = 0.0
    held: int = 0
    dead: int = 0
    measured_at: datetime | None = None
