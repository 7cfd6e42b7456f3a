"""What keeps the outbox small: autovacuum soon after deliveries, and no old snapshot that forbids it to remove rows.

Source: PostgreSQL manual, "Routine Vacuuming"; `GetOldestNonRemovableTransactionId` for what holds rows back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, Protocol

SNAPSHOT_LIMIT_S: Final = 600.0
"""Seconds from which on a snapshot is worth a warning."""

HOLDER: Final[LiteralString] = """
select h.what, h.xid::text, h.age_s from (
    select 'the backend ' || a.pid || coalesce(' (' || nullif(a.application_name, '') || ')', '') as what,
        case when a.backend_xmin is null or age(a.backend_xid) > age(a.backend_xmin) then a.backend_xid
            else a.backend_xmin end as xid,
        extract(epoch from clock_timestamp() - a.xact_start)::float8 as age_s
    from pg_stat_activity a
    where a.pid <> pg_backend_pid() and (a.datid is null or a.datname = current_database())
        and coalesce(a.backend_xid, a.backend_xmin) is not null
        and not exists (select from pg_stat_progress_vacuum v where v.pid = a.pid)
    union all
    select 'the prepared transaction ' || quote_literal(p.gid), p.transaction,
        extract(epoch from clock_timestamp() - p.prepared)::float8
    from pg_prepared_xacts p where p.database = current_database()
    union all
    select 'the replication slot ' || s.slot_name, s.xmin, null from pg_replication_slots s where s.xmin is not null
) h order by age(h.xid) desc limit 1
"""
"""What holds back the oldest rows of this database, its transaction id, and its age in seconds where it is visible."""

_STORED: Final[LiteralString] = """
select c.relname::text, coalesce(c.reloptions, '{}')::text[], current_setting('autovacuum')::bool
from pg_class c where c.oid in (
    to_regclass('asgi_datasource.outbox'), to_regclass('asgi_datasource.outbox_lane'),
    to_regclass('asgi_datasource.outbox_relay'), to_regclass('asgi_datasource.outbox_held'))
"""

MOST_THRESHOLD: Final = 10_000
"""Dead rows from which on autovacuum has to look at a table of the outbox."""


@dataclass(frozen=True, slots=True)
class OutboxFault:
    """Something about the tables of an outbox that needs a look.

    Attributes:
        is_missing: The tables are not there; otherwise dead rows stay.
        message: What is wrong, without naming the server.
        fix: What to do.
    """

    is_missing: bool
    message: str
    fix: str


class Ask(Protocol):
    """Runs a query and returns its rows."""

    async def __call__(self, sql: LiteralString, /) -> Sequence[tuple[Any, ...]]:
        """The rows of a query."""
        ...


async def find_faults(ask: Ask) -> list[OutboxFault]:
    """What is wrong with the tables of the outbox in a database.

    Args:
        ask: Runs a query on the primary.
    """
    tables = await ask(_STORED)
    if "outbox" not in {name for name, *_ in tables}:
        fix = "Run `asgi-datasource migrate apply --config FILE`."
        return [OutboxFault(True, "the tables of the outbox are missing", fix)]
    found = [fault for name, options, is_on in tables if (fault := _unvacuumed(name, options, is_on=is_on))]
    for what, _, age_s in await ask(HOLDER):
        if age_s is not None and age_s > SNAPSHOT_LIMIT_S:
            found.append(OutboxFault(False, held_back(what, age_s), END_IT))
    return found


END_IT: Final = "End that transaction, or drop the slot, and see why it stays open."


def held_back(what: str, age_s: float) -> str:
    """Say that a snapshot is old."""
    return f"{what} holds a snapshot of {age_s / 60:.0f} min: rows of delivered events cannot be removed"


def _unvacuumed(name: str, options: Sequence[str], *, is_on: bool) -> OutboxFault | None:
    stored: Mapping[str, str] = dict(option.split("=", 1) for option in options)
    table = f"asgi_datasource.{name}"
    if not is_on:
        return OutboxFault(False, f"autovacuum is off, and dead rows of {table} stay", "Set autovacuum = on.")
    if stored.get("autovacuum_enabled", "true") in ("false", "off", "no", "0"):
        fix = f"Run: alter table {table} reset (autovacuum_enabled)."
        return OutboxFault(False, f"autovacuum is off for {table}, and its dead rows stay", fix)
    scale, threshold = (stored.get(f"autovacuum_vacuum_{part}") for part in ("scale_factor", "threshold"))
    if scale is None or float(scale) > 0 or threshold is None or int(threshold) > MOST_THRESHOLD:
        return OutboxFault(
            False,
            f"autovacuum looks too late at {table}, whose rows are all deleted soon",
            f"Run: alter table {table} set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000).",
        )
    return None


class SnapshotWatch:
    """The age of the oldest snapshot of a database, from one look to the next.

    Not every role sees since when a transaction of another one is open; that it was there before is visible to all.
    """

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._since = 0.0
        self._has_warned = False

    def note(self, holders: Sequence[tuple[Any, ...]], now: float) -> tuple[str | None, float]:
        """Take in what a look has found.

        Args:
            holders: The rows of `HOLDER`.
            now: Monotonic time in seconds.

        Returns:
            What holds the oldest snapshot, and its age in seconds; None and 0 unless it was there at the last look.
        """
        key = None if not holders else (str(holders[0][0]), str(holders[0][1]))
        if key is None or key != self._key:
            self._key, self._since, self._has_warned = key, now, False
            return None, 0.0
        seen_s = now - self._since
        return key[0], max(seen_s, float(holders[0][2] or 0.0))

    def warns(self, age_s: float) -> bool:
        """Whether an age is worth a line in the log: once for each holder."""
        if age_s <= SNAPSHOT_LIMIT_S or self._has_warned:
            return False
        self._has_warned = True
        return True
