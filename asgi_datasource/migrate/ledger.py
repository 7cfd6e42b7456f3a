"""The table of migrations, one in each database: what has run in which schema, and what is running."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, LiteralString

from ..drivers.control import ControlConnection
from ..errors import DataError
from ..tenancy.provisioning.trust import ensure_schema
from .files import Kind

SHARED: Final = ""
"""The scope of shared migrations in the table; those of tenants are the names of their schemas."""

OWN: Final = "asgi_datasource."
"""The scopes of the library's own tables begin with this. Like the shared scope they have no schema's oid: the ledger
is in the schema of these tables, and is gone with it."""

TOOL: Final = "asgi-datasource"

_TABLE: Final = """
create table if not exists asgi_datasource.migration (
    scope text not null,
    version bigint not null,
    repeatable text not null default '',
    kind text not null check (kind in ('versioned', 'repeatable', 'baseline')),
    name text not null,
    nsp oid not null,
    state text not null check (state in ('running', 'applied', 'failed', 'baselined')),
    checksum bytea not null,
    raw_checksum bytea not null,
    run_id uuid not null,
    step int not null default 0,
    beat_at timestamptz,
    started_at timestamptz not null default clock_timestamp(),
    ms int,
    applied_by text not null default session_user,
    tool text not null,
    sqlstate text,
    error text,
    note text,
    primary key (scope, version, repeatable)
);
"""
_HOLDS: Final = ("migration",)


class EntryState(StrEnum):
    """What the table says of a migration in a schema."""

    RUNNING = "running"
    """A step without a transaction has been claimed; `beat_at` is its heartbeat."""
    APPLIED = "applied"
    """It has run."""
    FAILED = "failed"
    """A step without a transaction has stopped after `step` statements, and goes on there."""
    BASELINED = "baselined"
    """The schema counts as having it; it has not run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a migration in a schema.

    Attributes:
        version: The migration's version; 0 for repeatables.
        kind: What it does.
        name: The rest of its file's name.
        state: How far it is.
        checksum: Of the file that has run.
    """

    version: int
    kind: Kind
    name: str
    state: EntryState
    checksum: bytes

    @property
    def is_done(self) -> bool:
        """Whether the schema has it."""
        return self.state in (EntryState.APPLIED, EntryState.BASELINED)


@dataclass(frozen=True, slots=True)
class ScopeState:
    """What a database says of one scope.

    Attributes:
        oid: The oid of the schema now; None where there is no such schema. 0 for scopes that are no schema.
        has_objects: Whether there are tables or other relations in the schema.
        is_foreign: The rows are of another schema: this one was dropped and created again, or restored from a dump.
        entries: Its rows, by version.
    """

    oid: int | None
    has_objects: bool = False
    is_foreign: bool = False
    entries: tuple[Entry, ...] = ()


_STATE: Final[LiteralString] = """
with scopes as (
    select scope, case when scope = '' or left(scope, 16) = 'asgi_datasource.' then 0::oid else n.oid end as oid
    from unnest(%s::text[]) scope left join pg_namespace n on n.nspname = scope
), rows as (
    select scope, min(nsp::int8) as lowest, max(nsp::int8) as highest,
        string_agg(version || ':' || kind || ':' || state || ':' || encode(checksum, 'hex') || ':' || name, '|'
            order by version, repeatable) as entries
    from asgi_datasource.migration where scope = any(%s::text[]) group by scope
)
select s.scope, s.oid::int8, r.lowest, r.highest, r.entries,
    r.entries is null and s.scope <> '' and exists (select from pg_class c where c.relnamespace = s.oid)
from scopes s left join rows r on r.scope = s.scope
"""

_BARE: Final[LiteralString] = """
select s.scope, s.oid::int8, null::int8, null::int8, null::text,
    s.scope <> '' and exists (select from pg_class c where c.relnamespace = s.oid)
from (
    select scope, case when scope = '' or left(scope, 16) = 'asgi_datasource.' then 0::oid else n.oid end as oid
    from unnest(%s::text[]) scope left join pg_namespace n on n.nspname = scope
) s
"""
"""The same where the table does not exist yet."""

_NO_TABLE: Final = ("42P01", "3F000")
_SCOPES_A_QUERY: Final = 5_000


async def read_states(admin: ControlConnection, scopes: Iterable[str]) -> dict[str, ScopeState]:
    """What a database says of scopes, in one statement for up to 5,000 of them.

    Args:
        admin: A connection to the database.
        scopes: `""` for the shared scope, those of own tables, and names of schemas.

    Raises:
        DataError: The server refused it, or cannot be reached.
    """
    found: dict[str, ScopeState] = {}
    wanted = list(dict.fromkeys(scopes))
    for start in range(0, len(wanted), _SCOPES_A_QUERY):
        part = wanted[start : start + _SCOPES_A_QUERY]
        try:
            rows = await admin.rows(_STATE, part, part)
        except DataError as error:
            if error.sqlstate not in _NO_TABLE:
                raise
            rows = await admin.rows(_BARE, part)
        for scope, oid, lowest, highest, entries, has_objects in rows:
            is_foreign = lowest is not None and not (lowest == highest == oid)
            found[scope] = ScopeState(oid, has_objects, is_foreign, read_entries(entries or ""))
    return found


@lru_cache(maxsize=512)
def read_entries(text: str) -> tuple[Entry, ...]:
    """The rows of one scope as the query packs them; most tenants have the same, which are then one object."""
    if not text:
        return ()
    found: list[Entry] = []
    for row in text.split("|"):
        version, kind, state, checksum, name = row.split(":", 4)
        found.append(Entry(int(version), Kind(kind), name, EntryState(state), bytes.fromhex(checksum)))
    return tuple(found)


async def ensure_ledger(admin: ControlConnection, *, where: str, reader: str | None = None) -> None:
    """Create the table where it is missing.

    Args:
        admin: A connection to the database.
        where: Names the database in errors.
        reader: The role of the application, where it is another one: it reads the table at its start.

    Raises:
        DataError: CONFIG: another role has put something in its place. Or the role may not create a schema.
    """
    await ensure_schema(admin, _TABLE, holds=_HOLDS, where=where)
    if reader is not None and not await admin.rows(_MAY_READ, reader, reader):
        await admin.command("grant usage on schema asgi_datasource to {}", reader)
        await admin.command("grant select on asgi_datasource.migration to {}", reader)


_MAY_READ: Final[LiteralString] = (
    "select from pg_catalog.pg_roles where rolname = %s"
    " and pg_catalog.has_schema_privilege(oid, 'asgi_datasource', 'usage')"
    " and pg_catalog.has_table_privilege(oid, 'asgi_datasource.migration', 'select')"
    " or not exists (select from pg_catalog.pg_roles where rolname = %s) limit 1"
)
"""A row where the role may read the table, or is not there."""


# -- statements that are part of a step --------------------------------------------------------------------------------

ROW_OF: Final[LiteralString] = (
    "select state, encode(checksum, 'hex'), run_id::text, step,"
    " beat_at < pg_catalog.clock_timestamp() - interval '15 seconds'"
    " from asgi_datasource.migration where scope = {scope} and version = {version} and repeatable = {repeatable}"
)
"""The row of one migration in one scope, for the check under the lock."""

WRITE: Final[LiteralString] = (
    "insert into asgi_datasource.migration"
    " (scope, version, repeatable, kind, name, nsp, state, checksum, raw_checksum, run_id, step, beat_at, ms, tool,"
    " note)"
    " values ({scope}, {version}, {repeatable}, {kind}, {name}, {oid}::pg_catalog.oid, {state}, {checksum},"
    " {raw_checksum}, {run_id}::pg_catalog.uuid, {step}, pg_catalog.clock_timestamp(),"
    " extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.transaction_timestamp()) * 1000, {tool}, {note})"
    " on conflict (scope, version, repeatable) do update set kind = excluded.kind, name = excluded.name,"
    " nsp = excluded.nsp, state = excluded.state, checksum = excluded.checksum, raw_checksum = excluded.raw_checksum,"
    " run_id = excluded.run_id, step = excluded.step, beat_at = excluded.beat_at, ms = excluded.ms,"
    " applied_by = excluded.applied_by, tool = excluded.tool, note = excluded.note, sqlstate = null, error = null,"
    " started_at = pg_catalog.clock_timestamp()"
)
"""Writes the row of one migration in one scope."""

ERASE: Final[LiteralString] = (
    "delete from asgi_datasource.migration where scope = {scope} and version = {version} and repeatable = {repeatable}"
)


def row_values(scope: str, entry: Mapping[str, object]) -> dict[str, object]:
    """The values of `WRITE` for a scope."""
    return {"scope": scope, "tool": TOOL, "note": None, "step": 0, **entry}


def lock_key(scope: str) -> str:
    """What the advisory lock of a scope is taken on; the database is part of every advisory lock."""
    return f"asgi_datasource.migration {scope}"


def done_versions(entries: Sequence[Entry]) -> tuple[int, frozenset[int]]:
    """Up to which version a baseline covers a scope, and which versions it has besides."""
    baseline = max((entry.version for entry in entries if entry.kind is Kind.BASELINE and entry.is_done), default=0)
    versions = {entry.version for entry in entries if entry.kind is Kind.VERSIONED and entry.is_done}
    return baseline, frozenset(versions)
