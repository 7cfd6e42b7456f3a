"""What relays have done, and how much is left to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from .vacuum import SnapshotWatch


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
        snapshot_of: What holds the oldest snapshot of the database, where it was there for two looks.
        snapshot_s: Age of that snapshot; rows that were deleted since cannot be removed.
        measured_at: When these six were read; None: not yet.
        failure: Why the database does not answer; None while it does.
        snapshots: Watches the oldest snapshot.
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
    snapshot_of: str | None = None
    snapshot_s: float = 0.0
    measured_at: datetime | None = None
    failure: str | None = None
    snapshots: SnapshotWatch = field(default_factory=SnapshotWatch, repr=False)
